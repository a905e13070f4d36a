"""Hands runs to Slurm: seals them, sends as few jobs as possible, and writes down which job has which run.

Sending twice sends nothing new: what is finished, or has a job that waits or runs, is left alone. That holds after a
crash between sbatch and the record too, because every job carries its submission's name as its comment.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from launch.evaluate import all_judged, board_of
from launch.planning import Prepared
from launch.run_folders import seal_all
from launch.run_state import state_of
from launch.slurm.array import array_script
from launch.slurm.client import Live, live_jobs, sbatch
from launch.slurm.clusters import Cluster
from launch.slurm.functions import Work, check_installed, send
from launch.slurm.job import job_script
from launch.slurm.records import JobRecord, jobs_of, record_job
from launch.slurm.resources import Request, request
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_json, write_json, write_text
from sft_dist.recipe.schema import Resources
from sft_dist.recipe.units import seconds_of
from sft_dist.run.folder import NO_LOCKS, RunFolder


@dataclass(frozen=True)
class Divided:
    """A recipe's runs, by what is to be done about them."""

    missing: list[Prepared] = field(default_factory=list)
    waiting: list[Prepared] = field(default_factory=list)
    running: list[Prepared] = field(default_factory=list)
    done: list[Prepared] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """Runs that one call of sbatch is about."""

    runs: list[Prepared]
    kind: str = "train"  # in the ledger
    is_array: bool = False

    @property
    def asked(self) -> Request:
        """Of training jobs, which ask for the same in one part."""
        asked = self.runs[0].plan.request
        assert asked is not None
        return asked


@dataclass(frozen=True)
class Submission:
    """What was sent: a job's id for each part."""

    divided: Divided
    jobs: list[tuple[str, Part]] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[str]:
        return [job for job, part in self.jobs if part.kind == kind]


def submit(
    prepared: Sequence[Prepared], cluster: Cluster, parallel: int | None = None, evaluate: bool = True
) -> Submission:
    """Raises UserError when Slurm does not answer, or refuses."""
    check_places(prepared, cluster)
    if evaluate:
        check_installed()
    os.umask(0o077)
    parent = prepared[0].plan.folder.parent
    with _alone(parent):
        live = live_jobs()
        _recover(parent, live)
        divided = divide(prepared, live)
        parts = parts_of(prepared, divided, live, cluster, evaluate)
        if not parts:
            return Submission(divided)
        if divided.missing:
            seal_all([(one.plan, one.run.recipe, script_of(one, cluster)) for one in divided.missing])
        sender = _Sender(prepared, cluster, parts, parallel)
        try:
            for part in parts:
                sender.send(part, live)
        except UserError as error:
            sender.close()
            if not sender.jobs:
                raise
            raise UserError([*error.problems, Problem(_sent_before(sender.jobs))]) from None
        sender.close()
        return Submission(divided, sender.jobs)


def _sent_before(jobs: Sequence[tuple[str, Part]]) -> str:
    sent = ", ".join(f"job {job} ({part.kind} of {len(part.runs):,} runs)" for job, part in jobs)
    return f"sent before that, and in the queue: {sent}; `sft-dist submit` again sends the rest"


def script_of(one: Prepared, cluster: Cluster) -> str:
    return job_script(one.plan, cluster, seconds_of(one.run.recipe.resources.hang_timeout))


def parts_of(
    prepared: Sequence[Prepared], divided: Divided, live: Sequence[Live], cluster: Cluster, evaluate: bool
) -> list[Part]:
    """What has to be sent, in as few calls of sbatch as can be: training by what is asked for, then what judges it. No
    part is longer than a job array may be."""
    most = cluster.max_array_size
    groups: dict[Request | None, list[Prepared]] = {}
    for one in divided.missing:
        groups.setdefault(one.plan.request, []).append(one)
    parts = [Part(chunk, "train", len(chunk) > 1) for group in groups.values() for chunk in _chunks(group, most)]
    if evaluate and _is_unjudged(prepared, divided, live):
        if len(prepared) > 1:
            parts += [Part(chunk, "score", len(chunk) > 1) for chunk in _chunks(prepared, most)]
        parts.append(Part(list(prepared), "eval"))
    return parts


def _chunks(runs: Sequence[Prepared], most: int) -> list[list[Prepared]]:
    return [list(runs[start : start + most]) for start in range(0, len(runs), most)]


def _is_unjudged(prepared: Sequence[Prepared], divided: Divided, live: Sequence[Live]) -> bool:
    """Is there, or will there be, something that no evaluation in the queue and no leaderboard covers?"""
    if divided.missing:
        return True
    known = {job.id for job in live}
    queued = [{job.id for job in jobs_of(one.plan.folder) if job.kind == "eval"} & known for one in prepared]
    if set.intersection(*queued):
        return False
    plans = [one.plan for one in prepared]
    return bool(divided.waiting or divided.running) or not all_judged([one.folder for one in plans], board_of(plans))


def divide(prepared: Sequence[Prepared], live: Sequence[Live]) -> Divided:
    """`live`: what squeue shows; empty when nobody is asked."""
    states = {job.id: job.state for job in live}
    found = Divided()
    for one in prepared:
        if not (one.plan.folder / "recipe.json").is_file():
            found.missing.append(one)
            continue
        now = state_of(one.plan.folder).state
        queued = [states[job.id] for job in jobs_of(one.plan.folder) if job.kind == "train" and job.id in states]
        if now == "finished":
            found.done.append(one)
        elif now == "running" or any(state != "PENDING" for state in queued):
            found.running.append(one)
        elif queued:
            found.waiting.append(one)
        else:
            found.missing.append(one)
    return found


def check_places(prepared: Sequence[Prepared], cluster: Cluster) -> None:
    """Can the nodes see the runs, and can their folder's name stand where Slurm reads it? Raises UserError."""
    parent = prepared[0].plan.folder.parent
    where = str(parent)
    problems = []
    if not where.isprintable():
        problems.append(Problem("control characters in the runs' folder", "--runs", value=repr(where)))
    if re.search(r"[%\\]", where):
        problems.append(Problem("Slurm gives `%` and `\\` in a log's name a meaning", "--runs", value=where))
    if cluster.container and re.search(r"[,:\\]", where):
        problems.append(Problem("a container's mounts bear no `,`, `:` or `\\`", "--runs", value=where))
    if cluster.shared_folder and not parent.is_relative_to(Path(cluster.shared_folder).resolve()):
        problems.append(
            Problem(
                f"the nodes of {cluster.name} see {cluster.shared_folder}, and the runs would lie outside it",
                "--runs",
                value=str(parent.parent),
                hint=f"such as --runs {cluster.shared_folder}/runs",
            )
        )
    if problems:
        raise UserError(problems)


# ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class _Sender:
    """One submission: its folder, in which `submission.json` says before anything is sent what is going to be."""

    def __init__(
        self, prepared: Sequence[Prepared], cluster: Cluster, parts: Sequence[Part], parallel: int | None
    ) -> None:
        plan = prepared[0].plan
        self.jobs: list[tuple[str, Part]] = []
        self._cluster, self._parallel = cluster, parallel
        self._parent = plan.folder.parent
        self._identity = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self._folder = self._parent / ".submissions" / self._identity
        self._folder.mkdir(mode=0o700)
        self._log = {"cluster": cluster.name, "parts": [_entry(part) for part in parts]}
        write_json(self._folder / "submission.json", {**self._log, "done": False})

    def send(self, part: Part, live: Sequence[Live]) -> None:
        number = len(self.jobs)
        comment = f"sft-dist:{self._identity}:{number}"
        if part.kind == "train":
            job = self._train(part, number, comment)
        elif part.kind == "score":
            job = self._score(part, comment, [*self._sent("train"), *_queued(part.runs, live)])
        else:
            before = self._sent("score") or [*self._sent("train"), *_queued(part.runs, live)]
            job = self._judge(part, comment, before)
        self.jobs.append((job, part))
        _record([one.plan.folder for one in part.runs], job, self._cluster.name, part.kind, part.is_array)

    def close(self) -> None:
        log = {**self._log, "done": True, "jobs": [job for job, _ in self.jobs]}
        write_json(self._folder / "submission.json", log)

    def _sent(self, kind: str) -> list[str]:
        return [job for job, part in self.jobs if part.kind == kind]

    def _train(self, part: Part, number: int, comment: str) -> str:
        # A cap is one for the whole sweep, and a job array knows only its own: the next begins when one has ended.
        before = self._sent("train")[-1:] if self._parallel else []
        options = [f"--comment={comment}", *(f"--dependency=afterany:{job}" for job in before)]
        if not part.is_array:
            run = RunFolder(part.runs[0].plan.folder)
            return sbatch([f"--chdir={run.path}", "--output=slurm-%j.out", *options], run.job_script)
        names = self._folder / f"train-{number}.txt"
        write_text(names, "".join(f"{one.plan.folder}\n" for one in part.runs))
        script = self._folder / f"train-{number}.sbatch"
        name = part.runs[0].plan.name
        write_text(script, array_script(part.asked, self._cluster, name, names, len(part.runs), self._parallel))
        return sbatch([f"--chdir={self._folder}", "--output=slurm-%A_%a.out", *options], script)

    def _score(self, part: Part, comment: str, after: Sequence[str]) -> str:
        """An array that scores checkpoints, one task a run."""
        paths = [one.plan.folder for one in part.runs]
        return self._call("score_run", paths, part.runs[0], comment, after)

    def _judge(self, part: Part, comment: str, after: Sequence[str]) -> str:
        """One job that chooses, tests and exports, and scores what is not scored yet."""
        order = self._folder / "eval.json"
        plans = [one.plan for one in part.runs]
        write_json(order, {"runs": [str(one.folder) for one in plans], "leaderboard": str(board_of(plans))})
        return self._call("evaluate_runs", [order], part.runs[0], comment, after)

    def _call(self, function: str, paths: Sequence[Path], first: Prepared, comment: str, after: Sequence[str]) -> str:
        plan, asked = first.plan, evaluation_request(self._cluster)
        env = {**plan.env, "OMP_NUM_THREADS": str(asked.cpus)}
        name, source = f"{plan.name}-eval", plan.folder / "source"
        work = Work(name, f"sft_dist.evaluate:{function}", paths, source, plan.argv[0], env)
        return send(
            work, asked, self._cluster, self._folder / "eval", list(dict.fromkeys(after)), comment, self._parallel
        )


def _queued(runs: Sequence[Prepared], live: Sequence[Live]) -> list[str]:
    """Training jobs of earlier submissions that an evaluation has to wait for."""
    known = {job.id for job in live}
    return [job.job for one in runs for job in jobs_of(one.plan.folder) if job.kind == "train" and job.id in known]


def evaluation_request(cluster: Cluster) -> Request:
    """One process; on a GPU cluster one GPU and its share of the node."""
    return replace(request(Resources(), cluster, 1), nodes=1)


# ── what is there already ───────────────────────────────────────────────────────────────────────────────────────────
def _entry(part: Part) -> dict[str, object]:
    folders = [str(one.plan.folder) for one in part.runs]
    return {"kind": part.kind, "array": part.is_array, "folders": folders}


def _record(runs: Sequence[Path], job: str, cluster: str, kind: str, is_array: bool) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for task, folder in enumerate(runs):
        record_job(RunFolder(folder), JobRecord(job, task if is_array else None, cluster, kind, now))


def _recover(parent: Path, live: Sequence[Live]) -> None:
    """Write down jobs whose submission was interrupted between sbatch and the record."""
    for file in sorted((parent / ".submissions").glob("*/submission.json")):
        log = read_json(file) or {}
        if log.get("done", True):
            continue
        for number, part in enumerate(log["parts"]):
            comment = f"sft-dist:{file.parent.name}:{number}"
            for job in sorted({job.id.split("_")[0] for job in live if job.comment == comment}):
                for task, folder in enumerate(map(Path, part["folders"])):
                    record = JobRecord(job, task if part["array"] else None, log["cluster"], part["kind"], "")
                    if record.id not in {known.id for known in jobs_of(folder)}:
                        record_job(RunFolder(folder), record)
        write_json(file, {**log, "done": True})


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Two submissions of one recipe at the same moment would both find its runs missing."""
    folder = parent / ".submissions"
    for path in (parent, folder):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)
