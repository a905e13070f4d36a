"""Decides what a job does after an attempt has ended: requeue, without which nodes, or stop. Torch-free; the batch script asks.

python -m sft_dist.run.requeue_policy RUN ATTEMPT [--batch-signal USR1]
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
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from sft_dist.recipe.files import write_json
from sft_dist.recipe.units import seconds_of
from sft_dist.run.causes import AttemptEnd, Facts, classify_attempt, classify_facts, job_of, read_facts
from sft_dist.run.folder import AttemptFolder, RunFolder

LATE_S = 10.0  # a shared file system may show what ranks on other nodes wrote this much later
MAX_ATTEMPTS_WITHOUT_PROGRESS = 5  # attempts in a row that infrastructure ended before anything new was saved
MAX_ATTEMPTS_IN_USE = (
    20  # in a row that found the run in use: an unreachable node may keep it locked until it is switched off
)
TWICE = 2

# Not the run's own fault, so a requeue makes sense even without progress.
INFRASTRUCTURE = frozenset({"network", "gpu", "node lost", "time limit", "preempted", "requeued", "hang", "in use"})
# A requeue ends in the same way: the data, the settings and the random numbers do not change.
FINAL = frozenset({"user error", "software", "not a number", "disk full", "cancelled", "asked to stop", "finished"})
# Causes that count against the machine.
BLAMES_NODE = frozenset({"network", "gpu", "node lost", "hang", "killed"})


@dataclass(frozen=True)
class Decision:
    """The next action of the batch script. The fields are keys of verdict.json, where `reason` is called `why`."""

    action: str  # requeue | stop
    exclude: tuple[str, ...]  # nodes
    reason: str


@dataclass(frozen=True)
class EndedAttempt:
    """How an attempt ended, and whether it saved something new to resume from."""

    end: AttemptEnd
    progress: bool


def decide(history: Sequence[EndedAttempt]) -> Decision:
    """Returns what follows the last of one job's attempts. Pure.

    A job is requeued after progress, or when the machines were to blame. What fails twice in the same way at the same step
    would fail a third time.
    """
    last = history[-1].end
    exclude = failing_nodes([attempt.end for attempt in history])
    if last.cause in FINAL:
        return Decision("stop", exclude, last.cause)
    attempts_without_progress = 0
    while attempts_without_progress < len(history) and not history[-1 - attempts_without_progress].progress:
        attempts_without_progress += 1
    if last.cause in INFRASTRUCTURE:
        if attempts_without_progress >= (
            MAX_ATTEMPTS_IN_USE if last.cause == "in use" else MAX_ATTEMPTS_WITHOUT_PROGRESS
        ):
            return Decision(
                "stop", exclude, f"{attempts_without_progress} attempts in a row ended before anything was saved"
            )
        return Decision("requeue", exclude, f"{last.cause} is not the run's own fault")
    if len(history) >= TWICE:
        previous = history[-2].end
        if (previous.cause, previous.at_step) == (last.cause, last.at_step) and last.at_step is not None:
            return Decision("stop", exclude, f"failed twice in the same way at step {last.at_step}")
    if attempts_without_progress >= TWICE:
        return Decision(
            "stop", exclude, f"{attempts_without_progress} attempts in a row failed before anything was saved"
        )
    return Decision(
        "requeue", exclude, "it got further than before" if attempts_without_progress == 0 else "one more try"
    )


def failing_nodes(ends: Sequence[AttemptEnd]) -> tuple[str, ...]:
    """Returns the hosts that were to blame at least twice."""
    blamed = Counter(host for end in ends if end.cause in BLAMES_NODE for host in set(end.hosts) if host)
    return tuple(sorted(host for host, times in blamed.items() if times >= TWICE))


def history_of(folder: RunFolder, upto: int, last: Facts) -> list[EndedAttempt]:
    """Returns the attempts of the same Slurm job (or of none) up to `upto`, whose facts are `last`; oldest first."""
    ended: list[EndedAttempt] = []
    reached = saved_step(folder)
    for attempt in reversed([attempt for attempt in folder.all_attempts() if attempt.number <= upto]):
        facts = read_facts(attempt) if ended else last
        if job_of(facts) != job_of(last):
            break
        first_step = facts.start.get("first_step")  # unknown if it failed before it had looked for a checkpoint
        end = classify_attempt(folder, attempt) if ended else classify_facts(last)
        ended.append(EndedAttempt(end, first_step is not None and reached > first_step))
        reached = reached if first_step is None else first_step
    return ended[::-1]


def saved_step(folder: RunFolder) -> int:
    """Returns the step of the newest published checkpoint; 0 without one."""
    steps = [int(file.parent.name.removeprefix("step-")) for file in folder.checkpoints.glob("step-*/manifest.json")]
    return max(steps, default=0)


def slurm_job(env: Mapping[str, str]) -> str:
    """Returns the job of this process, as squeue and scontrol name it: `7`, or `7_3` in an array; empty without Slurm."""
    if array := env.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{env.get('SLURM_ARRAY_TASK_ID')}"
    return env.get("SLURM_JOB_ID", "")


def cancelled_jobs(folder: RunFolder) -> list[str]:
    """Returns the jobs that the user has cancelled; they do not requeue themselves."""
    try:
        return folder.cancel_file.read_text().split()
    except OSError:
        return []


# ── for the batch script ────────────────────────────────────────────────────────────────────────────────────────────
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sft_dist.run.requeue_policy",
        description="Print why an attempt ended (standard error) and what to do next (key=value lines for a shell).",
        epilog="example: python -m sft_dist.run.requeue_policy runs/my/0a1b2c3d4e 2 --batch-signal USR1",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("attempt", type=int, help="number of the attempt")
    parser.add_argument(
        "--batch-signal", default="", choices=["", "USR1", "TERM"], help="signal that the batch shell received"
    )
    parser.add_argument("--exit-code", type=int, help="of srun")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run)
    attempt = AttemptFolder(folder.attempts / f"{options.attempt:03d}")
    if options.exit_code is not None and not attempt.exit_file.exists():
        write_json(attempt.exit_file, {"returncode": options.exit_code, "time": _timestamp(), "killed": False})
    if not options.batch_signal:  # after a signal time is short, and the ranks have received it too
        _wait_for_files(attempt)
    job = slurm_job(os.environ)
    properties = _job_properties(job) if job else {}
    slurm = {
        "job_id": job,
        # Without a signal to this shell (preempt_send_user_signal is off) only the ranks know of a grace time.
        "slurm_state": "PREEMPTED" if properties.get("PreemptTime", "None") != "None" else "",
        "batch_signal": options.batch_signal,
        "limit_near": _limit_is_near(properties),
        "cancelled": job in cancelled_jobs(folder),
    }
    if job:
        _record_earlier_starts(folder, options.attempt, job)
    history = history_of(folder, options.attempt, read_facts(attempt, **slurm))
    end, decision = history[-1].end, decide(history)
    decided = {"action": decision.action, "exclude": decision.exclude, "why": decision.reason}
    write_json(attempt.decision_file, {**asdict(end), **decided, **slurm, "time": _timestamp()})
    print(f"attempt {options.attempt:03d} {end.state}: {end.line}", file=sys.stderr)
    if end.state != "finished":
        print(f"{decision.action}: {decision.reason}", file=sys.stderr)
    codes = {"finished": 0, "stopped": 0}
    print(f"action={decision.action}")
    print(f"exclude={','.join(name for name in decision.exclude if re.fullmatch(r'[A-Za-z0-9._-]+', name))}")
    print(f"exit={2 if end.user_error else codes.get(end.state, 1)}")
    print(f"state={end.state}")
    return 0


def _timestamp() -> float:
    return round(time.time(), 3)


def _wait_for_files(attempt: AttemptFolder) -> None:
    """Waits for what ranks on other nodes may have written and a shared file system does not show yet."""
    deadline = time.monotonic() + LATE_S
    while time.monotonic() < deadline and _has_pending_ranks(read_facts(attempt)):
        time.sleep(0.5)


def _has_pending_ranks(facts: Facts) -> bool:
    """Whether a rank on another host than the first has neither ended nor reported an error, and no agent saw it die."""
    if facts.outcome.get("state") == "finished" or facts.hang:
        return False
    reported = {error.get("rank") for error in facts.errors} | {killed["rank"] for killed in facts.killed_ranks}
    first = next((last.get("host") for last in facts.heartbeats if last.get("rank") == 0), None)
    return any(
        last.get("phase") != "ended" and last.get("rank") not in reported and last.get("host") != first
        for last in facts.heartbeats
    )


def _job_properties(job: str) -> dict[str, str]:
    """Returns what Slurm reports of a running job; {} without an answer."""
    fields = (word.partition("=") for word in _output("scontrol", "show", "job", "-o", job).split())
    return {key: value for key, _, value in fields}


def _record_earlier_starts(folder: RunFolder, upto: int, job: str) -> None:
    """Records what Slurm's accounting reports of this job's starts whose shell was killed before it could ask.

    That is a preemption without grace, a lost node, or too much memory. Without accounting, only "requeued" is known.
    """
    unrecorded = [
        (attempt, facts)
        for attempt in folder.all_attempts()
        if attempt.number < upto and not attempt.decision_file.exists() and job_of(facts := read_facts(attempt)) == job
    ]
    if not unrecorded:
        return
    states = _output("sacct", "-nXDP", "-j", job, "-o", "State").splitlines()  # one per start, oldest first
    for attempt, facts in unrecorded:
        start = int(facts.start.get("restart_count") or 0)
        if start < len(states):
            slurm = {"job_id": job, "slurm_state": states[start], "time": _timestamp()}
            end = classify_facts(replace(facts, slurm_state=states[start], started_again=True))
            write_json(attempt.decision_file, {**asdict(end), **slurm})


def _output(*argv: str) -> str:
    """Returns what one of Slurm's commands prints; empty if it fails."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _limit_is_near(job: Mapping[str, str]) -> bool:
    """Whether a job ends within the lead of Slurm's warning (5 minutes at most) and the minute by which it may come early.

    Computed from start and limit, because a preemption moves the job's end. True without an answer: limits are more common.
    """
    if job.get("TimeLimit") == "UNLIMITED":
        return False
    try:
        end = datetime.fromisoformat(job["StartTime"]).timestamp() + seconds_of(job["TimeLimit"])
    except (KeyError, ValueError):
        return True
    return end - time.time() <= float(os.environ.get("SFT_DIST_SIGNAL_LEAD") or 300) + 90


if __name__ == "__main__":
    sys.exit(main())
