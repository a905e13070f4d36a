"""The order of a model's weights, from the head down to the embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sft_dist.recipe.errors import Problem, UserError

# Modules of a body that run one after another, in the order in which it registers them.
_SECTIONS = ("backbone", "encoder", "decoder")


@dataclass(frozen=True)
class Stack:
    """A list of layers. Those of an encoder-decoder follow each other."""

    section: str  # full name of the module that it is the layers of, such as `model.encoder`
    name: str  # full name
    num_layers: int


def layer_stacks(model: nn.Module) -> list[Stack]:
    """Returns the stacks of layers in the order in which they run: the backbone before the encoder, the encoder before the
    decoder. A model without such sections, or with a single one, has one stack. Raises UserError when there is none."""
    body = body_of(model)
    prefix = next((f"{prefix}." for prefix, module in model.named_modules() if module is body and prefix), "")
    sections = [stack for name, module in _sections(body) if (stack := _largest_stack(module, f"{prefix}{name}"))]
    if len(sections) > 1:
        return sections
    if stack := _largest_stack(body, prefix.removesuffix(".")):
        return [stack]
    raise UserError(Problem(f"{type(body).__name__} has no list of layers", path="tuning.method", value="freeze"))


def num_layers(model: nn.Module) -> int:
    return sum(stack.num_layers for stack in layer_stacks(model))


def body_of(model: nn.Module) -> nn.Module:
    """Returns the model without its head."""
    body: nn.Module = model.base_model  # type: ignore[assignment]
    return body


def has_head(model: nn.Module) -> bool:
    """Returns whether anything but norms follows the layers. A head that is tied to the embeddings is among those."""
    norms = {
        id(parameter)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters()
    }
    depths = layer_depths(model)
    return any(depths[name] == 0 and id(parameter) not in norms for name, parameter in model.named_parameters())


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Returns weight -> 0 for the head and what follows the layers (pooler, last norm), 1 for the last layer, and so on through
    all stacks; one more than there are layers for what stands before them, and for embeddings wherever they stand.

    What stands between two stacks is as deep as the layer beside it: the last one of its own section, else the next one.
    """
    stacks = layer_stacks(model)
    layers_after = {stack: sum(later.num_layers for later in stacks[n:]) for n, stack in enumerate(stacks, 1)}
    total = sum(stack.num_layers for stack in stacks)
    in_body = {id(parameter) for parameter in body_of(model).parameters()}
    embeddings = _embeddings(body_of(model))
    # Weights that the checkpoint lacks are of the head, wherever the model has them (RT-DETR: before its decoder, too).
    new = set(getattr(model, "new_weights", ()))
    depths = {}
    last_stack: Stack | None = None  # that has been passed
    for name, parameter in model.named_parameters():
        stack = next((stack for stack in stacks if name.startswith(f"{stack.name}.")), None)
        last_stack = stack or last_stack
        if name in new:
            depths[name] = 0
        elif stack is not None:
            number = int(name[len(stack.name) + 1 :].split(".", 1)[0])
            depths[name] = layers_after[stack] + stack.num_layers - number
        elif id(parameter) in embeddings or (last_stack is None and id(parameter) in in_body):
            depths[name] = total + 1
        elif last_stack is None or last_stack is stacks[-1] or id(parameter) not in in_body:
            depths[name] = 0
        else:
            depths[name] = layers_after[last_stack] + name.startswith(f"{last_stack.section}.")
    return depths


def _sections(body: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the outermost modules with such names: a backbone may have an encoder of its own."""
    sections: list[tuple[str, nn.Module]] = []
    for name, module in body.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer, _ in sections)
        if name.rpartition(".")[2] in _SECTIONS and not is_inside:
            sections.append((name, module))
    return sections


def _largest_stack(section: nn.Module, name: str) -> Stack | None:
    """Returns the list with the most weights, the outermost if there are several."""
    lists = [(path, module) for path, module in section.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return None
    # Tensors are counted, not their elements: sharded weights are empty.
    path, layers = max(lists, key=lambda item: len(list(item[1].parameters())))
    return Stack(name, f"{name}.{path}" if name else path, len(layers))


def _embeddings(body: nn.Module) -> set[int]:
    """Returns the ids of the weights of embeddings and of their norms, which BART registers after its layers."""
    return {
        id(parameter)
        for name, module in body.named_modules()
        if isinstance(module, nn.Embedding) or name.endswith("layernorm_embedding")
        for parameter in module.parameters()
    }
