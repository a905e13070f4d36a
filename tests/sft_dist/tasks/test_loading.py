"""What tokenizers say about the texts they were given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, BatchEncoding

from sft_dist.recipe.errors import UserError
from sft_dist.tasks.loading import load_tokenizer, positions_of, were_cut


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
    with pytest.raises(
        UserError, match=r'neither a padding nor an end-of-text token(.|\n)*tokenizer.pad_token = "..."; '
    ):
        load_tokenizer(str(tmp_path))
    tokenizer.pad_token = "[unused1]"  # as advised
    tokenizer.save_pretrained(tmp_path / "padded")
    batch = load_tokenizer(str(tmp_path / "padded"))(["a", "a b c"], padding=True)["input_ids"]
    assert len(batch[0]) == len(batch[1])


@pytest.mark.parametrize(("kind", "offset"), [("roberta", 2), ("mpnet", 2), ("bert", 0)])
def test_the_longest_text_that_fits(kind: str, offset: int) -> None:
    """As many tokens as are advised fit, and not one more."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = AutoConfig.for_model(kind, vocab_size=20, max_position_embeddings=12, pad_token_id=1, **sizes)
    model = AutoModel.from_config(config).eval()
    longest = positions_of(config)
    assert longest == 12 - offset
    model(input_ids=torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 5))


def test_configs_without_a_limit() -> None:
    assert positions_of(AutoConfig.for_model("t5", n_positions=512)) is None
    assert positions_of(AutoConfig.for_model("gpt2", n_positions=64)) == 64
