import dataclasses
import json
import math

import pytest

from launch.diagnose.diagnosis import EXPLAINS, RULES, diagnose, ranked
from launch.diagnose.evidence import Evidence
from launch.diagnose.findings import CAUSES, HIGH, LOW, MEDIUM, Finding
from launch.diagnose.remedies import REMEDIES
from tests.launch.diagnose.crafted import STEPS, checked, evaluation, evidence, falling, series

GUESSING = ((50, 0), (50, 0))

FAULTY = {
    "diverged": evidence(loss=lambda step: 1 + step / 20),
    "bad-schedule": evidence(lr=lambda step: 1e-3 * step / STEPS, epochs=1.5),
    "leak": evidence(evaluation=evaluation(validation=0.98, test=0.6)),
    "truncation": evidence(data_check=checked("truncation", 300, share=0.75)),
    "loader-bound": evidence(loading=0.8),
    "dead-class": evidence(evaluation=evaluation(((45, 2, 0), (3, 40, 0), (6, 4, 0)))),
    "label-noise": evidence(data_check=checked("suspicious-label", 60)),
    "wrong-labels": evidence(
        validation_loss=lambda step: 0.7 + step / 500, evaluation=evaluation(((30, 20), (30, 20)), validation=0.5)
    ),
    "lr-too-high": evidence(
        loss=lambda step: 1 + 0.5 * math.sin(step), validation_loss=lambda step: 1.0 + 0.1 * math.sin(step),
        settings={"train.lr": 0.1},
    ),
    "lr-too-low": evidence(loss=lambda step: 1 - step / 1e4, validation_loss=lambda step: 1.05 - step / 1e4),
    "over-fit": evidence(validation_loss=lambda step: 0.5 + abs(step - 30) / 70),
    "under-fit": evidence(loss=lambda step: 1 - step / 200, validation_loss=lambda step: 1 - step / 200, epochs=0.5),
    "plateau": evidence(
        loss=lambda step: max(0.8, 1 - step / 100), validation_loss=lambda step: max(0.82, 1 - step / 100),
        settings={"tuning.method": "freeze"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("cause", FAULTY)
def test_each_cause_is_named_first(cause):
    findings = diagnose(FAULTY[cause]).findings
    assert [finding.cause for finding in findings][:1] == [cause]
    assert findings[0].numbers
    assert 0 < findings[0].confidence < 1


def test_a_healthy_run_has_no_findings():
    diagnosis = diagnose(evidence())
    assert (diagnosis.findings, dict(diagnosis.could_not_run), diagnosis.is_abstention) == ((), {}, False)


@pytest.mark.parametrize("level", [0.0, -2.0, 1e-9])
def test_a_loss_with_nothing_left_to_learn_is_no_finding(level):
    run = evidence(loss=lambda step: level, validation_loss=lambda step: level * step)
    assert diagnose(run).findings == ()


def test_thin_evidence_ends_in_reasons_and_an_abstention():
    thin = evidence(
        train={"loss": ((1, 1.0),)}, validation={}, evaluation=None, data_check=None, step=1, state="stopped"
    )
    diagnosis = diagnose(thin)
    assert diagnosis.findings == ()
    assert diagnosis.is_abstention
    assert diagnosis.could_not_run["over-fit"] == "1 logged losses and 0 validations; it needs 8 and 3"
    assert diagnosis.could_not_run["truncation"] == "the data was not checked: sft-dist check"


def test_a_run_that_was_stopped_early_is_not_called_too_short():
    run = dataclasses.replace(FAULTY["under-fit"], step=STEPS // 2, state="stopped")
    assert diagnose(run).could_not_run["under-fit"] == "the run is not complete"


def test_a_loss_that_became_nan_is_divergence():
    run = evidence(num_bad_losses=1, train={"loss": series(falling)[:2]}, validation={}, evaluation=None)
    assert [finding.cause for finding in diagnose(run).findings] == ["diverged"]


def test_a_cause_hides_its_symptoms_unless_they_are_surer():
    cause, symptom = Finding("lr-too-high", "", MEDIUM), Finding("plateau", "", LOW)
    assert ranked([symptom, cause]) == [cause]
    surer = Finding("plateau", "", HIGH)
    assert ranked([cause, surer]) == [surer, cause]


def test_the_tables_name_causes_only():
    assert set(RULES) == set(CAUSES) - {"seed-noise"}
    assert set(REMEDIES) == set(CAUSES)
    assert set(EXPLAINS).union(*EXPLAINS.values()) <= set(CAUSES)


def test_evidence_survives_json():
    run = FAULTY["truncation"]
    assert Evidence.from_json(json.loads(json.dumps(run.to_json()))) == run
