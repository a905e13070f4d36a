"""What Slurm says about runs: one squeue and at most one sacct, however many runs are asked about.

The run folders know best how a run is doing; Slurm knows what waits and why, and what became of a job whose ranks could
not say it. squeue is asked for all of this user's jobs, because it refuses to answer for ids it has forgotten. sacct may
be switched off, or late: then the folders' word stands.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from launch.run_state import RunState, state_of, states_of
from launch.slurm.client import ask as call
from launch.slurm.records import JobRecord, jobs_of
from sft_dist.recipe.errors import UserError
from sft_dist.run.causes import CAUSE_BY_SLURM_STATE

SQUEUE = ("squeue", "--noheader", "--array", "--format=%i|%T|%r|%N|%L|%E")
SACCT = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode,End", "--jobs")
FINAL = {*CAUSE_BY_SLURM_STATE, "COMPLETED", "FAILED"} - {"REQUEUED"}
LAG_S = 60  # a shared file system may show a node's last files this much later

# Why a job waits, in words that say what to do. Others are shown as Slurm writes them.
REASONS = {
    "None": "about to start",
    "Priority": "others come first",
    "Resources": "waits for free nodes",
    "Dependency": "waits for another job",
    "DependencyNeverSatisfied": "will never start: the job it waits for has failed; cancel it, and submit again",
    "JobArrayTaskLimit": "waits for other runs of the sweep (--max-parallel)",
    "BeginTime": "waits a moment after a requeue",
    "JobHeldUser": "held; `scontrol release` lets it go",
    "JobHeldAdmin": "held by an administrator",
    "PartitionTimeLimit": "will never start: it asks for more time than the partition allows",
    "PartitionNodeLimit": "will never start: it asks for more nodes than the partition has",
    "ReqNodeNotAvail": "waits for nodes that are down, drained or reserved",
    "BadConstraints": "will never start: no nodes have what it asks for, or too many were left out",
    "AssocGrpGRES": "the account's limit of GPUs is reached",
    "QOSMaxJobsPerUserLimit": "your limit of jobs is reached",
    "QOSMaxGRESPerUser": "your limit of GPUs is reached",
    "launch failed requeued held": "held: the node could not start it; `scontrol release` tries again",
}


@dataclass(frozen=True)
class Job:
    """One line of squeue."""

    id: str
    state: str
    reason: str
    nodes: str
    left: str
    dependency: str


@dataclass(frozen=True)
class Past:
    """One line of sacct: how a job that has left the queue ended."""

    id: str
    state: str
    exit: str
    end: float | None


@dataclass(frozen=True)
class Answer:
    """What Slurm knew, and what it took to ask."""

    jobs: dict[str, Job] = field(default_factory=dict)
    past: dict[str, Past] = field(default_factory=dict)
    calls: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    answered: bool = True  # squeue did

    def summary(self) -> str:
        counted = [f"{self.calls.count(name)} {name}" for name in dict.fromkeys(self.calls)]
        return "; ".join([f"asked Slurm: {', '.join(counted)}", *self.notes]) if counted else "; ".join(self.notes)


Runner = Callable[[Sequence[str]], str]


# ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def ask(wanted: Sequence[str], accounting: bool = True, run: Runner = call) -> Answer:
    """About jobs by id (`7`, `8_3`). Never raises: without Slurm the folders' word stands, and a note says so."""
    if not wanted:
        return Answer()
    try:
        jobs = parse_squeue(run([*SQUEUE, f"--user={os.getuid()}"]))
    except UserError as error:
        note = f"{error}; shown is what the run folders say"
        return Answer(calls=("squeue",), notes=(note,), answered=False)
    gone = sorted({one.split("_")[0] for one in wanted if one not in jobs}, key=int)
    if not gone or not accounting:
        return Answer(jobs, calls=("squeue",))
    try:
        past = parse_sacct(run([*SACCT, ",".join(gone)]))
    except UserError as error:
        return Answer(jobs, calls=("squeue", "sacct"), notes=(f"no accounting ({error})",))
    return Answer(jobs, past, ("squeue", "sacct"))


def parse_squeue(text: str) -> dict[str, Job]:
    """Lines that are not as asked for are left out."""
    rows = [line.split("|") for line in text.splitlines()]
    return {row[0]: Job(*(cell.strip() for cell in row)) for row in rows if len(row) == 6}


def parse_sacct(text: str) -> dict[str, Past]:
    """`CANCELLED by 0` is CANCELLED; `8_[2-3,7%2]` are tasks that never started."""
    found = {}
    for line in text.splitlines():
        row = line.split("|")
        if len(row) == 4 and row[1]:
            for name in _tasks(row[0]):
                found[name] = Past(name, row[1].split()[0].rstrip("+"), row[2], _seconds(row[3]))
    return found


def _tasks(text: str) -> list[str]:
    if not (match := re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", text)):
        return [text]
    names = []
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        names += [f"{match[1]}_{number}" for number in range(int(first), int(last or first) + 1)]
    return names


def _seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # Unknown
        return None


# ── merging ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def merged(state: RunState, record: JobRecord, answer: Answer, now: float) -> RunState:
    """A run's state, with what Slurm knows of its newest training job. Pure."""
    state = replace(state, job=record.id)
    if state.state == "finished":
        return state
    if job := answer.jobs.get(record.id):
        if job.state == "PENDING":
            before = f"attempt {state.attempts} ended ({state.cause}); " if state.attempts and state.cause else ""
            return replace(state, state="pending", cause=before + reason(job))
        if job.state == "COMPLETING":
            return state if state.state in ("failed", "stopped") else replace(state, state="ending", cause="")
        return replace(state, state="running", cause=f"on {job.nodes}, {job.left} left" if job.nodes else "")
    past = answer.past.get(record.id)
    if past is None and state.state == "sealed" and answer.answered:
        cause = f"job {record.id} has left the queue before it began, and nothing says why (scancel?); submit it again"
        return replace(state, cause=cause)
    if past is None or state.state in ("running", "stopped") or (state.state == "failed" and past.state != "CANCELLED"):
        return state
    if past.state not in FINAL:
        return replace(state, state="ending", cause=f"its job has left the queue; accounting still says {past.state}")
    if past.end is not None and now - past.end < LAG_S and state.state in ("sealed", "killed"):
        return replace(state, state="ending", cause=f"job ended ({past.state}); its last files may be on their way")
    said = CAUSE_BY_SLURM_STATE.get(past.state, f"exit code {past.exit}")
    where = f"attempts/{state.attempts:03d}/launcher.log" if state.attempts else output_of(record)
    ended = "killed" if past.state in CAUSE_BY_SLURM_STATE else "failed"
    return replace(state, state=ended, cause=f"{said} (Slurm: {past.state}); see {where}")


def output_of(record: JobRecord) -> str:
    """What a job prints before its first attempt has begun; beside the run, or for an array beside its submission."""
    return f"slurm-{record.id}.out" if record.task is None else f"../.submissions/*/slurm-{record.id}.out"


def reason(job: Job) -> str:
    """Why a job waits."""
    if job.reason == "Dependency" and "(failed)" in job.dependency:
        return f"{REASONS['DependencyNeverSatisfied']} ({job.dependency})"
    known = REASONS.get(job.reason.split(",")[0].strip("()"))
    if job.reason in ("Dependency", "DependencyNeverSatisfied"):
        return f"{known} ({job.dependency})"
    return f"{known} ({job.reason})" if known else job.reason


def newest(records: Iterable[JobRecord], kind: str = "train") -> JobRecord | None:
    return next((one for one in reversed(list(records)) if one.kind == kind), None)


def look(targets: Iterable[str], runs: str | None, run: Runner = call) -> tuple[list[RunState], Answer, list[str]]:
    """States of runs, Slurm's part merged in; what was asked; lines about evaluation jobs. Raises UserError."""
    states = states_of(targets, runs)
    records = [jobs_of(Path(state.folder)) for state in states]
    trains = [newest(known) for known in records]
    judges = {one.id: one for known in records for kind in ("score", "eval") if (one := newest(known, kind))}
    asked = [one.id for state, one in zip(states, trains, strict=True) if one and state.state != "finished"]
    answer = ask([*asked, *judges], _accounting(trains), run)
    now = time.time()
    found = [merged(state, one, answer, now) if one else state for state, one in zip(states, trains, strict=True)]
    return found, answer, _judging(judges.values(), answer)


def _judging(records: Iterable[JobRecord], answer: Answer) -> list[str]:
    """A line for each evaluation job of which there is something to say; tasks of an array by what is said of them."""
    told: dict[str, Counter[str]] = {}
    for record in records:
        if text := _judge(answer, record.id):
            told.setdefault(record.job, Counter())[text] += 1
    return [
        f"evaluation, job {job}: {'; '.join(f'{count:,} {text}' if count > 1 else text for text, count in texts.items())}"
        for job, texts in told.items()
    ]


def _judge(answer: Answer, name: str) -> str:
    if job := answer.jobs.get(name):
        return f"pending, {reason(job)}" if job.state == "PENDING" else job.state.lower()
    past = answer.past.get(name)
    return "" if past is None or past.state == "COMPLETED" else f"{past.state.lower()} ({past.exit})"


def _accounting(records: Iterable[JobRecord | None]) -> bool:
    """Whether sacct can be asked; a cluster file that is gone does not forbid it."""
    for name in {record.cluster for record in records if record}:
        from launch.slurm.clusters import load_cluster  # only when there are jobs: `status` of local runs stays instant

        try:
            if not load_cluster(name).accounting:
                return False
        except UserError:
            continue
    return True


def is_live(folder: Path, run: Runner = call) -> bool:
    """Whether a run's newest job waits or runs."""
    record = newest(jobs_of(folder))
    if record is None or state_of(folder).state == "finished":
        return False
    return record.id in ask([record.id], False, run).jobs
