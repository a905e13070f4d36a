"""The table of rules, and what they say together: findings by confidence, symptoms of other causes removed, checks that could not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launch.diagnose import generalization, optimization, pipeline
from launch.diagnose.evidence import Evidence
from launch.diagnose.findings import CAUSES, CouldNotRun, Finding, Outcome

RULES: Mapping[str, Callable[[Evidence], Outcome]] = {
    "diverged": optimization.check_divergence,
    "bad-schedule": optimization.check_schedule,
    "leak": generalization.check_leak,
    "truncation": pipeline.check_truncation,
    "loader-bound": pipeline.check_loading,
    "dead-class": generalization.check_classes,
    "label-noise": generalization.check_label_noise,
    "wrong-labels": generalization.check_labels,
    "lr-too-high": optimization.check_high_rate,
    "lr-too-low": optimization.check_low_rate,
    "over-fit": generalization.check_over_fitting,
    "under-fit": optimization.check_length,
    "plateau": optimization.check_plateau,
}

# Cause -> causes whose signs it brings about.
EXPLAINS: Mapping[str, frozenset[str]] = {
    "diverged": frozenset(CAUSES) - {"diverged", "loader-bound", "truncation"},
    "bad-schedule": frozenset(["lr-too-low", "under-fit", "plateau", "wrong-labels", "dead-class"]),
    "lr-too-high": frozenset(["over-fit", "plateau", "wrong-labels", "dead-class", "under-fit"]),
    "lr-too-low": frozenset(["plateau", "wrong-labels", "dead-class", "under-fit"]),
    "under-fit": frozenset(["plateau", "wrong-labels", "dead-class"]),
    "label-noise": frozenset(["over-fit", "plateau", "wrong-labels"]),
    "truncation": frozenset(["plateau", "wrong-labels", "label-noise"]),
    "wrong-labels": frozenset(["over-fit", "plateau", "dead-class"]),
    "leak": frozenset(["over-fit"]),
}


@dataclass(frozen=True)
class Diagnosis:
    """What the rules say about one run, the most likely cause first."""

    evidence: Evidence
    findings: tuple[Finding, ...]
    could_not_run: Mapping[str, str]  # cause -> reason

    @property
    def is_abstention(self) -> bool:
        """Whether nothing was found and most checks could not run."""
        return not self.findings and len(self.could_not_run) > len(RULES) / 2


def diagnose(evidence: Evidence) -> Diagnosis:
    """Applies every rule to the evidence. Pure."""
    outcomes = {cause: rule(evidence) for cause, rule in RULES.items()}
    findings = [outcome for outcome in outcomes.values() if isinstance(outcome, Finding)]
    reasons = {cause: outcome.reason for cause, outcome in outcomes.items() if isinstance(outcome, CouldNotRun)}
    return Diagnosis(evidence, tuple(ranked(findings)), reasons)


def ranked(findings: list[Finding]) -> list[Finding]:
    """Returns the findings that no finding of at least their confidence explains, the surest first."""
    order = list(CAUSES)
    remaining = [finding for finding in findings if not any(_explains(other, finding) for other in findings)]
    return sorted(remaining, key=lambda finding: (-finding.confidence, order.index(finding.cause)))


def _explains(cause: Finding, symptom: Finding) -> bool:
    return symptom.cause in EXPLAINS.get(cause.cause, ()) and cause.confidence >= symptom.confidence
