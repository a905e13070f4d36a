"""Train part of the model: which layers, embeddings and further weights keep their values, and for how long."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import FreezeTuning, Tuning
from sft_dist.recipe.units import points_at
from sft_dist.tuning.layers import body_of, has_head, layer_depths, num_layers


def freeze(model: nn.Module, tuning: FreezeTuning) -> None:
    """Trains the head, what follows the body's layers (pooler, last norm), and what the recipe names. Weights that the
    model itself keeps fixed, such as sinusoidal positions, stay so. Raises UserError."""
    total = num_layers(model)
    names = [name for name, _ in model.named_parameters()]
    matches, problems = _matches(tuning, names)
    problems += _too_many_layers(tuning, total)
    problems += _no_head(tuning, model)
    if problems:
        raise UserError(problems)
    depths = layer_depths(model)
    trained_depths = {0}
    trained_depths |= set(range(1, (tuning.train_last_layers or 0) + 1))
    trained_depths |= set(range(total + 1 - (tuning.train_first_layers or 0), total + 1))
    if tuning.train_embeddings:
        trained_depths.add(total + 1)
    for name, parameter in model.named_parameters():
        is_chosen = depths[name] in trained_depths or name in matches
        parameter.requires_grad = parameter.requires_grad and is_chosen


def train_biases(model: nn.Module) -> None:
    """Trains the biases of the body and the whole head, new weights included: some models (UPerNet) have no body apart from the
    head. Raises UserError when there are no biases."""
    new = set(getattr(model, "new_weights", ()))
    heads = {id(parameter) for name, parameter in model.named_parameters() if name in new}
    in_body = {id(parameter) for parameter in body_of(model).parameters()} - heads
    has_biases = False
    for name, parameter in model.named_parameters():
        is_bias = name.rsplit(".", 1)[-1] == "bias"
        has_biases = has_biases or (is_bias and id(parameter) in in_body)
        parameter.requires_grad = is_bias or id(parameter) not in in_body
    if not has_biases:
        problem = f"{type(model).__name__} has no biases, so only the head would be trained"
        raise UserError(
            Problem(problem, path="tuning.method", value="bitfit", hint="use lora, or freeze with train_last_layers: 1")
        )


def unfreeze_steps(model: nn.Module, tuning: Tuning, total_steps: int, steps_per_epoch: int | None) -> dict[str, int]:
    """Returns weight -> the first step that trains it, for weights that have to wait (gradual unfreezing, Howard & Ruder
    2018, arXiv 1801.06146). Depends on the step alone, so a resumed run continues as it would have."""
    if not isinstance(tuning, FreezeTuning) or tuning.unfreeze_every is None:
        return {}
    depths = layer_depths(model)
    trained = {name: depths[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
    turn = {depth: number for number, depth in enumerate(sorted(set(trained.values())))}
    ends = points_at(tuning.unfreeze_every, total_steps, steps_per_epoch)
    starts = [1, *(end + 1 for end in ends)]  # the last is after the end: never
    return {name: starts[min(turn[depth], len(starts) - 1)] for name, depth in trained.items() if turn[depth] > 0}


def zero_frozen_gradients(model: nn.Module, first: dict[str, int], step: int) -> None:
    """Removes the gradients of weights that are still frozen: the optimizer then skips them, and has no state for them."""
    for name, parameter in model.named_parameters():
        if step < first.get(name, 0):
            parameter.grad = None


def _no_head(tuning: FreezeTuning, model: nn.Module) -> Iterator[Problem]:
    is_head_only = not (
        tuning.train_first_layers or tuning.train_last_layers or tuning.train or tuning.train_embeddings
    )
    if is_head_only and not has_head(model):
        message = f"{type(model).__name__} has no separate head (it shares the weights of the embeddings), so almost nothing would be trained"
        hint = "set train_last_layers: 1 or more, train_embeddings: true, or use lora"
        yield Problem(message, "tuning.train_last_layers", value=str(tuning.train_last_layers), hint=hint)


def _too_many_layers(tuning: FreezeTuning, total: int) -> Iterator[Problem]:
    first, last = tuning.train_first_layers or 0, tuning.train_last_layers or 0
    for key, count in (("train_first_layers", first), ("train_last_layers", last)):
        if count > total:
            yield Problem(f"the model has {total} layers", f"tuning.{key}", value=str(count), valid=(f"0 to {total}",))
    if max(first, last) <= total < first + last:
        value = f"{first} first and {last} last layers"
        yield Problem(
            f"the model has {total} layers", "tuning.train_first_layers", value=value, hint="use tuning: full"
        )


def _matches(tuning: FreezeTuning, names: list[str]) -> tuple[set[str], list[Problem]]:
    """Returns the weights that the patterns match, and what is wrong with the patterns."""
    names_matched: set[str] = set()
    problems = []
    for number, pattern in enumerate(tuning.train or []):
        path = f"tuning.train.{number}"
        try:
            matches = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            problems.append(Problem(f"not a regular expression: {error}", path, value=pattern))
            continue
        if not matches:
            hint = f"names look like: {', '.join(names[:: max(1, len(names) // 6)])}"
            problems.append(Problem("matches the name of no weight", path, value=pattern, hint=hint))
        names_matched.update(matches)
    return names_matched, problems
