"""A real Slurm for all tests that ask for it: `slurm/devcluster`, up for the session. Several workers of
pytest-xdist, each with a cluster of its own, keep all cores busy.

Where the machine cannot run it (not root, no packages) these tests are skipped with one line, or fail when
SFT_DIST_REQUIRE_SLURM=1, so that a green CI never means "nothing was tried".
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PATIENCE = 5  # a busy machine is slower by this factor
DEVCLUSTER = Path(__file__).parents[2] / "slurm" / "devcluster" / "devcluster"
CANNOT_RUN_HERE = 3  # devcluster's exit code for a machine that lacks what Slurm needs

FINAL_STATES = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}


def devcluster(folder: Path, *arguments: str, **knobs: str) -> subprocess.CompletedProcess[str]:
    """Run the script on the cluster in `folder`; whatever DEVCLUSTER_* the developer has set stays out of the tests."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DEVCLUSTER_")}
    environment |= {"DEVCLUSTER_DIR": str(folder)} | {
        f"DEVCLUSTER_{key.upper()}": value for key, value in knobs.items()
    }
    return subprocess.run(
        [DEVCLUSTER, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500
    )


@dataclass(frozen=True)
class Cluster:
    folder: Path
    nodes: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        """The variables a process needs to use this cluster. SLURM_* of the test's own job, if any, are left out."""
        own = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return own | {"SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}

    def devcluster(self, *arguments: str) -> str:
        done = devcluster(self.folder, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, *argv: str, text: str | None = None, check: bool = True) -> str:
        """The output of one Slurm command."""
        done = subprocess.run(argv, env=self.environment, input=text or "", capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def run_sbatch(self, script: str, *options: str) -> int:
        """Submit the lines of a bash script (no output file unless `options` name one); the job's id."""
        options = ("--output=/dev/null", *options)
        return int(self.run("sbatch", "--parsable", *options, text=f"#!/bin/bash\n{script}\n").split(";")[0])

    def queue_states(self, job: int) -> dict[str, str]:
        """What slurmctld says of a job, or of each task of an array: {"7": "RUNNING"}, {"8_0": ..., "8_1": ...}."""
        states = {}
        for line in self.run("scontrol", "show", "job", "-o", str(job)).splitlines():
            fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
            name = f"{job}_{fields['ArrayTaskId']}" if "ArrayTaskId" in fields else str(job)
            states[name] = fields["JobState"]
        return states

    def sacct_runs(self, job: int) -> list[tuple[str, str]]:
        """(job or array task, state) of each run that accounting knows, requeued ones included, oldest first."""
        output = self.run("sacct", "-nXDPj", str(job), "-o", "JobID,State")
        rows = [line.split("|") for line in output.splitlines()]
        return [(name, state.split()[0]) for name, state in rows]  # "CANCELLED by 0"

    def sacct_states(self, job: int) -> list[str]:
        return [state for _, state in self.sacct_runs(job)]

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Polls until the condition holds, for PATIENCE times what a quiet machine needs at most.

        Polling takes at most a fifth of the time: Slurm's commands would keep a small machine busy otherwise.
        """
        deadline = time.monotonic() + PATIENCE * timeout_s
        while True:
            began = time.monotonic()
            if condition():
                return
            if time.monotonic() > deadline:
                pytest.fail(f"after {PATIENCE * timeout_s} s still not: {what}\n{self.picture()}")
            time.sleep(max(0.1, 4 * (time.monotonic() - began)))

    def wait_for_state(self, job: int, state: str, timeout_s: float = 60) -> None:
        self.wait_until(lambda: set(self.queue_states(job).values()) == {state}, timeout_s, f"job {job} {state}")

    def wait_for_job(self, job: int, timeout_s: float = 60) -> list[str]:
        """Wait for the end of a job, its requeues included; the states of all its runs.

        Accounting trails the queue by up to seconds, so the end is the moment when both agree on it.
        """

        def over() -> bool:
            queue = self.queue_states(job)
            return set(queue.values()) <= FINAL_STATES and dict(self.sacct_runs(job)) == queue

        self.wait_until(over, timeout_s, f"the end of job {job}")
        return self.sacct_states(job)

    def node_state(self, node: str) -> str:
        return self.node_states()[node]

    def node_states(self) -> dict[str, str]:
        rows = self.run("sinfo", "-hN", "-p", "gpu", "-o", "%N %T").splitlines()
        return dict(row.split() for row in rows)

    def settle(self) -> None:
        """No job in the queue, and every node idle."""
        self.run("scancel", "--user=root", "--quiet", check=False)
        if any(state.startswith(("down", "drain")) or "*" in state for state in self.node_states().values()):
            self.devcluster("up")  # heals whatever a test left broken
        self.wait_until(lambda: not self.run("squeue", "-h"), 60, "an empty queue")
        self.wait_until(lambda: set(self.node_states().values()) == {"idle"}, 60, "idle nodes")

    def picture(self) -> str:
        """What a reader of a failed test wants to see."""
        log = (self.folder / "log" / "slurmctld.log").read_text().splitlines()[-15:]
        return "\n".join([self.run("squeue", check=False), self.run("sinfo", "-N", check=False), *log])


def bring_up(folder: Path, **knobs: str) -> Cluster:
    """Up, or up already. What a failure leaves behind is removed, what a machine lacks is a skip."""
    done = devcluster(folder, "up", **knobs)
    if done.returncode != 0:
        devcluster(folder, "down")
        message = done.stderr.strip()
        if done.returncode == CANNOT_RUN_HERE:
            message = f"no Slurm on this machine: {message.splitlines()[-1]}"
            if os.environ.get("SFT_DIST_REQUIRE_SLURM") != "1":
                pytest.skip(message)
        pytest.fail(message, pytrace=False)
    environment = os.environ | {"SLURM_CONF": str(folder / "etc" / "slurm.conf")}
    listing = subprocess.check_output(["sinfo", "-hN", "-p", "gpu", "-o", "%N"], env=environment, text=True)
    return Cluster(folder, tuple(listing.split()))


@contextmanager
def running_cluster(folder: Path, **knobs: str) -> Iterator[Cluster]:
    """A cluster of a test's own."""
    cluster = bring_up(folder, **knobs)
    try:
        yield cluster
    finally:
        devcluster(folder, "down")


def remove_abandoned_clusters() -> None:
    """A test run that was killed leaves its cluster; the folder's name tells whose it was."""
    for folder in Path(tempfile.gettempdir()).glob("sft-dist-slurm-*"):
        owner = folder.name.split("-")[3]
        if owner.isdigit() and not Path("/proc", owner).exists():
            devcluster(folder, "down")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster for the session; each worker of pytest-xdist has its own, so that a test that cuts a node meets no other
    test. An earlier test's jobs may still be ending on it: ask for `idle_cluster` where that matters."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    owner = os.getppid() if worker else os.getpid()  # the workers are children of the one process that the user started
    name = f"sft-dist-slurm-{owner}" + (f"-{worker}" if worker else "")
    remove_abandoned_clusters()
    with running_cluster(Path(tempfile.gettempdir()) / name) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of the session see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no worker begins one when the others have finished."""
    ours = [index for index, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    ordered = sorted((items[index] for index in ours), key=lambda item: not item.get_closest_marker("starts_first"))
    for index, item in zip(ours, ordered, strict=True):
        items[index] = item


@pytest.fixture
def idle_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """The session's cluster with nothing on it; what the test leaves behind is cleared away."""
    cluster.settle()
    yield cluster
    cluster.run("scancel", "--user=root", "--quiet", check=False)
