from launch.diagnose.findings import CouldNotRun, Finding
from launch.diagnose.matrix import check_seeds
from tests.launch.diagnose.crafted import evidence


def runs(scores_of_lr):
    return [
        evidence(settings={"train.lr": lr, "train.seed": seed}, validation={"accuracy": ((10, 0.1), (20, score))})
        for lr, scores in scores_of_lr.items()
        for seed, score in enumerate(scores)
    ]


def test_a_lead_within_the_spread_of_seeds_is_noise():
    finding = check_seeds(runs({1e-3: [0.80, 0.84, 0.82], 2e-3: [0.81, 0.83, 0.80]}))
    assert isinstance(finding, Finding)
    assert finding.numbers["lead"] < finding.numbers["error"]
    assert "3 and 3 seeds" in finding.message


def test_a_clear_lead_is_none():
    assert check_seeds(runs({1e-3: [0.80, 0.81, 0.80], 2e-3: [0.90, 0.91, 0.90]})) is None


def test_single_seeds_say_nothing_of_noise():
    outcome = check_seeds(runs({1e-3: [0.80], 2e-3: [0.81]}))
    assert outcome == CouldNotRun("0 settings were trained with several seeds; it needs 2")
