"""Rules about what reaches the model, and how fast: truncation, loading."""

from __future__ import annotations

from launch.diagnose.evidence import Evidence
from launch.diagnose.findings import HIGH, MEDIUM, CouldNotRun, Finding, Outcome
from launch.diagnose.series import end_level

TRUNCATED_SHARE = 0.2  # of the training rows
LOADING_SHARE = 0.5  # of the time
MIN_POINTS = 4


def check_truncation(evidence: Evidence) -> Outcome:
    """Finds many rows that are cut at the longest length."""
    if evidence.data_check is None:
        return CouldNotRun("the data was not checked: sft-dist check")
    truncations = [
        finding for finding in evidence.data_check.findings if finding.kind == "truncation" and finding.share
    ]
    worst = max(truncations, key=lambda finding: finding.share or 0.0, default=None)
    if worst is None or worst.share is None or worst.share < TRUNCATED_SHARE:
        return None
    return Finding(
        "truncation", worst.message, HIGH if worst.share > 2 * TRUNCATED_SHARE else MEDIUM, {"share": worst.share}
    )


def check_loading(evidence: Evidence) -> Outcome:
    """Finds steps that wait for their batch most of the time."""
    shares = evidence.train.get("loading_share", ())
    if len(shares) < MIN_POINTS:
        return CouldNotRun(f"{len(shares)} records of the time that loading takes; it needs {MIN_POINTS}")
    share = end_level(shares[1:])
    if share < LOADING_SHARE:
        return None
    message = f"{share:.0%} of the time from step {shares[1][0]:,} on is spent waiting for batches"
    return Finding("loader-bound", message, HIGH, {"share": share})
