"""Drafts of cluster files."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.slurm.clusters import read_cluster
from launch.slurm.probe import Probed, draft, gpu_memory_gb, gpus_of


@pytest.mark.parametrize(
    ("names", "gb"),
    [
        ("a100_80gb ", 80),
        ("a100 intel,gpu_mem:40g,ib", 40),
        ("h100 gpumem_94gb", 94),
        ("h200 ib,gpu", 141),
        (" a40,amd", 48),
        ("a100 ib,skylake", None),  # 40 or 80
        ("v100 mem_384g", None),  # the node's own
        ("", None),
    ],
)
def test_memory_of_a_gpu_is_drafted_where_its_names_tell(names: str, gb: int | None) -> None:
    assert gpu_memory_gb(names) == gb


@pytest.mark.parametrize(
    ("gres", "found"),
    [
        ("gpu:h100:4", ("h100", 4)),
        ("gpu:a100:8(S:0-1)", ("a100", 8)),
        ("gpu:2", ("", 2)),
        ("gpu:a100:2,gpu:v100:2", ("", 4)),
        ("(null)", ("", 0)),
        ("shard:8", ("", 0)),
    ],
)
def test_gpus_are_read_from_what_slurm_prints(gres: str, found: tuple[str, int]) -> None:
    assert gpus_of(gres) == found


def test_a_draft_is_a_valid_cluster_file(tmp_path: Path) -> None:
    nodes = (("gpu*", "16", "64000", "gpu:h100:4", "h100", "4:00:00"),) * 3 + (
        ("gpu*", "8", "32000+", "gpu:v100:2", "v100", "4:00:00"),
    )
    text = draft(
        Probed(
            "gpu",
            ("debug",),
            nodes,
            "PartitionName=gpu\n   MaxNodes=UNLIMITED MaxTime=04:00:00 MinNodes=0\n",
            "AccountingStorageType   = accounting_storage/none\nMaxArraySize            = 5001\nJobRequeue   = 0\n",
        )
    )
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    found = read_cluster(file)
    assert (found.gpus_per_node, found.gpu_type, found.cpus_per_node) == (4, "h100", 16)
    assert (found.max_nodes, found.max_time_s, found.max_array_size) == (4, 4 * 3600, 5001)
    assert not found.accounting
    assert not found.preemption.requeue
    assert "(3 of 4)" in text
