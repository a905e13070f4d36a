"""`sft-dist diagnose`: reads runs, applies the rules, prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from launch.diagnose import render
from launch.diagnose.diagnosis import Diagnosis, diagnose
from launch.diagnose.evidence import read_evidence
from launch.diagnose.findings import CouldNotRun, Finding
from launch.diagnose.matrix import check_seeds
from launch.diagnose.remedies import next_recipe, remedy_of
from launch.run_folders import is_recipe, runs_root
from launch.run_state import states_of
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_text
from sft_dist.run.folder import RunFolder

NOTHING, CONSPICUOUS = 0, 1  # exit codes


def show_diagnosis(
    targets: Sequence[str], runs: str | None, as_json: bool, as_sarif: bool, next_file: Path | None = None
) -> tuple[str, int]:
    """Returns the text for standard output, and the exit code; writes the next recipe into `next_file`. Raises UserError when there
    is no run, and when there is no next recipe to write."""
    states = [state for state in states_of(targets, runs) if state.state not in ("unreadable", "sealed")]
    if not states:
        raise UserError(f"none of these runs in {runs_root(runs)} has been trained; first: sft-dist run")
    recipe = targets[0] if len(targets) == 1 and is_recipe(targets[0]) else ""
    diagnoses = [diagnose(read_evidence(state)) for state in states]
    seeds = check_seeds([diagnosis.evidence for diagnosis in diagnoses]) if len(diagnoses) > 1 else None
    matrix = [seeds] if isinstance(seeds, Finding) else []
    reasons = {"seed-noise": seeds.reason} if isinstance(seeds, CouldNotRun) else {}
    if next_file:
        write_next(diagnoses, next_file)
    code = CONSPICUOUS if matrix or any(diagnosis.findings for diagnosis in diagnoses) else NOTHING
    if as_sarif:
        return _dumped(render.to_sarif(diagnoses, recipe)), code
    if as_json:
        return _dumped(_json(diagnoses, matrix, reasons, recipe)), code
    texts = [render.describe(diagnosis, recipe) for diagnosis in diagnoses]
    texts += [text] if (text := render.describe_matrix(matrix, reasons)) else []
    return "\n\n".join(texts), code


def write_next(diagnoses: Sequence[Diagnosis], file: Path) -> None:
    """Writes the recipe that the first finding about the one run suggests. Raises UserError where there is none."""
    if len(diagnoses) != 1:
        raise UserError(f"--write works with one run, and these are {len(diagnoses)}")
    (diagnosis,) = diagnoses
    remedies = [remedy_of(finding, diagnosis.evidence) for finding in diagnosis.findings[:1]]
    if not remedies or not remedies[0].changes:
        raise UserError("--write: no setting would help here, so there is no next recipe")
    tree = next_recipe(RunFolder(Path(diagnosis.evidence.folder)).recipe(), remedies[0])
    write_text(file, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), durable=False)


def _json(
    diagnoses: Sequence[Diagnosis], matrix: Sequence[Finding], reasons: dict[str, str], recipe: str
) -> dict[str, Any]:
    return {
        "runs": [render.to_json(diagnosis, recipe) for diagnosis in diagnoses],
        "matrix": {"findings": [render.plain_json(finding) for finding in matrix], "could_not_run": reasons},
    }


def _dumped(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
