"""Translation and summarization: targets, languages, losses and written texts of T5, BART, Marian and M2M100."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sft_dist.losses.targets import IGNORED
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of
from tests.tiny_text import (
    examples_of,
    loss_of,
    predictions_of,
    recipe_of,
    sentence_tokenizer,
    sentencepiece_files,
    train_on,
)

SOURCES = ["the red cat", "a dog", "the red dog sleeps", "a cat"]
TARGETS = ["le chat rouge", "un chien", "le chien rouge dort", "un chat"]
ROWS = {"source": SOURCES, "target": TARGETS}
WIDE: dict[str, Any] = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "dropout": 0.0,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64}  # fmt: skip


def task(kind: str = "translation", max_length: int = 64, loss: dict | None = None, **settings):
    tree = recipe_of({"type": kind, "max_target_length": 24, **settings}, max_length=max_length)
    tree = {**tree.model_dump(mode="json", exclude_unset=True), "train": {"lr": 1e-3, "loss": loss}}
    return task_of(Recipe.model_validate(tree))


def t5(folder):
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = sentence_tokenizer([*SOURCES, *TARGETS])
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)  # fmt: skip
    return tokenizer, T5ForConditionalGeneration(config)


def bart(folder):
    from transformers import BartConfig, BartForConditionalGeneration

    tokenizer = sentence_tokenizer([*SOURCES, *TARGETS])
    ids = {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "decoder_start_token_id": 1,
        "forced_eos_token_id": 1,
    }
    return tokenizer, BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), **WIDE, **ids))


def marian(folder):
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    pieces, vocabulary = sentencepiece_files(folder, [*SOURCES, *TARGETS])
    tokenizer = MarianTokenizer(
        source_spm=pieces, target_spm=pieces, vocab=vocabulary, source_lang="en", target_lang="fr"
    )
    pad = tokenizer.pad_token_id
    ids = {
        "pad_token_id": pad,
        "decoder_start_token_id": pad,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": 0,
    }
    return tokenizer, MarianMTModel(MarianConfig(vocab_size=len(tokenizer), **WIDE, **ids, forced_eos_token_id=None))


def m2m(folder):
    from transformers import M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer

    pieces, vocabulary = sentencepiece_files(folder, [*SOURCES, *TARGETS])
    tokenizer = M2M100Tokenizer(vocab_file=vocabulary, spm_file=pieces)
    size = max(tokenizer.lang_code_to_id.values()) + 16
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    return tokenizer, M2M100ForConditionalGeneration(M2M100Config(vocab_size=size, **WIDE, **ids))


@pytest.fixture(params=[t5, bart, marian, m2m], ids=["t5", "bart", "marian", "m2m100"])
def kind(request, tmp_path):
    """Saved as a folder, then the task with the tokenizer and model it loads from there."""
    torch.manual_seed(0)
    (tmp_path / "made").mkdir()
    tokenizer, model = request.param(tmp_path / "made")
    tokenizer.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    languages = {"source_language": "en", "target_language": "fr"} if request.param is m2m else {}
    one = task(**languages)
    processor = one.load_processor(str(tmp_path / "model"))
    return one, processor, one.build_model(str(tmp_path / "model"), None, {}, processor).eval()


# ── every family ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_loss_is_the_models_own_over_all_target_tokens(kind):
    one, tokenizer, model = kind
    examples = examples_of(one, ROWS, tokenizer)
    total = 0.0
    for source, target in zip(SOURCES, TARGETS, strict=True):
        given = tokenizer(source, text_target=target, return_tensors="pt")
        with torch.no_grad():
            total += float(model(**given).loss) * given["labels"].numel()
    count = one.weights(one.build_loss(examples), examples).sum()
    assert loss_of(one, model, examples, tokenizer, 1)[0] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("loss", [None, {"name": "cross-entropy", "label_smoothing": 0.1}])
def test_loss_and_gradient_do_not_depend_on_micro_batches(kind, loss):
    one, tokenizer, model = kind
    one = task(loss=loss)
    examples = examples_of(one, ROWS, tokenizer)
    whole, gradients = loss_of(one, model, examples, tokenizer, 1)
    again, others = loss_of(one, model, examples, tokenizer, 4)
    assert again == pytest.approx(whole, rel=1e-6)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_texts_are_learned_written_and_scored(kind):
    """Untrained: BLEU below 5. After 100 steps on four pairs: 100, and the same texts from `predict`."""
    one, tokenizer, model = kind
    examples = examples_of(one, ROWS, tokenizer)
    assert one.score(predictions_of(one, model, examples, tokenizer), examples, tokenizer)["bleu"] < 5
    train_on(one, model, examples, tokenizer, 100, lr=5e-3)
    scores = one.score(predictions_of(one, model, examples, tokenizer), examples, tokenizer)
    assert scores["bleu"] == pytest.approx(100)
    assert scores["chrf"] == pytest.approx(100)
    given = examples_of(one, {"source": [one.from_input({"source": text})["source"] for text in SOURCES]}, tokenizer)
    assert one.describe(predictions_of(one, model, given, tokenizer), tokenizer) == [{"text": text} for text in TARGETS]


# ── languages ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_m2m100_is_told_both_languages(tmp_path):
    tokenizer, model = m2m(tmp_path)
    tokenizer.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    one = task(source_language="en", target_language="fr")
    processor = one.load_processor(str(tmp_path / "model"))
    encoded = one.encode(ROWS, processor)
    first = processor.convert_ids_to_tokens([encoded["input_ids"][0][0], encoded["labels"][0][0]])
    assert first == ["__en__", "__fr__"]
    assert encoded["labels"][0][-1] == processor.eos_token_id
    built = one.build_model(str(tmp_path / "model"), None, {}, processor)
    assert built.generation_config.forced_bos_token_id == processor.get_lang_id("fr")
    with pytest.raises(UserError, match=r"task\.target_language: the tokenizer does not know") as error:
        task(target_language="xx").load_processor(str(tmp_path / "model"))
    assert "fr" in error.value.problems[0].valid


def test_a_language_that_has_no_effect_is_an_error(tmp_path):
    tokenizer, _ = t5(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="knows no languages"):
        task(source_language="en").load_processor(str(tmp_path))
    task(target_language="zh").load_processor(str(tmp_path))  # it chooses BLEU's words


# ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_prefix_lengths_cuts_and_weights(tmp_path):
    tokenizer, _ = t5(tmp_path)
    one = task("summarization", max_length=8, prefix="a cat ", max_target_length=4)
    encoded = one.encode(ROWS, tokenizer)
    assert tokenizer.decode(encoded["input_ids"][1], skip_special_tokens=True).startswith("a cat a")
    assert max(encoded["length"]) <= 8
    assert max(encoded["weight"]) == 4
    assert [len(one) for one in encoded["labels"]] == encoded["weight"]
    assert all(encoded["truncated"]), "a source or a target of each was cut"
    roomy = task(max_length=64).encode(ROWS, tokenizer)
    assert not any(roomy["truncated"])
    inputs, targets = task().collate(examples_of(task(), ROWS, tokenizer).at(np.arange(4)), tokenizer, None)
    assert (targets != IGNORED).sum(1).tolist() == roomy["weight"]
    assert inputs["attention_mask"].sum(1).tolist() == roomy["length"]


def test_rows_without_a_text_or_a_target_are_dropped():
    assert task().read({"source": "", "target": "x"}, 0) == "empty text"
    assert task().read({"source": "x", "target": ""}, 0) == "no label"
    assert task().read({"source": "x", "target": "y"}, 0) == {"source": "x", "target": "y"}
    with pytest.raises(UserError, match="tokens are not classes"):
        task(loss={"name": "cross-entropy", "class_weights": "balanced"})


@pytest.mark.slow
def test_summaries_are_scored_by_rouge_against_the_whole_reference(tmp_path):
    tokenizer, _ = t5(tmp_path)
    one = task("summarization", max_target_length=2)
    examples = examples_of(one, ROWS, tokenizer)
    scores = one.score(TARGETS, examples, tokenizer)
    assert scores == {"rougeL": 100, "rouge1": 100, "rouge2": 100}, "though the targets that are learned were cut"


def test_the_loss_without_shifting_of_their_own_is_the_same(tmp_path):
    """M2M100 has no `prepare_decoder_input_ids_from_labels`; a model that has one gives the same logits either way."""
    tokenizer, model = t5(tmp_path)
    one = task()
    inputs, targets = one.collate(examples_of(one, ROWS, tokenizer).at(np.arange(4)), tokenizer, None)
    mine = one.forward(model.eval(), inputs)
    torch.testing.assert_close(mine, model(**inputs).logits)
    loss = F.cross_entropy(mine.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, model(**inputs).loss)
