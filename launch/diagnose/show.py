"""`sft-dist diagnose`: reads runs, applies the rules, prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from launch.diagnose import render
from launch.diagnose.diagnosis import Diagnosis, diagnose
from launch.diagnose.evidence import read_evidence
from launch.diagnose.findings import CouldNotRun, Finding
from launch.diagnose.matrix import check_seeds
from launch.run_folders import is_recipe, runs_root
from launch.run_state import states_of
from sft_dist.recipe.errors import UserError

NOTHING, CONSPICUOUS = 0, 1  # exit codes


def show_diagnosis(targets: Sequence[str], runs: str | None, as_json: bool, as_sarif: bool) -> tuple[str, int]:
    """Returns the text for standard output, and the exit code. Raises UserError when there is no run."""
    states = [state for state in states_of(targets, runs) if state.state not in ("unreadable", "sealed")]
    if not states:
        raise UserError(f"none of these runs in {runs_root(runs)} has been trained; first: sft-dist run")
    recipe = targets[0] if len(targets) == 1 and is_recipe(targets[0]) else ""
    diagnoses = [diagnose(read_evidence(state)) for state in states]
    seeds = check_seeds([diagnosis.evidence for diagnosis in diagnoses]) if len(diagnoses) > 1 else None
    matrix = [seeds] if isinstance(seeds, Finding) else []
    reasons = {"seed-noise": seeds.reason} if isinstance(seeds, CouldNotRun) else {}
    code = CONSPICUOUS if matrix or any(diagnosis.findings for diagnosis in diagnoses) else NOTHING
    if as_sarif:
        return _dumped(render.to_sarif(diagnoses, recipe)), code
    if as_json:
        return _dumped(_json(diagnoses, matrix, reasons, recipe)), code
    texts = [render.describe(diagnosis, recipe) for diagnosis in diagnoses]
    texts += [text] if (text := render.describe_matrix(matrix, reasons)) else []
    return "\n\n".join(texts), code


def _json(
    diagnoses: Sequence[Diagnosis], matrix: Sequence[Finding], reasons: dict[str, str], recipe: str
) -> dict[str, Any]:
    return {
        "runs": [render.to_json(diagnosis, recipe) for diagnosis in diagnoses],
        "matrix": {"findings": [render.plain_json(finding) for finding in matrix], "could_not_run": reasons},
    }


def _dumped(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
