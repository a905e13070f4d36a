"""Instruction tuning: what is learned, what is an error, packed and unpacked alike, and what is told of it."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sft_dist.losses.targets import IGNORED
from sft_dist.metrics.text import answer_scores
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of
from tests.tiny_text import (
    CHATML,
    byte_tokenizer,
    causal_model,
    examples_of,
    loss_of,
    predictions_of,
    recipe_of,
    train_on,
)

TASK = "instruction-tuning"
QUESTIONS = {
    "how many legs has a spider?": "eight",
    "what is the capital of France?": "Paris is the capital",
    "and the dog?": "it lay beside the door",
    "where sat the cat?": "on the mat",
    "hm?": "the",
}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def task(max_length: int = 64, tuning: str | dict = "full", clean: dict | None = None, **settings):
    data = {"max_length": max_length, "clean": clean or {}}
    tree = recipe_of({"type": TASK, **settings}, **data).model_dump(mode="json", exclude_unset=True)
    return task_of(Recipe.model_validate({**tree, "tuning": tuning}))


def rows(one, pairs=None):
    read = [one.read({"prompt": q, "completion": a}, i) for i, (q, a) in enumerate((pairs or QUESTIONS).items())]
    return {"chat": [row["chat"] for row in read]}


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_row_is_kept_as_messages_up_to_the_last_answer():
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns], "prompt": None}
    stored = task(system="Be kind.").read(row, 3)
    assert [m["content"] for m in json.loads(stored["chat"])] == ["Be kind.", "a", "b"]
    assert task().read({"prompt": "a", "completion": ""}, 3) == "no answer"


def test_the_same_question_with_another_answer_is_the_same_input():
    """So that it is a leak when one is trained on and the other tested on."""
    one = task()

    def identity(*turns):
        return one.identity(one.read({"messages": [{"role": role, "content": text} for role, text in turns]}, 0))

    asked, other = ("user", "how many legs?"), ("assistant", "six")
    assert identity(asked, ("assistant", "eight")) == identity(asked, other)
    assert identity(asked, other) != identity(("user", "how many eyes?"), other)
    assert identity(("system", "of a spider"), asked, other) != identity(("system", "of a dog"), asked, other)
    assert identity(asked, other, ("user", "sure?"), other) != identity(asked, other)


SHAPES = [  # of one conversation
    {"messages": [{"role": "user", "content": " \ufb01lm? "}, {"role": "assistant", "content": "yes\n"}]},
    {"conversations": [{"from": "human", "value": "\n\ufb01lm?"}, {"from": "gpt", "value": " yes"}]},
    {"messages": '[{"role": "user", "content": "\\ufb01lm? "}, {"role": "assistant", "content": " yes "}]'},
    {"instruction": "\ufb01lm?", "output": "yes "},
    {"prompt": "\ufb01lm? ", "completion": " yes"},
]


@pytest.mark.parametrize("row", SHAPES)
def test_texts_are_cleaned_in_conversations_of_every_shape(row):
    one = task(clean={"unicode": "NFKC"})
    stored = one.read(row, 0)
    assert [m["content"] for m in json.loads(stored["chat"])] == ["film?", "yes"]
    assert one.num_chars(stored) == 8


def test_what_predict_is_asked_is_cleaned_like_what_was_trained_on():
    asked = json.dumps([{"role": "user", "content": " hi "}])
    one = task(system="Be kind.")
    assert [m["content"] for m in json.loads(one.from_input({"prompt": asked})["asked"])] == ["Be kind.", "hi"]


def test_predict_accepts_a_conversation_with_tools():
    conversation = {"messages": [{"role": "user", "content": " hi "}], "tools": [{"name": "f", "parameters": {}}]}
    one = task(system="Be kind.")
    messages = json.loads(one.from_input({"prompt": json.dumps(conversation)})["asked"])
    assert [message["role"] for message in messages] == ["tools", "system", "user"]
    for text in ('{"messages": 1}', '{"messages"', '{"a": 1}'):
        assert json.loads(one.from_input({"prompt": text})["asked"])[-1] == {"role": "user", "content": text}


def test_an_excluded_turn_contradicts_training_on_all_tokens():
    turns = [("user", "a", 1), ("assistant", "b", 0), ("user", "c", 1), ("assistant", "d", 1)]
    row = {"messages": [{"role": role, "content": text, "weight": weight} for role, text, weight in turns]}
    assert [m.get("train") for m in json.loads(task().read(row, 3)["chat"])] == [None, False, None, None]
    with pytest.raises(UserError, match=r"task\.train_on: row 3: a turn is excluded"):
        task(train_on="all").read(row, 3)


def test_it_travels_to_other_processes():
    assert pickle.loads(pickle.dumps(task(packing=True))).settings.packing


# ── what is learned ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_targets_are_the_answers_shifted_by_one(tokenizer):
    one = task()
    examples = examples_of(one, rows(one), tokenizer)
    inputs, targets = one.collate(examples.at([0]), tokenizer, None)
    learned = targets[0][targets[0] != IGNORED]
    assert tokenizer.decode(learned) == "eight<|im_end|>"
    first = int((targets[0] != IGNORED).nonzero()[0])
    assert int(inputs["input_ids"][0, first + 1]) == int(learned[0]), "a target is the token that comes next"
    assert one.weights(one.build_loss(examples), examples)[0] == len(learned)


def test_train_on_all_learns_all_but_the_first_token(tokenizer):
    one = task(train_on="all")
    examples = examples_of(one, rows(one), tokenizer)
    _, targets = one.collate(examples.at(np.arange(len(examples))), tokenizer, None)
    assert one.weights(None, examples).tolist() == (targets != IGNORED).sum(1).tolist()
    assert one.weights(None, examples).tolist() == (examples.lengths - 1).tolist()


def test_the_loss_is_the_mean_over_all_answer_tokens(tokenizer):
    one, model = task(), causal_model("llama", len(tokenizer))
    examples = examples_of(one, rows(one), tokenizer)
    total, count = 0.0, 0
    for ids, answer in zip(examples.column("input_ids"), examples.column("answer"), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        for place in np.flatnonzero(answer):
            total += float(F.cross_entropy(logits[place - 1], torch.tensor(ids[place])))
            count += 1
    assert loss_of(one, model, examples, tokenizer, 1)[0] == pytest.approx(total / count, rel=1e-5)
    scores = one.score(predictions_of(one, model, examples, tokenizer), examples, tokenizer)
    assert scores["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("settings", [{}, {"train_on": "all"}])
def test_perplexity_is_exp_of_the_loss_beside_it(tokenizer, settings, split):
    one, model = task(packing=True, **settings), causal_model("llama", len(tokenizer))
    examples = examples_of(one, rows(one), tokenizer, split)
    scores = one.score(predictions_of(one, model, examples, tokenizer), examples, tokenizer)
    loss, _ = loss_of(one, model, examples, tokenizer, 1)
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_an_example_whose_answer_is_cut_away_does_not_count_as_matched(tokenizer):
    one, model = task(train_on="all", max_length=8), causal_model("llama", len(tokenizer))
    examples = examples_of(one, rows(one), tokenizer)
    assert not any(map(any, examples.column("answer")))
    scores = one.score(predictions_of(one, model, examples, tokenizer), examples, tokenizer)
    assert (scores["exact_match"], scores["token_accuracy"]) == (None, None)
    assert scores["perplexity"] == pytest.approx(math.exp(loss_of(one, model, examples, tokenizer, 1)[0]), rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"packing": True}, {"train_on": "all"}])
def test_loss_and_gradient_do_not_depend_on_micro_batches(tokenizer, settings):
    one, model = task(**settings), causal_model("llama", len(tokenizer))
    examples = examples_of(one, rows(one), tokenizer, "train")
    loss, gradients = loss_of(one, model, examples, tokenizer, 1)
    again, others = loss_of(one, model, examples, tokenizer, len(examples))
    assert again == pytest.approx(loss, rel=1e-6)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


# ── never a loss of 0.0 ─────────────────────────────────────────────────────────────────────────────────────────────
def test_answers_behind_the_cut_are_an_error_that_names_rows(tokenizer):
    one = task(max_length=24)
    pairs = {"hi": "ho", "b " * 20: "x", "a " * 30: "y"}
    with pytest.raises(UserError, match=r"rows \[101, 102\]") as error:
        examples_of(one, rows(one, pairs), tokenizer)
    problem = error.value.problems[0]
    assert (problem.path, problem.value) == ("data.max_length", "24")
    needed = int(problem.hint.split("data.max_length to ")[1].split()[0])
    assert len(examples_of(task(max_length=needed), rows(one, pairs), tokenizer)) == 3
    with pytest.raises(UserError):
        examples_of(task(max_length=needed - 1), rows(one, pairs), tokenizer)


def test_a_cut_answer_is_learned_as_far_as_it_goes_and_counted(tokenizer):
    one = task(max_length=24)
    examples = examples_of(one, rows(one, {"hi": "the cat sat on the mat and the dog lay beside the door"}), tokenizer)
    assert examples.num_truncated == 1
    assert 0 < one.weights(None, examples)[0] < 24
    assert examples.lengths.tolist() == [24]


def test_a_template_that_marks_nothing_is_an_error(tokenizer):
    marked = byte_tokenizer(CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}")
    with pytest.raises(UserError, match=r"marks no token as an answer's, in rows \[100, 101"):
        examples_of(task(), rows(task()), marked)


# ── packing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_packed_examples_give_the_same_loss_and_gradient(tokenizer, kind, attention):
    apart, together = task(), task(packing=True)
    model = causal_model(kind, len(tokenizer), attention)
    single = examples_of(apart, rows(apart), tokenizer, "train")
    packed = examples_of(together, rows(together), tokenizer, "train")
    assert len(packed) < len(single)
    assert packed.lengths.max() <= 64
    assert packed.lengths.sum() == single.lengths.sum()
    assert together.weights(None, packed).sum() == apart.weights(None, single).sum()
    loss, gradients = loss_of(apart, model, single, tokenizer, 1)
    again, others = loss_of(together, model, packed, tokenizer, 1)
    assert again == pytest.approx(loss, rel=1e-5)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_only_the_training_split_is_packed_and_a_packed_one_can_be_scored(tokenizer):
    one, model = task(packing=True), causal_model("llama", len(tokenizer))
    single = examples_of(one, rows(one), tokenizer, "test")
    packed = examples_of(one, rows(one), tokenizer, "train")
    assert len(single) == len(QUESTIONS)
    scores = [one.score(predictions_of(one, model, some, tokenizer), some, tokenizer) for some in (single, packed)]
    assert scores[0]["perplexity"] == pytest.approx(scores[1]["perplexity"], rel=1e-5)
    assert scores[0]["token_accuracy"] == scores[1]["token_accuracy"]


def test_flash_attention_gets_all_packs_in_one_row(tokenizer):
    one = task(packing=True)
    packed = examples_of(one, rows(one), tokenizer, "train")
    tree = one.recipe.model_dump(mode="json", exclude_unset=True)
    tree["model"]["attention"] = "flash_attention_2"
    flash, model = task_of(Recipe.model_validate(tree)), causal_model("llama", len(tokenizer))
    inputs, targets = flash.collate(packed.at(np.arange(len(packed))), tokenizer, None)
    assert inputs["input_ids"].shape == inputs["position_ids"].shape == targets.shape == (1, packed.lengths.sum())
    assert loss_of(flash, model, packed, tokenizer, 1)[0] == pytest.approx(loss_of(one, model, packed, tokenizer, 1)[0])
    for mine, theirs in zip(*(predictions_of(t, model, packed, tokenizer) for t in (flash, one)), strict=True):
        np.testing.assert_allclose(mine[0], theirs[0], atol=1e-5)


def test_models_and_tunings_that_mix_packed_examples_are_refused(tmp_path, tokenizer):
    from transformers import BloomConfig, BloomForCausalLM

    with pytest.raises(UserError, match="cannot be combined with prefix tuning"):
        task(packing=True, tuning="prefix")
    BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BloomForCausalLM does not keep packed examples apart"):
        task(packing=True).build_model(str(tmp_path), None, {}, tokenizer)
    assert task().build_model(str(tmp_path), None, {}, tokenizer) is not None


# ── processor, predictions ──────────────────────────────────────────────────────────────────────────────────────────
def test_the_template_that_is_trained_on_is_saved_with_the_tokenizer(tmp_path):
    bare = byte_tokenizer(None)
    bare.save_pretrained(tmp_path / "bare")
    assert "### Assistant:" in task().load_processor(str(tmp_path / "bare")).chat_template
    (tmp_path / "own.jinja").write_text(CHATML)
    mine = task(chat_template=str(tmp_path / "own.jinja")).load_processor(str(tmp_path / "bare"))
    mine.save_pretrained(tmp_path / "saved")
    assert task().load_processor(str(tmp_path / "saved")).chat_template == CHATML
    with pytest.raises(UserError, match=r"task\.chat_template: cannot be read"):
        task(chat_template="nowhere.jinja").load_processor(str(tmp_path / "bare"))


@pytest.mark.slow
def test_a_memorised_answer_is_written_and_scored(tokenizer):
    """Untrained: next to nothing right. After 60 steps on five pairs: all, by the score and by generation."""
    one, model = task(max_new_tokens=16), causal_model("llama", len(tokenizer))
    examples = examples_of(one, rows(one), tokenizer)
    before = one.score(predictions_of(one, model, examples, tokenizer), examples, tokenizer)
    assert before["exact_match"] == 0
    assert before["perplexity"] > 100
    train_on(one, model, examples, tokenizer, 60, lr=1e-2)
    after = one.score(predictions_of(one, model, examples, tokenizer), examples, tokenizer)
    assert after["exact_match"] == after["token_accuracy"] == 1.0
    assert after["perplexity"] < 1.2
    model.config._attn_implementation = "sdpa"
    asked = [one.from_input({"prompt": question}) for question in QUESTIONS]
    asked.append(one.from_input({"prompt": json.dumps([{"role": "user", "content": "hm?"}])}))
    prompts = examples_of(one, {"asked": [row["asked"] for row in asked]}, tokenizer, "input")
    said = one.describe(predictions_of(one, model, prompts, tokenizer), tokenizer)
    assert said == [{"text": answer} for answer in [*QUESTIONS.values(), "the"]]


@pytest.mark.slow
def test_exact_match_is_greedy_decoding_giving_the_answer(tokenizer):
    """Half trained, the score by argmax agrees with what `generate` writes, example by example."""
    one, model = task(max_new_tokens=16), causal_model("gpt2", len(tokenizer))
    examples = examples_of(one, rows(one), tokenizer)
    train_on(one, model, examples, tokenizer, 25, lr=1e-2)
    predictions = predictions_of(one, model, examples, tokenizer)
    prompts = examples_of(
        one, {"asked": [one.from_input({"prompt": q})["asked"] for q in QUESTIONS]}, tokenizer, "input"
    )
    written = predictions_of(one, model, prompts, tokenizer)
    for place, (text, answer) in enumerate(zip(written, QUESTIONS.values(), strict=True)):
        alone = one.score([predictions[place]], type(examples)(examples.table.select([place])), tokenizer)
        assert bool(alone["exact_match"]) == (text == answer)


def test_answers_are_generated_of_as_many_examples_as_the_recipe_says_and_scored(tokenizer):
    one, model = task(num_generated=2, max_new_tokens=5), causal_model("llama", len(tokenizer))
    examples = examples_of(one, rows(one), tokenizer)
    assert list(examples.column("generated")) == [True, False, False, False, True]
    predictions = predictions_of(one, model, examples, tokenizer)
    assert [len(answer) > 0 for *_, answer in predictions] == [True, False, False, False, True]
    asked = {"asked": [one.from_input({"prompt": question})["asked"] for question in QUESTIONS]}
    written = predictions_of(one, model, examples_of(one, asked, tokenizer, "input"), tokenizer)
    generated = [tokenizer.decode(predictions[number][2], skip_special_tokens=True) for number in (0, 4)]
    assert generated == [written[0], written[4]], "as `predict` answers"
    scores = one.score(predictions, examples, tokenizer)
    answers = list(QUESTIONS.values())
    endless = sum(len(predictions[number][2]) == 5 for number in (0, 4))
    expected = answer_scores([answers[0], answers[4]], generated, endless)
    assert {name: scores[name] for name in expected} == expected
    assert set(one.recipe.task.kind.metrics) - {"loss"} <= set(scores)
    plain = task()
    without = plain.score(
        predictions_of(plain, model, examples_of(plain, rows(plain), tokenizer), tokenizer), examples, tokenizer
    )
    assert {name: scores[name] for name in without} == without, "the scores of tokens stay as they are"


def test_an_answer_that_ends_is_told_from_one_that_goes_on(tokenizer, monkeypatch):
    one, model = task(num_generated=5, max_new_tokens=3), causal_model("llama", len(tokenizer))
    examples = examples_of(one, rows(one), tokenizer)
    end, letter = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.encode("a")[0]
    written = torch.tensor([[letter, end, letter], [letter] * 3, [end, end, end], [letter, letter, end], [letter] * 3])
    monkeypatch.setattr(one, "_generate", lambda *ignored: written)
    predictions = predictions_of(one, model, examples, tokenizer)
    assert [answer.tolist() for *_, answer in predictions] == [
        [letter], [letter] * 3, [], [letter] * 2, [letter] * 3,
    ]  # fmt: skip
    assert one.score(predictions, examples, tokenizer)["no_end_token"] == pytest.approx(2 / 5)


def test_the_last_answer_of_a_conversation_is_generated_and_never_one_that_is_cut(tokenizer):
    one = task(num_generated=1)
    turns = [("user", "hm?"), ("assistant", "the"), ("user", "and the dog?"), ("assistant", "door")]
    chats = [
        {"messages": [{"role": role, "content": text} for role, text in turns]},
        {"prompt": "a", "completion": "b " * 60},
    ]
    stored = {"chat": [one.read(row, number)["chat"] for number, row in enumerate(reversed(chats))]}
    examples = examples_of(one, stored, tokenizer)
    assert list(examples.column("generated")) == [False, True]
    inputs, _ = one.collate(examples.at(np.array([0, 1])), tokenizer, None)
    assert inputs["questions_of"] == [1]
    question = tokenizer.decode(inputs["question_ids"][0])
    assert question.endswith("and the dog?<|im_end|>\n<|im_start|>assistant\n")
    assert "generated" not in examples_of(one, stored, tokenizer, "train").table.column_names
    assert "question_ids" not in one.collate(examples.at(np.array([0])), tokenizer, None)[0]


def test_a_rank_without_marked_examples_generates_for_nothing_beside_the_others(tokenizer, monkeypatch):
    one = task(num_generated=1)
    examples = examples_of(one, rows(one), tokenizer)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    inputs, _ = one.collate(examples.at(np.array([1, 2])), tokenizer, None)
    assert (len(inputs["question_ids"]), inputs["questions_of"]) == (1, [])


def test_every_token_that_ends_a_turn_ends_an_answer(tmp_path: Path) -> None:
    """Here answers end otherwise than calls of tools do, and both otherwise than texts of the pretrained model."""
    template = (
        "{% for message in messages %}{{ '### ' + message['role'] + message['content'] }}"
        "{% for call in message.tool_calls or [] %}{{ call.function.name + '<|im_start|>' }}{% endfor %}"
        "{% if message['role'] == 'assistant' and not message.tool_calls %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### assistant' }}{% endif %}"
    )
    tokenizer = byte_tokenizer(template)
    causal_model("llama", len(tokenizer)).save_pretrained(tmp_path)
    one = task_of(recipe_of({"type": "instruction-tuning", "max_new_tokens": 7}))
    generation = one.build_model(str(tmp_path), None, {}, tokenizer).generation_config
    ends = {tokenizer.convert_tokens_to_ids(end) for end in ("<|im_start|>", "<|im_end|>", tokenizer.eos_token)}
    assert set(generation.eos_token_id) == ends
    assert (generation.max_new_tokens, generation.do_sample, generation.num_beams) == (7, False, 1)
