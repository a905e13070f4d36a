"""Rules about the optimizer's work: divergence, schedule, learning rate, length. Each looks at the curves of one run."""

from __future__ import annotations

from launch.diagnose.evidence import Evidence, Series
from launch.diagnose.findings import HIGH, LOW, MEDIUM, CouldNotRun, Finding, Outcome
from launch.diagnose.series import (
    NOTHING,
    change,
    end_level,
    falling_share,
    lowest,
    middle_level,
    roughness,
    start_level,
    values,
)

MIN_POINTS = 8  # of a training curve
MIN_VALIDATIONS = 3
DIVERGED_RATIO = 1.5  # loss at the end / at the start
LATE_PEAK = 0.7  # of the steps: a rate that rises for so long leaves none to settle
RISING = 0.5  # of the peak: a first rate below it comes from a warm-up
IDLE_RATE = 0.02  # share of the peak below which a step learns nothing
IDLE_SHARE = 0.35  # of all steps
UNMOVED_FALL = 0.04  # of the training loss
UNMOVED_VALIDATION = 0.03  # change of the validation loss, as a share
STUCK_FALL = 0.2  # of the training loss: less is hardly any learning
ROUGH = 0.06  # mean change of a curve from point to point, as a share
UNUSUAL_LR = 0.02  # of AdamW; the usual ones for new weights are below it
HEAD_FACTOR = 5  # by which the rates of heads and adapters are usually higher
FLAT_FALL = 0.03  # of the training loss in the second half of a run
HIGH_LEVEL = 0.5  # of the loss at the start: a plateau above it is no convergence
SMALL_GAP = 0.1  # between training and validation loss, as a share
SHORT_EPOCHS = 1.0
STILL_FALLING = 0.015  # of the validation loss, at the last validation


def check_divergence(evidence: Evidence) -> Outcome:
    """Finds a loss that rises far above its start, or becomes NaN or infinite."""
    loss = evidence.train.get("loss", ())
    if evidence.num_bad_losses or "NaN or infinite" in evidence.cause or "is nan" in evidence.cause.lower():
        at = f" after step {loss[-1][0]:,}" if loss else ""
        return Finding("diverged", f"the loss became NaN or infinite{at}", HIGH, {"step": float(evidence.step)})
    if len(loss) < 3:
        return CouldNotRun(f"{len(loss)} logged losses; it needs 3")
    start, end, (step, low) = start_level(loss), end_level(loss), lowest(loss)
    if 1 + change(start, end) <= DIVERGED_RATIO:
        return None
    message = f"the training loss rose from {start:.3g} to {end:.3g}; its lowest was {low:.3g} at step {step:,}"
    return Finding("diverged", message, HIGH, {"start": start, "end": end, "step": float(step)})


def check_schedule(evidence: Evidence) -> Outcome:
    """Finds a warm-up that outlasts the run, and a rate that is 0 for much of it."""
    rates, lr = evidence.train.get("lr", ()), evidence.settings.get("train.lr")
    if len(rates) < MIN_POINTS or not isinstance(lr, float):
        return CouldNotRun(f"{len(rates)} logged learning rates; it needs {MIN_POINTS}")
    peak_step, peak = max(rates, key=lambda point: point[1])
    if not evidence.is_complete:
        return CouldNotRun("the run has not reached the end of its schedule")
    if peak_step >= LATE_PEAK * rates[-1][0] and rates[0][1] < RISING * peak:
        message = f"the learning rate was still rising at step {peak_step:,} of {rates[-1][0]:,}, where it is {peak:.2g}: the warm-up is as long as the run"
        return Finding("bad-schedule", message, HIGH, {"peak": peak, "lr": lr, "step": float(peak_step)})
    idle = [step for step, rate in rates if step > peak_step and rate < IDLE_RATE * peak]
    share = len(idle) / len(rates)
    if share < IDLE_SHARE:
        return None
    message = f"from step {idle[0]:,} on the learning rate is below {IDLE_RATE:.0%} of its peak: {share:.0%} of the steps learn nothing"
    return Finding("bad-schedule", message, HIGH, {"step": float(idle[0]), "share": share})


def check_low_rate(evidence: Evidence) -> Outcome:
    """Finds a model that hardly moves: both losses fall slowly and steadily, and stay where they began."""
    loss, validation = evidence.train.get("loss", ()), _with_untrained(evidence)
    if reason := _too_thin(loss, validation):
        return reason
    if evidence.epochs is not None and evidence.epochs <= SHORT_EPOCHS:
        return CouldNotRun(f"{evidence.epochs:.2g} epochs were trained; it needs more than {SHORT_EPOCHS:g}")
    fall = -change(start_level(loss), end_level(loss))
    moved = -change(validation[0][1], validation[-1][1])
    is_steady = falling_share(values(validation)) >= 0.75
    if fall > UNMOVED_FALL or not 0 <= moved < UNMOVED_VALIDATION or not is_steady:
        return None
    lr = evidence.settings.get("train.lr", 0.0)
    message = f"with a learning rate of {lr:.2g} the validation loss fell steadily, but by {moved:.1%} in {evidence.step:,} steps: {validation[0][1]:.4g} to {validation[-1][1]:.4g}"
    return Finding("lr-too-low", message, HIGH, {"fall": fall, "change": moved, "lr": lr})


def check_high_rate(evidence: Evidence) -> Outcome:
    """Finds a loss that jumps about its start instead of falling, at a rate that is unusual or with gradients that do not shrink."""
    loss, validation = evidence.train.get("loss", ()), evidence.validation.get("loss", ())
    if reason := _too_thin(loss, validation):
        return reason
    lr = float(evidence.settings.get("train.lr", 0.0))
    fall, rough = -change(start_level(loss), end_level(loss)), roughness(loss)
    overshoot = 1 + change(start_level(loss), max(values(loss)))
    limit = HEAD_FACTOR * UNUSUAL_LR if _is_restricted(evidence) else UNUSUAL_LR
    is_unusual = lr >= limit and evidence.settings.get("train.optimizer.name") != "sgd"
    if fall > STUCK_FALL or not (is_unusual or overshoot > 1.5):
        return None
    message = f"with a learning rate of {lr:.2g} the training loss did not fall ({start_level(loss):.3g} to {end_level(loss):.3g}); it rose to {max(values(loss)):.3g} on the way"
    confidence = HIGH if is_unusual and (rough > ROUGH or overshoot > 1.2) else MEDIUM
    return Finding(
        "lr-too-high", message, confidence, {"lr": lr, "fall": fall, "roughness": rough, "overshoot": overshoot}
    )


def check_length(evidence: Evidence) -> Outcome:
    """Finds a run that ended while validation was still improving, before the model had seen its data more than about once."""
    loss, validation = evidence.train.get("loss", ()), evidence.validation.get("loss", ())
    if reason := _too_thin(loss, validation):
        return reason
    if not evidence.is_complete:
        return CouldNotRun("the run is not complete")
    if evidence.epochs is None:
        return CouldNotRun("the length of an epoch is not known")
    last, before = validation[-1][1], validation[-2][1]
    gain, gap = -change(before, last), change(end_level(loss), last)
    is_best = lowest(validation)[0] == validation[-1][0]
    if evidence.epochs > SHORT_EPOCHS or not is_best or gain < 0 or gap > SMALL_GAP:
        return None
    message = f"training ended after {evidence.epochs:.2g} epochs, at step {evidence.step:,}, with its best validation loss so far ({last:.4g}, before it {before:.4g})"
    confidence = HIGH if gain >= STILL_FALLING else MEDIUM
    return Finding("under-fit", message, confidence, {"epochs": evidence.epochs, "gain": gain, "gap": gap})


def check_plateau(evidence: Evidence) -> Outcome:
    """Finds losses that are flat and alike for half of the run, far from 0."""
    loss, validation = evidence.train.get("loss", ()), evidence.validation.get("loss", ())
    if reason := _too_thin(loss, validation):
        return reason
    start, middle, end = start_level(loss), middle_level(loss), end_level(loss)
    fall = -change(middle, end)
    half = validation[len(validation) // 2][1]
    validation_fall = -change(half, validation[-1][1])
    gap = change(end, validation[-1][1])
    if (
        fall > FLAT_FALL
        or abs(validation_fall) > FLAT_FALL
        or gap > SMALL_GAP
        or end < max(HIGH_LEVEL * start, NOTHING)
    ):
        return None
    step = loss[len(loss) // 2][0]
    message = f"from step {step:,} on the training loss stays at {end:.3g} ({start:.3g} at the start), and validation at {validation[-1][1]:.3g}"
    confidence = HIGH if _is_restricted(evidence) else LOW
    return Finding("plateau", message, confidence, {"step": float(step), "level": end, "fall": fall, "gap": gap})


def _is_restricted(evidence: Evidence) -> bool:
    """Whether only a small share of the weights is trained."""
    return evidence.settings.get("tuning.method") not in (None, "full")


def _with_untrained(evidence: Evidence) -> Series:
    """Returns the validation loss, from the model before training on where that was scored."""
    validation = evidence.validation.get("loss", ())
    untrained = evidence.evaluation.untrained.get("loss") if evidence.evaluation else None
    return validation if untrained is None else ((0, untrained), *validation)


def _too_thin(loss: Series, validation: Series) -> CouldNotRun | None:
    if len(loss) < MIN_POINTS:
        return CouldNotRun(f"{len(loss)} logged losses; it needs {MIN_POINTS}")
    if len(validation) < MIN_VALIDATIONS:
        return CouldNotRun(f"{len(validation)} validations; it needs {MIN_VALIDATIONS}")
    return None
