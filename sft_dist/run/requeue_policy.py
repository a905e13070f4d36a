"""What a job does after an attempt has ended: again, without which nodes, or not. Torch-free; the batch script asks it.

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
    20  # in a row that found the run in use: a node that is cut off may keep it so until it is switched off
)
TWICE = 2

# Not the run's own fault, so worth another start even without progress.
INFRASTRUCTURE = frozenset({"network", "gpu", "node lost", "time limit", "preempted", "requeued", "hang", "in use"})
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
class EndedAttempt:
    """An attempt that is over: what happened and whether it left something new to go on from."""

    verdict: AttemptEnd
    progress: bool


def decide(history: Sequence[EndedAttempt]) -> Decision:
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
        if barren >= (MAX_ATTEMPTS_IN_USE if last.cause == "in use" else MAX_ATTEMPTS_WITHOUT_PROGRESS):
            return Decision("stop", exclude, f"{barren} attempts in a row ended before anything was saved")
        return Decision("requeue", exclude, f"{last.cause} is not the run's own fault")
    if len(history) >= TWICE:
        before = history[-2].verdict
        if (before.cause, before.at_step) == (last.cause, last.at_step) and last.at_step is not None:
            return Decision("stop", exclude, f"failed twice in the same way at step {last.at_step}")
    if barren >= TWICE:
        return Decision("stop", exclude, f"{barren} attempts in a row failed before anything was saved")
    return Decision("requeue", exclude, "it got further than before" if barren == 0 else "one more try")


def failing_nodes(verdicts: Sequence[AttemptEnd]) -> tuple[str, ...]:
    """Hosts that were to blame at least twice."""
    blamed = Counter(host for one in verdicts if one.cause in BLAMES_NODE for host in set(one.hosts) if host)
    return tuple(sorted(host for host, times in blamed.items() if times >= TWICE))


def history_of(folder: RunFolder, upto: int, last: Facts) -> list[EndedAttempt]:
    """The attempts of the same Slurm job (or of none) up to `upto`, whose facts are `last`; oldest first."""
    ended: list[EndedAttempt] = []
    reached = saved_step(folder)
    for attempt in reversed([one for one in folder.all_attempts() if one.number <= upto]):
        facts = read_facts(attempt) if ended else last
        if job_of(facts) != job_of(last):
            break
        begun = facts.start.get("first_step")  # unknown when it failed before it had looked for a checkpoint
        verdict = classify_attempt(folder, attempt) if ended else classify_facts(last)
        ended.append(EndedAttempt(verdict, begun is not None and reached > begun))
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
        prog="python -m sft_dist.run.requeue_policy",
        description="Say why an attempt ended (standard error) and what to do next (key=value lines for a shell).",
        epilog="example: python -m sft_dist.run.requeue_policy runs/my/0a1b2c3d4e 2 --batch-signal USR1",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("attempt", type=int, help="its number")
    parser.add_argument("--batch-signal", default="", choices=["", "USR1", "TERM"], help="signal the batch shell got")
    parser.add_argument("--exit-code", type=int, help="of srun")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run)
    attempt = AttemptFolder(folder.attempts / f"{options.attempt:03d}")
    if options.exit_code is not None and not attempt.exit_file.exists():
        write_json(attempt.exit_file, {"returncode": options.exit_code, "time": _now(), "killed": False})
    if not options.batch_signal:  # then there is no time to lose, and the ranks have been asked to end
        _wait_for_files(attempt)
    job = slurm_job(os.environ)
    said = _of_job(job) if job else {}
    told = {
        "job_id": job,
        # Without a signal to this shell (preempt_send_user_signal is off) a grace time is for the ranks alone.
        "slurm_state": "PREEMPTED" if said.get("PreemptTime", "None") != "None" else "",
        "batch_signal": options.batch_signal,
        "limit_near": _limit_is_near(said),
        "cancelled": job in cancelled_jobs(folder),
    }
    if job:
        _fill_in(folder, options.attempt, job)
    history = history_of(folder, options.attempt, read_facts(attempt, **told))
    verdict, decision = history[-1].verdict, decide(history)
    write_json(attempt.decision_file, {**asdict(verdict), **asdict(decision), **told, "time": _now()})
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


def _wait_for_files(attempt: AttemptFolder) -> None:
    """Ranks on other nodes may have said why they ended in files that are not to be seen here yet."""
    deadline = time.monotonic() + LATE_S
    while time.monotonic() < deadline and _unheard(read_facts(attempt)):
        time.sleep(0.5)


def _unheard(facts: Facts) -> bool:
    """Is there a rank on another host than the first that neither ended nor said why, and that no one saw die?"""
    if facts.outcome.get("state") == "finished" or facts.hang:
        return False
    heard = {error.get("rank") for error in facts.errors} | {agent["rank"] for agent in facts.agents}
    first = next((beat.get("host") for beat in facts.beats if beat.get("rank") == 0), None)
    return any(
        beat.get("phase") != "ended" and beat.get("rank") not in heard and beat.get("host") != first
        for beat in facts.beats
    )


def _of_job(job: str) -> dict[str, str]:
    """What Slurm says of a job that runs; {} without an answer."""
    fields = (word.partition("=") for word in _output("scontrol", "show", "job", "-o", job).split())
    return {key: value for key, _, value in fields}


def _fill_in(folder: RunFolder, upto: int, job: str) -> None:
    """Write down what Slurm's accounting says of starts of this job whose shell was killed before it could ask: a
    preemption without grace, a lost node, too much memory. Without accounting, "requeued" is all that is known."""
    unjudged = [
        (one, facts)
        for one in folder.all_attempts()
        if one.number < upto and not one.decision_file.exists() and job_of(facts := read_facts(one)) == job
    ]
    if not unjudged:
        return
    states = _output("sacct", "-nXDP", "-j", job, "-o", "State").splitlines()  # one for each start, oldest first
    for attempt, facts in unjudged:
        start = int(facts.start.get("restart_count") or 0)
        if start < len(states):
            known = {"job_id": job, "slurm_state": states[start], "time": _now()}
            found = classify_facts(replace(facts, slurm_state=states[start], started_again=True))
            write_json(attempt.decision_file, {**asdict(found), **known})


def _output(*argv: str) -> str:
    """Of one of Slurm's commands; empty without an answer."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _limit_is_near(job: Mapping[str, str]) -> bool:
    """Within the lead of Slurm's warning (5 minutes at most), and the minute by which it may come early.

    Start and limit, because a preemption moves the job's end. Without an answer the commoner of the two.
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
