"""Text classification: how labels are read, in which order classes stand, how texts become batches and logits words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from transformers import AutoTokenizer

from samples.fetch import need
from sft_dist.data.rows import ROW, Examples, Rows
from sft_dist.recipe.augment import Augment, TextAugment
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks import TASKS
from sft_dist.tasks import task_of
from sft_dist.tasks.models import build_model, load_processor
from sft_dist.tasks.text_classification import TextClassification
from tests.tiny_text import predictions_of, train_on


def recipe_of(problem: str = "single-label", labels: list[str] | None = None, max_length: int = 256, **task: Any):
    return Recipe.model_validate(
        {
            "name": "task",
            "task": {"type": "text-classification", "problem": problem, **task},
            "model": {"path": "/nowhere"},
            "data": {"source": "/nowhere.csv", "labels": labels, "max_length": max_length},
            "tuning": "full",
            "train": {"lr": 1e-3},
        }
    )


def task(*arguments: Any, **options: Any) -> TextClassification:
    return task_of(recipe_of(*arguments, **options))


def labelled(found: TextClassification, targets: list[Any]) -> Rows:
    features = Features({"label": found.label_feature})
    return Rows(Dataset.from_dict({"label": targets}, features=features))


def encoded(
    found: TextClassification, tokenizer: Any, texts: list[str], targets: list[Any] | None, pairs: Any = None
) -> Examples:
    rows = {"text": texts} | ({"text_pair": pairs} if pairs else {}) | ({} if targets is None else {"label": targets})
    columns = found.encode(rows, tokenizer)
    features = Dataset.from_dict(columns).features | (found.encoded_features if targets is not None else {})
    table = Dataset.from_dict(columns, features=Features(features))
    return Examples(table.add_column(ROW, np.arange(len(texts)) + 100), "train")


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def test_the_table_of_tasks_builds_each():
    assert next(iter(TASKS)) == "text-classification"
    assert isinstance(task(), TextClassification)


def test_a_head_for_other_classes_is_replaced(tmp_path, tokenizer):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        num_labels=5,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    model = task(labels=["a", "b", "c"]).build_model(str(tmp_path), None, {}, tokenizer)
    assert model.classifier.weight.shape == (3, 32)
    assert set(model.new_weights) == {"classifier.bias", "classifier.weight"}
    regression = task("regression").build_model(str(tmp_path), None, {}, tokenizer)
    assert regression.classifier.weight.shape == (1, 32)


# ── labels ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("raw", "name"),
    [("pos", "pos"), (" pos ", "pos"), (1, "1"), (1.0, "1"), (1.5, "1.5"), (True, "true"), (0, "0"), ("01", "01")],
)
def test_a_class_is_its_name(raw, name):
    assert task().parse(raw, 0) == name


@pytest.mark.parametrize("raw", [None, float("nan"), "", "   "])
@pytest.mark.parametrize("problem", ["single-label", "regression"])
def test_nothing_is_no_label(problem, raw):
    assert task(problem).parse(raw, 0) is None


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        ("fun, sad", ["fun", "sad"]),
        ("fun", ["fun"]),
        ("fun,,sad,", ["fun", "sad"]),
        (["fun", "sad"], ["fun", "sad"]),
        ([1, 2.0], ["1", "2"]),
        ([], []),
        ("", []),
        (3, ["3"]),
        (3.0, ["3"]),
        (["fun", None], ["fun"]),
    ],
)
def test_any_number_of_classes_is_a_list_or_a_joined_text(raw, names):
    assert task("multi-label").parse(raw, 0) == names


def test_the_separator_is_the_recipes():
    assert task("multi-label", label_separator="|").parse("a,b|c", 0) == ["a,b", "c"]


@pytest.mark.parametrize(("raw", "value"), [(2, 2.0), ("2.5", 2.5), (True, 1.0), (-0.5, -0.5)])
def test_a_number_is_read_from_text_too(raw, value):
    assert task("regression").parse(raw, 0) == value


@pytest.mark.parametrize("raw", ["good", [1], float("inf"), "nan", "-inf"])
def test_what_is_no_finite_number_is_named_with_its_row(raw):
    with pytest.raises(UserError, match="row 7: a (finite )?number is needed") as caught:
        task("regression").parse(raw, 7)
    assert repr(raw) in str(caught.value)


@pytest.mark.parametrize(("problem", "raw"), [("single-label", "funy"), ("multi-label", ["sad", "funy"])])
def test_a_class_that_is_not_listed_is_refused(problem, raw):
    with pytest.raises(UserError) as caught:
        task(problem, ["funny", "sad"]).parse(raw, 12)
    said = str(caught.value)
    assert "row 12: not one of data.labels" in said
    assert "did you mean `funny`?" in said


def test_listed_classes_keep_their_order_even_when_one_has_no_row():
    found = task(labels=["z", "a", "m"])
    found.learn_labels(labelled(found, ["a", "m"]))
    assert found.labels == ["z", "a", "m"]


@pytest.mark.parametrize(
    ("targets", "order"),
    [
        (["b", "a", "c", "a"], ["a", "b", "c"]),
        (["10", "2", "1"], ["1", "2", "10"]),
        (["1", "-2", "0"], ["-2", "0", "1"]),
        (["b", "2", "10"], ["2", "10", "b"]),
        (["--5", "²", "7", "-"], ["7", "-", "--5", "²"]),
    ],
)
def test_learned_classes_are_sorted_whole_numbers_by_value(targets, order):
    found = task()
    found.learn_labels(labelled(found, targets))
    assert found.labels == order


def test_classes_of_many_labels_are_learned_from_all_lists():
    found = task("multi-label")
    found.learn_labels(labelled(found, [["b"], [], ["c", "a"]]))
    assert found.labels == ["a", "b", "c"]


def test_a_number_has_no_classes():
    found = task("regression")
    found.learn_labels(labelled(found, [0.5, 1.0]))
    assert found.labels == []


@pytest.mark.parametrize(("problem", "targets"), [("single-label", ["only", "only"]), ("multi-label", [[], []])])
def test_too_few_classes_are_a_mistake(problem, targets):
    with pytest.raises(UserError, match="data.columns.label: at least"):
        task(problem).learn_labels(labelled(task(problem), targets))


def test_only_single_classes_are_stratified():
    for problem, targets, strata in (
        ("single-label", ["a", "b"], ["a", "b"]),
        ("multi-label", [["a"], []], None),
        ("regression", [1.0], None),
    ):
        assert task(problem).strata(labelled(task(problem), targets)) == strata


# ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_encoding_gives_token_ids_unpadded_and_class_numbers(tokenizer):
    found = encoded(task(labels=["neg", "pos"]), tokenizer, ["a great film", "dull"], ["pos", "neg"])
    assert found.ids.tolist() == [100, 101]
    assert [tokenizer.decode(ids) for ids in found.column("input_ids")] == [
        "[CLS] a great film [SEP]",
        "[CLS] dull [SEP]",
    ]
    assert found.lengths.tolist() == [5, 3]
    assert found.numbers("label").tolist() == [1, 0]
    assert found.num_truncated == 0


def test_long_texts_are_cut_and_counted(tokenizer):
    short = task(labels=["a", "b"], max_length=6)
    found = encoded(short, tokenizer, ["one two three four five six", "one"], ["a", "b"])
    assert found.lengths.tolist() == [6, 3]
    assert found.num_truncated == 1
    assert tokenizer.decode(found.at([0])[0]["input_ids"]) == "[CLS] one two three four [SEP]"


def test_pairs_are_told_apart_by_segment(tokenizer):
    found = encoded(task(labels=["a", "b"]), tokenizer, ["one two"], ["a"], ["three"])
    assert tokenizer.decode(found.at([0])[0]["input_ids"]) == "[CLS] one two [SEP] three [SEP]"
    assert found.at([0])[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_targets_of_many_classes_are_zeros_and_ones(tokenizer):
    many = task("multi-label", ["a", "b", "c"])
    found = encoded(many, tokenizer, ["x", "y", "z"], [["c", "a"], [], ["b", "b"]])
    _, targets = many.collate(found.at([0, 1, 2]), tokenizer, None)
    assert targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert targets.dtype == torch.float32


def test_targets_of_regression_are_the_numbers(tokenizer):
    found = encoded(task("regression"), tokenizer, ["x", "y"], [0.25, -3.0])
    _, targets = task("regression").collate(found.at([0, 1]), tokenizer, None)
    assert targets.tolist() == [0.25, -3.0]
    assert targets.dtype == torch.float32


def test_a_class_seen_only_outside_training_is_a_mistake(tokenizer):
    found = task()
    found.learn_labels(labelled(found, ["a", "b"]))
    with pytest.raises(UserError) as caught:
        found.encode({"text": ["x"], "label": ["c"]}, tokenizer)
    said = str(caught.value)
    assert "classes that do not occur in the training rows" in said
    assert "found: c" in said
    assert "valid: a, b" in said


def test_a_batch_is_padded_to_its_own_longest_text(tokenizer):
    found = task(labels=["a", "b"])
    examples = encoded(found, tokenizer, ["one", "one two three", "one two three four five"], ["a", "b", "a"])
    inputs, targets = found.collate(examples.at(np.array([1, 0])), tokenizer, None)
    assert inputs["input_ids"].shape == (2, 5)
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert inputs["input_ids"][1, 3:].tolist() == [tokenizer.pad_token_id] * 2
    assert targets.tolist() == [1, 0]


def test_examples_without_targets_are_encoded_for_prediction(tokenizer):
    found = encoded(task(labels=["a", "b"]), tokenizer, ["one", ""], None)
    assert found.lengths.tolist() == [3, 2]
    inputs, targets = task(labels=["a", "b"]).collate(found.at([0, 1]), tokenizer, None)
    assert inputs["input_ids"].shape == (2, 3)
    assert targets is None


# ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("problem", "labels", "outputs", "name"),
    [
        ("single-label", ["x", "y", "z"], 3, "single_label_classification"),
        ("multi-label", ["x", "y"], 2, "multi_label_classification"),
        ("regression", None, 1, "regression"),
    ],
)
def test_the_head_fits_the_classes_and_the_config_names_them(tiny_model, problem, labels, outputs, name):
    model = task(problem, labels).build_model(str(tiny_model), None, {"hidden_dropout_prob": 0.3}, None)
    assert model.classifier.out_features == outputs
    assert model.config.problem_type == name
    assert model.config.hidden_dropout_prob == 0.3
    assert list(model.config.id2label.values()) == (labels or ["value"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_config_value_the_model_does_not_know_is_named(tiny_model):
    with pytest.raises(UserError) as caught:
        task(labels=["a", "b"]).build_model(str(tiny_model), None, {"hidden_dropout": 0.1}, None)
    said = str(caught.value)
    assert "model.config.hidden_dropout" in said
    assert "`hidden_dropout_prob`" in said


# ── predictions ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_class_is_described_by_its_probability():
    (said,) = task(labels=["neg", "pos"]).describe([np.array([0.0, np.log(3)])], None)
    assert said["label"] == "pos"
    assert said["probability"] == pytest.approx(0.75)
    assert said["probabilities"] == pytest.approx({"neg": 0.25, "pos": 0.75})


def test_many_classes_are_described_from_the_threshold_on():
    logits = [np.array([np.log(3), 0.0, -np.log(3)])]  # 0.75, 0.5, 0.25
    assert task("multi-label", ["a", "b", "c"]).describe(logits, None)[0]["labels"] == ["a", "b"]
    (said,) = task("multi-label", ["a", "b", "c"], threshold=0.6).describe(logits, None)
    assert said["labels"] == ["a"]
    assert said["probabilities"] == pytest.approx({"a": 0.75, "b": 0.5, "c": 0.25})


def test_a_number_is_described_by_its_value():
    assert task("regression").describe([np.array([2.5]), np.array([-1.0])], None) == [{"value": 2.5}, {"value": -1.0}]


def test_the_threshold_counts_in_the_scores_too():
    logits = [np.array([np.log(3), 0.0]), np.array([-5.0, 5.0])]
    examples = Examples(Dataset.from_dict({"label": [[0], [1]]}), "test")
    assert task("multi-label", ["a", "b"]).score(logits, examples, None)["exact_match"] == 0.5
    assert task("multi-label", ["a", "b"], threshold=0.6).score(logits, examples, None)["exact_match"] == 1.0


def test_labels_can_be_renamed():
    recipe = recipe_of(labels=["bad", "good"])
    clean = recipe.data.clean.model_copy(update={"map_labels": {"neg": "bad"}})
    renamed = task_of(recipe.model_copy(update={"data": recipe.data.model_copy(update={"clean": clean})}))
    assert renamed.parse("neg", 0) == "bad"


def test_changed_texts_are_encoded_anew_and_only_in_training(tokenizer):
    recipe = recipe_of(labels=["a", "b"])
    augment = Augment(text=TextAugment(probability=1.0, delete=0.5))
    found = task_of(recipe.model_copy(update={"data": recipe.data.model_copy(update={"augment": augment})}))
    examples = encoded(found, tokenizer, ["one two three four five six"], ["b"])
    shown, targets = found.collate(examples.at([0]), tokenizer, [np.random.default_rng(0)])
    plain, _ = found.collate(examples.at([0]), tokenizer, None)
    assert shown["input_ids"].shape[1] < plain["input_ids"].shape[1] == 8
    assert targets.tolist() == [1]


# ── architectures ───────────────────────────────────────────────────────────────────────────────────────────────────
SAID = ["a great film", "what a dull and boring film it was", "great", "boring from its beginning to the end"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tiny-bert", "tiny-roberta", "tiny-modernbert", "tiny-deberta-v2", "tiny-gpt2", "tiny-llama"]
)
def test_every_architecture_learns_and_does_not_see_padding(name):
    """Whatever a model makes its one answer of: the first token, all, or the last that is no padding."""
    tree = recipe_of(labels=["bad", "good"], max_length=32).model_dump(mode="json", exclude_unset=True)
    recipe = Recipe.model_validate({**tree, "model": {"path": str(need(name))}})
    one = task_of(recipe)
    tokenizer = load_processor(recipe, one)
    model = build_model(recipe, one, tokenizer)
    examples = encoded(one, tokenizer, SAID, ["good", "bad"] * 4)
    train_on(one, model, examples, tokenizer, 15, lr=2e-3)
    together = np.stack(predictions_of(one, model, examples, tokenizer))
    alone = [one.collate(examples.at([i]), tokenizer, None)[0] for i in range(4)]
    with torch.no_grad():
        by_itself = torch.cat([one.forward(model, inputs) for inputs in alone]).numpy()
    np.testing.assert_allclose(together[:4], by_itself, atol=2e-5)
    scores = one.score(list(together), examples, tokenizer)
    assert (scores["accuracy"], scores["f1_macro"]) == (1.0, 1.0)
