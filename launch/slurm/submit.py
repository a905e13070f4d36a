"""Submits runs to Slurm: creates their folders, sends as few jobs as possible, and records which job has which run.

Submitting twice submits nothing new (divide.py). That holds after a crash between sbatch and the record too, because every
job carries its submission's name as its comment.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launch.evaluate import leaderboard_folder
from launch.planning import PlannedRun
from launch.run_folders import create_run_folders, is_sealed_before_packages, shared_source
from launch.slurm.array import array_script
from launch.slurm.client import sbatch
from launch.slurm.clusters import Cluster
from launch.slurm.divide import JobPlan, RunsByState, divide, plan_jobs
from launch.slurm.functions import Work, check_installed, send
from launch.slurm.job import job_script
from launch.slurm.queue import Queue, read_queue
from launch.slurm.records import JobRecord, jobs_of, record_job
from launch.slurm.resources import Request, request_resources
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_json, write_json, write_text
from sft_dist.recipe.units import seconds_of
from sft_dist.run.attempt import timestamp
from sft_dist.run.folder import RunFolder
from sft_dist.run.locks import locked


@dataclass(frozen=True)
class Submission:
    """What was submitted: the id of each job."""

    by_state: RunsByState
    jobs: list[tuple[str, JobPlan]] = field(default_factory=list)


def submit(
    runs: Sequence[PlannedRun],
    cluster: Cluster,
    parallel: int | None = None,
    evaluate: bool = True,
    lacks_software: bool = False,
) -> Submission:
    """`lacks_software`: this machine lacks software of the cluster file. Raises UserError when Slurm does not answer, or
    refuses."""
    check_folders(runs, cluster)
    if evaluate:
        check_installed()
    os.umask(0o077)
    parent = runs[0].plan.folder.parent
    with exclusive(parent):
        queue = read_queue()
        recover_records(parent, queue)
        by_state = divide(runs, queue)
        jobs = plan_jobs(runs, by_state, queue, cluster, evaluate)
        if not jobs:
            return Submission(by_state)
        if by_state.missing:
            scripts = [script_of(run, cluster, lacks_software) for run in by_state.missing]
            create_run_folders(
                [(run.plan, run.run.recipe, script) for run, script in zip(by_state.missing, scripts, strict=True)]
            )
        submitter = _Submitter(runs, cluster, jobs, parallel)
        try:
            for job in jobs:
                submitter.send(job, queue)
        except UserError as error:
            submitter.close()
            if not submitter.jobs:
                raise
            raise UserError([*error.problems, Problem(_already_sent(submitter.jobs))]) from None
        submitter.close()
        return Submission(by_state, submitter.jobs)


def _already_sent(jobs: Sequence[tuple[str, JobPlan]]) -> str:
    names = ", ".join(f"job {job_id} ({job.kind} of {len(job.runs):,} runs)" for job_id, job in jobs)
    return f"already in the queue: {names}; run `sft-dist submit` again to submit the rest"


def script_of(run: PlannedRun, cluster: Cluster, lacks_software: bool = False) -> str:
    timeout_s = seconds_of(run.run.recipe.resources.hang_timeout)
    return job_script(run.plan, cluster, timeout_s, lacks_software=lacks_software)


def check_folders(runs: Sequence[PlannedRun], cluster: Cluster) -> None:
    """Checks that the nodes see the run folders, and that their path is safe where Slurm reads it. Raises UserError."""
    parent = runs[0].plan.folder.parent
    path = str(parent)
    problems = []
    if not path.isprintable():
        problems.append(Problem("control characters in the path of the runs", "--runs", value=repr(path)))
    if re.search(r"[%\\]", path):
        problems.append(Problem("`%` and `\\` are special in Slurm log paths", "--runs", value=path))
    if cluster.container and re.search(r"[,:\\]", path):
        problems.append(Problem("container mount paths must not contain `,`, `:` or `\\`", "--runs", value=path))
    if cluster.shared_folder and not parent.is_relative_to(Path(cluster.shared_folder).resolve()):
        problems.append(
            Problem(
                f"the nodes of {cluster.name} see {cluster.shared_folder}, but the runs would lie outside it",
                "--runs",
                value=str(parent.parent),
                hint=f"such as --runs {cluster.shared_folder}/runs",
            )
        )
    if problems:
        raise UserError(problems)


# ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class SubmissionFolder:
    """The folder of one submission, in which `submission.json` lists the jobs before any of them is sent: a submission that was
    interrupted between sbatch and the record is completed by the next one."""

    def __init__(self, parent: Path, cluster: Cluster, parts: Sequence[dict[str, Any]]) -> None:
        """`parts`: kind, whether it is an array, and the run folder of each task (or of all runs) of every job."""
        self._cluster, self._parts = cluster, parts
        self._name = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.path = parent / ".submissions" / self._name
        self.path.mkdir(mode=0o700)
        self._log = {"cluster": cluster.name, "parts": list(parts)}
        write_json(self.path / "submission.json", {**self._log, "done": False})

    def comment(self, number: int) -> str:
        return f"sft-dist:{self._name}:{number}"

    def record(self, number: int, job_id: str) -> None:
        """Records the job in the folders of its runs."""
        part = self._parts[number]
        for task, folder in enumerate(map(Path, part["folders"])):
            record = JobRecord(job_id, task if part["array"] else None, self._cluster.name, part["kind"], timestamp())
            record_job(RunFolder(folder), record)

    def close(self, job_ids: Sequence[str]) -> None:
        write_json(self.path / "submission.json", {**self._log, "done": True, "jobs": list(job_ids)})


class _Submitter:
    """One submission of runs."""

    def __init__(
        self, runs: Sequence[PlannedRun], cluster: Cluster, jobs: Sequence[JobPlan], parallel: int | None
    ) -> None:
        self.jobs: list[tuple[str, JobPlan]] = []
        self._cluster, self._parallel = cluster, parallel
        self._folder = SubmissionFolder(runs[0].plan.folder.parent, cluster, [_log_entry(job) for job in jobs])

    def send(self, job: JobPlan, queue: Queue) -> None:
        number = len(self.jobs)
        comment = self._folder.comment(number)
        if job.kind == "train":
            job_id = self._send_training(job, number, comment)
        else:
            trainings = [*self._sent("train"), *_queued_trainings(job.runs, queue)]
            if job.kind == "score":
                job_id = self._send_scoring(job, comment, trainings)
            else:
                job_id = self._send_evaluation(job, comment, self._sent("score") or trainings)
        self.jobs.append((job_id, job))
        self._folder.record(number, job_id)

    def close(self) -> None:
        self._folder.close([job_id for job_id, _ in self.jobs])

    def _sent(self, kind: str) -> list[str]:
        return [job_id for job_id, job in self.jobs if job.kind == kind]

    def _send_training(self, job: JobPlan, number: int, comment: str) -> str:
        # The cap is for the whole sweep, and a job array knows only its own tasks: the next array waits for this one.
        previous = self._sent("train")[-1:] if self._parallel else []
        options = [f"--comment={comment}", *(f"--dependency=afterany:{job_id}" for job_id in previous)]
        if not job.is_array:
            folder = RunFolder(job.runs[0].plan.folder)
            return sbatch([f"--chdir={folder.path}", "--output=slurm-%j.out", *options], folder.job_script)
        names = self._folder.path / f"train-{number}.txt"
        write_text(names, "".join(f"{run.plan.folder}\n" for run in job.runs))
        script = self._folder.path / f"train-{number}.sbatch"
        name = job.runs[0].plan.name
        write_text(script, array_script(job.request, self._cluster, name, names, len(job.runs), self._parallel))
        return sbatch([f"--chdir={self._folder.path}", "--output=slurm-%A_%a.out", *options], script)

    def _send_scoring(self, job: JobPlan, comment: str, after: Sequence[str]) -> str:
        """Submits an array that scores checkpoints, one task per run."""
        return self._call("score_run", [run.plan.folder for run in job.runs], job.runs, comment, after)

    def _send_evaluation(self, job: JobPlan, comment: str, after: Sequence[str]) -> str:
        """Submits one job that chooses, tests and exports, and scores what has no scores yet."""
        order = self._folder.path / "eval.json"
        plans = [run.plan for run in job.runs]
        write_json(order, {"runs": [str(plan.folder) for plan in plans], "leaderboard": str(leaderboard_folder(plans))})
        return self._call("evaluate_runs", [order], job.runs, comment, after)

    def _call(
        self, function: str, paths: Sequence[Path], runs: Sequence[PlannedRun], comment: str, after: Sequence[str]
    ) -> str:
        source = runs[0].plan.folder / "source"
        if is_sealed_before_packages(source):  # it lacks what the call names, and this version reads its run folder
            source = shared_source(runs[0].plan.folder.parent)
        folder = self._folder.path / "eval"
        return send_evaluation(function, paths, runs, source, self._cluster, folder, comment, after, self._parallel)


def send_evaluation(
    function: str,  # of sft_dist.evaluate
    paths: Sequence[Path],
    runs: Sequence[PlannedRun],
    source: Path,
    cluster: Cluster,
    folder: Path,
    comment: str,
    after: Sequence[str],
    parallel: int | None = None,
) -> str:
    """Submits a function of paths that evaluates these runs; returns the job's id. Raises UserError with the message of sbatch."""
    plan, request = runs[0].plan, evaluation_request(runs, cluster)
    env = {**plan.env, "OMP_NUM_THREADS": str(request.cpus)}
    work = Work(f"{plan.name}-eval", f"sft_dist.evaluate:{function}", paths, source, plan.argv[0], env)
    return send(work, request, cluster, folder, list(dict.fromkeys(after)), comment, parallel)


def _queued_trainings(runs: Sequence[PlannedRun], queue: Queue) -> list[str]:
    """Returns training jobs of earlier submissions, which an evaluation has to wait for."""
    return [
        record.job
        for run in runs
        for record in jobs_of(run.plan.folder)
        if record.kind == "train" and record.id in queue
    ]


def evaluation_request(runs: Sequence[PlannedRun], cluster: Cluster) -> Request:
    """Returns a request for one process with the threads and the memory of a training; on a GPU cluster one GPU and its share
    of the node.

    The time is that of the longest training: scoring takes less, and where it does not, the job is requeued and continues.
    """
    resources = runs[0].run.recipe.resources.model_copy(update={"nodes": 1, "time": None})
    request = request_resources(resources, cluster, 1)
    times = [run.plan.request.time_s for run in runs if run.plan.request]
    return replace(request, time_s=max((time for time in times if time), default=request.time_s))


# ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def _log_entry(job: JobPlan) -> dict[str, Any]:
    folders = [str(run.plan.folder) for run in job.runs]
    return {"kind": job.kind, "array": job.is_array, "folders": folders}


def recover_records(parent: Path, queue: Queue) -> None:
    """Records jobs whose submission was interrupted between sbatch and the record."""
    for file in sorted((parent / ".submissions").glob("*/submission.json")):
        log = read_json(file) or {}
        if log.get("done", True):
            continue
        for number, entry in enumerate(log["parts"]):
            comment = f"sft-dist:{file.parent.name}:{number}"
            for job_id in sorted({job.id.split("_")[0] for job in queue.values() if job.comment == comment}):
                for task, folder in enumerate(map(Path, entry["folders"])):
                    record = JobRecord(job_id, task if entry["array"] else None, log["cluster"], entry["kind"], "")
                    if record.id not in {recorded.id for recorded in jobs_of(folder)}:
                        record_job(RunFolder(folder), record)
        write_json(file, {**log, "done": True})


@contextmanager
def exclusive(parent: Path) -> Iterator[None]:
    """Holds a lock: two submissions of one recipe at the same moment would both find its runs missing."""
    folder = parent / ".submissions"
    for path in (parent, folder):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(folder / "lock"):
        yield
