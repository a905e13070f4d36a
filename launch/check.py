"""The data check before a job: runs `sft_dist.check` in a subprocess, and decides which findings block a submission.

The report is cached by everything it depends on, so that a sweep, or the same recipe submitted again, is checked once.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from launch.expand import MAX_PROBLEMS, Run, expand
from launch.planning import PlannedRun, require_references
from launch.run_folders import find_sealed
from launch.subprocesses import clean_up_on_signals, end_with_parent
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import cache_root, read_json, write_text
from sft_dist.recipe.findings import KINDS
from sft_dist.recipe.fingerprint import code_digest, data_fingerprint, file_states, model_state
from sft_dist.recipe.load import read
from sft_dist.recipe.references import classify, sources_of
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.source import Source
from sft_dist.recipe.suggest import similar_to
from sft_dist.run.folder import RunFolder
from sft_dist.run.subprocesses import environment, module_command

ERRORS = 1  # exit codes of `sft_dist.check`
USER_ERROR = 2
UNFINISHED = 3  # it crashed or was killed; it printed a report only where the crash was in one of its parts
CRASHED_PART = "crashed-check"  # the finding that names this part
MAX_ROWS = 10  # of a finding, in a message
REMOTE_KINDS = ("hub", "url", "sql")  # of data sources


def run_check(
    target: str,
    overrides: Sequence[str],
    root: Path,
    allow: Collection[str] = (),
    page: Path | None = None,
    preview: int = 0,
    timed: bool = False,
    as_json: bool = False,
) -> int:
    """Checks a recipe's data, each distinct data set of its matrix in turn; returns the worst exit code: 0, ERRORS, USER_ERROR
    or UNFINISHED."""
    _check_names(allow)
    runs = _runs_to_check(target, overrides, root)
    code = 0
    reports: list[Any] = []
    for number, run in enumerate(runs, 1):
        options: list[str | Path] = [option for name in allow for option in ("--allow", name)]
        options += ["--runs", root]
        if timed:
            options.append("--time")
        file = _page(root, run.recipe, page, number if len(runs) > 1 else 0)
        options += ["--html", file, "--preview", str(preview)]
        done = _check_in_subprocess(run.recipe, [*options, *(["--json"] if as_json else [])])
        if not _has_answer(done):
            error = _unfinished(done.returncode)
            print(error.render(), file=sys.stderr)
            reports.append(json.loads(error.to_json()))
            code = UNFINISHED
            continue
        if as_json:
            reports.append(json.loads(done.stdout) if done.stdout.strip() else None)
        else:
            print(done.stdout, end="")
            if done.returncode != USER_ERROR and file.is_file():
                print(f"page      {file}")
        code = max(code, done.returncode)
    if as_json:
        print(json.dumps(reports[0] if len(reports) == 1 else reports, ensure_ascii=False, indent=2))
    return code


def _runs_to_check(target: str, overrides: Sequence[str], root: Path) -> list[Run]:
    """Returns the runs of a recipe, or a run by its folder or id, one for each distinct data set. Raises UserError."""
    if path := find_sealed(target, root, overrides):
        folder = RunFolder(path)
        source, runs = Source({}, folder.recipe_file), [Run(folder.id, folder.recipe(), {})]
    else:
        source = read(target, overrides)
        runs = _distinct_data(expand(source))
    require_references(runs, source)
    return runs


def check_before_submit(runs: Sequence[PlannedRun], allow: Collection[str] = ()) -> list[str]:
    """Returns warnings about the data of runs that are about to be submitted. Raises UserError for findings that block it."""
    _check_names(allow)
    problems: list[Problem] = []
    warnings: list[str] = []
    for run in _distinct_data([planned.run for planned in runs]):
        report = _report_of(run.recipe)
        for finding in report["findings"]:
            if finding["severity"] == "error" and finding["kind"] not in allow:
                hint = f"{finding['hint']}; to submit it anyway: --allow {finding['kind']}"
                message = f"{finding['kind']}: {finding['message']}"
                problems.append(Problem(message, "data", value=_rows(finding), hint=hint))
        if report["warnings"]:
            warnings.append(f"{report['warnings']} warnings about the data: `sft-dist check` shows them")
    if problems:
        raise UserError(problems[:MAX_PROBLEMS])
    return list(dict.fromkeys(warnings))


def _report_of(recipe: Recipe) -> dict[str, Any]:
    """Returns the report about this data, from the cache or a new check. Raises UserError, also when the check did not finish."""
    file = report_file(recipe)
    if (report := read_json(file)) is not None and _is_current(report):
        return dict(report)
    print("checking the data (cached; skip with --no-check) ...", file=sys.stderr, flush=True)
    done = _check_in_subprocess(recipe, ["--json"])
    if done.returncode == USER_ERROR:
        raise UserError.from_dict(json.loads(done.stdout))
    report = read_json(file) if _has_answer(done) else None
    if report is None:
        raise _unfinished(done.returncode)
    return dict(report)


def cached_report(recipe: Recipe) -> dict[str, Any] | None:
    """Returns the report of an earlier check of this data, as far as it still describes it; None without one, and for data that is
    not on this machine: its state is not asked for."""
    try:
        if any(classify(text, Path.cwd()).kind in REMOTE_KINDS for _, text in sources_of(recipe.data)):
            return None
        report = read_json(report_file(recipe))
    except (UserError, OSError):
        return None
    return dict(report) if isinstance(report, dict) and _is_current(report) else None


def _has_answer(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether there is a report or a user error, be it of a check of which a part crashed."""
    return done.returncode in (0, ERRORS, USER_ERROR) or (done.returncode == UNFINISHED and bool(done.stdout.strip()))


def _unfinished(returncode: int) -> UserError:
    """Returns the error of a check that said nothing about the data."""
    cause, hint = "it crashed; its traceback is above", "report it with that traceback"
    if returncode < 0:
        cause = f"it was killed by {signal.Signals(-returncode).name}"
        hint = "run the check on a machine with more memory" if returncode == -signal.SIGKILL else "check it again"
    message = f"the data check did not finish: {cause}"
    return UserError(Problem(message, "data", hint=f"{hint}; `submit --no-check` submits unchecked data"))


def _is_current(report: dict[str, Any]) -> bool:
    """Whether a report still describes the data: files that tables refer to may have changed, or may exist by now."""
    try:
        kinds = {finding["kind"] for finding in report["findings"]}
        is_final = CRASHED_PART not in kinds and not any(kind.startswith("unreadable-") for kind in kinds)
        return is_final and file_states(path for path, *_ in report["files"]) == list(map(tuple, report["files"]))
    except (KeyError, TypeError, ValueError, AttributeError):  # a damaged report: the data is checked again
        return False


def _check_in_subprocess(recipe: Recipe, options: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Runs the check and puts its report into the cache. Its progress goes to this process's stderr.

    The return code is UNFINISHED where there is no report: Python's own code for a crash, 1, is also that of errors.
    """
    with clean_up_on_signals(), tempfile.TemporaryDirectory(prefix="sft-dist-") as folder:
        file, new_report = Path(folder) / "recipe.json", Path(folder) / "report.json"
        file.write_text(recipe.model_dump_json(), encoding="utf-8")
        command = module_command("sft_dist.check", [file, "--keep", new_report, *options])
        done = _run_group(command, {**environment(), "TMPDIR": folder})
        if done.returncode in (0, ERRORS, UNFINISHED):
            if (report := read_json(new_report)) is None:
                return subprocess.CompletedProcess(done.args, UNFINISHED, "")
            target = report_file(recipe)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_text(target, json.dumps(report, ensure_ascii=False), durable=False)
        return done


def _run_group(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process group of its own, which ends with this process: no worker of it outlives Ctrl-C or SIGTERM."""
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=end_with_parent,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output)


def report_file(recipe: Recipe) -> Path:
    """Returns the cache file of the report about this data, as this model reads it."""
    key = [
        data_fingerprint(recipe, replan=True), code_digest(), recipe.data.max_length,
        recipe.model.model_dump(mode="json"), model_state(recipe),
    ]  # fmt: skip
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    return cache_root() / "checks" / f"{name}.json"


def _page(root: Path, recipe: Recipe, page: Path | None, number: int) -> Path:
    file = page or root / recipe.name / "check.html"
    return file.with_name(f"{file.stem}-{number}{file.suffix}") if number else file


def _distinct_data(runs: Iterable[Run]) -> list[Run]:
    """Returns one run for each distinct combination of data, task and model."""
    by_content: dict[str, Run] = {}
    ids = set()
    for run in runs:
        sections = (run.recipe.data, run.recipe.task, run.recipe.model)
        identity = tuple(map(id, sections))  # points of a matrix share the sections that they do not vary
        if identity not in ids:
            ids.add(identity)
            by_content.setdefault(json.dumps([section.model_dump(mode="json") for section in sections]), run)
    return list(by_content.values())


def _check_names(allow: Collection[str]) -> None:
    valid = tuple(name for name, kind in KINDS.items() if kind.severity == "error")
    for name in allow:
        if name not in valid:
            hint = similar_to(name, valid)
            raise UserError(Problem("not the name of an error", "--allow", value=name, valid=valid, hint=hint))


def _rows(finding: dict[str, Any]) -> str | None:
    rows = finding["rows"][:MAX_ROWS]
    if not rows:
        return None
    num_more = finding["count"] - len(rows)
    text = ", ".join(f"{row['split']} {row['row']}" for row in rows)
    return text + (f" and {num_more:,} more" if num_more > 0 else "")
