"""What a job does after an attempt has ended: again, without which nodes, or not. Torch-free; the batch script asks it.

python -m sft_dist.recipe.verdict RUN ATTEMPT [--slurm-state NODE_FAIL] [--batch-signal USR1]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from sft_dist.recipe.causes import Facts, Verdict, classify, facts_of, job_of, verdict_of
from sft_dist.recipe.run_folder import AttemptFolder, RunFolder, write_json
from sft_dist.recipe.units import seconds_of

MOST_BARREN = 5  # attempts in a row that infrastructure ended before anything new was saved
TWICE = 2

# Not the run's own fault, so worth another start even without progress.
INFRASTRUCTURE = frozenset({"network", "gpu", "node lost", "time limit", "preempted", "requeued", "hang"})
# The same again next time: the data, the settings and the random numbers do not change.
FINAL = frozenset({"user error", "not a number", "disk full", "cancelled", "asked to stop", "finished"})
# What counts against the machine it happened on.
BLAMES_NODE = frozenset({"network", "gpu", "node lost", "hang", "killed"})


@dataclass(frozen=True)
class Decision:
    """What the batch script does next."""

    action: str  # requeue | stop
    exclude: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Ended:
    """An attempt that is over: what happened and whether it left something new to go on from."""

    verdict: Verdict
    progress: bool


def decide(history: Sequence[Ended]) -> Decision:
    """What follows the last of one job's attempts. Pure.

    Another start is worth it after progress or when the machines were to blame. What fails the same way twice at the
    same step will fail a third time.
    """
    last = history[-1].verdict
    exclude = failing_nodes([ended.verdict for ended in history])
    if last.cause in FINAL:
        return Decision("stop", exclude, last.cause)
    barren = 0
    while barren < len(history) and not history[-1 - barren].progress:
        barren += 1
    if last.cause in INFRASTRUCTURE:
        if barren >= MOST_BARREN:
            return Decision("stop", exclude, f"{barren} attempts in a row ended before anything was saved")
        return Decision("requeue", exclude, f"{last.cause} is not the run's own fault")
    if len(history) >= TWICE:
        before = history[-2].verdict
        if (before.cause, before.at_step) == (last.cause, last.at_step) and last.at_step is not None:
            return Decision("stop", exclude, f"failed twice in the same way at step {last.at_step}")
    if barren >= TWICE:
        return Decision("stop", exclude, f"{barren} attempts in a row failed before anything was saved")
    return Decision("requeue", exclude, "it got further than before" if barren == 0 else "one more try")


def failing_nodes(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """Hosts that were to blame at least twice."""
    blamed = Counter(host for one in verdicts if one.cause in BLAMES_NODE for host in set(one.hosts) if host)
    return tuple(sorted(host for host, times in blamed.items() if times >= TWICE))


def history_of(folder: RunFolder, upto: int, last: Facts) -> list[Ended]:
    """The attempts of the same Slurm job (or of none) up to `upto`, whose facts are `last`; oldest first."""
    ended: list[Ended] = []
    reached = saved_step(folder)
    for attempt in reversed([one for one in folder.all_attempts() if one.number <= upto]):
        facts = facts_of(attempt) if ended else last
        if job_of(facts) != job_of(last):
            break
        begun = facts.start.get("first_step")  # unknown when it failed before it had looked for a checkpoint
        verdict = verdict_of(folder, attempt) if ended else classify(last)
        ended.append(Ended(verdict, begun is not None and reached > begun))
        reached = reached if begun is None else begun
    return ended[::-1]


def saved_step(folder: RunFolder) -> int:
    """The newest published checkpoint; 0 without one."""
    steps = [int(file.parent.name.removeprefix("step-")) for file in folder.checkpoints.glob("step-*/manifest.json")]
    return max(steps, default=0)


def slurm_job(env: Mapping[str, str]) -> str:
    """The job this process is in, as squeue and scontrol name it: `7`, or `7_3` in an array; empty without Slurm."""
    if array := env.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{env.get('SLURM_ARRAY_TASK_ID')}"
    return env.get("SLURM_JOB_ID", "")


def cancelled_jobs(folder: RunFolder) -> list[str]:
    """Jobs that the user has cancelled, so that they do not put themselves in the queue again."""
    try:
        return folder.cancel_file.read_text().split()
    except OSError:
        return []


# ── for the batch script ────────────────────────────────────────────────────────────────────────────────────────────
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sft_dist.recipe.verdict",
        description="Say why an attempt ended (standard error) and what to do next (key=value lines for a shell).",
        epilog="example: python -m sft_dist.recipe.verdict runs/my/0a1b2c3d4e 2 --batch-signal USR1",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("attempt", type=int, help="its number")
    parser.add_argument("--slurm-state", default="", help="the job's state, where it is known")
    parser.add_argument("--batch-signal", default="", choices=["", "USR1", "TERM"], help="signal the batch shell got")
    parser.add_argument("--exit-code", type=int, help="of srun")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run)
    attempt = AttemptFolder(folder.attempts / f"{options.attempt:03d}")
    if options.exit_code is not None and not attempt.exit_file.exists():
        write_json(attempt.exit_file, {"returncode": options.exit_code, "time": _now(), "killed": False})
    told = {
        "job_id": slurm_job(os.environ),
        "slurm_state": options.slurm_state,
        "batch_signal": options.batch_signal,
        "limit_near": _limit_is_near(),
        "cancelled": slurm_job(os.environ) in cancelled_jobs(folder),
    }
    history = history_of(folder, options.attempt, facts_of(attempt, **told))
    verdict, decision = history[-1].verdict, decide(history)
    write_json(attempt.verdict_file, {**asdict(verdict), **asdict(decision), **told, "time": _now()})
    print(f"attempt {options.attempt:03d} {verdict.state}: {verdict.line}", file=sys.stderr)
    if verdict.state != "finished":
        print(f"{decision.action}: {decision.why}", file=sys.stderr)
    codes = {"finished": 0, "stopped": 0}
    print(f"action={decision.action}")
    print(f"exclude={','.join(name for name in decision.exclude if re.fullmatch(r'[A-Za-z0-9._-]+', name))}")
    print(f"exit={2 if verdict.user_error else codes.get(verdict.state, 1)}")
    print(f"state={verdict.state}")
    return 0


def _now() -> float:
    return round(time.time(), 3)


def _limit_is_near() -> bool:
    """Within the lead of Slurm's warning (5 minutes at most), and the minute by which it may come early.

    Start and limit, because a preemption moves the job's end. Without an answer the commoner of the two.
    """
    try:
        argv = ["squeue", "--noheader", f"--jobs={os.environ['SLURM_JOB_ID']}", "--format=%S %l"]
        start, limit = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout.split()[:2]
        end = datetime.fromisoformat(start).timestamp() + seconds_of(_clock(limit))
    except (KeyError, OSError, ValueError, subprocess.SubprocessError):
        return True
    return end - time.time() <= float(os.environ.get("SFT_DIST_SIGNAL_LEAD") or 300) + 90


def _clock(limit: str) -> str:
    """`30:00` and `1:00` as squeue shows them, `1-02:03:04` and `2:03:04`."""
    days, _, rest = limit.rpartition("-")
    parts = rest.split(":")
    return f"{days or 0}-{':'.join(['0'] * (3 - len(parts)) + parts)}"


if __name__ == "__main__":
    sys.exit(main())
