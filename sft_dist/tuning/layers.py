"""The order of a model's weights, from the head down to the embeddings."""

from __future__ import annotations

from torch import nn

from sft_dist.recipe.errors import Problem, UserError


def layer_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Full name and modules of the transformer's layers: its list with the most weights, the outermost if there are
    several. Raises UserError when there is none."""
    body = body_of(model)
    lists = [(name, module) for name, module in body.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise UserError(Problem(f"{type(body).__name__} has no list of layers", path="tuning.method", value="freeze"))
    # Tensors are counted, not their elements: sharded weights are empty.
    name, layers = max(lists, key=lambda item: len(list(item[1].parameters())))
    prefix = next((f"{prefix}." for prefix, module in model.named_modules() if module is body and prefix), "")
    return f"{prefix}{name}", layers


def body_of(model: nn.Module) -> nn.Module:
    """The model without its head."""
    body: nn.Module = model.base_model  # type: ignore[assignment]
    return body


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Weight -> 0 for the head and what stands after the layers (pooler, last norm), 1 for the last layer, and so on; one
    more than there are layers for what stands before them, and for embeddings wherever they stand."""
    stack, layers = layer_stack(model)
    in_body = {id(parameter) for parameter in body_of(model).parameters()}
    embeddings = {
        id(parameter)
        for module in body_of(model).modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    depths = {}
    before = True
    for name, parameter in model.named_parameters():
        if name.startswith(f"{stack}."):
            before = False
            number = int(name[len(stack) + 1 :].split(".", 1)[0])
            depths[name] = len(layers) - number
        elif id(parameter) in embeddings or (before and id(parameter) in in_body):
            depths[name] = len(layers) + 1
        else:
            depths[name] = 0
    return depths
