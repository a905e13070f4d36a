"""What befalls a job on a real Slurm, done to a real training of a tiny model: each time the run ends with the losses and
the weights of one that nobody disturbed, or says why not.

Before something is done to a training its ranks are stopped (SIGSTOP), and let go when it has arrived. So a test neither
races with a fast machine nor has to train long for a slow one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import launch
from launch.run_state import state_of
from launch.slurm.records import jobs_of
from sft_dist.recipe.files import read_json, write_json
from sft_dist.run.causes import AttemptEnd, classify_attempt
from sft_dist.run.folder import AttemptFolder, RunFolder
from sft_dist.run.locks import locked
from sft_dist.run.requeue_policy import saved_step
from tests.integration import harness
from tests.slurm.conftest import Cluster

# Deadlines are for a machine that has much else to do: four starts of torch have taken six minutes there.
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.starts_first,
    pytest.mark.timeout(1500),
]
ROOT = Path(launch.__file__).parent.parent
STEPS = 30

RECIPE = {
    "name": "tiny",
    "task": "text-classification",
    "tuning": "full",
    # Many micro-batches, so that a step lasts long enough to stop the ranks between the first and the last.
    "train": {
        "steps": STEPS,
        "global_batch": 12,
        "micro_batch": 1,
        "lr": 1e-3,
        "save_every": "7 steps",
        "async_save": False,  # ranks are stopped right after a save: how far a thread has come depends on the machine
        "log_every": 1,
    },
    "resources": {"time": "40min", "threads_per_process": 1, "hang_timeout": "20s"},
}
CLUSTER = """\
partition: gpu
gpus_per_node: 0
cpus_per_node: 4
memory_per_node: 8GB
max_time: 1h
max_nodes: 4
preemption: {signal_lead: 1min}
"""


@pytest.fixture(scope="module")
def recipe(tiny_model: Path, reviews: Path, shared_folder: Path) -> Path:
    folder = shared_folder / "survival"
    folder.mkdir(exist_ok=True)
    with locked(folder / "lock"):
        if not (folder / "tiny.yaml").exists():
            data = {"source": str(reviews), "max_length": 48}
            text = {**RECIPE, "model": {"path": str(tiny_model)}, "data": data}
            write_json(folder / "tiny.yaml", text)
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> Path:
    """Two ranks without Slurm, to the end; by the first worker that needs it."""
    with locked(recipe.parent / "lock"):
        if not (recipe.parent / "undisturbed").exists():
            harness.run(recipe, recipe.parent / "unfinished", world_size=2)
            (recipe.parent / "unfinished").rename(recipe.parent / "undisturbed")
    return harness.the_run(recipe.parent / "undisturbed")


@dataclass(frozen=True)
class Rank:
    pid: int
    host: str


@dataclass
class Job:
    """A training on two nodes."""

    cluster: Cluster
    folder: RunFolder
    env: dict[str, str]

    @property
    def id(self) -> int:
        return int(jobs_of(self.folder.path)[-1].job)

    def send_again(self) -> None:
        self.sft_dist(
            "submit",
            str(self.folder.path),
            "--cluster",
            str(self.folder.path.parents[2] / "here.yaml"),
            "--no-eval",
            "--no-check",
        )

    def pause_at(self, step: int, timeout_s: float = 300) -> None:
        """Stop all ranks once the newest attempt is past `step`."""
        deadline = time.monotonic() + timeout_s
        while self.step() < step:
            assert time.monotonic() < deadline, f"step {step} was not reached\n{self.cluster.picture()}"
            time.sleep(0.02)
        self.signal_ranks(signal.SIGSTOP)
        assert self.step() < STEPS, "too fast for this test"

    def step(self) -> int:
        """Of the newest attempt."""
        newest = len(self.folder.all_attempts())
        return max(
            (step for step, line in harness.metrics(self.folder.path).items() if line["attempt"] == newest), default=0
        )

    def go_on(self) -> None:
        self.signal_ranks(signal.SIGCONT)

    def is_being_preempted(self) -> bool:
        return "PreemptTime=None" not in self.cluster.run("scontrol", "show", "job", "-o", str(self.id))

    def wait_for_warning(self, timeout_s: float = 60) -> None:
        """Until the batch script was sent a signal, and asks the ranks to save."""
        self.cluster.wait_until(self.folder.stop_file.exists, timeout_s, "the warning")

    def signal_ranks(self, number: signal.Signals) -> None:
        for rank in self.ranks().values():
            os.kill(rank.pid, number)

    def wait_for_attempt(self, number: int) -> None:
        self.cluster.wait_until(lambda: len(self.folder.all_attempts()) >= number, 180, f"attempt {number}")

    def end(self, timeout_s: float = 400) -> list[str]:
        return self.cluster.wait_for_job(self.id, timeout_s)

    def ranks(self) -> dict[int, Rank]:
        """The ranks that live. All nodes share this machine's process table."""
        found = {}
        for pid in self.processes():
            try:
                pairs = (pair.partition("=") for pair in Path(f"/proc/{pid}/environ").read_text().split("\0"))
            except OSError:
                continue
            env = {key: value for key, _, value in pairs}
            if "RANK" in env:
                found[int(env["RANK"])] = Rank(pid, env["SLURMD_NODENAME"])
        return found

    def processes(self) -> list[int]:
        """Of this run, on any node: ranks, launchers, the watcher."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(self.folder.path).encode() in line and b"sft_dist" in line and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        return found

    def verdict(self, number: int) -> AttemptEnd:
        return classify_attempt(self.folder, AttemptFolder(self.folder.attempts / f"{number:03d}"))

    def sft_dist(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "launch", *words, "--runs", str(self.folder.path.parent.parent)],
            env=self.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def nothing_is_left(self) -> None:
        self.cluster.wait_until(lambda: not self.processes(), 30, "the end of all processes")


Submit = Callable[..., Job]


@pytest.fixture
def submit(idle_cluster: Cluster, recipe: Path, tmp_path: Path) -> Iterator[Submit]:
    def send(*words: str, cluster: str = "", processes_per_node: int = 1) -> Job:
        (tmp_path / "here.yaml").write_text(CLUSTER + cluster)
        env = {**idle_cluster.environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "launch", "submit", str(recipe), "--no-check", "resources.nodes=2",
             f"resources.processes_per_node={processes_per_node}", *words, "--cluster", str(tmp_path / "here.yaml"), "--no-eval",
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


def first_step(job: Job, attempt: int) -> int:
    return int((read_json(job.folder.all_attempts()[attempt - 1].start_file) or {})["first_step"])


def test_one_thing_after_the_other_is_survived_and_named(submit: Submit, undisturbed: Path):
    """A preemption without grace, a requeue, a killed rank, a killed slurmd: one start of torch for each, not two."""
    job = submit("resources.hang_timeout=30min", cluster="qos: low\n")
    job.pause_at(8)
    job.cluster.run_sbatch("sleep 1", "--qos=high", "--nodes=4", "--exclusive")
    job.wait_for_attempt(2)
    assert job.cluster.sacct_states(job.id)[0] == "PREEMPTED"
    job.pause_at(12)
    assert first_step(job, 2) >= 7
    job.cluster.run("scontrol", "requeue", str(job.id))
    job.wait_for_attempt(3)
    job.pause_at(16)
    killed = job.ranks()[1]
    os.kill(killed.pid, signal.SIGKILL)
    job.go_on()
    job.wait_for_attempt(4)
    found = job.verdict(3)
    assert (found.cause, found.rank, found.host) == ("killed", 1, killed.host)
    assert [job.verdict(number).cause for number in (1, 2)] == ["preempted", "requeued"]
    job.pause_at(20)
    job.cluster.devcluster("node-kill", number_of(job.ranks()[1].host))  # the job lives on
    job.go_on()
    job.end()
    assert len(job.folder.all_attempts()) == 4
    assert_same(job, undisturbed)


@pytest.mark.parametrize("told", ["the shell", "only the ranks"])
def test_a_preemption_with_grace_is_used_to_save(submit: Submit, undisturbed: Path, told: str):
    """Whether Slurm signals the batch shell, too, is its setting (preempt_send_user_signal)."""
    job = submit("resources.hang_timeout=30min", cluster="qos: grace\n")
    job.cluster.devcluster("preempt-signal", "on" if told == "the shell" else "off")
    try:
        job.pause_at(10)
        job.cluster.run_sbatch("sleep 1", "--qos=high", "--nodes=4", "--exclusive")
        if told == "the shell":
            job.wait_for_warning()
        else:
            job.cluster.wait_until(job.is_being_preempted, 60, "the end of the grace time in sight")
        job.go_on()
        job.end()
    finally:
        job.cluster.devcluster("preempt-signal", "off")
    assert (job.verdict(1).state, job.verdict(1).cause) == ("stopped", "preempted")
    assert first_step(job, 2) == (read_json(job.folder.all_attempts()[0].outcome_file) or {})["last_step"]
    assert_same(job, undisturbed)


def test_a_time_limit_is_met_with_a_checkpoint_and_another_start(submit: Submit, undisturbed: Path):
    job = submit("resources.hang_timeout=30min")  # Slurm looks at time limits every 30 s only
    job.pause_at(5)
    job.cluster.run("scontrol", "update", f"jobid={job.id}", "EndTime=now+61")
    job.wait_for_warning()
    job.go_on()
    job.cluster.wait_for_state(job.id, "PENDING", 60)
    job.cluster.run("scontrol", "update", f"jobid={job.id}", "TimeLimit=40")
    assert job.end()[-1] == "COMPLETED"
    assert (job.verdict(1).state, job.verdict(1).cause) == ("stopped", "time limit")
    assert_same(job, undisturbed)


def test_a_lost_node_is_survived_and_named(submit: Submit, undisturbed: Path):
    job = submit("resources.hang_timeout=6s")
    job.pause_at(10)
    lost = job.ranks()[1].host
    job.cluster.devcluster("node-cut", number_of(lost))
    job.go_on()
    job.wait_for_attempt(2)
    job.end()
    second = read_json(job.folder.all_attempts()[-1].start_file) or {}
    assert lost not in job.cluster.run("scontrol", "show", "hostnames", str(second["nodes"])).split()
    found = job.verdict(1)
    assert found.cause in ("node lost", "network", "hang")
    assert lost in found.line
    job.cluster.devcluster("node-heal", number_of(lost))  # until then nobody can end what still runs there
    assert_same(job, undisturbed)


def test_the_first_node_is_lost_with_the_batch_script_on_it(submit: Submit, undisturbed: Path):
    """Slurm starts the job elsewhere, while the old rank 0 lives on where Slurm cannot end it, and has the run locked."""
    job = submit("resources.hang_timeout=30min")
    job.pause_at(10)
    old = job.ranks()[0]
    job.cluster.devcluster("node-cut", number_of(old.host))
    job.wait_for_attempt(2)
    job.cluster.wait_until(job.folder.all_attempts()[1].decision_file.exists, 180, "the second attempt's end")
    assert job.verdict(2).cause == "in use"
    os.kill(old.pid, signal.SIGKILL)  # somebody switches the node off
    job.end()
    assert job.verdict(1).cause == "node lost"
    job.cluster.devcluster("node-heal", number_of(old.host))
    assert_same(job, undisturbed)


def test_a_stopped_rank_is_named_its_stacks_kept_and_the_run_started_again(submit: Submit, undisturbed: Path):
    job = submit("resources.hang_timeout=6s")
    job.pause_at(10)
    ranks = job.ranks()
    os.kill(ranks[0].pid, signal.SIGCONT)
    job.wait_for_attempt(2)
    job.end()
    found = job.verdict(1)
    assert (found.cause, found.rank, found.host) == ("hang", 1, ranks[1].host)
    assert 'loop.py", line' in job.folder.all_attempts()[0].stack_file(0).read_text()
    assert_same(job, undisturbed)


def test_one_killed_rank_of_eight_is_named(submit: Submit):
    job = submit("train.global_batch=16", processes_per_node=4)
    job.pause_at(2)
    rank = job.ranks()[5]
    os.kill(rank.pid, signal.SIGKILL)
    job.go_on()
    job.cluster.wait_until(job.folder.all_attempts()[0].decision_file.exists, 120, "a verdict")
    job.sft_dist("cancel", str(job.folder.path), "--yes", "--now")
    found = job.verdict(1)
    assert (found.cause, found.rank, found.host) == ("killed", 5, rank.host)
    assert f"rank 5 on {rank.host}: killed by signal 9" in found.line
    job.nothing_is_left()


def test_a_loss_that_is_no_number_is_named_and_not_tried_again(submit: Submit):
    job = submit("train.lr=1.0e30", "train.clip_norm=null")
    job.end()
    assert job.verdict(1).cause == "not a number"
    assert len(job.folder.all_attempts()) == 1


def test_a_time_limit_without_a_warning_costs_at_most_what_was_not_saved(submit: Submit, undisturbed: Path):
    """And a cancelled run saves, and goes on only when it is sent again."""
    job = submit("resources.hang_timeout=30min")
    job.pause_at(10)
    job.cluster.run("scontrol", "update", f"jobid={job.id}", "EndTime=now")
    assert job.end() == ["TIMEOUT"]
    # KillWait, 5 s here, may or may not be enough to save; without, only Slurm can say why it ended.
    assert job.verdict(1).state == "stopped" or "TIMEOUT" in job.sft_dist("status")
    saved = saved_step(job.folder)
    assert saved >= 7

    job.send_again()
    job.wait_for_attempt(2)
    job.pause_at(saved + 3)
    assert first_step(job, 2) == saved
    job.sft_dist("cancel", str(job.folder.path), "--yes")
    job.wait_for_warning()
    job.go_on()
    job.end()
    assert len(job.folder.all_attempts()) == 2
    assert (job.verdict(2).state, job.verdict(2).cause) == ("stopped", "cancelled")
    assert "stopped" in job.sft_dist("status")
    job.nothing_is_left()
    assert harness.losses(job.folder.path).items() <= harness.losses(undisturbed).items()
