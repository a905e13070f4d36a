"""Optimizer state in pieces: however it was cut when written, it can be read at any other cut, and a hole is an error."""

import itertools
import os
import random

import pytest
import torch
from torch import nn

from sft_dist.checkpoints.optimizer_state import (
    Piece,
    SavedState,
    load_pieces,
    optimizer_pieces,
    split_key,
    write_pieces,
)


def cuts(total, parts, rng):
    """`parts` runs that together are 0 .. total; some may be empty."""
    return list(itertools.pairwise([0, *sorted(rng.randint(0, total) for _ in range(parts - 1)), total]))


@pytest.mark.parametrize("writers", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_n_ranks_are_read_at_any_other_cut(tmp_path, writers, seed):
    rng = random.Random(seed)
    weights = {f"layers.{number}.weight": torch.randn(rng.randint(1, 40)) for number in range(6)}
    pieces = [[] for _ in range(writers)]
    for name, values in weights.items():
        for rank, (first, last) in enumerate(cuts(len(values), writers, rng)):
            pieces[rank].append(Piece(name, "exp_avg", first, values[first:last].clone()))
    for rank, mine in enumerate(pieces):
        write_pieces(mine, tmp_path / "state", rank)
    with SavedState(tmp_path / "state") as saved:
        assert saved.names() == set(weights)
        for name, values in weights.items():
            for readers in (1, 2, 3, 5):
                for first, last in cuts(len(values), readers, rng):
                    if first < last:
                        assert torch.equal(saved.read(name, "exp_avg", first, last), values[first:last])


def test_every_element_alone_and_every_run_of_elements(tmp_path):
    values = torch.arange(12.0)
    for rank, (first, last) in enumerate([(0, 5), (5, 6), (6, 12)]):
        write_pieces([Piece("w", "s", first, values[first:last].clone())], tmp_path / "state", rank)
    with SavedState(tmp_path / "state") as saved:
        for first, last in itertools.combinations(range(13), 2):
            assert torch.equal(saved.read("w", "s", first, last), values[first:last])


def test_missing_elements_are_an_error_that_names_the_first(tmp_path):
    values = torch.arange(10.0)
    write_pieces([Piece("w", "s", 0, values[:4].clone())], tmp_path / "state", 0)
    write_pieces([Piece("w", "s", 6, values[6:].clone())], tmp_path / "state", 1)
    with SavedState(tmp_path / "state") as saved:
        assert torch.equal(saved.read("w", "s", 0, 4), values[:4])
        assert torch.equal(saved.read("w", "s", 6, 10), values[6:])
        with pytest.raises(ValueError, match="element 4 of w/s is in none of the files"):
            saved.read("w", "s", 0, 10)
        with pytest.raises(ValueError, match="element 10 of w/s"):
            saved.read("w", "s", 6, 11)
        with pytest.raises(ValueError, match="element 0 of w/other"):
            saved.read("w", "other", 0, 1)
        with pytest.raises(ValueError, match="w/step is in none"):
            saved.full_value("w", "step")


def test_a_missing_rank_is_an_error(tmp_path):
    for rank in range(2):
        write_pieces([Piece("w", "s", 5 * rank, torch.ones(5))], tmp_path / "state", rank)
    os.remove(tmp_path / "state" / "rank-00001.safetensors")
    with SavedState(tmp_path / "state") as saved, pytest.raises(ValueError, match="element 5"):
        saved.read("w", "s", 0, 10)


def test_the_same_piece_from_two_ranks_is_read_once(tmp_path):
    for rank in range(2):
        write_pieces([Piece("w", "s", 0, torch.arange(6.0))], tmp_path / "state", rank)
    with SavedState(tmp_path / "state") as saved:
        assert saved.read("w", "s", 0, 6).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8]
)
def test_values_keep_their_type_bit_for_bit(tmp_path, dtype):
    values = torch.tensor([0, 1, 3, 250]).to(dtype)
    pieces = [Piece("w", "s", 0, values), Piece("w", "step", None, torch.tensor(7, dtype=dtype))]
    write_pieces(pieces, tmp_path / "state", 0)
    with SavedState(tmp_path / "state") as saved:
        assert saved.read("w", "s", 1, 4).dtype == dtype
        assert torch.equal(saved.read("w", "s", 0, 4), values)
        assert torch.equal(saved.full_value("w", "step"), torch.tensor(7, dtype=dtype))


def test_whole_states_keep_their_shape_and_differ_from_the_others(tmp_path):
    row = torch.randn(3, 1)
    write_pieces([Piece("w", "row_var", None, row), Piece("w", "exp_avg", 0, torch.ones(6))], tmp_path / "state", 0)
    with SavedState(tmp_path / "state") as saved:
        assert saved.element_keys("w") == {"exp_avg"}
        assert saved.whole_keys("w") == {"row_var"}
        assert torch.equal(saved.full_value("w", "row_var"), row)


def test_keys_come_apart_again():
    for piece in (Piece("a.b/c", "exp_avg", 12, torch.ones(1)), Piece("a@b.weight", "step", None, torch.ones(1))):
        assert split_key(piece.key) == (piece.name, piece.state_key, piece.first)


@pytest.mark.parametrize("writers", [1, 3])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adafactor])
def test_optimizer_state_comes_back_bit_for_bit(kind, writers, tmp_path):
    torch.manual_seed(0)
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}

    def build():
        model = nn.Linear(7, 3)
        groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias], "weight_decay": 0.0}]
        return model, kind(groups, lr=0.01, **options)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(2, 7)).pow(2).sum().backward()
        optimizer.step()

    model, optimizer = build()
    step(model, optimizer)
    for rank in range(writers):
        pieces = optimizer_pieces(optimizer, model, lambda number, rank=rank: number % writers == rank)
        write_pieces(pieces, tmp_path / "state", rank)
    twin, other = build()
    twin.load_state_dict(model.state_dict())
    with SavedState(tmp_path / "state") as saved:
        load_pieces(other, twin, saved)
    for _ in range(3):
        step(model, optimizer)
        step(twin, other)
    assert torch.equal(model.weight, twin.weight)
    assert torch.equal(model.bias, twin.bias)


def test_optimizer_state_of_other_weights_is_refused(tmp_path):
    deep, shallow = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.Adam(deep.parameters())
    deep(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    write_pieces(optimizer_pieces(optimizer, deep, lambda number: True), tmp_path / "state", 0)
    with SavedState(tmp_path / "state") as saved, pytest.raises(ValueError, match=r"1\.bias, which is not trained"):
        load_pieces(torch.optim.Adam(shallow.parameters()), shallow, saved)
