"""Translation and summarization: an encoder-decoder model writes a text from a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Features, List, Value
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from sft_dist.data.rows import Examples
from sft_dist.losses.targets import IGNORED
from sft_dist.losses.tokens import TokenLoss, cross_entropy_of_tokens, padded
from sft_dist.metrics.text import summary_scores, translation_scores
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import CrossEntropyLoss, Recipe
from sft_dist.recipe.tasks.text_to_text import TextToTextTask
from sft_dist.tasks.base import BaseTask, Rngs
from sft_dist.tasks.loading import greedy_or_beams, load_pretrained, load_tokenizer, set_generation, were_cut


class TextToText(BaseTask):
    pipeline_tag = "text2text-generation"
    peft_task = "SEQ_2_SEQ_LM"
    counts_tokens = True
    input_roles = ("source",)
    text_roles = ("source", "target")
    row_features = Features({"source": Value("large_string"), "target": Value("large_string")})
    encoded_features = Features({"target": Value("large_string"), "labels": List(Value("int32"))})

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.task, TextToTextTask)
        self.settings = recipe.task
        if isinstance(recipe.train.loss, CrossEntropyLoss) and recipe.train.loss.class_weights is not None:
            raise UserError(Problem("tokens are not classes", "train.loss.class_weights"))

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def read(self, row: dict[str, Any], number: int) -> dict[str, Any] | str:
        if not row["target"]:
            return "no label"
        return row if row["source"] else "empty text"

    # ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────
    def load_processor(self, source: str, **options: Any) -> PreTrainedTokenizerBase:
        tokenizer = load_tokenizer(source, **options)
        for key, attribute in (("source_language", "src_lang"), ("target_language", "tgt_lang")):
            code = getattr(self.settings, key)
            if code is not None and hasattr(tokenizer, attribute):
                _language_token(tokenizer, code, key)
                setattr(tokenizer, attribute, code)
            elif code is not None and key == "source_language":  # the target's also chooses how BLEU divides words
                message = f"{type(tokenizer).__name__} has no language codes, so this has no effect"
                raise UserError(
                    Problem(message, "task.source_language", value=code, hint="T5 receives the language in task.prefix")
                )
        return tokenizer

    def encode(self, rows: dict[str, list[Any]], processor: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        longest = min(self.recipe.data.max_length, processor.model_max_length)
        sources = [self.settings.prefix + text for text in rows["source"]]
        encoded = processor(sources, truncation=True, max_length=longest, return_attention_mask=False)
        ids = encoded["input_ids"]
        columns: dict[str, list[Any]] = {"input_ids": ids, "length": [len(tokens) for tokens in ids]}
        cut = were_cut(encoded, longest)
        if "target" in rows:
            max_tokens = self.settings.max_target_length
            written = processor(text_target=rows["target"], truncation=True, max_length=max_tokens)
            labels = written["input_ids"]
            cut = [
                source_cut or target_cut
                for source_cut, target_cut in zip(cut, were_cut(written, max_tokens), strict=True)
            ]
            columns |= {"labels": labels, "weight": [len(tokens) for tokens in labels], "target": rows["target"]}
        return {**columns, "truncated": cut}

    def collate(
        self, rows: list[dict[str, Any]], processor: PreTrainedTokenizerBase, rngs: Rngs | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        ids = [row["input_ids"] for row in rows]
        inputs = {
            "input_ids": padded(ids, processor.pad_token_id),
            "attention_mask": padded([[1] * len(tokens) for tokens in ids], 0),
        }
        if "labels" not in rows[0]:
            return inputs, None
        labels = padded([row["labels"] for row in rows], IGNORED)
        return {**inputs, "labels": labels}, labels

    # ── model ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def build_model(
        self, folder: str, revision: str | None, config: dict[str, Any], processor: Any, **options: Any
    ) -> PreTrainedModel:
        model = load_pretrained(AutoModelForSeq2SeqLM, folder, revision, config, **options)
        set_generation(model, self._generation())
        code = self.settings.target_language
        if code is not None and hasattr(processor, "tgt_lang"):
            # Saved with the model, so that it writes that language elsewhere, too.
            model.generation_config.forced_bos_token_id = _language_token(processor, code, "target_language")
        return model

    def _generation(self) -> dict[str, Any]:
        """How texts are written."""
        return {**greedy_or_beams(self.settings.num_beams), "max_new_tokens": self.settings.max_target_length}

    def build_loss(self, train: Examples) -> TokenLoss:
        return cross_entropy_of_tokens(self.recipe.train.loss)

    def weights(self, loss: TokenLoss, examples: Examples) -> np.ndarray:
        return examples.numbers("weight")

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """Predicts every target token from the tokens before it; None where there are no targets."""
        if "labels" not in inputs:
            return None
        inner: Any = getattr(model, "module", model)
        if (shifted := getattr(inner, "prepare_decoder_input_ids_from_labels", None)) is None:
            return model(**inputs, use_cache=False).logits  # shifts them itself, and computes a loss that is not used
        arguments = {name: value for name, value in inputs.items() if name != "labels"}
        return model(**arguments, decoder_input_ids=shifted(labels=inputs["labels"]), use_cache=False).logits

    # ── predictions ─────────────────────────────────────────────────────────────────────────────────────────────────
    def predict(self, model: nn.Module, inputs: dict[str, Any], outputs: Any, processor: Any) -> list[Any]:
        """Generates texts."""
        writer: Any = model
        written = writer.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            synced_gpus=torch.distributed.is_initialized(),
            **self._generation(),
        )
        if (language := writer.generation_config.forced_bos_token_id) is not None:
            written = written.masked_fill(written == language, processor.pad_token_id)  # not always a special token
        return [text.strip() for text in processor.batch_decode(written, skip_special_tokens=True)]

    def references(self, examples: Examples) -> list[Any]:
        return list(examples.column("target"))

    def score(self, predictions: list[Any], examples: Examples, processor: Any) -> dict[str, Any]:
        references = self.references(examples)
        if self.settings.type == "translation":
            return dict(translation_scores(references, predictions, self.settings.target_language))
        return dict(summary_scores(references, predictions))

    def describe(self, predictions: list[Any], processor: Any) -> list[dict[str, Any]]:
        return [{"text": text} for text in predictions]


def _language_token(tokenizer: Any, code: str, key: str) -> int:
    """Returns the token of a language. Raises UserError for a language that the tokenizer lacks."""
    token: int | None
    if hasattr(tokenizer, "get_lang_id"):  # M2M100
        languages = tokenizer.lang_code_to_id
        token = languages.get(code)
    else:  # mBART, NLLB: the code itself is a token
        languages = [code_token for code_token in tokenizer.get_added_vocab() if "_" in code_token]
        token = tokenizer.convert_tokens_to_ids(code)
        token = None if token == tokenizer.unk_token_id else token
    if token is None:
        valid = tuple(sorted(languages)[:40])
        raise UserError(Problem("the tokenizer does not support this language", f"task.{key}", value=code, valid=valid))
    return token
