"""Compares a merged model with the one whose adapters are apart, on the same examples, before it is published.

Rounding makes a difference of about 1e-6; what a merge loses (weights that two layers share, a layer that the library merges by
another rule) makes one of 0.1 and more. The layer that is named gives another output for the same input, so it is the
cause; layers behind it differ because of it.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from sft_dist.data.encode import DataError, collate, encode
from sft_dist.data.prepare import prepared_examples
from sft_dist.data.rows import ROW, Examples
from sft_dist.recipe.errors import UserError
from sft_dist.tasks.base import Task

log = logging.getLogger("sft_dist")

TOLERANCE = 1e-3  # of the norm of a layer's output
NUM_EXAMPLES = 4
_VALUES = 4096  # compared of each tensor, spread over it


@dataclass
class Activations:
    """What a model computes for some examples."""

    outputs: Tensor | None  # None: of a detector, which orders its queries by scores that rounding changes
    layers: dict[str, list[tuple[str, Tensor, Tensor]]] = field(
        default_factory=dict
    )  # name -> (class, input, output) a call


def activations(model: nn.Module, task: Task, inputs: dict[str, Any]) -> Activations:
    """Runs the model once, in evaluation mode. Layers have the names they have without adapters."""
    recorded = Activations(None)
    unwrapped = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
    hooks = [
        module.register_forward_hook(_recorder(recorded, name), with_kwargs=True)
        for name, module in unwrapped.named_modules()
        if _has_weights(module)
    ]
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            outputs = task.forward(model.eval(), inputs)
    finally:
        for hook in hooks:
            hook.remove()
    recorded.outputs = _sample(outputs) if torch.is_tensor(outputs) else None
    return recorded


def difference(apart: Activations, merged: Activations) -> str:
    """Returns in words where two models differ by more than the tolerance; empty where they agree."""
    for name, calls in merged.layers.items():
        for (kind, inputs, outputs), (_, inputs_apart, outputs_apart) in zip(
            calls, apart.layers.get(name, ()), strict=False
        ):
            if is_close(inputs, inputs_apart) and not is_close(outputs, outputs_apart):
                return (
                    f"layer {name} ({kind}) gives another output for the same input ({_amount(outputs, outputs_apart)})"
                )
    if merged.outputs is None or apart.outputs is None or is_close(merged.outputs, apart.outputs):
        return ""
    return f"its outputs differ ({_amount(merged.outputs, apart.outputs)})"


def is_close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= TOLERANCE * max(float(b.norm()), TOLERANCE))


def _amount(a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape:
        return f"{tuple(a.shape)} values instead of {tuple(b.shape)}"
    return f"by up to {float((a - b).abs().max()):.2g}, where the largest value is {float(b.abs().max()):.2g}"


def _has_weights(module: nn.Module) -> bool:
    """Whether a module computes with weights of its own, be it through an adapter or a copy that is trained whole."""
    is_wrapper = hasattr(module, "base_layer") or hasattr(module, "modules_to_save")
    return is_wrapper or next(module.parameters(recurse=False), None) is not None


def _recorder(recorded: Activations, name: str) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        if given and torch.is_tensor(output):
            entry = (type(module).__name__, torch.cat(list(map(_sample, given))), _sample(output))
            recorded.layers.setdefault(name, []).append(entry)

    return record


def _sample(tensor: Tensor) -> Tensor:
    """Some values of a tensor, spread evenly over it."""
    values = tensor.detach().reshape(-1)
    return values[:: max(1, len(values) // _VALUES)].to("cpu", torch.float32, copy=True)


# ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────────
def comparison_inputs(task: Task, processor: Any) -> dict[str, Any]:
    """Model inputs of a few prepared validation rows; of invented ones where this machine has no prepared rows of the run, or
    their files are gone."""
    try:
        if (examples := _prepared(task, processor)) is not None:
            return _inputs(task, examples, processor)
    except (DataError, UserError, OSError) as error:
        log.info("the merged model is compared on invented examples: %s", error)
    return _inputs(task, _invented(task, processor), processor)


def _inputs(task: Task, examples: Examples, processor: Any) -> dict[str, Any]:
    middle = np.argsort(examples.lengths, kind="stable")[len(examples) // 2 :][:NUM_EXAMPLES]
    return collate(task, examples, middle, processor)[0]


def _prepared(task: Task, processor: Any) -> Examples | None:
    examples = prepared_examples(task.recipe, task, processor)
    return examples.get("validation", examples.get("train"))


def _invented(task: Task, processor: Any) -> Examples:
    rows = {role: [make()] * NUM_EXAMPLES for role, make in _INVENTED.items() if role in task.row_features}
    table = Dataset.from_dict(encode(task, {**rows, ROW: list(range(NUM_EXAMPLES))}, processor, "input"))
    return Examples(table.add_column(ROW, list(range(NUM_EXAMPLES))), "input")


def _text() -> str:
    return "A quick brown fox."


def _chat() -> str:
    return json.dumps([{"role": "user", "content": _text()}, {"role": "assistant", "content": _text()}])


def _image() -> dict[str, Any]:
    from PIL import Image

    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return {"path": None, "bytes": file.getvalue()}


def _audio() -> dict[str, Any]:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).standard_normal(16000) * 0.1, 16000, format="WAV")
    return {"path": None, "bytes": file.getvalue()}


_INVENTED: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("text", "text_pair", "source", "target"), _text),
    "tokens": lambda: _text().split(),
    "chat": _chat,
    "image": _image,
    "audio": _audio,
}
