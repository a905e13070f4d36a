"""The section of the report about what went wrong: findings of the rules in `launch/diagnose/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.diagnose.diagnosis import Diagnosis
from launch.diagnose.findings import CAUSES, Finding
from launch.diagnose.matrix import check_seeds
from launch.diagnose.remedies import diff_lines, remedy_of

MAX_FINDINGS = 50  # of many runs, the surest


def diagnosis_section(diagnoses: Mapping[int, Diagnosis]) -> list[dict[str, Any]]:
    """Returns findings about runs by their numbers, the surest first; `run` is None where one is about all of them."""
    entries = [
        _entry(finding, number, diagnosis) for number, diagnosis in diagnoses.items() for finding in diagnosis.findings
    ]
    seeds = check_seeds([diagnosis.evidence for diagnosis in diagnoses.values()]) if len(diagnoses) > 1 else None
    if isinstance(seeds, Finding):
        entries.append(_entry(seeds, None, next(iter(diagnoses.values()))))
    return sorted(entries, key=lambda entry: -entry["confidence"])[:MAX_FINDINGS]


def _entry(finding: Finding, run: int | None, diagnosis: Diagnosis) -> dict[str, Any]:
    remedy = remedy_of(finding, diagnosis.evidence)
    return {
        "run": run,
        "cause": finding.cause,
        "meaning": CAUSES[finding.cause],
        "message": finding.message,
        "confidence": finding.confidence,
        "changes": diff_lines(remedy, diagnosis.evidence),
        "advice": remedy.advice,
    }
