"""Running statistics are those of plain PyTorch over the whole global batch, whoever takes which micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sft_dist.training.batch_norms import BatchNorms

SINGLE: Any = SimpleNamespace(num_processes=1)


def network() -> nn.Sequential:
    """Norms of three momenta, one that is frozen, one without running statistics, and one that runs twice."""
    torch.manual_seed(0)
    shared = nn.BatchNorm2d(6, momentum=0.3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), shared, nn.ReLU(), shared, nn.BatchNorm2d(6, momentum=None),
        nn.BatchNorm2d(6).eval(), nn.BatchNorm2d(6, track_running_stats=False),
    )  # fmt: skip
    model(torch.randn(2, 3, 8, 8))  # statistics that are not those of a new norm
    return model


def micro_batches(step: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(2, 3, 8, 8, generator=generator) * (1 + index) + index for index in range(count)]


def end_step(ranks: Sequence[tuple[nn.Module, BatchNorms]]) -> None:
    """As `ranks` processes would, each with all the others' state."""
    gathered = torch.stack([norms._flatten(norms.buffers) for _, norms in ranks])
    accelerator: Any = SimpleNamespace(
        num_processes=len(ranks), device=torch.device("cpu"), gather=lambda own: gathered
    )
    for _, norms in ranks:
        norms.end_step(accelerator, skipped=False)


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (2, 2), (4, 1)])
def test_ranks_have_the_statistics_of_one_process(world_size: int, accumulation: int) -> None:
    plain = network()
    ranks = [(model, BatchNorms(model)) for model in (network() for _ in range(world_size))]
    for step in range(5):
        batches = micro_batches(step, world_size * accumulation)
        for index, batch in enumerate(batches):
            plain(batch)
            ranks[index // accumulation][0](batch)
        end_step(ranks)
    expected = plain.state_dict()
    for model, _ in ranks:
        torch.testing.assert_close(dict(model.state_dict()), dict(expected), rtol=1e-6, atol=1e-6)
        assert all(torch.equal(value, ranks[0][0].state_dict()[name]) for name, value in model.state_dict().items())
    assert expected["3.num_batches_tracked"] == 2 * expected["1.num_batches_tracked"]


def test_one_process_has_the_bits_of_plain_pytorch() -> None:
    plain, model = network(), network()
    norms = BatchNorms(model)
    for step in range(5):
        for batch in micro_batches(step, 2):
            assert torch.equal(plain(batch), model(batch))
        norms.end_step(SINGLE, skipped=False)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())


def test_a_skipped_step_leaves_no_trace() -> None:
    model = network()
    norms = BatchNorms(model)
    model(micro_batches(0, 1)[0])
    norms.end_step(SINGLE, skipped=False)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.full((2, 3, 8, 8), float("nan")))
    assert model[1].running_mean.isnan().all()
    norms.end_step(SINGLE, skipped=True)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_model_without_batch_norms_gathers_nothing() -> None:
    without_gather: Any = SimpleNamespace(num_processes=2)
    BatchNorms(nn.Linear(2, 2)).end_step(without_gather, skipped=False)
