"""The gate before a job: `sft_dist.check` in a process of its own, and what of its findings keeps a run from being sent.

What was found is kept by everything it depends on, so that sending a sweep, or the same recipe again, asks once.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from launch.expand import MOST_PROBLEMS, Run, expand
from launch.planning import Prepared, require_references
from launch.subprocesses import environment
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import cache_root, read_json
from sft_dist.recipe.findings import KINDS
from sft_dist.recipe.fingerprint import code_digest, data_fingerprint, file_states, model_state
from sft_dist.recipe.load import read
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.suggest import similar_to

ERRORS = 1  # the child's exit code
USER_ERROR = 2
MOST_ROWS = 10  # of a finding, in a message


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
    """Look at the data of a recipe, each distinct set of its matrix in turn; the worst exit code."""
    _check_names(allow)
    source = read(target, overrides)
    runs = _distinct(expand(source))
    require_references(runs, source)
    code = 0
    answers: list[Any] = []
    for number, run in enumerate(runs, 1):
        options: list[str | Path] = [option for name in allow for option in ("--allow", name)]
        options += ["--runs", root]
        if timed:
            options.append("--time")
        file = _page(root, run.recipe, page, number if len(runs) > 1 else 0)
        options += ["--html", file, "--preview", str(preview)]
        done = _child(run.recipe, [*options, *(["--json"] if as_json else [])])
        if as_json:
            answers.append(json.loads(done.stdout) if done.stdout.strip() else None)
        else:
            print(done.stdout, end="")
            if done.returncode in (0, ERRORS) and file.is_file():
                print(f"page      {file}")
        code = max(code, done.returncode)
    if as_json:
        print(json.dumps(answers[0] if len(answers) == 1 else answers, ensure_ascii=False, indent=2))
    return code


def gate(prepared: Sequence[Prepared], allow: Collection[str] = ()) -> list[str]:
    """Warnings about the data of runs that are about to be sent. Raises UserError for what keeps them from it."""
    _check_names(allow)
    problems: list[Problem] = []
    warnings: list[str] = []
    for run in _distinct([one.run for one in prepared]):
        known = _known(run.recipe)
        if known is None:
            warnings.append("the data could not be checked here; they are sent unchecked")
            continue
        for one in known["findings"]:
            if one["severity"] == "error" and one["kind"] not in allow:
                hint = f"{one['hint']}; to send it as it is: --allow {one['kind']}"
                problems.append(Problem(f"{one['kind']}: {one['message']}", "data", value=_rows(one), hint=hint))
        if known["warnings"]:
            warnings.append(f"{known['warnings']} warnings about the data: `sft-dist check` shows them")
    if problems:
        raise UserError(problems[:MOST_PROBLEMS])
    return list(dict.fromkeys(warnings))


def _known(recipe: Recipe) -> dict[str, Any] | None:
    """What the gate found in these data, now or before; None when it could not look. Raises UserError."""
    kept = _kept(recipe)
    if (known := read_json(kept)) is not None and _holds(known):
        return dict(known)
    print("checking the data (done once for these; --no-check leaves it out) ...", file=sys.stderr, flush=True)
    done = _child(recipe, ["--json"])
    if done.returncode == USER_ERROR:
        problems = json.loads(done.stdout)["problems"]
        raise UserError([Problem(**{**one, "mark": None, "valid": tuple(one["valid"])}) for one in problems])
    found = read_json(kept) if done.returncode in (0, ERRORS) else None
    return dict(found) if found is not None else None


def _holds(known: dict[str, Any]) -> bool:
    """Whether an answer is still that about these data: what tables name may have changed, or have been put there."""
    unreadable = any(one["kind"].startswith("unreadable-") for one in known["findings"])
    return not unreadable and file_states(path for path, *_ in known["files"]) == list(map(tuple, known["files"]))


def _child(recipe: Recipe, options: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Progress goes to this process's stderr; its answer is returned, and kept."""
    with tempfile.TemporaryDirectory(prefix="sft-dist-") as folder:
        file = Path(folder) / "recipe.json"
        file.write_text(recipe.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "sft_dist.check", file, "--keep", _kept(recipe), *options]
        return subprocess.run(
            [str(part) for part in command], env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip


def _kept(recipe: Recipe) -> Path:
    """Where the answer about these data, as this model takes them, is kept."""
    asked = [
        data_fingerprint(recipe, anew=True), code_digest(), recipe.data.max_length,
        recipe.model.model_dump(mode="json"), model_state(recipe),
    ]  # fmt: skip
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:20]
    return cache_root() / "checks" / f"{name}.json"


def _page(root: Path, recipe: Recipe, chosen: Path | None, number: int) -> Path:
    file = chosen or root / recipe.name / "check.html"
    return file.with_name(f"{file.stem}-{number}{file.suffix}") if number else file


def _distinct(runs: Iterable[Run]) -> list[Run]:
    """One run for each of the data sets, tasks and models among them."""
    found: dict[str, Run] = {}
    seen = set()
    for run in runs:
        recipe = run.recipe
        parts = tuple(
            map(id, (recipe.data, recipe.task, recipe.model))
        )  # points of a matrix share what they do not vary
        if parts in seen:
            continue
        seen.add(parts)
        key = json.dumps([part.model_dump(mode="json") for part in (recipe.data, recipe.task, recipe.model)])
        found.setdefault(key, run)
    return list(found.values())


def _check_names(allow: Collection[str]) -> None:
    known = tuple(kind for kind, one in KINDS.items() if one.severity == "error")
    for name in allow:
        if name not in known:
            raise UserError(
                Problem("no error has this name", "--allow", value=name, valid=known, hint=similar_to(name, known))
            )


def _rows(finding: dict[str, Any]) -> str | None:
    rows = finding["rows"]
    if not rows:
        return None
    more = finding["count"] - len(rows[:MOST_ROWS])
    return ", ".join(f"{one['split']} {one['row']}" for one in rows[:MOST_ROWS]) + (
        f" and {more:,} more" if more > 0 else ""
    )
