"""The gate `--no-worse-than base`: what fine-tuning won and lost against the model it began as."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sft_dist import evaluate
from sft_dist.evaluation.base_comparison import compared, worse_lines
from sft_dist.evaluation.general_sets import GeneralSet
from sft_dist.evaluation.statistics import ratio, sums_of
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_json
from sft_dist.run.folder import BASE_MODEL
from tests.checkpoints import run_with_checkpoint
from tests.sft_dist.evaluation.general_tasks import settings_of, write_base, write_tasks


def general_set(name: str, winner: list[int], base: list[int], better: str = "max") -> GeneralSet:
    scores = [sums_of("rate", np.array([[float(value), 1.0] for value in values]), ratio) for values in (winner, base)]
    return GeneralSet(name, better, scores[0].value, scores[1].value, *scores)


def test_each_set_is_tested_in_both_directions():
    right, wrong, half = [1] * 40, [0] * 40, [1, 0] * 20
    sets = [general_set("lost", half, right), general_set("won", right, half), general_set("same", half, half),
            general_set("lower is better", half, wrong, "min"), general_set("near", [*right[1:], 0], right)]  # fmt: skip
    rows = compared([*sets, GeneralSet("other", "max", 0.5, 0.5, None, None)])
    assert [row["result"] for row in rows] == ["worse", "better", "not distinguishable", "worse", "not distinguishable", "not tested"]  # fmt: skip
    assert rows[0]["p_worse"] == pytest.approx(5 * 0.5**20)  # exact McNemar on 20 documents, Holm over five tests
    assert 0.01 < rows[4]["smallest_difference"] < 0.2
    lines = worse_lines(rows)
    assert [line.split(" is ")[0] for line in lines] == ["lost", "lower"]
    assert lines[0].startswith("lost is 0.5000, worse than 1.0000 of the base model beyond chance (p = ")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    path = tmp_path_factory.mktemp("gate")
    return path, write_base(path / "base"), write_tasks(path / "tasks")


def damage(model, task, processor):
    """Training that forgets everything."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.02)


def run_on(workplace, name, change, **settings):
    path, base, tasks = workplace
    folder = path / name
    folder.mkdir()
    made = {**settings_of(base, [tasks / "choice.yaml"], folder), **settings}
    return run_with_checkpoint(folder, made, [], change)[0]


@pytest.mark.slow
def test_a_model_that_forgot_what_its_base_could_do_is_worse(workplace, monkeypatch, capsys):
    folder = run_on(workplace, "forgets", damage)
    board = evaluate.sweep([folder], reference=BASE_MODEL)
    rows = {row["score"]: row for row in board["against_base"]["rows"]}
    assert set(rows) == {"token_accuracy on validation", "lm_eval/choice/acc"}
    assert {row["result"] for row in rows.values()} == {"worse"}
    assert len(board["worse_than_reference"]) == 2
    text = (folder.path / "leaderboard.md").read_text()
    assert "## The winner and its base" in text
    assert "| lm_eval/choice/acc" in text
    samples = (folder.evaluation / "step-00000005.lm_eval.samples.jsonl").read_text().splitlines()
    assert len(samples) == 20
    # a second look scores nothing
    monkeypatch.setattr("sft_dist.evaluation.evaluator.Evaluator._model", None)
    again = evaluate.sweep([folder], reference=BASE_MODEL)
    assert again["against_base"] == board["against_base"]
    assert read_json(folder.path / "leaderboard.json")["against_base"] == board["against_base"]


@pytest.mark.slow
def test_adapters_are_no_part_of_the_base_and_a_small_change_passes(workplace):
    def change_a_little(model, task, processor):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=1e-3)

    lora = {"method": "lora", "r": 2, "target_modules": ["q_proj"]}
    folder = run_on(workplace, "adapter", change_a_little, tuning=lora)
    board = evaluate.sweep([folder], reference=BASE_MODEL)
    assert [row["result"] for row in board["against_base"]["rows"]] == ["not distinguishable"] * 2
    assert board["worse_than_reference"] == []
    base = read_json(folder.evaluation / "base.validation.json")["scores"]
    assert base == board["untrained"]  # of adapters that change nothing yet
    assert base["loss"] != board["winner"]["validation"]["loss"]


@pytest.mark.slow
def test_a_new_head_has_no_base_to_be_compared_with(tmp_path, tiny_model, reviews):
    settings = {
        "task": "text-classification",
        "model": {"path": str(tiny_model)},
        "data": {"source": str(reviews), "max_length": 32},
        "tuning": "full",
        "evaluate": {"export": "none"},
    }
    folder = run_with_checkpoint(tmp_path, settings, ["neg", "pos"], lambda *_: None)[0]
    with pytest.raises(
        UserError, match="--no-worse-than base: the base has no score of accuracy: .* weights of its head are new"
    ):
        evaluate.sweep([folder], reference=BASE_MODEL)
