"""Adapters beside the frozen weights, by PEFT."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.model_folder import convolution_targets
from sft_dist.recipe.schema import AdapterTuning, Ia3Tuning, LoraTuning, PrefixTuning, PromptTuning, QloraTuning
from sft_dist.recipe.tied_embeddings import tied_problem
from sft_dist.tuning.model_options import without_flash

if TYPE_CHECKING:
    from peft import PeftConfig  # takes seconds to import

# Heads that PEFT trains whole for tags, after `all-linear` has given them an adapter, which fails.
_TAG_HEADS = ("classifier", "score")


def add_adapter(model: nn.Module, tuning: AdapterTuning, peft_task: str | None) -> nn.Module:
    """Returns the model in PEFT's wrapper. Raises UserError when the model cannot have such adapters."""
    with without_compiler():
        from peft import get_peft_model

    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if problems := [*_lost_names(model, tuning), *convolution_targets(tuning, model_type)]:
        raise UserError(problems)
    try:
        wrapped = get_peft_model(model, _config(model, tuning, peft_task))
    except ValueError as error:
        raise UserError(_refused(model, tuning, str(error))) from error
    if isinstance(tuning, (PrefixTuning, PromptTuning)):
        _check_virtual_tokens(wrapped, tuning)
    return wrapped


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within it, `torch.compile` returns a function as it is, and does not import the compiler (2.4 s).

    PEFT imports bitsandbytes where that is installed, which compiles functions of 4-bit weights when it is imported. Only
    devices for which it has no kernels use them; there they run uncompiled."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def require_mergeable(model: nn.Module) -> None:
    """Raises UserError where an adapter is on a layer whose weights are also another's."""
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

    if not isinstance(base := getattr(model, "base_model", None), BaseTuner):
        return
    tied = base.model.all_tied_weights_keys
    names = {name.rpartition(".")[0] for pair in tied.items() for name in pair}
    adapted = [
        name for name, layer in base.model.named_modules() if isinstance(layer, BaseTunerLayer) and name in names
    ]
    if adapted:
        raise UserError(tied_problem("tuning.target_modules", ", ".join(adapted)))


def _config(model: nn.Module, tuning: AdapterTuning, peft_task: str | None) -> PeftConfig:
    import peft

    new = _not_in_the_base(model) if peft_task is None else []
    saved_modules = [*tuning.modules_to_save, *new] or None
    match tuning:
        case LoraTuning() | QloraTuning():
            return peft.LoraConfig(
                task_type=peft_task,
                r=tuning.r,
                lora_alpha=tuning.alpha,
                lora_dropout=tuning.dropout,
                target_modules=tuning.target_modules,
                exclude_modules=[*_half_heads(model), *new, *(_TAG_HEADS if peft_task == "TOKEN_CLS" else ())] or None,
                use_rslora=tuning.rslora,
                use_dora=tuning.dora,
                modules_to_save=saved_modules,
            )
        case Ia3Tuning():
            return peft.IA3Config(
                task_type=peft_task,
                target_modules=tuning.target_modules,
                feedforward_modules=tuning.feedforward_modules,
                modules_to_save=saved_modules,
            )
        case PrefixTuning():
            return peft.PrefixTuningConfig(
                task_type=peft_task, num_virtual_tokens=tuning.virtual_tokens, modules_to_save=saved_modules
            )
        case PromptTuning():
            return peft.PromptTuningConfig(
                task_type=peft_task,
                num_virtual_tokens=tuning.virtual_tokens,
                # PEFT takes the hidden size, which in some models (ALBERT, ELECTRA) is not that of the embeddings.
                token_dim=model.get_input_embeddings().embedding_dim,  # type: ignore[operator]
                # Some models (DistilBERT) have other names for these, which PEFT does not know.
                num_layers=model.config.num_hidden_layers,  # type: ignore[union-attr]
                num_attention_heads=model.config.num_attention_heads,  # type: ignore[union-attr]
                modules_to_save=saved_modules,
            )


def _not_in_the_base(model: nn.Module) -> list[str]:
    """Returns the layers that are trained and saved whole: those with weights that the pretrained model lacks, which is the
    head (PEFT finds it for its own tasks alone), and batch norms, whose running statistics change even while their weights do
    not."""
    heads = {name.rpartition(".")[0] for name in getattr(model, "new_weights", ())}
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    return sorted(heads | norms)


def _half_heads(model: nn.Module) -> list[str]:
    """Returns layers such as DistilBERT's `pre_classifier`: PEFT trains them whole because of the end of their name, and fails when
    `all-linear` has given them an adapter before."""
    names = [name for name, _ in model.named_children() if name.endswith(("classifier", "score"))]
    return [name for name in names if name not in ("classifier", "score")]


def _check_virtual_tokens(model: nn.Module, tuning: PrefixTuning | PromptTuning) -> None:
    """Raises UserError for models that cannot run with virtual tokens, or answer wrongly with them, which PEFT wraps all the
    same: decoders find a text's last token by the padding of its ids, which a prompt of embeddings hides. So two texts are
    run together and one alone."""
    pad = model.config.pad_token_id or 0  # type: ignore[union-attr]
    a, b, c = [number for number in range(5, 9) if number != pad][:3]  # any tokens will do
    ids = torch.tensor([[a, b, c, a], [c, b, pad, pad]], device=model.device)  # type: ignore[arg-type]
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], device=model.device)  # type: ignore[arg-type]
    model.eval()
    try:
        with torch.no_grad(), without_flash(model):
            together = model(input_ids=ids, attention_mask=mask).logits[1]
            alone = model(input_ids=ids[1:, :2], attention_mask=mask[1:, :2]).logits[0]
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise UserError(_refused(model.get_base_model(), tuning, f"it fails: {error}")) from error  # type: ignore[operator]
    if together.shape != alone.shape or not torch.allclose(together, alone, rtol=1e-3, atol=1e-4):
        reason = "its answer to a text changes with the padding, which it does not recognise"
        raise UserError(_refused(model.get_base_model(), tuning, reason))  # type: ignore[operator]


def _refused(model: nn.Module, tuning: AdapterTuning, reason: str) -> Problem:
    if isinstance(tuning, Ia3Tuning) and tuning.target_modules is None:
        hint = (
            f"name the layers in tuning.target_modules and feedforward_modules; there are: {', '.join(_linear(model))}"
        )
    else:
        hint = "lora works with every model that has linear layers"
    return Problem(f"{type(model).__name__}: {reason}", "tuning.method", value=tuning.method, hint=hint)


def _lost_names(model: nn.Module, tuning: AdapterTuning) -> Iterator[Problem]:
    """Reports names of layers that the model lacks: PEFT accepts several names if one of them exists, and ignores a layer to
    save that does not."""
    layers = [name for name, _ in model.named_modules() if name]
    last_parts = tuple(sorted({name.rsplit(".", 1)[-1] for name in layers}))
    problem = "matches no layer of the model"
    for name in tuning.modules_to_save:
        if not _is_there(name, layers):
            yield Problem(problem, "tuning.modules_to_save", value=name, valid=last_parts)
    if isinstance(tuning, (PrefixTuning, PromptTuning)) or tuning.target_modules is None:
        return
    targets = tuning.target_modules
    if isinstance(targets, str):
        matched = targets == "all-linear" or any(_matches(targets, name) for name in layers)
        lost = [] if matched else [targets]
    else:
        lost = [target for target in targets if not _is_there(target, layers)]
    shorthand = () if isinstance(tuning, Ia3Tuning) else ("all-linear",)
    for name in lost:
        yield Problem(problem, "tuning.target_modules", value=name, valid=(*shorthand, *_linear(model)))


def _linear(model: nn.Module) -> list[str]:
    """Returns the last parts of the names of linear layers."""
    from transformers.pytorch_utils import Conv1D

    modules = model.named_modules()
    return sorted({name.rsplit(".", 1)[-1] for name, module in modules if isinstance(module, (nn.Linear, Conv1D))})


def _is_there(name: str, layers: Iterable[str]) -> bool:
    return any(layer == name or layer.endswith(f".{name}") for layer in layers)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise UserError(
            Problem(f"not a regular expression: {error}", path="tuning.target_modules", value=pattern)
        ) from error
