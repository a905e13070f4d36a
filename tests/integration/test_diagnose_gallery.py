"""The rules of `sft-dist diagnose` on records of runs whose cause is known (benchmarks/diagnose_gallery.py)."""

from __future__ import annotations

import pytest

from benchmarks.diagnose_gallery import Score, read_results, score

SCORES = {
    "tuning": Score(num_faulty=66, num_named=53, num_listed=54, num_silent=9, num_healthy=18, num_alarms=3),
    "held-out": Score(num_faulty=66, num_named=46, num_listed=48, num_silent=8, num_healthy=18, num_alarms=3),
}


@pytest.mark.parametrize("half", SCORES)
def test_the_scores_are_those_of_the_documentation(half):
    """A change of a rule shows here. Thresholds are tuned on the tuning half alone."""
    assert score(read_results(half)) == SCORES[half]


def test_the_halves_share_no_run():
    runs = {half: {result.diagnosis.evidence.run for result in read_results(half)} for half in SCORES}
    assert not runs["tuning"] & runs["held-out"]
