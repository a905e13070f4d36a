"""Stand-ins for Slurm's commands, and run folders with job scripts, for the tests of this folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.expand import Run
from launch.plan import Machine, Plan, plan_run
from launch.planning import PlannedRun
from launch.slurm.clusters import Cluster
from launch.slurm.job import job_script
from sft_dist.run.folder import run_id
from tests.launch.conftest import ROWS, STUBS, make_recipe

Golden = Callable[[str, str], None]
CLUSTER = Cluster.model_validate({"name": "here", "cpus_per_node": 4, "max_time": "1d"})


class Slurm:
    """The stand-ins' notes, and what they show."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self.queue = path / "slurm.log", path / "queue"
        monkeypatch.setenv("PATH", f"{STUBS / 'slurm'}:{os.environ['PATH']}")
        monkeypatch.setenv("STUB_LOG", str(self.log))
        monkeypatch.setenv("STUB_QUEUE", str(self.queue))

    def calls(self, name: str) -> list[list[str]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [re.findall(r"<([^>]*)>", line) for line in lines if line.startswith(f"{name} ")]

    def show(self, *lines: str) -> None:
        """`JOB|STATE|COMMENT`."""
        rows = (line.split("|") for line in lines)
        text = (f"{job}|{state}|None|node1|1:00|(null)|{comment}\n" for job, state, comment in rows)
        self.queue.write_text("".join(text))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(tmp_path, monkeypatch)


def prepared(root: Path, count: int = 1, cluster: Cluster = CLUSTER, **resources: object) -> list[PlannedRun]:
    found = []
    for seed in range(count):
        recipe = make_recipe(train={"seed": seed}, resources=resources)
        run = Run(run_id(recipe), recipe, {"train.seed": seed})
        folder = root / "demo" / run.id
        found.append(
            PlannedRun(run, plan_run(run, Machine.node_of(cluster), ROWS, folder, sys.executable, None, cluster))
        )
    return found


def make_cluster(**settings: object) -> Cluster:
    return Cluster.model_validate({"name": "here", "cpus_per_node": 4, **settings})


def planned(
    cluster: Cluster, folder: Path = Path("/runs/demo/0123456789"), nodes: int = 2, python: str = "/venv/bin/python"
) -> Plan:
    run = Run("0123456789", make_recipe(resources={"nodes": nodes}), {})
    return plan_run(run, Machine.node_of(cluster), ROWS, folder, python, None, cluster)


@dataclass
class Bench:
    """A folder with a rendered job, run as slurmd would: a copy of the script, with Slurm's variables around it."""

    path: Path
    env: dict[str, str]

    @property
    def run_folder(self) -> Path:
        return self.path / "runs" / "demo" / "0123456789"

    @property
    def log(self) -> list[str]:
        file = Path(self.env["STUB_LOG"])
        return file.read_text().splitlines() if file.exists() else []

    def calls(self, name: str) -> list[list[str]]:
        return [re.findall(r"<([^>]*)>", line) for line in self.log if line.startswith(name)]

    def render(self, nodes: int = 2, **settings: object) -> Path:
        cluster = make_cluster(**settings)
        self.run_folder.mkdir(parents=True, exist_ok=True)
        text = job_script(planned(cluster, self.run_folder, nodes, str(STUBS / "slurm/python")), cluster, 1800)
        (self.run_folder / "job.sbatch").write_text(text)
        spooled = self.path / "slurm_script"  # slurmd runs a copy, so `$0` says nothing about the run folder
        spooled.write_text(text)
        return spooled

    def start(self, script: Path, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(script)], cwd=self.path, env={**self.env, **env}, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def launcher_log(self, attempt: int = 1) -> str:
        return (self.run_folder / f"attempts/{attempt:03d}/launcher.log").read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    env = {
        "PATH": f"{STUBS / 'slurm'}:{os.environ['PATH']}", "HOME": str(tmp_path), "STUB_LOG": str(tmp_path / "log"),
        "STUB_PYTHON": sys.executable, "STUB_VERDICT": "action=stop", "STUB_TRAIN": "true",
        "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "4",
    }  # fmt: skip
    return Bench(tmp_path, env)


def run_script(bench: Bench, script: Path, **env: str) -> int:
    process = bench.start(script, **env)
    process.communicate(timeout=30)
    return process.returncode
