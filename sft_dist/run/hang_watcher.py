"""Detects that a run hangs, names the rank to blame, and ends the launch so that it can be started again.

    python -m sft_dist.run.hang_watcher RUN ATTEMPT --timeout 1800 --pid PID_OF_SRUN

Runs beside the launch. A collective makes all ranks wait for one, so a lack of progress alone blames no rank; the heartbeats
(`sft_dist/run/heartbeat.py`) do. Only changes seen by this process's own clock count: clocks of machines differ, and a shared
file system shows files late. Torch-free.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sft_dist.recipe.files import read_json, write_json
from sft_dist.run.folder import AttemptFolder, RunFolder
from sft_dist.run.requeue_policy import slurm_job

SLOW_PHASE_FACTOR = 10  # times the timeout, for phases in which a rank rightly makes no steps: validating, saving
START_S = 1800.0  # from the first heartbeat to the first step; loading and tokenizing can take long
SILENT, DOUBTFUL = 0.5, 0.3  # of the timeout; heartbeats come 20 times as often
GRACE_S = 10.0  # between SIGTERM and SIGKILL: nothing is saved any more, a collective cannot be finished
SUSPENDED_S = 5.0  # a sleep that is this much too long: Slurm has suspended the job and resumed it
STACKS_S = 1.0  # ranks write their stacks when their own time is up, perhaps a moment after the watcher

# Innermost functions of a rank that waits for the others.
WAITING = re.compile(
    r"in (all_reduce|allreduce|reduce|barrier|broadcast\w*|\w*gather\w*|wait|_engine_run_backward|_agree)$"
)


@dataclass(frozen=True)
class Rank:
    """A rank as the watcher sees it, by its own clock."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    silent_s: float  # since its heartbeat was seen to change
    stalled_s: float  # since its progress was seen to change


@dataclass(frozen=True)
class Hang:
    """`kind`: node (all ranks of a host are silent), silent (a rank's process is stopped), stuck (it runs without progress),
    all (no rank differs from the others, so none is blamed)."""

    kind: str
    rank: int | None
    host: str
    step: int
    line: str
    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    log: str


@dataclass
class HangDetector:
    """Compares an attempt's heartbeats with what it saw of them before."""

    attempt: AttemptFolder
    timeout_s: float
    start_s: float = START_S
    clock: Callable[[], float] = time.monotonic
    _heartbeats: dict[int, tuple[object, float]] = field(default_factory=dict)
    _progress: dict[int, tuple[object, float]] = field(default_factory=dict)

    def check(self) -> Hang | None:
        """Returns a hang, once a rank has been silent or without progress for longer than it may be."""
        ranks = self.ranks()
        late = [rank for rank in ranks if self._is_late(rank)]
        if not late:
            return None
        # A rank that stops late in a step stops the others before its own silence is long: wait until it is certain.
        silent = [rank for rank in ranks if rank.silent_s > SILENT * self.timeout_s]
        if not silent and any(rank.silent_s > DOUBTFUL * self.timeout_s for rank in ranks):
            return None
        return blame_ranks(ranks, silent, late, self._stack)

    def start_over(self) -> None:
        """Forgets what was seen: all processes, this one too, were suspended for a while."""
        self._heartbeats.clear()
        self._progress.clear()

    def ranks(self) -> list[Rank]:
        """Returns the ranks that have not ended."""
        ranks = []
        for file in sorted(self.attempt.path.glob("rank-*.beat.json")):
            heartbeat = read_json(file)
            if not isinstance(heartbeat, dict) or heartbeat.get("phase") == "ended":
                continue
            rank, step, phase = int(heartbeat["rank"]), int(heartbeat["step"]), str(heartbeat["phase"])
            silent = self._unchanged_for(self._heartbeats, rank, heartbeat["time"])
            stalled = self._unchanged_for(self._progress, rank, (step, phase))
            host, pid = str(heartbeat["host"]), int(heartbeat["pid"])
            ranks.append(Rank(rank, host, pid, step, phase, silent, stalled))
        return ranks

    def _is_late(self, rank: Rank) -> bool:
        allowed = {"starting": max(self.start_s, self.timeout_s), "training": self.timeout_s}
        return rank.silent_s > self.timeout_s or rank.stalled_s > allowed.get(
            rank.phase, SLOW_PHASE_FACTOR * self.timeout_s
        )

    def _unchanged_for(self, history: dict[int, tuple[object, float]], rank: int, value: object) -> float:
        previous, since = history.get(rank, (None, 0.0))
        if value != previous:
            since = self.clock()
            history[rank] = (value, since)
        return self.clock() - since

    def _stack(self, rank: int) -> str:
        try:
            return self.attempt.stack_file(rank).read_text()
        except OSError:
            return ""


def blame_ranks(
    ranks: Sequence[Rank], silent: Sequence[Rank], late: Sequence[Rank], stack_of: Callable[[int], str]
) -> Hang:
    """Returns the hang with the ranks to blame. Pure but for `stack_of`."""
    if silent:
        return _blame_silent(ranks, silent)
    since = f"no progress for {max(rank.stalled_s for rank in late):.0f} s at step {late[0].step} ({late[0].phase})"
    if not (diverging := _diverging_rank(late, stack_of)):
        hosts = sorted({rank.host for rank in late})
        network = f", or the network between {' and '.join(hosts)} is broken" if len(hosts) > 1 else ""
        line = f"all {len(late)} ranks: {since}; no rank differs from the others: a collective never finishes{network}"
        numbers = tuple(rank.rank for rank in late)
        return Hang("all", None, "", late[0].step, line, numbers, (), f"rank-{late[0].rank}.stack")
    rank, reason = diverging
    since = f"no progress for {rank.stalled_s:.0f} s at step {rank.step} ({rank.phase})"
    return _hang("stuck", rank, f"rank {rank.rank} on {rank.host}: {since}; {reason}", [rank])


def _blame_silent(ranks: Sequence[Rank], silent: Sequence[Rank]) -> Hang:
    """Blames a whole machine if all its ranks are silent, else the rank that has been silent longest."""
    host = silent[0].host
    on_host = [rank for rank in ranks if rank.host == host]
    silent_numbers = {rank.rank for rank in silent}
    is_node = all(rank.rank in silent_numbers for rank in on_host) and len(on_host) > 1
    longest = max(silent, key=lambda rank: rank.silent_s)
    since = f"no heartbeat for {longest.silent_s:.0f} s, last at step {longest.step} ({longest.phase})"
    if is_node and len({rank.host for rank in ranks}) > 1:
        line = f"all {len(on_host)} ranks on {host}: {since}; the machine is down or unreachable"
        return _hang("node", on_host[0], line, on_host)
    line = f"rank {longest.rank} on {longest.host}: {since}; its process was stopped"
    return _hang("silent", longest, line, silent)


def _hang(kind: str, first: Rank, line: str, ranks: Sequence[Rank]) -> Hang:
    log = f"rank-{first.rank}.stack" if kind == "stuck" else f"rank-{first.rank}.log"
    hosts = tuple(sorted({rank.host for rank in ranks}))
    return Hang(kind, first.rank, first.host, first.step, line, tuple(rank.rank for rank in ranks), hosts, log)


def _diverging_rank(late: Sequence[Rank], stack_of: Callable[[int], str]) -> tuple[Rank, str] | None:
    """Returns the rank that is behind, in another phase, not waiting, or at another line than the others; and the reason."""
    first_step = min(rank.step for rank in late)
    if any(rank.step > first_step for rank in late):
        return next(rank for rank in late if rank.step == first_step), "the others are ahead"
    phases = Counter(rank.phase for rank in late)
    rare, count = min(phases.items(), key=lambda item: item[1])
    if len(phases) > 1 and count < max(phases.values()):
        return next(rank for rank in late if rank.phase == rare), f"the others are {phases.most_common(1)[0][0]}"
    lines = {rank.rank: innermost(stack_of(rank.rank)) for rank in late}
    busy = [rank for rank in late if lines[rank.rank] and not WAITING.search(lines[rank.rank])]
    if busy and len(busy) < len(late):
        return busy[0], f"it is {lines[busy[0].rank]}, the others wait"
    common, count = Counter(lines.values()).most_common(1)[0]
    deviating = [rank for rank in late if lines[rank.rank] != common]
    if deviating and count > 1:
        line = lines[deviating[0].rank] or "at an unknown line"
        return deviating[0], f"it is {line}, the others are {common}"
    return None if len(late) > 1 else (late[0], "it is the only one")


def innermost(stack: str) -> str:
    """Returns the line that the main thread is at: the first frame of the last thread that faulthandler lists."""
    frames = re.findall(r"\(most recent call first\):\n  File \"([^\"]+)\", line (\d+) (in \S+)", stack)
    if not frames:
        return ""
    file, line, function = frames[-1]
    return f"at {Path(file).name}:{line} {function}"


# ── beside a launch ─────────────────────────────────────────────────────────────────────────────────────────────────
def watch_process(detector: HangDetector, pid: int, poll_s: float) -> Hang | None:
    """Watches until the process `pid` has ended. At a hang, ends the process and returns the hang."""
    while _is_alive(pid):
        if hang := detect_hang(detector):
            end_process(pid)
            return hang
        since = time.monotonic()
        time.sleep(poll_s)
        if time.monotonic() - since > poll_s + SUSPENDED_S:
            detector.start_over()
    return None


def detect_hang(detector: HangDetector) -> Hang | None:
    """Returns a hang that is certain, after recording it as `hang.json` for the requeue policy."""
    if not detector.check():
        return None
    time.sleep(STACKS_S)
    if hang := detector.check():  # once more, now that the stacks are there
        write_json(detector.attempt.hang_file, {**asdict(hang), "time": round(time.time(), 3)})
    return hang


def end_process(pid: int) -> None:
    """Sends SIGTERM, then SIGKILL. In a Slurm job the steps are killed through Slurm, which reaches every node."""
    _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    if _is_alive(pid) and (job := slurm_job(os.environ)):
        with contextlib.suppress(OSError):
            subprocess.run(["scancel", "--signal=KILL", job], check=False)  # its steps only, not the batch shell
        deadline = time.monotonic() + GRACE_S
        while _is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
    _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_alive(pid: int) -> bool:
    """Whether the process runs. A zombie, for which its parent has not waited yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sft_dist.run.hang_watcher",
        description="End a launch whose ranks hang, and name the rank to blame.",
        epilog="example: python -m sft_dist.run.hang_watcher runs/my/0a1b2c3d4e 1 --timeout 1800 --pid 4711",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("attempt", type=int, help="number of the attempt")
    parser.add_argument("--timeout", type=float, required=True, metavar="SECONDS", help="longest time without progress")
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=START_S,
        metavar="SECONDS",
        help=f"longest time to the first step [default: {START_S:.0f}]",
    )
    parser.add_argument("--pid", type=int, required=True, help="process to end: srun or accelerate launch")
    options = parser.parse_args(arguments)
    attempt = AttemptFolder(RunFolder(options.run).attempts / f"{options.attempt:03d}")
    detector = HangDetector(attempt, options.timeout, options.start_timeout)
    hang = watch_process(detector, options.pid, poll_s=min(10.0, max(0.2, options.timeout / 10)))
    if hang:
        print(f"hang: {json.dumps(hang.line, ensure_ascii=False)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
