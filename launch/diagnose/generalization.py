"""Rules about what the model learned: over-fitting, leaks, labels, classes. They need scores besides curves."""

from __future__ import annotations

import math

from launch.diagnose.evidence import Evaluation, Evidence
from launch.diagnose.findings import HIGH, LOW, MEDIUM, CouldNotRun, Finding, Outcome
from launch.diagnose.series import change, end_level, level_near, lowest, start_level

MIN_POINTS, MIN_VALIDATIONS = 8, 3
VALIDATION_RISE = 0.08  # above its lowest, as a share
TRAIN_FALL = 0.1  # of the training loss while validation rises
LEAK_ERRORS = 3.0  # standard errors between validation and test
LEAK_DIFFERENCE = 0.1
NO_GAIN_ERRORS = 2.0  # standard errors above a constant answer
NOISY_SHARE = 0.03  # of the rows that have a suspicious label
MIN_CLASS_ROWS = 5
MIN_CLASS_SHARE = 0.02


def check_over_fitting(evidence: Evidence) -> Outcome:
    """Finds a validation loss that rises while the training loss still falls."""
    loss, validation = evidence.train.get("loss", ()), evidence.validation.get("loss", ())
    if len(loss) < MIN_POINTS or len(validation) < MIN_VALIDATIONS:
        return CouldNotRun(
            f"{len(loss)} logged losses and {len(validation)} validations; it needs {MIN_POINTS} and {MIN_VALIDATIONS}"
        )
    step, low = lowest(validation)
    rise = change(low, end_level(validation[-2:]))
    before, end = level_near(loss, step), end_level(loss)
    fall = -change(before, end)
    gap = change(end, validation[-1][1])
    if rise < VALIDATION_RISE or (fall < TRAIN_FALL and gap < 1.0):
        return None
    message = f"the validation loss is lowest at step {step:,} ({low:.3g}) and rises to {validation[-1][1]:.3g}, while the training loss falls from {before:.3g} to {end:.3g}"
    confidence = HIGH if rise > 2 * VALIDATION_RISE and gap > 0.5 else MEDIUM
    return Finding("over-fit", message, confidence, {"step": float(step), "rise": rise, "fall": fall, "gap": gap})


def check_leak(evidence: Evidence) -> Outcome:
    """Finds rows that two splits share, by the data check, or a validation score far above the test score."""
    if finding := _check_finding(evidence, "leak", HIGH) or _check_finding(evidence, "near-leak", MEDIUM):
        return finding
    evaluation = evidence.evaluation
    if evaluation is None or "accuracy" not in evaluation.validation or "accuracy" not in evaluation.test:
        return (
            None if evidence.data_check else CouldNotRun("neither a data check nor accuracies on validation and test")
        )
    validation, test = evaluation.validation["accuracy"], evaluation.test["accuracy"]
    error = math.hypot(_error(validation, evaluation.validation), _error(test, evaluation.test))
    if validation - test < max(LEAK_DIFFERENCE, LEAK_ERRORS * error):
        return None
    message = f"accuracy is {validation:.3f} on validation but {test:.3f} on test, {(validation - test) / error:.1f} standard errors less"
    return Finding("leak", message, MEDIUM, {"validation": validation, "test": test, "standard_error": error})


def _error(accuracy: float, scores: object) -> float:
    examples = scores.get("examples", 0) if isinstance(scores, dict) else 0
    share = min(max(accuracy, 1 / (examples + 2)), 1 - 1 / (examples + 2))  # never 0: few examples prove little
    return math.sqrt(share * (1 - share) / max(examples, 1))


def _check_finding(evidence: Evidence, kind: str, confidence: float) -> Finding | None:
    if evidence.data_check is None:
        return None
    for finding in evidence.data_check.findings:
        if finding.kind == kind:
            return Finding(
                "leak", f"the data check reports {kind}: {finding.message}", confidence, {"count": float(finding.count)}
            )
    return None


def check_label_noise(evidence: Evidence) -> Outcome:
    """Finds labels that a simple classifier of the data check contradicts."""
    check = evidence.data_check
    if check is None:
        return CouldNotRun("the data was not checked: sft-dist check")
    rows = sum(check.rows.values())
    suspicious = sum(
        finding.count for finding in check.findings if finding.kind in ("suspicious-label", "conflicting-labels")
    )
    if not rows or suspicious < NOISY_SHARE * rows:
        return None
    message = (
        f"{suspicious:,} of {rows:,} rows ({suspicious / rows:.0%}) have labels that a simple classifier contradicts"
    )
    return Finding("label-noise", message, HIGH, {"rows": float(suspicious), "share": suspicious / rows})


def check_labels(evidence: Evidence) -> Outcome:
    """Finds a model that learns its training rows and is no better than a constant answer on others."""
    evaluation = evidence.evaluation
    if evaluation is None or not evaluation.confusion or "accuracy" not in evaluation.validation:
        return CouldNotRun("no evaluation with a confusion matrix: sft-dist eval")
    loss, validation = evidence.train.get("loss", ()), evidence.validation.get("loss", ())
    if len(loss) < MIN_POINTS or len(validation) < MIN_VALIDATIONS:
        return CouldNotRun(f"{len(loss)} logged losses; it needs {MIN_POINTS}")
    constant, accuracy = constant_accuracy(evaluation), evaluation.validation["accuracy"]
    error = math.sqrt(constant * (1 - constant) / max(evaluation.validation.get("examples", 1), 1))
    gain = (accuracy - constant) / max(error, 1e-9)
    entropy = _entropy(evaluation)
    low = lowest(validation)[1]
    if gain > NO_GAIN_ERRORS or low < 0.97 * entropy:
        return None
    fall = -change(start_level(loss), end_level(loss))
    message = f"accuracy on validation is {accuracy:.3f}, and a constant answer has {constant:.3f}; the validation loss is never below {low:.3g} (labels alone: {entropy:.3g})"
    return Finding(
        "wrong-labels",
        message,
        HIGH if fall > 0.15 else LOW,
        {"accuracy": accuracy, "constant": constant, "loss": low, "fall": fall},
    )


def constant_accuracy(evaluation: Evaluation) -> float:
    """Returns the accuracy of always answering the most frequent class."""
    totals = [sum(row) for row in evaluation.confusion]
    return max(totals) / max(sum(totals), 1)


def _entropy(evaluation: Evaluation) -> float:
    """Returns the loss of the shares of the classes as an answer, in nats."""
    totals = [sum(row) for row in evaluation.confusion if sum(row)]
    return -sum(count / sum(totals) * math.log(count / sum(totals)) for count in totals)


def check_classes(evidence: Evidence) -> Outcome:
    """Finds a class with validation rows that is never predicted, where the others are."""
    evaluation = evidence.evaluation
    if evaluation is None or not evaluation.confusion:
        return CouldNotRun("no evaluation with a confusion matrix: sft-dist eval")
    matrix = evaluation.confusion
    rows = [sum(row) for row in matrix]
    predicted = [sum(column) for column in zip(*matrix, strict=True)]
    enough = max(MIN_CLASS_ROWS, MIN_CLASS_SHARE * sum(rows))
    dead = [number for number, count in enumerate(predicted) if not count and rows[number] >= enough]
    num_predicted = sum(count > 0 for count in predicted)
    if not dead or num_predicted < 2 or len(dead) > len(rows) / 2:
        return None
    names = [evaluation.labels[number] if number < len(evaluation.labels) else str(number) for number in dead]
    message = f"{', '.join(names[:5])} is never predicted, but {sum(rows[number] for number in dead):,} of {sum(rows):,} validation rows have it"
    rarest = min(rows) in [rows[number] for number in dead]
    return Finding(
        "dead-class",
        message,
        HIGH if rarest else LOW,
        {"classes": float(len(dead)), "rows": float(sum(rows[n] for n in dead))},
    )
