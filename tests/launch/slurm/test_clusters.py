"""Cluster files, and recipes that meet them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.slurm.clusters import Cluster, find_cluster, known_clusters, load_cluster, read_cluster
from sft_dist.recipe.errors import UserError

GPU = {
    "name": "big",
    "gpus_per_node": 4,
    "cpus_per_node": 64,
    "memory_per_node": "400GiB",
    "max_time": "1d",
    "max_nodes": 8,
}


def make_cluster(**settings: object) -> Cluster:
    return Cluster.model_validate({**GPU, **settings})


@pytest.mark.parametrize("name", ["devcluster", "example"])
def test_the_shipped_clusters_load_by_name(name: str) -> None:
    assert load_cluster(name).name == name


def test_ones_own_cluster_hides_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    own = tmp_path / "sft-dist/clusters/example.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("cpus_per_node: 3\n")
    assert known_clusters()["example"] == own
    assert load_cluster("example").cpus_per_node == 3


def test_a_name_that_is_nearly_right_is_recognised() -> None:
    with pytest.raises(UserError, match="did you mean `devcluster`") as caught:
        find_cluster("devclustr")
    assert "local" in str(caught.value)


def test_every_mistake_is_named_at_once_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "partition: a b\n"
        "gpus: 4\n"
        "cpus_per_node: many\n"
        "max_time: 90\n"
        "environment: {A B: x, BASH_ENV: x, OK: true}\n"
        "container: {runtime: docker, image: x}\n"
        "venv: relative/path\n"
    )
    with pytest.raises(UserError) as caught:
        read_cluster(file)
    text = str(caught.value)
    for part in (
        ":1:12: partition: expected a name",
        ":2:1: gpus: unknown key `gpus` at the top of a cluster file",
        "did you mean `gpus_per_node`?",
        ":3:16: cpus_per_node: expected a whole number",
        ":4:11: max_time: expected a time with units",
        "environment.A B: expected an environment variable that belongs",
        "environment.BASH_ENV: expected an environment variable that belongs",
        "environment.OK: expected text, found true/false",
        "valid: apptainer, pyxis",
        ":7:7: venv: expected an absolute path",
    ):
        assert part in text


def test_further_sbatch_options_are_real_ones_and_not_those_this_program_writes(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        'cpus_per_node: 2\nsbatch: {partition: x, reservtion: y, mail-user: "a b", --nice: 3, exclusive: false, output: x}\n'
    )
    with pytest.raises(UserError) as caught:
        read_cluster(file)
    text = str(caught.value)
    assert "sbatch.partition: --partition is set by this program" in text
    assert "did you mean `reservation`?" in text
    assert "sbatch.mail-user: expected text without blanks" in text
    assert "write it without `--`" in text
    assert "sbatch.output: not an sbatch option that can be set here" in text
    assert "remove the option instead of setting it to false" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"venv": "/v", "conda": "c"}, "not both"),
        ({"container": {"runtime": "pyxis", "image": "x"}, "venv": "/v"}, "brings its own Python"),
        ({"gpus_per_node": 0, "gpu_type": "h100"}, "needs gpus_per_node"),
        ({"gpus_per_node": 0, "gpu_type": None, "gpu_memory": "80GB"}, "`gpu_memory` needs gpus_per_node"),
        ({"nccl": {"PATH": "x"}}, "belongs to environment"),
        ({"environment": {"HF_TOKEN": "x"}}, "HF_TOKEN looks like a secret"),
        ({"environment": {"AWS_SECRET_ACCESS_KEY": "x"}}, "looks like a secret"),
        ({"environment": {"aws_access_key_id": "x"}}, "looks like a secret"),
        ({"environment": {"HF_TOKEN_2": "x"}}, "looks like a secret"),
        ({"environment": {"SSH_PASSPHRASE": "x"}}, "looks like a secret"),
        ({"environment": {"DB_PASS": "x"}}, "looks like a secret"),
        ({"environment": {"OPENAI_KEY": "x"}}, "looks like a secret"),
        ({"environment": {"MYSQL_PWD": "x"}}, "looks like a secret"),
        ({"environment": {"AWS_CREDS": "x"}}, "looks like a secret"),
        ({"environment": {"PAT": "x"}}, "looks like a secret"),
        ({"environment": {"SLACK_WEBHOOK_URL": "x"}}, "looks like a secret"),
        ({"environment": {"HUB": "hf_abcdefghijklmnopqrst"}}, "HUB looks like a secret"),
        ({"environment": {"NOTE": "use ghp_abcdefghijklmnopqrst"}}, "looks like a secret"),
        ({"environment": {"HTTPS_PROXY": "http://me:hunter2@proxy:80"}}, "HTTPS_PROXY looks like a secret"),
        ({"nccl": {"NCCL_TOKEN": "x"}}, "looks like a secret"),
        ({"environment": {"WANDB_API_KEY": "x"}}, "jobs inherit it"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    import yaml

    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({**GPU, **settings}))
    with pytest.raises(UserError, match=message):
        read_cluster(file)


def test_all_mistakes_of_a_cluster_file_are_told_together(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("cpus_per_node: none\nsbatch: {partition: gpu, reservatoin: x}\n")
    with pytest.raises(UserError) as caught:
        read_cluster(file)
    assert [problem.path for problem in caught.value.problems] == [
        "cpus_per_node", "sbatch.partition", "sbatch.reservatoin"
    ]  # fmt: skip
