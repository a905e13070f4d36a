"""Mistakes that are refused before the first step instead of ending deep inside the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer

from sft_dist.data.rows import Examples
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.training.build import _check_token_ids


def recipe(model: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tokens",
            "task": "text-classification",
            "model": {"path": str(model)},
            "data": {"source": "./a.csv"},
            "tuning": "full",
            "train": {"lr": 1e-3},
        }
    )


def test_a_token_that_the_model_has_no_embedding_for_is_refused(tiny_model: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModel.from_pretrained(tiny_model)
    num_rows = model.get_input_embeddings().num_embeddings
    added = [f"<new {number}>" for number in range(num_rows - len(tokenizer) + 1)]
    tokenizer.add_tokens(added)

    def check(text: str) -> None:
        ids = [tokenizer(words)["input_ids"] for words in ("a b", text)]
        examples = {"train": Examples(Dataset.from_dict({"input_ids": ids}), "train")}
        _check_token_ids(model, examples, tokenizer, recipe(tiny_model))

    check("a b c")  # the tokens are there, but no text has one
    with pytest.raises(UserError, match=rf"model\.path: .*train rows.*\n.*'{added[-1]}', id {num_rows};"):
        check(f"a {added[-1]} b")
