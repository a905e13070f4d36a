"""What tokenizers say about the texts they were given."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, BatchEncoding

from sft_dist.recipe.errors import UserError
from sft_dist.tasks.loading import load_tokenizer, were_cut


def test_a_text_that_just_fits_is_not_cut(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = ["one two three", "one two three four", "one two three four five", "one"]
    encoded = tokenizer(texts, truncation=True, max_length=6)
    assert [len(ids) for ids in encoded["input_ids"]] == [5, 6, 6, 3]
    assert were_cut(encoded, 6) == [False, False, True, False]
    pairs = tokenizer(
        ["one two", "one two", "one two"], ["three", "three four", "a b c d"], truncation=True, max_length=7
    )
    assert were_cut(pairs, 7) == [False, False, True]
    assert were_cut(BatchEncoding({"input_ids": [[1, 2], [1, 2, 3]]}), 3) == [False, True], (
        "slow tokenizers do not tell"
    )


def test_a_tokenizer_that_cannot_pad_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tiny_model)).pad_token == "[PAD]"
    with pytest.raises(UserError, match="neither a padding nor an end-of-text token"):
        load_tokenizer(str(tmp_path))
