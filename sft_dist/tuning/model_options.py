"""Recipe switches that change how a model computes and not what: gradient checkpointing, torch.compile, Liger kernels.

Only for training: evaluation and prediction build the model without them. Each one that cannot apply is an error that names
its key, since a switch that does nothing would be found out by the memory or the time it did not save.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.machine import is_installed, missing_packages
from sft_dist.recipe.schema import Recipe


def for_training(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Returns the same model with the recipe's options on; called before it is sharded. Raises UserError."""
    if problems := missing_packages(recipe):
        raise UserError(problems)
    base = base_of(model)
    if recipe.train.liger:
        use_liger(base)
    if recipe.train.gradient_checkpointing:
        checkpoint_activations(base)
    if recipe.train.compile:
        compile_model(model)
    return model


def base_of(model: nn.Module) -> PreTrainedModel:
    """Returns the model without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]


@contextmanager
def without_flash(model: nn.Module) -> Iterator[None]:
    """Switches flash attention off within it: a model that is still in fp32 and on the CPU cannot run it."""
    base = base_of(model)
    implementation = base.config._attn_implementation or ""
    if not implementation.startswith("flash"):
        yield
        return
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(implementation)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Makes layers recompute their activations in the backward pass, with the same dropout. Raises UserError."""
    if not model.supports_gradient_checkpointing:
        raise UserError(
            Problem(f"{type(model).__name__} does not support it", "train.gradient_checkpointing", value="true")
        )
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    # It also makes embeddings require gradients, which only the reentrant kind needs: frozen first layers would be
    # computed again, and back through, for nothing.
    model.disable_input_require_grads()


def compile_model(model: nn.Module) -> None:
    """Compiles the model in place, so that weights keep their names. Raises UserError when there is no compiler.

    `dynamic`: one kernel for all shapes. Otherwise the first batch gets its own, and a resumed run, whose first batch is
    another, would differ from the uninterrupted one in the last bits. Dropout draws other numbers than without compiling.
    """
    if torch.cuda.is_available():
        if not is_installed("triton"):
            raise UserError(
                Problem("torch.compile needs triton", "train.compile", value="true", hint="pip install triton")
            )
    else:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            hint = "install g++, or name another compiler in the environment variable CXX"
            raise UserError(
                Problem("torch.compile needs a C++ compiler", "train.compile", value="true", hint=hint)
            ) from None
    model.compile(dynamic=True)


def use_liger(model: PreTrainedModel) -> None:
    """Installs Liger's kernels for norms, rotary positions and feed-forward layers; the loss stays ours. Raises UserError."""
    if not torch.cuda.is_available():
        raise UserError(Problem("Liger kernels need a GPU; none was found", "train.liger", value="true"))
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        valid = tuple(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))
        raise UserError(Problem(f"Liger has no kernels for {kind}", "train.liger", value="true", valid=valid))
    _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
