"""Packing: nothing lost, little wasted, and packed examples do not see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_dist.data.packing import best_fit_decreasing, leak, positions
from tests.tiny_text import causal_model


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=80))
def test_every_example_is_in_one_bin_and_no_bin_is_too_full(lengths):
    sizes = np.array(lengths)
    bins = best_fit_decreasing(sizes, 50)
    assert sorted(np.concatenate(bins).tolist()) == list(range(len(sizes)))
    assert max(int(sizes[one].sum()) for one in bins) <= 50
    fills = sorted(int(sizes[one].sum()) for one in bins)
    assert len(fills) == 1 or sum(fills[:2]) > 50, "no two bins could be one"
    again = best_fit_decreasing(sizes, 50)
    assert all(np.array_equal(one, other) for one, other in zip(bins, again, strict=True))


def test_the_fullest_bin_that_has_room_is_taken():
    # 6 and 5 open bins with 4 and 5 tokens left; 4 fills the first, 5 the second.
    assert [one.tolist() for one in best_fit_decreasing(np.array([6, 4, 5, 5]), 10)] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="11 tokens does not fit"):
        best_fit_decreasing(np.array([3, 11]), 10)


def test_a_hundred_thousand_examples_pack_tightly_in_a_moment():
    sizes = np.random.default_rng(0).integers(10, 500, 100_000)
    bins = best_fit_decreasing(sizes, 2048)
    assert sizes.sum() / (len(bins) * 2048) > 0.99


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_packed_logits_equal_those_of_each_example_alone(kind, attention):
    model = causal_model(kind, 100, attention)
    rng = np.random.default_rng(1)
    examples = [torch.from_numpy(rng.integers(4, 100, size)) for size in (5, 11, 8, 3)]
    rows = [torch.cat(examples[:2]), torch.cat(examples[2:])]
    places = [torch.tensor(positions([5, 11])), torch.tensor(positions([8, 3]))]
    with torch.no_grad():
        packed = model(
            input_ids=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
            position_ids=torch.nn.utils.rnn.pad_sequence(places, batch_first=True),
            use_cache=False,
        ).logits
        alone = [model(input_ids=one[None]).logits[0] for one in examples]
    torch.testing.assert_close(packed[0], torch.cat(alone[:2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(packed[1, :11], torch.cat(alone[2:]), atol=1e-5, rtol=0)
    assert packed.isfinite().all()
    assert leak(model, 100) == 0


def test_models_that_mix_packed_examples_are_found_out():
    from transformers import AutoModelForCausalLM, BloomConfig, OPTConfig

    torch.manual_seed(0)
    mixing = [
        BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
        OPTConfig(
            vocab_size=100,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=64,
            word_embed_proj_dim=32,
        ),
    ]
    for config in mixing:
        model = AutoModelForCausalLM.from_config(config)
        assert leak(model, 100) > 1e-3
        assert model.training, "the model is left as it was"
