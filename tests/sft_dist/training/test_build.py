"""Mistakes that are refused before the first step instead of ending deep inside the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer

from sft_dist.checkpoints import store as ckpt
from sft_dist.data.rows import Examples
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder
from sft_dist.training.build import _check_token_ids, _resume_point


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
    model.resize_token_embeddings(len(tokenizer))  # as advised
    check(f"a {added[-1]} b")


def test_a_checkpoint_of_another_recipe_is_refused_and_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "demo" / "a")
    folder.checkpoints.mkdir(parents=True)
    folder.recipe_file.write_text('{"seed": 1}')
    staging_dir = ckpt.begin(folder, 10, attempt=1)
    (staging_dir / "weights").write_bytes(b"0")
    files = ckpt.describe(staging_dir, [staging_dir / "weights"])
    checkpoint = ckpt.publish(folder, 10, staging_dir, files)
    accelerator = Accelerator(cpu=True)
    assert _resume_point(folder, accelerator) == checkpoint
    folder.recipe_file.write_text('{"seed": 2}')
    with pytest.raises(UserError, match="belongs to another run"):
        _resume_point(folder, accelerator)
    assert checkpoint.path.is_dir()
