"""What befalls a job on a real Slurm, done to a real training of a tiny model: each time the run ends with the losses and
the weights of one that nobody disturbed, or says why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import launch
from launch.ledger import state_of
from launch.slurm.jobs import jobs_of
from sft_dist.recipe.run_folder import AttemptFolder, RunFolder, read_json
from sft_dist.recipe.verdict import Verdict, verdict_of
from tests.integration import harness
from tests.slurm.conftest import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("slurm")]
ROOT = Path(launch.__file__).parent.parent
STEPS = 60

RECIPE = {
    "name": "tiny",
    "task": "text-classification",
    "tuning": "full",
    # Many micro-batches, so that a step lasts long enough to be disturbed.
    "train": {
        "steps": STEPS,
        "global_batch": 24,
        "micro_batch": 1,
        "lr": 1e-3,
        "save_every": "7 steps",
        "log_every": 1,
    },
    "resources": {"time": "40min", "threads_per_process": 1, "hang_timeout": "6s"},
}
CLUSTER = """\
partition: gpu
gpus_per_node: 0
cpus_per_node: 2
memory_per_node: 4GB
max_time: 1h
max_nodes: 4
preemption: {signal_lead: 1min}
"""


@pytest.fixture(scope="module")
def recipe(tiny_model: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survival")
    data = {"source": str(reviews), "max_length": 48}
    text = {**RECIPE, "model": {"path": str(tiny_model)}, "data": data}
    (folder / "tiny.yaml").write_text(json.dumps(text))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> Path:
    """Two ranks without Slurm, to the end."""
    return harness.run(recipe, recipe.parent / "undisturbed", world_size=2)


@dataclass
class Job:
    """A training on two nodes."""

    cluster: Cluster
    folder: RunFolder
    env: dict[str, str]

    @property
    def id(self) -> int:
        return int(jobs_of(self.folder.path)[0].job)

    def wait_for_step(self, step: int, timeout_s: float = 150) -> None:
        what = f"step {step}"
        self.cluster.wait_until(lambda: max(harness.losses(self.folder.path), default=0) >= step, timeout_s, what)

    def wait_for_attempt(self, number: int) -> None:
        self.cluster.wait_until(lambda: len(self.folder.all_attempts()) >= number, 90, f"attempt {number}")

    def end(self, timeout_s: float = 240) -> list[str]:
        return self.cluster.wait_for_job(self.id, timeout_s)

    def rank(self, rank: int) -> dict[str, object]:
        """The rank's last sign of life; its pid is valid on this machine, as nodes share the process table."""
        attempt = self.folder.all_attempts()[-1]
        self.cluster.wait_until(lambda: bool(read_json(attempt.beat_file(rank))), 30, f"rank {rank}'s sign of life")
        found = read_json(attempt.beat_file(rank))
        assert isinstance(found, dict)
        return found

    def verdict(self, number: int) -> Verdict:
        return verdict_of(self.folder, AttemptFolder(self.folder.attempts / f"{number:03d}"))

    def sft_dist(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "launch", *words, "--runs", str(self.folder.path.parent.parent)],
            env=self.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def nothing_is_left(self) -> None:
        """No process of this run on any node."""
        wanted = str(self.folder.path).encode()

        def left() -> list[str]:
            found = []
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    try:
                        line = (entry / "cmdline").read_bytes()
                    except OSError:
                        continue
                    if wanted in line and b"sft_dist" in line:
                        found.append(entry.name)
            return found

        self.cluster.wait_until(lambda: not left(), 30, "the end of all processes")


Submit = Callable[..., Job]


@pytest.fixture
def submit(idle_cluster: Cluster, recipe: Path, tmp_path: Path) -> Iterator[Submit]:
    def send(*words: str, cluster: str = "") -> Job:
        (tmp_path / "here.yaml").write_text(CLUSTER + cluster)
        env = {**idle_cluster.environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "launch", "submit", str(recipe), "resources.nodes=2",
             "resources.processes_per_node=1", *words, "--cluster", str(tmp_path / "here.yaml"), "--no-eval",
             "--runs", str(tmp_path / "runs")],
            cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return Job(idle_cluster, RunFolder(harness.the_run(tmp_path / "runs")), env)

    yield send
    idle_cluster.devcluster("up")  # whatever was cut or killed


def number_of(host: str) -> str:
    """`node3` of the only cluster, `c2-node3` of one of several."""
    return host.rpartition("node")[2]


def assert_same(job: Job, undisturbed: Path) -> None:
    assert state_of(job.folder.path).state == "finished", [job.verdict(n.number) for n in job.folder.all_attempts()]
    assert harness.losses(job.folder.path) == harness.losses(undisturbed)
    assert sorted(harness.losses(undisturbed)) == list(range(1, STEPS + 1))
    assert harness.weights(job.folder.path, STEPS) == harness.weights(undisturbed, STEPS)
    job.nothing_is_left()


def test_a_preemption_without_grace_costs_at_most_what_was_not_saved(submit: Submit, undisturbed: Path):
    job = submit(cluster="qos: low\n")
    job.wait_for_step(10)
    job.cluster.run_sbatch("sleep 1", "--qos=high", "--nodes=4", "--exclusive")
    assert job.end()[0] == "PREEMPTED"
    assert len(job.folder.all_attempts()) == 2
    assert_same(job, undisturbed)
    assert (read_json(job.folder.all_attempts()[1].start_file) or {})["first_step"] >= 7


def test_a_preemption_with_grace_is_used_to_save(submit: Submit, undisturbed: Path):
    job = submit(cluster="qos: grace\n")
    job.cluster.devcluster("preempt-signal", "on")
    try:
        job.wait_for_step(10)
        job.cluster.run_sbatch("sleep 1", "--qos=high", "--nodes=4", "--exclusive")
        job.end()
    finally:
        job.cluster.devcluster("preempt-signal", "off")
    assert job.verdict(1).state == "stopped"
    assert job.verdict(1).cause == "preempted"
    stopped = (read_json(job.folder.all_attempts()[0].outcome_file) or {})["last_step"]
    assert (read_json(job.folder.all_attempts()[1].start_file) or {})["first_step"] == stopped
    assert_same(job, undisturbed)


def test_a_time_limit_is_met_with_a_checkpoint_and_another_start(submit: Submit, undisturbed: Path):
    job = submit()
    job.wait_for_step(5)
    job.cluster.run("scontrol", "update", f"jobid={job.id}", "EndTime=now+61")
    job.cluster.wait_for_state(job.id, "PENDING", 90)
    job.cluster.run("scontrol", "update", f"jobid={job.id}", "TimeLimit=40")
    assert job.end()[-1] == "COMPLETED"
    assert (job.verdict(1).state, job.verdict(1).cause) == ("stopped", "time limit")
    assert_same(job, undisturbed)


@pytest.mark.parametrize("hang_timeout", ["6s", "30min"], ids=["noticed by the watcher", "noticed by Slurm"])
def test_a_lost_node_is_survived_and_named(submit: Submit, undisturbed: Path, hang_timeout: str):
    job = submit(f"resources.hang_timeout={hang_timeout}")
    job.wait_for_step(10)
    lost = str(job.rank(1)["host"])
    job.cluster.devcluster("node-cut", number_of(lost))
    job.wait_for_attempt(2)
    job.end()
    second = read_json(job.folder.all_attempts()[-1].start_file) or {}
    assert lost not in job.cluster.run("scontrol", "show", "hostnames", str(second["nodes"])).split()
    assert job.verdict(1).cause in ("node lost", "requeued", "network", "hang")
    job.cluster.devcluster("node-heal", number_of(lost))  # until then nobody can end what still runs there
    assert_same(job, undisturbed)


def test_a_stopped_rank_is_named_its_stacks_kept_and_the_run_started_again(submit: Submit, undisturbed: Path):
    job = submit()
    job.wait_for_step(10)
    rank = job.rank(1)
    os.kill(int(str(rank["pid"])), signal.SIGSTOP)
    job.wait_for_attempt(2)
    job.end()
    found = job.verdict(1)
    assert (found.cause, found.rank, found.host) == ("hang", 1, rank["host"])
    assert 'loop.py", line' in job.folder.all_attempts()[0].stack_file(0).read_text()
    assert_same(job, undisturbed)


def test_a_killed_rank_is_named_though_srun_says_something_else(submit: Submit, undisturbed: Path):
    job = submit()
    job.wait_for_step(10)
    rank = job.rank(1)
    os.kill(int(str(rank["pid"])), signal.SIGKILL)
    job.wait_for_attempt(2)
    found = job.verdict(1)
    assert (found.cause, found.rank, found.host) == ("killed", 1, rank["host"])
    assert "rank 1 on" in job.sft_dist("status") or state_of(job.folder.path).state in ("sealed", "running", "killed")
    job.end()
    assert_same(job, undisturbed)


def test_scontrol_requeue_and_a_killed_slurmd_are_survived(submit: Submit, undisturbed: Path):
    job = submit()
    job.wait_for_step(10)
    job.cluster.run("scontrol", "requeue", str(job.id))
    job.wait_for_attempt(2)
    job.wait_for_step(20)
    job.cluster.devcluster("node-kill", number_of(str(job.rank(1)["host"])))  # the job lives on
    job.end()
    assert job.verdict(1).cause == "requeued"
    assert_same(job, undisturbed)


def test_a_loss_that_is_no_number_is_named_and_not_tried_again(submit: Submit):
    job = submit("train.lr=1.0e30", "train.clip_norm=null")
    job.end()
    assert job.verdict(1).cause == "not a number"
    assert len(job.folder.all_attempts()) == 1


def test_cancelling_a_running_job_saves_and_does_not_requeue(submit: Submit):
    job = submit()
    job.wait_for_step(5)
    job.sft_dist("cancel", str(job.folder.path), "--yes")
    job.end()
    assert len(job.folder.all_attempts()) == 1
    assert (job.verdict(1).state, job.verdict(1).cause) == ("stopped", "cancelled")
    assert "stopped" in job.sft_dist("status")
    job.nothing_is_left()
