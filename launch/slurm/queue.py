"""What Slurm knows about jobs: one squeue and at most one sacct, however many runs are asked about.

The run folders know best how a run is doing; Slurm knows why a job is pending, and what became of one whose ranks could
not write it down. squeue lists all of this user's jobs, because it refuses to answer for ids that it has forgotten. sacct
may be disabled, or lag behind: then only the folders count.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from launch.run_state import RunState, state_of, states_of
from launch.slurm.client import CommandRunner, run_command
from launch.slurm.records import JobRecord, jobs_of, newest, output_of, reason_of
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_json
from sft_dist.run.causes import CAUSE_BY_SLURM_STATE
from sft_dist.run.folder import RunFolder

# The comment comes last, because it may contain a `|`.
SQUEUE = ("squeue", "--noheader", "--array", "--format=%i|%T|%r|%N|%L|%E|%k")
SACCT = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode,End", "--jobs")
FINAL = {*CAUSE_BY_SLURM_STATE, "COMPLETED", "FAILED"} - {"REQUEUED"}
LAG_S = 60  # a shared file system may show a node's last files this much later

# Why a job is pending, in words that say what to do. Other reasons are shown as Slurm writes them.
REASONS = {
    "None": "about to start",
    "Priority": "other jobs have a higher priority",
    "Resources": "waits for free nodes",
    "Dependency": "waits for another job",
    "DependencyNeverSatisfied": "will never start: the job it waits for has failed; cancel it, and submit again",
    "JobArrayTaskLimit": "waits for other runs of the sweep (--max-parallel)",
    "BeginTime": "waits a moment after a requeue",
    "JobHeldUser": "held; `scontrol release` releases it",
    "JobHeldAdmin": "held by an administrator",
    "PartitionTimeLimit": "will never start: it asks for more time than the partition allows",
    "PartitionNodeLimit": "will never start: it asks for more nodes than the partition has",
    "ReqNodeNotAvail": "waits for nodes that are down, drained or reserved",
    "BadConstraints": "will never start: no nodes have what it asks for, or too many are excluded",
    "AssocGrpGRES": "the account's limit of GPUs is reached",
    "QOSMaxJobsPerUserLimit": "your limit of jobs is reached",
    "QOSMaxGRESPerUser": "your limit of GPUs is reached",
    "launch failed requeued held": "held: the node could not start it; `scontrol release` tries again",
}


@dataclass(frozen=True)
class Job:
    """A job or one task of an array: from squeue while it is in the queue, from sacct when it has left."""

    id: str
    state: str
    reason: str = ""
    nodes: str = ""
    time_left: str = ""
    dependency: str = ""
    comment: str = ""
    exit_code: str = ""  # of sacct, as `end`
    end: float | None = None

    @property
    def is_pending(self) -> bool:
        return self.state == "PENDING"


Queue = Mapping[str, Job]  # by id


@dataclass(frozen=True)
class Answer:
    """What Slurm knew, and the commands it took."""

    queued: Queue = field(default_factory=dict)
    ended: Queue = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    is_complete: bool = True  # squeue answered

    def summary(self) -> str:
        counts = [f"{self.commands.count(name)} {name}" for name in dict.fromkeys(self.commands)]
        return "; ".join([f"asked Slurm: {', '.join(counts)}", *self.notes]) if counts else "; ".join(self.notes)


# ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def read_queue(run: CommandRunner = run_command) -> dict[str, Job]:
    """Returns all of this user's jobs that are pending or running, array tasks separately: one squeue. Raises UserError."""
    return parse_squeue(run([*SQUEUE, f"--user={os.getuid()}"]))


def query(job_ids: Sequence[str], accounting: bool = True, run: CommandRunner = run_command) -> Answer:
    """Asks about jobs by id (`7`, `8_3`). Never raises: without Slurm the run folders count, and a note says so."""
    if not job_ids:
        return Answer()
    try:
        queued = read_queue(run)
    except UserError as error:
        note = f"{error}; showing the states of the run folders"
        return Answer(commands=("squeue",), notes=(note,), is_complete=False)
    absent = sorted({job_id.split("_")[0] for job_id in job_ids if job_id not in queued}, key=int)
    if not absent or not accounting:
        return Answer(queued, commands=("squeue",))
    try:
        ended = parse_sacct(run([*SACCT, ",".join(absent)]))
    except UserError as error:
        return Answer(queued, commands=("squeue", "sacct"), notes=(f"no accounting ({error})",))
    return Answer(queued, ended, ("squeue", "sacct"))


def parse_squeue(text: str) -> dict[str, Job]:
    """Skips lines of another form."""
    jobs = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|", 6)]
        if len(cells) == 7:
            job_id, state, reason, nodes, time_left, dependency, comment = cells
            jobs[job_id] = Job(job_id, state, reason, nodes, time_left, dependency, comment)
    return jobs


def parse_sacct(text: str) -> dict[str, Job]:
    """`CANCELLED by 0` is CANCELLED; `8_[2-3,7%2]` are tasks that never started."""
    jobs = {}
    for line in text.splitlines():
        row = line.split("|")
        if len(row) == 4 and row[1]:
            for job_id in _expand_tasks(row[0]):
                state = row[1].split()[0].rstrip("+")
                jobs[job_id] = Job(job_id, state, exit_code=row[2], end=_timestamp(row[3]))
    return jobs


def _expand_tasks(text: str) -> list[str]:
    if not (match := re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", text)):
        return [text]
    job_ids = []
    for interval in match[2].split(","):
        first, _, last = interval.partition("-")
        job_ids += [f"{match[1]}_{task}" for task in range(int(first), int(last or first) + 1)]
    return job_ids


def _timestamp(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # Unknown
        return None


# ── merging ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def merge(
    state: RunState, record: JobRecord, answer: Answer, now_s: float, reason: str = "", action: str = ""
) -> RunState:
    """Returns a run's state with what Slurm knows of its newest training job. `reason`: a line of the job's own output, where
    there was no attempt yet; `action`: of the requeue policy after the newest attempt, empty before it has decided."""
    state = replace(state, job=record.id)
    if state.state == "finished":
        return state
    if job := answer.queued.get(record.id):
        return _merge_queued(state, job, reason, action)
    if action == "requeue" and (job := answer.ended.get(record.id)) and job.state not in FINAL:
        return replace(state, state="ending", cause=f"{state.cause}; requeued")
    if job := answer.ended.get(record.id):
        return _merge_ended(state, record, job, now_s, reason)
    if state.state == "sealed" and answer.is_complete:
        return replace(state, cause=f"job {record.id} left the queue before it began (scancel?); submit it again")
    return state


def _merge_queued(state: RunState, job: Job, reason: str, action: str) -> RunState:
    if job.is_pending:
        previous = f"attempt {state.attempts} ended ({state.cause}); " if state.attempts and state.cause else ""
        previous = f"its start failed ({reason}); " if reason else previous
        return replace(state, state="pending", cause=previous + explain(job))
    if job.state == "COMPLETING":
        # A program that waits for the end must not take a failure for it while the job may still be requeued.
        if state.state == "stopped" or (state.state == "failed" and action not in ("", "requeue")):
            return state
        return replace(state, state="ending", cause=f"{state.cause}; requeued" if action == "requeue" else "")
    return replace(state, state="running", cause=f"on {job.nodes}, {job.time_left} left" if job.nodes else "")


def _merge_ended(state: RunState, record: JobRecord, job: Job, now_s: float, reason: str) -> RunState:
    if state.state in ("running", "stopped") or (state.state == "failed" and job.state != "CANCELLED"):
        return state
    if job.state not in FINAL:
        return replace(state, state="ending", cause=f"its job has left the queue; accounting still says {job.state}")
    if job.end is not None and now_s - job.end < LAG_S and state.state in ("sealed", "killed") and not reason:
        return replace(state, state="ending", cause=f"job ended ({job.state}); its last files may not be visible yet")
    cause = CAUSE_BY_SLURM_STATE.get(job.state, f"exit code {job.exit_code}")
    cause = f"{reason}; {cause}" if reason else cause
    log = f"attempts/{state.attempts:03d}/launcher.log" if state.attempts else _output_name(state, record)
    ended = "killed" if job.state in CAUSE_BY_SLURM_STATE else "failed"
    return replace(state, state=ended, cause=f"{cause} (Slurm: {job.state}); see {log}")


def _output_name(state: RunState, record: JobRecord) -> str:
    """Returns where the job printed before its first attempt, from the run folder."""
    file = output_of(Path(state.folder), record)
    return os.path.relpath(file, state.folder) if file else f"slurm-{record.id}.out"


def _reason(state: RunState, record: JobRecord | None) -> str:
    """Returns why the job's start failed, where it never came to an attempt."""
    return "" if record is None or state.attempts else reason_of(Path(state.folder), record)


def _action(state: RunState) -> str:
    """Returns what the requeue policy decided after the newest attempt, else empty."""
    if not state.attempts or state.state not in ("failed", "killed"):
        return ""
    decision = read_json(RunFolder(Path(state.folder)).all_attempts()[-1].decision_file)
    return str(decision.get("action", "")) if isinstance(decision, dict) else ""


def explain(job: Job) -> str:
    """Returns why a job is pending."""
    if job.reason == "Dependency" and "(failed)" in job.dependency:
        return f"{REASONS['DependencyNeverSatisfied']} ({job.dependency})"
    explanation = REASONS.get(job.reason.split(",")[0].strip("()"))
    if job.reason in ("Dependency", "DependencyNeverSatisfied"):
        return f"{explanation} ({job.dependency})"
    return f"{explanation} ({job.reason})" if explanation else job.reason


def query_states(
    targets: Sequence[str], runs: str | None, run: CommandRunner = run_command
) -> tuple[list[RunState], Answer, list[str]]:
    """Returns the states of runs with what Slurm knows merged in, Slurm's answer, and lines about evaluation jobs. Raises
    UserError."""
    states = states_of(targets, runs)
    records = [jobs_of(Path(state.folder)) for state in states]
    trainings = [newest(jobs) for jobs in records]
    evaluations = {job.id: job for jobs in records for kind in ("score", "eval") if (job := newest(jobs, kind))}
    unfinished = [job.id for state, job in zip(states, trainings, strict=True) if job and state.state != "finished"]
    answer = query([*unfinished, *evaluations], _has_accounting(trainings), run)
    now_s = time.time()
    merged = [
        merge(state, job, answer, now_s, _reason(state, job), _action(state)) if job else state
        for state, job in zip(states, trainings, strict=True)
    ]
    return merged, answer, _evaluation_lines(evaluations.values(), answer)


def _evaluation_lines(records: Iterable[JobRecord], answer: Answer) -> list[str]:
    """Returns a line for each evaluation job that is unfinished or failed; tasks of an array are counted by state."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        if text := _evaluation_state(answer, record.id):
            counts.setdefault(record.job, Counter())[text] += 1
    return [
        f"evaluation, job {job}: {'; '.join(f'{count:,} {text}' if count > 1 else text for text, count in texts.items())}"
        for job, texts in counts.items()
    ]


def _evaluation_state(answer: Answer, job_id: str) -> str:
    if job := answer.queued.get(job_id):
        return f"pending, {explain(job)}" if job.is_pending else job.state.lower()
    ended = answer.ended.get(job_id)
    return "" if ended is None or ended.state == "COMPLETED" else f"{ended.state.lower()} ({ended.exit_code})"


def _has_accounting(records: Iterable[JobRecord | None]) -> bool:
    """Whether sacct can be asked; a cluster file that no longer exists does not forbid it."""
    for name in {record.cluster for record in records if record}:
        from launch.slurm.clusters import load_cluster  # pydantic: `status` of local runs stays instant

        try:
            if not load_cluster(name).accounting:
                return False
        except UserError:
            continue
    return True


def is_queued(folder: Path, run: CommandRunner = run_command) -> bool:
    """Whether a run's newest job is pending or running."""
    record = newest(jobs_of(folder))
    if record is None or state_of(folder).state == "finished":
        return False
    return record.id in query([record.id], False, run).queued
