"""Instruction tuning: a causal language model learns the assistant's turns of conversations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, List, Value
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from sft_dist.data.chat.messages import (
    cleaned,
    is_trained,
    messages_of,
    unread_keys,
    until_last_answer,
    why_unusable,
    with_system,
)
from sft_dist.data.chat.template import PLAIN_TEMPLATE, Tokens, render, tokenize_chats
from sft_dist.data.chat.turns import TOOLS
from sft_dist.data.clean import clean_text
from sft_dist.data.packing import best_fit_decreasing, leak, positions
from sft_dist.data.rows import ROW, Examples, Rows
from sft_dist.losses.targets import IGNORED
from sft_dist.losses.tokens import CHUNK, TokenLoss, cross_entropy_of_tokens, padded
from sft_dist.metrics.text import answer_scores
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import cache_root, write_text
from sft_dist.recipe.schema import CrossEntropyLoss, Recipe
from sft_dist.recipe.tasks.instruction_tuning import CONTEXTS, SYSTEMS, InstructionTuningTask
from sft_dist.tasks.base import BaseTask, Rngs
from sft_dist.tasks.loading import greedy_or_beams, load_pretrained, load_tokenizer, set_generation

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")
NO_TOKENS = np.zeros(0, dtype=np.int32)
LEAK = 1e-4  # more than this, and packed examples see each other
MOST_NAMED = 16
NEED_A_CACHE = (
    "prefix",
    "prompt",
)  # ways of tuning that put something before the tokens, which packing has no place for


class InstructionTuning(BaseTask):
    pipeline_tag = "text-generation"
    peft_task = "CAUSAL_LM"
    counts_tokens = True
    input_roles = ("prompt",)
    # Joined, or skipped when empty, before they become messages.
    text_roles = ("instruction", "question", "query", *CONTEXTS, "output", "response", "answer", *SYSTEMS)
    row_features = Features({"chat": Value("large_string")})  # messages as JSON: tools' arguments have no common type
    encoded_features = Features({"input_ids": List(Value("int32")), "answer": List(Value("bool"))})

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.task, InstructionTuningTask)
        self.settings = recipe.task
        if self.settings.packing and recipe.tuning.method in NEED_A_CACHE:
            message = f"cannot be combined with {recipe.tuning.method} tuning, which all packed examples would share"
            raise UserError(
                Problem(message, "task.packing", value="true", hint="tune by lora, or set task.packing: false")
            )
        if isinstance(recipe.train.loss, CrossEntropyLoss) and recipe.train.loss.class_weights is not None:
            raise UserError(Problem("tokens are not classes", "train.loss.class_weights"))

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def stored_texts(self) -> Mapping[str, Callable[[Any], str]]:
        return {"chat": lambda value: "\n".join(str(turn.get("content") or "") for turn in json.loads(value))}

    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        messages = cleaned(messages_of(row, number), self.recipe.data.clean)
        if reason := why_unusable(messages):
            return reason
        if self.settings.train_on == "all" and not all(map(is_trained, messages)):
            message = f"row {number}: a turn is excluded from training, but `train_on: all` trains on every token"
            raise UserError(Problem(message, "task.train_on", value="all", hint="set task.train_on: answers"))
        messages = with_system(until_last_answer(messages), self.settings.system)
        return {"chat": json.dumps(messages, ensure_ascii=False)}

    def identity(self, row: dict[str, Any]) -> str:
        """Returns all messages before the last answer: the same question with another answer is the same question. Includes
        system messages, as they may contain the text that the question is about."""
        return json.dumps(json.loads(row["chat"])[:-1], ensure_ascii=False)

    def num_chars(self, row: dict[str, Any]) -> int:
        texts = ("content", "reasoning_content")
        return sum(len(message.get(name, "")) for message in json.loads(row["chat"]) for name in texts)

    def input_texts(self, rows: Rows) -> list[str]:
        """Returns all messages but those of the system and the definitions of tools: many rows share long ones, which would
        make them near-duplicates."""
        chats = map(json.loads, rows.column("chat"))
        return [
            "\n".join(turn["content"] for turn in conversation if turn["role"] not in ("system", TOOLS))
            for conversation in chats
        ]

    def unread(self, row: dict[str, Any]) -> Iterator[str]:
        return unread_keys(row)

    # ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────
    def load_processor(self, source: str, **options: Any) -> PreTrainedTokenizerBase:
        """Loads the tokenizer with the chat template used in training, so that it is saved with the model."""
        tokenizer = load_tokenizer(source, **options)
        template = self.settings.chat_template
        # An exported model has it already, perhaps on a machine where the file is not.
        if template is not None and (Path(template).is_file() or tokenizer.chat_template is None):
            tokenizer.chat_template = _read_template(template)
        elif tokenizer.chat_template is None:
            if tokenizer.eos_token is None:
                message = "the tokenizer has neither a chat template nor an end-of-text token to end answers with"
                raise UserError(Problem(message, "task.chat_template", hint="give a template"))
            tokenizer.chat_template = PLAIN_TEMPLATE
        tokenizer.padding_side = "left"  # of prompts of different lengths, wherever the saved tokenizer is used
        return tokenizer

    def encode(self, rows: dict[str, list[Any]], processor: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        if "chat" not in rows:
            return self._encode_prompts(rows, processor)
        numbers = rows.get(ROW) or list(range(len(rows["chat"])))
        longest = min(self.recipe.data.max_length, processor.model_max_length)
        tokens = tokenize_chats([json.loads(example) for example in rows["chat"]], processor, numbers)
        cut = [Tokens(example.ids[:longest], [False, *example.answer[1:longest]]) for example in tokens]
        self._require_answers(tokens, cut, numbers, longest)
        trains_on_all = self.settings.train_on == "all"
        return {
            "input_ids": [example.ids for example in cut],
            "answer": [example.answer for example in cut],
            "length": [len(example.ids) for example in cut],
            "weight": [len(example.ids) - 1 if trains_on_all else sum(example.answer) for example in cut],
            "truncated": [len(example.ids) > longest for example in tokens],
        }

    def _require_answers(self, tokens: list[Tokens], cut: list[Tokens], numbers: list[int], longest: int) -> None:
        """Raises UserError for conversations without any token to learn: their loss would be 0."""
        if self.settings.train_on == "all":
            return
        unmarked = [number for number, example in zip(numbers, tokens, strict=True) if not any(example.answer)]
        if unmarked:
            message = f"the chat template marks no token as an answer's, in {_rows(unmarked)}"
            hint = "its {% generation %} ... {% endgeneration %} must enclose what the assistant says"
            raise UserError(Problem(message, "task.chat_template", hint=hint))
        lost = [number for number, example in zip(numbers, cut, strict=True) if not any(example.answer)]
        if lost:
            needed = (
                max(
                    example.answer.index(True)
                    for example, truncated in zip(tokens, cut, strict=True)
                    if not any(truncated.answer)
                )
                + 1
            )
            message = f"the answers begin after the truncation, so nothing is learned, in {_rows(lost)}"
            hint = f"raise data.max_length to {needed} at least, or drop these rows"
            raise UserError(Problem(message, "data.max_length", value=str(longest), hint=hint))

    def _encode_prompts(self, rows: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        """Encodes prompts for `predict`."""
        texts = [
            render(json.loads(messages), tokenizer, number, prompt=True)
            for number, messages in enumerate(rows["asked"])
        ]
        prompts = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return {"prompt_ids": prompts, "length": [len(ids) for ids in prompts]}

    def arrange(self, examples: Dataset, split: str) -> Dataset:
        """Packs the training split. Examples of other splits stay apart, so that scores are of single ones, and some are marked: their
        last answers are generated and scored."""
        if split != "train" and self.settings.num_generated and "answer" in examples.column_names:
            return examples.add_column("generated", self._sample(examples))
        if split != "train" or not self.settings.packing:
            return examples
        lengths = np.asarray(examples.with_format("numpy")["length"][:])
        longest = max(self.recipe.data.max_length, int(lengths.max()))
        bins = best_fit_decreasing(lengths, longest)
        numbers = Value("int32")
        features = Features(
            {
                "input_ids": List(numbers),
                "answer": List(Value("bool")),
                "sizes": List(numbers),  # tokens of each example in it
                "length": Value("int64"),
                "weight": Value("int64"),
                "truncated": Value("bool"),
                ROW: Value("int64"),  # of its first example
            }
        )
        return Dataset.from_generator(
            _packed,
            features=features,
            cache_dir=str(cache_root() / "datasets"),
            gen_kwargs={"examples": examples, "bins": [members.tolist() for members in bins]},
        )

    def _sample(self, examples: Dataset) -> list[bool]:
        """Returns which examples have their last answer generated: `num_generated`, evenly spread over those that are not truncated."""
        rows = zip(examples["answer"], examples["truncated"], strict=True)
        complete = np.array([number for number, (answer, cut) in enumerate(rows) if any(answer) and not cut], dtype=int)
        sample = np.linspace(0, len(complete) - 1, min(self.settings.num_generated, len(complete))).round().astype(int)
        return np.isin(np.arange(len(examples)), complete[sample]).tolist()

    def question_of(self, row: dict[str, Any], number: int) -> dict[str, str]:
        """Returns what is to be answered: a text, or the JSON text of a conversation without the answers at its end."""
        clean = self.recipe.data.clean
        texts = {role: clean_text(row[role], clean, role, number) for role in self.text_roles if role in row}
        messages = messages_of({**row, **texts}, number)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if [message["role"] for message in messages] in ([], ["user"]):
            return {"prompt": messages[0]["content"] if messages else ""}
        tools = json.loads(messages.pop(0)["content"]) if messages[0]["role"] == TOOLS else []
        return {"prompt": json.dumps({"messages": messages, "tools": tools}, ensure_ascii=False)}

    def from_input(self, row: dict[str, Any]) -> dict[str, Any]:
        """Reads a question, or the JSON text of a conversation up to the start of the next answer: its messages, or an object
        with `messages` and `tools`."""
        prompt = row["prompt"]
        role = "messages" if prompt.startswith("[{") and prompt.endswith("}]") else "prompt"
        conversation = _conversation(prompt) or {role: prompt}
        messages = messages_of(conversation, 0) or [{"role": "user", "content": prompt}]
        messages = cleaned(messages, self.recipe.data.clean)
        return {"asked": json.dumps(with_system(messages, self.settings.system), ensure_ascii=False)}

    def collate(
        self, rows: list[dict[str, Any]], processor: PreTrainedTokenizerBase, rngs: Rngs | None
    ) -> tuple[dict[str, Any], Tensor | None]:
        if "prompt_ids" in rows[0]:
            prompts = {"input_ids": [row["prompt_ids"] for row in rows]}
            batch = processor.pad(prompts, padding_side="left", return_tensors="pt")
            return {"prompt_ids": batch["input_ids"], "prompt_mask": batch["attention_mask"]}, None
        ids = [row["input_ids"] for row in rows]
        targets = [self._targets(row) for row in rows]
        sizes = [len(example) for example in ids]
        if "sizes" not in rows[0]:
            mask = padded([[1] * size for size in sizes], 0)
            inputs = {"input_ids": padded(ids, processor.pad_token_id), "attention_mask": mask, "sizes": sizes}
            return {**inputs, **_questions(rows, processor)}, padded(targets, IGNORED)
        position_ids = [positions(row["sizes"]) for row in rows]
        if (self.recipe.model.attention or "").startswith("flash"):  # keeps packs apart in a batch of a single row only
            ids, targets, position_ids = (
                [[value for row in column for value in row]] for column in (ids, targets, position_ids)
            )
        # Every padding token has position 0, so that each is an example that attends only to itself.
        inputs = {
            "input_ids": padded(ids, processor.pad_token_id), "position_ids": padded(position_ids, 0), "sizes": sizes
        }  # fmt: skip
        return inputs, padded(targets, IGNORED)

    def _targets(self, row: dict[str, Any]) -> list[int]:
        """Returns each token's next token where it is learned; never an example's first token, which nothing predicts."""
        ids = row["input_ids"]
        learned = self._learned(row)
        return [id_ if is_target else IGNORED for id_, is_target in zip(ids[1:], learned[1:], strict=True)] + [IGNORED]

    def _learned(self, row: dict[str, Any]) -> list[bool]:
        """Returns for each token whether it counts in the loss."""
        if self.settings.train_on == "all":
            return [position > 0 for position in positions(row.get("sizes") or [len(row["input_ids"])])]
        return row["answer"]

    # ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        model = load_pretrained(AutoModelForCausalLM, folder, revision, config, **options)
        if self.settings.packing and (leaked := leak(model, model.get_input_embeddings().num_embeddings)) > LEAK:
            message = f"{type(model).__name__} does not keep packed examples apart: one changes another's logits by {leaked:.1g}"
            raise UserError(Problem(message, "task.packing", value="true", hint="set task.packing: false"))
        set_generation(model, self._generation(model, processor))
        return model

    def _generation(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """How answers are written, and what ends them."""
        return {
            **greedy_or_beams(1),
            "eos_token_id": _stops(model, tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "max_new_tokens": self.settings.max_new_tokens,
        }

    def build_loss(self, train: Examples) -> TokenLoss:
        return cross_entropy_of_tokens(self.recipe.train.loss)

    def weights(self, loss: TokenLoss, examples: Examples) -> np.ndarray:
        return examples.numbers("weight")

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        if "prompt_ids" in inputs:
            return None
        arguments = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
        # Without a cache: nothing is generated here, and with one the positions would not keep packed examples apart.
        return model(**arguments, use_cache=False).logits

    def complete_export(self, folder: Path) -> None:
        """Puts the recipe's system message into the chat template, for conversations that have none."""
        file = folder / "chat_template.jinja"
        if self.settings.system and file.is_file():
            write_text(file, with_default_system(file.read_text(encoding="utf-8"), self.settings.system))

    # ── predictions ─────────────────────────────────────────────────────────────────────────────────────────────────
    def predict(self, model: nn.Module, inputs: dict[str, Any], outputs: Any, processor: Any) -> list[Any]:
        """Returns the answers' texts for prompts. For whole conversations: negative log-likelihood of each token but the
        first, and the likeliest token at its position, (2, tokens - 1); with `num_generated`, also the tokens of the generated
        answer up to its end, none where none is generated."""
        if "prompt_ids" in inputs:
            written = self._generate(model, inputs["prompt_ids"], inputs["prompt_mask"], processor)
            return processor.batch_decode(written, skip_special_tokens=True)
        predictions = []
        ids, logits, sizes = inputs["input_ids"], outputs, inputs["sizes"]
        if len(sizes) > len(ids):  # one row of all, for flash attention
            ids, logits = ids[0].split(sizes), logits[0].split(sizes)
        for row, row_logits, size in zip(ids, logits, sizes, strict=True):
            parts = list(zip(row_logits[: size - 1].split(CHUNK), row[1:size].split(CHUNK), strict=True))
            losses = torch.cat([F.cross_entropy(chunk.float(), targets, reduction="none") for chunk, targets in parts])
            best = torch.cat([chunk.argmax(-1) for chunk, _ in parts])
            predictions.append((losses.cpu().numpy(), best.cpu().numpy().astype(np.int32)))
        if not self.settings.num_generated:
            return predictions
        answers = self._answers(model, inputs, processor)
        return [(*tokens, answers.get(number, NO_TOKENS)) for number, tokens in enumerate(predictions)]

    def _answers(self, model: Any, inputs: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[int, np.ndarray]:
        """Returns the tokens of generated answers, without those that end them, by the examples' positions in the batch."""
        if "question_ids" not in inputs:
            return {}
        written = self._generate(model, inputs["question_ids"], inputs["question_mask"], tokenizer).cpu().numpy()
        stops = np.isin(written, self._generation(model, tokenizer)["eos_token_id"])
        ends = np.where(stops.any(axis=1), stops.argmax(axis=1), written.shape[1])
        answers = [ids[:end].astype(np.int32) for ids, end in zip(written, ends, strict=True)]
        return dict(zip(inputs["questions_of"], answers, strict=False))

    def _generate(
        self, model: Any, prompts: Tensor, mask: Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> Tensor:  # (prompts, new tokens)
        written: Tensor = model.generate(
            input_ids=prompts,
            attention_mask=mask,
            synced_gpus=torch.distributed.is_initialized(),
            **self._generation(model, tokenizer),
        )
        return written[:, prompts.shape[1] :]

    def references(self, examples: Examples) -> list[Any]:
        """Returns the token at each position but the first, -100 where it is not of an answer."""
        answers, ids = examples.column("answer"), examples.column("input_ids")
        pairs = zip(answers, ids, strict=True)
        return [np.where(np.array(answer[1:], dtype=bool), tokens[1:], -100) for answer, tokens in pairs]

    def score(self, predictions: list[Any], examples: Examples, processor: Any) -> dict[str, Any]:
        """Scores the tokens: perplexity is of those that count in the loss, the others are of answers. exact_match: share of
        the examples with an answer of which every token is the likeliest, so that greedy decoding gives the same answers."""
        nll, num_learned = 0.0, 0
        matches: list[np.ndarray] = []  # for each example with an answer, (tokens of answers,)
        rows = map(examples.at, np.arange(len(examples))[:, None])
        for (losses, predicted, *_), (row,) in zip(predictions, rows, strict=True):
            learned = np.array(self._learned(row)[1:], dtype=bool)
            nll += float(losses[learned].sum(dtype=np.float64))
            num_learned += int(learned.sum())
            answer = np.array(row["answer"][1:], dtype=bool)
            if answer.any():
                matches.append(predicted[answer] == np.array(row["input_ids"][1:])[answer])
        return {
            "perplexity": _perplexity(nll, num_learned),
            "token_accuracy": float(np.concatenate(matches).mean()) if matches else None,
            "exact_match": float(np.mean([match.all() for match in matches])) if matches else None,
            **self._score_answers(predictions, examples, processor),
        }

    def _score_answers(self, predictions: list[Any], examples: Examples, tokenizer: Any) -> dict[str, Any]:
        """Scores the generated answers beside the last answers of the conversations."""
        if not self.settings.num_generated:
            return {}
        marked = examples.column("generated") if "generated" in examples.table.column_names else []
        numbers = np.flatnonzero(marked)
        rows = [row for number in numbers for row in examples.at(np.array([number]))]
        references = [row["input_ids"][_last_answer(row["answer"])] for row in rows]
        written = [predictions[number][2] for number in numbers]
        answers = tokenizer.batch_decode(references, skip_special_tokens=True)
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        num_endless = sum(len(ids) == self.settings.max_new_tokens for ids in written)
        return dict(answer_scores(answers, texts, num_endless))

    def describe(self, predictions: list[Any], processor: Any) -> list[dict[str, Any]]:
        return [{"text": text} for text in predictions]


# Conversations in which templates end turns by different tokens: the last and earlier answers, and a call of a tool.
_QUESTION, _ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
_CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}  # fmt: skip
_TURNS: tuple[list[dict[str, Any]], ...] = (
    [_QUESTION, _ANSWER, _QUESTION, _ANSWER],
    [_QUESTION, _CALL, {"role": "tool", "content": "c"}, _ANSWER],
)


def _last_answer(answer: list[bool]) -> slice:
    """Returns where the last answer of a conversation stands, which has one."""
    positions_of_answers = np.flatnonzero(answer)
    gaps = np.flatnonzero(np.diff(positions_of_answers) > 1)
    start = positions_of_answers[gaps[-1] + 1 if len(gaps) else 0]
    return slice(int(start), int(positions_of_answers[-1]) + 1)


def _questions(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Returns the marked examples of a batch up to their last answers, and their positions in it.

    A batch of one of several ranks without any has an example for nothing: sharded weights are gathered by all ranks together.
    """
    marked = [number for number, row in enumerate(rows) if row.get("generated")]
    rank_waits = "generated" in rows[0] and torch.distributed.is_initialized()
    generated = [rows[number] for number in marked] or rows[: 1 if rank_waits else 0]
    if not generated:
        return {}
    prompts = [row["input_ids"][: _last_answer(row["answer"]).start if any(row["answer"]) else 1] for row in generated]
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    return {"question_ids": batch["input_ids"], "question_mask": batch["attention_mask"], "questions_of": marked}


def _stops(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: those of the model and tokenizer, and those that end turns in the chat template."""
    eos = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
    special = set(tokenizer.all_special_ids + list(tokenizer.added_tokens_decoder))
    return sorted(stops | {end for conversation in _TURNS for end in _ends(conversation, tokenizer) if end in special})


def _ends(conversation: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The last token of each answer; none where the template refuses the conversation."""
    try:
        (tokens,) = tokenize_chats([conversation], tokenizer, [0])
    except UserError:
        return []
    following = [*tokens.answer[1:], False]
    return [id_ for id_, now, next_ in zip(tokens.ids, tokens.answer, following, strict=True) if now and not next_]


def with_default_system(template: str, system: str) -> str:
    """The chat template with a system message before conversations that begin with none."""
    message = f"{{'role': 'system', 'content': {json.dumps(system, ensure_ascii=False)}}}"
    return f"{{% set messages = messages if messages[0].role == 'system' else [{message}] + messages %}}{template}"


def _conversation(prompt: str) -> dict[str, Any] | None:
    """The object with `messages` that a prompt is the JSON text of; None for any other text."""
    if not prompt.startswith("{") or '"messages"' not in prompt:
        return None
    try:
        conversation = json.loads(prompt)
    except ValueError:
        return None
    return conversation if isinstance(conversation.get("messages"), list) else None


def _perplexity(nll: float, num_tokens: int) -> float | None:
    """None without tokens, and where it is too large for a number."""
    mean = nll / num_tokens if num_tokens else math.inf
    return math.exp(mean) if mean < 700 else None


def _packed(examples: Dataset, bins: list[list[int]]) -> Iterator[dict[str, Any]]:
    for members in bins:
        batch = examples[members]
        yield {
            "input_ids": [value for ids in batch["input_ids"] for value in ids],
            "answer": [value for answer in batch["answer"] for value in answer],
            "sizes": batch["length"],
            "length": sum(batch["length"]),
            "weight": sum(batch["weight"]),
            "truncated": any(batch["truncated"]),
            ROW: batch[ROW][0],
        }


def _rows(numbers: list[int]) -> str:
    return f"rows {numbers[:MOST_NAMED]}{' and more' * (len(numbers) > MOST_NAMED)}"


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(Problem(f"cannot be read: {error}", "task.chat_template", value=path)) from error
