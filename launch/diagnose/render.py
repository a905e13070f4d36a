"""A diagnosis as text, as JSON and as SARIF."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.diagnose.diagnosis import Diagnosis
from launch.diagnose.findings import CAUSES, HIGH, Finding
from launch.diagnose.remedies import command_of, diff_lines, remedy_of
from sft_dist import __version__
from sft_dist.recipe.text import printable

WIDTH = 100
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def next_command(diagnosis: Diagnosis, finding: Finding, recipe: str) -> str:
    """Returns the command that trains the next recipe; of a run without its recipe's file, the ones that write it before."""
    remedy = remedy_of(finding, diagnosis.evidence)
    if recipe or not remedy.changes:
        return command_of(remedy, recipe)
    if finding is not diagnosis.findings[0]:
        return ""
    folder = shlex.quote(diagnosis.evidence.folder)
    return f"sft-dist diagnose {folder} --write next.yaml; sft-dist run next.yaml"


def describe(diagnosis: Diagnosis, recipe: str = "") -> str:
    """Returns findings with their numbers, the next recipe as a diff and its command, then the checks that could not run."""
    lines = [headline(diagnosis)]
    for finding in diagnosis.findings:
        lines += ["", *_describe_finding(diagnosis, finding, recipe)]
    if diagnosis.could_not_run:
        lines += ["", f"{len(diagnosis.could_not_run)} checks could not run:"]
        lines += [f"  {cause:<13} {reason}" for cause, reason in diagnosis.could_not_run.items()]
    return printable("\n".join(lines))


def headline(diagnosis: Diagnosis) -> str:
    """Returns one line about the run."""
    name, evidence = diagnosis.evidence.run, diagnosis.evidence
    if diagnosis.findings:
        return f"{name}: {top_line(diagnosis)}"
    if diagnosis.is_abstention:
        return f"{name}: too little is known for a diagnosis ({evidence.state} at step {evidence.step:,})"
    return f"{name}: nothing conspicuous"


def top_line(diagnosis: Diagnosis) -> str:
    """Returns the most likely cause; an empty text without findings."""
    if not diagnosis.findings:
        return ""
    finding = diagnosis.findings[0]
    return f"{CAUSES[finding.cause]} ({finding.cause}, confidence {finding.confidence:.0%})"


def _describe_finding(diagnosis: Diagnosis, finding: Finding, recipe: str) -> list[str]:
    remedy = remedy_of(finding, diagnosis.evidence)
    lines = [f"{finding.cause}  confidence {finding.confidence:.0%}", *_wrapped(finding.message)]
    lines += [f"    {line}" for line in diff_lines(remedy, diagnosis.evidence)]
    if command := next_command(diagnosis, finding, recipe):
        lines.append(f"  {command}")
    return lines + (_wrapped(remedy.advice) if remedy.advice else [])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False)


def describe_matrix(findings: Sequence[Finding], reasons: Mapping[str, str]) -> str:
    """Returns what the rules say about several runs together."""
    lines = [f"{finding.cause}  confidence {finding.confidence:.0%}\n  {finding.message}" for finding in findings]
    lines += [f"{cause} could not run: {reason}" for cause, reason in reasons.items()]
    return printable("\n".join(lines))


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def to_json(diagnosis: Diagnosis, recipe: str = "") -> dict[str, Any]:
    """Returns a diagnosis for scripts."""
    return {
        "run": diagnosis.evidence.run,
        "folder": diagnosis.evidence.folder,
        "state": diagnosis.evidence.state,
        "step": diagnosis.evidence.step,
        "abstains": diagnosis.is_abstention,
        "findings": [_finding_json(diagnosis, finding, recipe) for finding in diagnosis.findings],
        "could_not_run": dict(diagnosis.could_not_run),
    }


def _finding_json(diagnosis: Diagnosis, finding: Finding, recipe: str) -> dict[str, Any]:
    remedy = remedy_of(finding, diagnosis.evidence)
    return {
        **plain_json(finding),
        "changes": remedy.changes,
        "advice": remedy.advice,
        "command": next_command(diagnosis, finding, recipe),
    }


def plain_json(finding: Finding) -> dict[str, Any]:
    """Returns a finding without its remedy."""
    return {
        "cause": finding.cause,
        "meaning": CAUSES[finding.cause],
        "message": finding.message,
        "confidence": finding.confidence,
        "numbers": dict(finding.numbers),
    }


# ── SARIF ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def to_sarif(diagnoses: Sequence[Diagnosis], recipe: str = "") -> dict[str, Any]:
    """Returns the findings as SARIF 2.1.0, by which CI services annotate the recipe."""
    rules = [{"id": cause, "shortDescription": {"text": meaning}} for cause, meaning in CAUSES.items()]
    driver = {"name": "sft-dist diagnose", "version": __version__, "rules": rules}
    results = [_sarif_result(diagnosis, finding, recipe) for diagnosis in diagnoses for finding in diagnosis.findings]
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _sarif_result(diagnosis: Diagnosis, finding: Finding, recipe: str) -> dict[str, Any]:
    path = recipe or str(Path(diagnosis.evidence.folder) / "recipe.json")
    return {
        "ruleId": finding.cause,
        "level": "error" if finding.confidence >= HIGH else "warning",
        "message": {"text": f"{diagnosis.evidence.run}: {CAUSES[finding.cause]}: {finding.message}"},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": Path(path).as_posix()}}}],
        "properties": {"confidence": finding.confidence, "numbers": dict(finding.numbers)},
    }
