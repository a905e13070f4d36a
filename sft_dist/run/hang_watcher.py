"""Notices that a run hangs, says which rank is to blame, and ends the launch so that it can be started again.

    python -m sft_dist.run.hang_watcher RUN ATTEMPT --timeout 1800 --pid PID_OF_SRUN

Runs beside the launch. A collective makes all ranks wait for one, so "no progress" alone names nobody; the signs of
life (`sft_dist/run/heartbeat.py`) do. Only changes seen by this process's own clock count: clocks of machines differ, and a
shared file system shows files late. Torch-free.
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

UNHURRIED = 10  # times the time-out, for phases in which a rank rightly makes no steps: validating, saving
START_S = 1800.0  # from the first sign of life to the first step; loading and tokenizing can take long
SILENT, DOUBTFUL = 0.5, 0.3  # of the time-out; signs of life come 20 times as often
GRACE_S = 10.0  # between SIGTERM and SIGKILL: nothing is saved any more, a collective cannot be finished
SUSPENDED_S = 5.0  # a sleep that is this much too long: Slurm has suspended the job and let it go on
STACKS_S = 1.0  # ranks write their stacks when their own time is up, perhaps a moment after the watcher

# Innermost functions of a rank that waits for the others.
WAITING = re.compile(
    r"in (all_reduce|allreduce|reduce|barrier|broadcast\w*|\w*gather\w*|wait|_engine_run_backward|_agree)$"
)


@dataclass(frozen=True)
class Rank:
    """What the watcher knows of a rank, in its own clock."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    silent_s: float  # since its life was seen to change
    still_s: float  # since its progress was seen to change


@dataclass(frozen=True)
class Hang:
    """`kind`: node (all of a host silent), silent (a rank's process stands still), stuck (lives, makes no progress),
    all (nobody differs from the others, so nobody is accused)."""

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
    """Looks at an attempt's signs of life, as often as it is asked to."""

    attempt: AttemptFolder
    timeout_s: float
    start_s: float = START_S
    clock: Callable[[], float] = time.monotonic
    _life: dict[int, tuple[object, float]] = field(default_factory=dict)
    _progress: dict[int, tuple[object, float]] = field(default_factory=dict)

    def check(self) -> Hang | None:
        """A hang, once a rank has been silent or without progress for longer than it may be."""
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
        """Whatever was seen before does not count: all processes, this one too, have been suspended for a while."""
        self._life.clear()
        self._progress.clear()

    def ranks(self) -> list[Rank]:
        """Ranks that are on their way."""
        ranks = []
        for file in sorted(self.attempt.path.glob("rank-*.beat.json")):
            beat = read_json(file)
            if not isinstance(beat, dict) or beat.get("phase") == "ended":
                continue
            rank, step, phase = int(beat["rank"]), int(beat["step"]), str(beat["phase"])
            silent = self._unchanged_for(self._life, rank, beat["time"])
            still = self._unchanged_for(self._progress, rank, (step, phase))
            ranks.append(Rank(rank, str(beat["host"]), int(beat["pid"]), step, phase, silent, still))
        return ranks

    def _is_late(self, rank: Rank) -> bool:
        allowed = {"starting": max(self.start_s, self.timeout_s), "training": self.timeout_s}
        return rank.silent_s > self.timeout_s or rank.still_s > allowed.get(rank.phase, UNHURRIED * self.timeout_s)

    def _unchanged_for(self, seen: dict[int, tuple[object, float]], rank: int, now: object) -> float:
        before, since = seen.get(rank, (None, 0.0))
        if now != before:
            since = self.clock()
            seen[rank] = (now, since)
        return self.clock() - since

    def _stack(self, rank: int) -> str:
        try:
            return self.attempt.stack_file(rank).read_text()
        except OSError:
            return ""


def blame_ranks(
    ranks: Sequence[Rank], silent: Sequence[Rank], late: Sequence[Rank], stack_of: Callable[[int], str]
) -> Hang:
    """Which of them is to blame. Pure but for `stack_of`."""
    if silent:
        host = silent[0].host
        here = [rank for rank in ranks if rank.host == host]
        gone = {rank.rank for rank in silent}
        whole = all(rank.rank in gone for rank in here) and len(here) > 1 and len({rank.host for rank in ranks}) > 1
        first = max(silent, key=lambda rank: rank.silent_s)
        since = f"no sign of life for {first.silent_s:.0f} s, last at step {first.step} ({first.phase})"
        if whole:
            line = f"all {len(here)} ranks on {host}: {since}; the machine is gone, or cut off"
            return _hang("node", here[0], line, here)
        return _hang("silent", first, f"rank {first.rank} on {first.host}: {since}; its process was stopped", silent)
    since = f"no progress for {max(rank.still_s for rank in late):.0f} s at step {late[0].step} ({late[0].phase})"
    if not (accused := _diverging_rank(late, stack_of)):
        hosts = sorted({rank.host for rank in late})
        between = f", or the network between {' and '.join(hosts)}" if len(hosts) > 1 else ""
        line = f"all {len(late)} ranks: {since}; none differs from the others: a collective that cannot end{between}"
        return Hang(
            "all", None, "", late[0].step, line, tuple(rank.rank for rank in late), (), f"rank-{late[0].rank}.stack"
        )
    odd, why = accused
    line = f"rank {odd.rank} on {odd.host}: no progress for {odd.still_s:.0f} s at step {odd.step} ({odd.phase}); {why}"
    return _hang("stuck", odd, line, [odd])


def _hang(kind: str, first: Rank, line: str, ranks: Sequence[Rank]) -> Hang:
    log = f"rank-{first.rank}.stack" if kind == "stuck" else f"rank-{first.rank}.log"
    hosts = tuple(sorted({rank.host for rank in ranks}))
    return Hang(kind, first.rank, first.host, first.step, line, tuple(rank.rank for rank in ranks), hosts, log)


def _diverging_rank(late: Sequence[Rank], stack_of: Callable[[int], str]) -> tuple[Rank, str] | None:
    """All live and none moves: the one behind, in another phase, not waiting, or standing where no other stands."""
    behind = min(rank.step for rank in late)
    if any(rank.step > behind for rank in late):
        return next(rank for rank in late if rank.step == behind), "the others are further"
    phases = Counter(rank.phase for rank in late)
    rare, count = min(phases.items(), key=lambda item: item[1])
    if len(phases) > 1 and count < max(phases.values()):
        return next(rank for rank in late if rank.phase == rare), f"the others are {phases.most_common(1)[0][0]}"
    places = {rank.rank: innermost(stack_of(rank.rank)) for rank in late}
    busy = [rank for rank in late if places[rank.rank] and not WAITING.search(places[rank.rank])]
    if busy and len(busy) < len(late):
        return busy[0], f"it is {places[busy[0].rank]}, the others wait"
    common, times = Counter(places.values()).most_common(1)[0]
    odd = [rank for rank in late if places[rank.rank] != common]
    if odd and times > 1:
        return odd[0], f"it is {places[odd[0].rank] or 'nowhere to be seen'}, the others are {common}"
    return None if len(late) > 1 else (late[0], "it is the only one")


def innermost(stack: str) -> str:
    """Where the main thread stands: the first frame of the last thread that faulthandler lists."""
    frames = re.findall(r"\(most recent call first\):\n  File \"([^\"]+)\", line (\d+) (in \S+)", stack)
    if not frames:
        return ""
    file, line, function = frames[-1]
    return f"at {Path(file).name}:{line} {function}"


# ── beside a launch ─────────────────────────────────────────────────────────────────────────────────────────────────
def watch_process(detector: HangDetector, pid: int, poll_s: float) -> Hang | None:
    """Look until the process `pid` is gone; a hang is recorded, and the process ended."""
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
    """A hang, certain and written down as `hang.json`, where the verdict finds it."""
    if not detector.check():
        return None
    time.sleep(STACKS_S)
    if hang := detector.check():  # once more, now that the stacks are there
        write_json(detector.attempt.hang_file, {**asdict(hang), "time": round(time.time(), 3)})
    return hang


def end_process(pid: int) -> None:
    """SIGTERM, then SIGKILL. In a Slurm job the steps are killed through Slurm, which reaches every node."""
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
    """A zombie, which its parent has not waited for yet, is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sft_dist.run.hang_watcher",
        description="End a launch whose ranks hang, and say which of them is to blame.",
        epilog="example: python -m sft_dist.run.hang_watcher runs/my/0a1b2c3d4e 1 --timeout 1800 --pid 4711",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("attempt", type=int, help="its number")
    parser.add_argument("--timeout", type=float, required=True, metavar="SECONDS", help="longest time without progress")
    parser.add_argument("--start-timeout", type=float, default=START_S, metavar="SECONDS", help=f"({START_S:.0f})")
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
