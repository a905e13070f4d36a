"""What the strategies rely on, asked of the real `accelerate launch`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.expand import Run
from launch.plan import Machine, plan_run
from tests.launch.conftest import ROWS, make_recipe

PROBE = """\
import json, os, sys
from accelerate import Accelerator
import torch.distributed as dist
a = Accelerator(cpu=True)
backend = dist.get_backend() if dist.is_initialized() else ""
facts = [a.num_processes, int(os.environ.get("WORLD_SIZE", 1)), backend, os.environ["OMP_NUM_THREADS"],
         str(a.mixed_precision), os.getsid(0) == os.getpid()]
with open(os.path.join(sys.argv[1], f"rank-{a.process_index}.json"), "w") as file:
    json.dump(facts, file)
if dist.is_initialized():
    dist.barrier()
    dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)
"""

# Somebody's earlier `accelerate config`, which must not leak into a run.
HOSTILE = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
debug: false
gpu_ids: '0'
num_processes: 5
num_machines: 3
machine_rank: 2
main_process_ip: 10.1.2.3
main_process_port: 1
mixed_precision: bf16
use_cpu: false
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_planned_command_starts_the_planned_processes_whatever_accelerate_config_says(
    tmp_path: Path, processes: int
) -> None:
    folder = tmp_path / "0123456789"
    (folder / "source/sft_dist").mkdir(parents=True)
    (folder / "source/sft_dist/__init__.py").touch()
    (folder / "source/sft_dist/train.py").write_text(PROBE)
    config = tmp_path / "hub/accelerate/default_config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(HOSTILE)
    plan = plan_run(Run("0123456789", make_recipe(), {}), Machine(0, 2), ROWS, folder, sys.executable, processes)
    env = {**os.environ, **plan.env, "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(plan.argv, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    told = {path.name: json.loads(path.read_text()) for path in folder.glob("rank-*.json")}
    assert len(told) == processes
    backend = "gloo" if processes > 1 else ""
    for facts in told.values():
        # The last one is why the processes of an attempt are found by a token and not by their process group.
        assert facts == [processes, processes, backend, str(2 // processes), "no", processes > 1]
