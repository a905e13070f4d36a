"""Hands runs to Slurm: seals them, sends as few jobs as possible, and writes down which job has which run.

Sending twice sends nothing new: what is finished, or has a job that waits or runs, is left alone. That holds after a
crash between sbatch and the record too, because every job carries its submission's name as its comment.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from launch.capsule import seal_all
from launch.clusters import Cluster
from launch.ledger import state_of
from launch.prepare import Prepared
from launch.slurm.array import array_script, evaluation_script
from launch.slurm.job import job_script
from launch.slurm.jobs import JobRecord, jobs_of, record_job
from launch.slurm.request import Request, request
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.run_folder import RunFolder, read_json, write_json, write_text
from sft_dist.recipe.schema import Resources
from sft_dist.recipe.units import seconds_of

PATIENCE_S = 120  # for one call of sbatch or squeue
# What a job around this one, or a shell's habits, would tell sbatch and srun behind the cluster file's back.
_FOREIGN = re.compile(
    r"(SLURM|SBATCH|SRUN|SLURMD|PMIX?|PMI2|SFT_DIST_(ATTEMPT|TOKEN)|MASTER)_.*|SFT_DIST_ATTEMPT|SFT_DIST_TOKEN"
    r"|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|PYTHONPATH"
)


@dataclass(frozen=True)
class Divided:
    """A recipe's runs, by what is to be done about them."""

    missing: list[Prepared] = field(default_factory=list)
    waiting: list[Prepared] = field(default_factory=list)
    running: list[Prepared] = field(default_factory=list)
    done: list[Prepared] = field(default_factory=list)


@dataclass(frozen=True)
class Submission:
    """What was sent: (job id, number of runs) each, and the job that judges them."""

    divided: Divided
    jobs: list[tuple[str, int]]
    evaluation: str | None
    calls: int  # of sbatch
    folder: Path | None


@dataclass(frozen=True)
class Live:
    """One line of squeue."""

    id: str
    state: str
    comment: str


@dataclass(frozen=True)
class Part:
    """Runs that go into one sbatch call: they ask for the same."""

    number: int
    runs: list[Prepared]

    @property
    def asked(self) -> Request:
        asked = self.runs[0].plan.request
        assert asked is not None
        return asked


def submit(
    prepared: Sequence[Prepared], cluster: Cluster, parallel: int | None = None, evaluate: bool = True
) -> Submission:
    """Raises UserError when Slurm does not answer, or refuses."""
    check_places(prepared, cluster)
    parent = prepared[0].plan.folder.parent
    with _alone(parent):
        live = live_jobs()
        _recover(parent, live)
        divided = divide(prepared, live)
        if not divided.missing:
            return Submission(divided, [], None, 0, None)
        seal_all([(one.plan, one.run.recipe, script_of(one, cluster)) for one in divided.missing])
        identity = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        folder = parent / ".submissions" / identity
        folder.mkdir(mode=0o700)
        parts = parts_of(divided.missing, cluster.max_array_size)
        log = {"cluster": cluster.name, "done": False, "parts": [[one.run.id for one in part.runs] for part in parts]}
        log["folders"] = [[str(one.plan.folder) for one in part.runs] for part in parts]
        write_json(folder / "submission.json", log)
        jobs: list[tuple[str, int]] = []
        for part in parts:
            job = _send(part, cluster, folder, identity, parallel)
            _record(part.runs, job, cluster, "train", is_array=len(part.runs) > 1)
            jobs.append((job, len(part.runs)))
        write_json(folder / "submission.json", {**log, "done": True, "jobs": [job for job, _ in jobs]})
        judge = None
        if evaluate:
            before = [job for job, _ in jobs]
            for one in (*divided.waiting, *divided.running):
                before += [record.job for record in jobs_of(one.plan.folder)[-1:]]
            judge = _send_evaluation(prepared, cluster, folder, identity, list(dict.fromkeys(before)))
            _record(divided.missing, judge, cluster, "eval", is_array=False)
        return Submission(divided, jobs, judge, len(jobs) + bool(judge), folder)


def script_of(one: Prepared, cluster: Cluster) -> str:
    return job_script(one.plan, cluster, seconds_of(one.run.recipe.resources.hang_timeout))


def parts_of(missing: Sequence[Prepared], most: int) -> list[Part]:
    """As few parts as can be: by what is asked for, and no longer than a job array may be."""
    groups: dict[Request | None, list[Prepared]] = {}
    for one in missing:
        groups.setdefault(one.plan.request, []).append(one)
    chunks = [group[start : start + most] for group in groups.values() for start in range(0, len(group), most)]
    return [Part(number, chunk) for number, chunk in enumerate(chunks)]


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
    """Can the nodes see the runs, and can the folder's name stand in a script's list? Raises UserError."""
    parent = prepared[0].plan.folder.parent
    if not str(parent).isprintable():
        raise UserError(Problem("control characters in the runs' folder", "--runs", found=repr(str(parent))))
    if cluster.container and re.search(r"[,:\\]", str(parent)):
        raise UserError(Problem("a container's mounts bear no `,`, `:` or `\\`", "--runs", found=str(parent)))
    if cluster.shared_folder and not parent.is_relative_to(Path(cluster.shared_folder).resolve()):
        raise UserError(
            Problem(
                f"the nodes of {cluster.name} see {cluster.shared_folder}, and the runs would lie outside it",
                "--runs",
                found=str(parent.parent),
                hint=f"such as --runs {cluster.shared_folder}/runs",
            )
        )


# ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def _send(part: Part, cluster: Cluster, folder: Path, identity: str, parallel: int | None) -> str:
    comment = f"sft-dist:{identity}:{part.number}"
    if len(part.runs) == 1:
        run = RunFolder(part.runs[0].plan.folder)
        return sbatch([f"--chdir={run.path}", "--output=slurm-%j.out", f"--comment={comment}"], run.job_script)
    names = folder / f"train-{part.number}.txt"
    write_text(names, "".join(f"{one.plan.folder}\n" for one in part.runs))
    script = folder / f"train-{part.number}.sbatch"
    name = part.runs[0].plan.name
    write_text(script, array_script(part.asked, cluster, name, names, len(part.runs), parallel))
    return sbatch([f"--chdir={folder}", "--output=slurm-%A_%a.out", f"--comment={comment}"], script)


def _send_evaluation(
    prepared: Sequence[Prepared], cluster: Cluster, folder: Path, identity: str, after: Sequence[str]
) -> str:
    """`afterany`: what was saved is judged, also when a run has failed."""
    plan = prepared[0].plan
    names = folder / "eval.txt"
    write_text(names, "".join(f"{one.plan.folder}\n" for one in prepared))
    asked = evaluation_request(cluster)
    env = {**plan.env, "OMP_NUM_THREADS": str(asked.cpus)}
    script = folder / "eval.sbatch"
    text = evaluation_script(asked, cluster, plan.name, names, plan.folder.parent, plan.argv[0], env)
    write_text(script, text)
    options = [f"--chdir={folder}", "--output=eval-%j.out", f"--comment=sft-dist:{identity}:eval"]
    return sbatch([*options, f"--dependency=afterany:{':'.join(after)}"], script)


def evaluation_request(cluster: Cluster) -> Request:
    """One process; on a GPU cluster one GPU and its share of the node."""
    return replace(request(Resources(), cluster, 1), nodes=1)


def sbatch(options: Sequence[str], script: Path) -> str:
    """The new job's id. Raises UserError with what sbatch said."""
    output = ask(["sbatch", "--parsable", *options, str(script)])
    job = output.strip().split(";")[0]
    if not job.isdecimal():
        raise UserError(f"sbatch answered {output.strip()[:200]!r} instead of a job's id")
    return job


def ask(argv: Sequence[str]) -> str:
    """One call of a Slurm command, without a shell. Raises UserError with what it said."""
    try:
        done = subprocess.run(
            argv, env=clean_environment(os.environ), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    except FileNotFoundError:
        raise UserError(f"{argv[0]} is not there: this has to run where Slurm's commands are (a login node)") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{argv[0]} did not answer in {PATIENCE_S} s; try again, nothing is sent twice") from None
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise UserError(said if said.startswith(argv[0]) else f"{argv[0]}: {said}")
    return done.stdout


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what an enclosing job left (SLURM_CPU_BIND pins every rank to a few cores), but with the way to Slurm."""
    return {key: value for key, value in environment.items() if key == "SLURM_CONF" or not _FOREIGN.fullmatch(key)}


# ── what is there already ───────────────────────────────────────────────────────────────────────────────────────────
def live_jobs() -> list[Live]:
    """All of this user's jobs that wait or run, array tasks one by one: one squeue. Raises UserError."""
    lines = ask(["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%k"]).splitlines()
    return [Live(*parts) for line in lines if len(parts := line.split("|", 2)) == 3]


def _record(runs: Sequence[Prepared], job: str, cluster: Cluster, kind: str, is_array: bool) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for task, one in enumerate(runs):
        record_job(RunFolder(one.plan.folder), JobRecord(job, task if is_array else None, cluster.name, kind, now))


def _recover(parent: Path, live: Sequence[Live]) -> None:
    """Write down jobs whose submission was interrupted between sbatch and the record."""
    for file in sorted((parent / ".submissions").glob("*/submission.json")):
        log = read_json(file) or {}
        if log.get("done", True):
            continue
        for number, folders in enumerate(log["folders"]):
            comment = f"sft-dist:{file.parent.name}:{number}"
            jobs = {job.id.split("_")[0] for job in live if job.comment == comment}
            for job in jobs:
                for task, folder in enumerate(folders):
                    record = JobRecord(job, task if len(folders) > 1 else None, log["cluster"], "train", "")
                    if record.id not in [known.id for known in jobs_of(Path(folder))]:
                        record_job(RunFolder(Path(folder)), record)
        write_json(file, {**log, "done": True})


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Two submissions of one recipe at the same moment would both find its runs missing."""
    folder = parent / ".submissions"
    for path in (parent, folder):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
