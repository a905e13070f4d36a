"""Rules about several runs: whether their settings matter more than their seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence

from launch.diagnose.evidence import Evidence
from launch.diagnose.findings import HIGH, LOW, MEDIUM, CouldNotRun, Finding, Outcome

SEED = "train.seed"
MIN_SEEDS = 2  # of at least two settings
SURE_SEEDS = 3
CLEAR_ERRORS = 2.0  # standard errors between the two best settings


def check_seeds(runs: Sequence[Evidence]) -> Outcome:
    """Finds a best setting whose lead over the next is less than what other seeds change."""
    groups = [scores for scores in group_by_settings(runs).values() if len(scores) >= MIN_SEEDS]
    if len(groups) < 2:
        return CouldNotRun(f"{len(groups)} settings were trained with several seeds; it needs 2")
    spreads = [statistics.variance(scores) for scores in groups]
    deviation = math.sqrt(statistics.fmean(spreads))
    sign = -1.0 if runs[0].direction == "min" else 1.0
    ordered = sorted(groups, key=lambda scores: -sign * statistics.fmean(scores))
    lead = abs(statistics.fmean(ordered[0]) - statistics.fmean(ordered[1]))
    error = deviation * math.sqrt(1 / len(ordered[0]) + 1 / len(ordered[1]))
    if lead >= CLEAR_ERRORS * error:
        return None
    message = (
        f"the best setting leads by {lead:.3g} in {runs[0].metric}, and seeds alone make a standard deviation of"
        f" {deviation:.3g} ({len(ordered[0])} and {len(ordered[1])} seeds)"
    )
    confidence = HIGH if min(map(len, ordered[:2])) >= SURE_SEEDS else MEDIUM if lead < error else LOW
    return Finding("seed-noise", message, confidence, {"lead": lead, "deviation": deviation, "error": error})


def group_by_settings(runs: Sequence[Evidence]) -> Mapping[str, list[float]]:
    """Returns the best validation scores of the runs that differ in their seed alone."""
    groups: dict[str, list[float]] = {}
    for run in runs:
        score = best_score(run)
        if score is not None:
            settings = {key: value for key, value in run.settings.items() if key != SEED}
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(score)
    return groups


def best_score(run: Evidence) -> float | None:
    """Returns the best score on validation while training, by the metric that selects checkpoints."""
    scores = [value for _, value in run.validation.get(run.metric, ())]
    if not scores:
        return None
    return min(scores) if run.direction == "min" else max(scores)
