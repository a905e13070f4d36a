"""Means as candidates: which checkpoints are averaged, each mean once, whatever interrupts it."""

from __future__ import annotations

import itertools
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sft_dist.checkpoints import store as ckpt
from sft_dist.evaluation import averages as averages_module
from sft_dist.evaluation.averages import AverageScores, greedy_soup, remove_others
from sft_dist.evaluation.leaderboard import Scored
from sft_dist.evaluation.sweep import ValidationScores
from sft_dist.recipe.files import read_json
from sft_dist.recipe.schema import Recipe
from sft_dist.run.candidates import Averaging, parse_averaging
from sft_dist.run.folder import RunFolder
from sft_dist.run.locks import open_lock_file, try_acquire
from tests.sft_dist.checkpoints.test_averaging import save, weights_of
from tests.sft_dist.evaluation.test_sweep import RECIPE

BOTH = [parse_averaging("last:2"), parse_averaging("greedy")]
# Validation scores of the checkpoints, and of the means that the greedy soup of these tries.
SCORES = {(4,): 0.5, (8,): 0.7, (12,): 0.6, (8, 12): 0.8, (4, 8, 12): 0.75}


class Scorer:
    """Stands in for an evaluator: notes the members of what it scores, and may be killed at some of them."""

    def __init__(self, killed_at: tuple[int, ...] = ()) -> None:
        self.scored: list[tuple[int, ...]] = []
        self.killed_at = killed_at

    def score(self, recipe: Recipe, checkpoint: ckpt.Checkpoint, split: str) -> dict[str, Any]:
        assert ckpt.verify(checkpoint) == []
        members = tuple((read_json(checkpoint.path / "manifest.json") or {}).get("members", [checkpoint.step]))
        if members == self.killed_at:
            raise KeyboardInterrupt
        self.scored.append(members)
        return {"accuracy": SCORES[members], "loss": 1.0}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "demo" / "0123456789")
    folder.path.mkdir(parents=True)
    for step in (4, 8, 12):
        save(folder, step, weights_of(step))
    return folder


def sweep(
    folder: RunFolder, scorer: Scorer, averagings: Sequence[Averaging] = BOTH, force: bool = False
) -> tuple[list[tuple[tuple[int, ...], float]], int]:
    """(members and score of each mean, how many means were scored)."""
    recipes = {folder: Recipe.model_validate(RECIPE)}
    validation = ValidationScores(scorer, recipes, force)  # type: ignore[arg-type]
    validation.update()
    averages = AverageScores(scorer, recipes, force)  # type: ignore[arg-type]
    means = averages.candidates(averagings, validation.scored)
    return [(mean.members, mean.scores["accuracy"]) for mean in means], averages.num_scored


def test_the_newest_and_the_greedy_soup_are_one_candidate_where_they_are_the_same(folder: RunFolder) -> None:
    scorer = Scorer()
    assert sweep(folder, scorer) == ([((8, 12), 0.8)], 2)
    assert scorer.scored == [(4,), (8,), (12,), (8, 12), (4, 8, 12)]
    assert not any(folder.averages.iterdir())
    record = read_json(folder.evaluation / f"{folder.candidate(12, (8, 12)).name}.validation.json")
    assert record is not None
    assert (record["step"], record["members"], record["split"]) == (12, [8, 12], "validation")


def test_what_was_scored_is_not_averaged_again_unless_forced(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = Scorer(), Scorer()
    expected = sweep(folder, first)
    made: list[Any] = []
    make_mean = averages_module.make_mean
    monkeypatch.setattr(averages_module, "make_mean", lambda *words: made.append(words) or make_mean(*words))
    assert sweep(folder, again) == expected
    assert (again.scored, made) == ([], [])
    assert sweep(folder, again, force=True) == expected
    assert again.scored == first.scored


@pytest.mark.parametrize("killed_at", [(8,), (8, 12), (4, 8, 12)])
def test_a_killed_sweep_continues_to_the_same_candidates(folder: RunFolder, killed_at: tuple[int, ...]) -> None:
    killed, again = Scorer(killed_at), Scorer()
    with pytest.raises(KeyboardInterrupt):
        sweep(folder, killed)
    assert sweep(folder, again) == ([((8, 12), 0.8)], 2)
    assert killed.scored + again.scored == [(4,), (8,), (12,), (8, 12), (4, 8, 12)]


def test_means_of_a_changed_member_are_stale(folder: RunFolder) -> None:
    sweep(folder, Scorer())
    shutil.rmtree(folder.checkpoint(4))
    save(folder, 4, weights_of(5))
    scorer = Scorer()
    sweep(folder, scorer)
    assert scorer.scored == [(4,), (4, 8, 12)]


def test_a_mean_needs_as_many_checkpoints_as_it_names(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sft_dist")
    assert sweep(folder, Scorer(), [parse_averaging("last:4")]) == ([], 0)
    assert "last:4: there are only 3 checkpoints, so there is no mean" in caplog.text


def test_without_averagings_there_are_no_means(folder: RunFolder) -> None:
    assert sweep(folder, Scorer(), []) == ([], 0)
    assert not folder.averages.exists()


def test_a_checkpoint_that_training_deletes_makes_no_mean(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    recipes = {folder: Recipe.model_validate(RECIPE)}
    validation = ValidationScores(Scorer(), recipes)  # type: ignore[arg-type]
    validation.update()
    scored = validation.scored
    shutil.rmtree(folder.checkpoint(12))
    assert AverageScores(Scorer(), recipes).candidates(BOTH, scored) == []  # type: ignore[arg-type]
    assert caplog.text.count("training has deleted a checkpoint") == 2


def test_only_the_winner_and_what_others_score_stays(folder: RunFolder) -> None:
    winner = Scored(folder, 12, "", {}, (8, 12))
    others = [folder.candidate(8, (4, 8)), folder.candidate(12, (4, 12)), folder.candidate(12, (4, 8, 12))]
    for path in (winner.path, *others[:2], others[2].with_name(f".writing-{others[2].name}")):
        path.mkdir(parents=True)
    folder.evaluation.mkdir()
    assert try_acquire(open_lock_file(folder.evaluation / f".{others[0].name}.lock"))
    remove_others(folder, winner)
    assert sorted(path.name for path in folder.averages.iterdir()) == sorted([winner.path.name, others[0].name])


# ── greedy soup ─────────────────────────────────────────────────────────────────────────────────────────────────────
def soup_of(scores: dict[frozenset[int], float], ranking: list[int]) -> list[int]:
    """The paper's recipe 1, by the letter."""
    ingredients: list[int] = []
    for model in ranking:
        if not ingredients or scores[frozenset([*ingredients, model])] >= scores[frozenset(ingredients)]:
            ingredients.append(model)
    return ingredients


@pytest.mark.parametrize("seed", range(20))
def test_the_greedy_soup_is_that_of_the_paper(seed: int) -> None:
    """Scores are few, so that many are equal."""
    draw = random.Random(seed)
    steps = range(1, 7)
    subsets = [frozenset(subset) for size in steps for subset in itertools.combinations(steps, size)]
    scores = {subset: draw.randrange(5) / 4 for subset in subsets}
    ranking = sorted(steps, key=lambda step: -scores[frozenset([step])])

    def cost(members: Sequence[Scored]) -> float:
        return -scores[frozenset(entry.step for entry in members)]

    entries = [Scored(RunFolder(Path()), step, "", {}) for step in ranking]
    assert [entry.step for entry in greedy_soup(entries, cost)] == soup_of(scores, ranking)


def test_a_soup_without_scores_is_the_first_alone() -> None:
    entries = [Scored(RunFolder(Path()), step, "", {}) for step in (1, 2)]
    assert greedy_soup(entries, lambda members: math.inf) == entries[:1]
    assert greedy_soup(entries, lambda members: 0.0 if len(members) == 1 else math.inf) == entries[:1]
    assert greedy_soup([], lambda members: 0.0) == []
