"""Processor and model from a recipe, the same way for training, evaluation, export and prediction."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from tokenizers import Tokenizer
from torch import nn
from transformers import dynamic_module_utils

from sft_dist.recipe.errors import HubUnreachable, NotInCache, Problem, UserError
from sft_dist.recipe.machine import missing_packages
from sft_dist.recipe.model_damage import HINT, broken_file
from sft_dist.recipe.references import is_hub, model_source
from sft_dist.recipe.schema import Model, Recipe
from sft_dist.run.failures import Failure, is_out_of_memory
from sft_dist.tasks.base import Task
from sft_dist.tuning import apply_tuning
from sft_dist.tuning.quantize import quantization

# Otherwise transformers answers "no safetensors here" by asking the hub to convert, and loads what some pull request has.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
# Otherwise transformers asks whether code may run wherever it is not told, and piped input would answer.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def load_processor(recipe: Recipe, task: Task) -> Any:
    """Tokenizer, image processor or whatever else makes a row into the model's input."""
    model = recipe.model
    own = (
        model.tokenizer is None or model.tokenizer == model.path
    )  # the commit of the model's code says nothing elsewhere
    options = _pinned(model) if own else {"revision": model.revision, "trust_remote_code": False}
    try:
        return task.load_processor(model_source(model.tokenizer or model.path), **options)
    except Exception as error:  # transformers and tokenizers raise of every type for a file that they do not expect
        raise _explained(error, model, "model.path" if own else "model.tokenizer") from error


def build_model(recipe: Recipe, task: Task, processor: Any) -> nn.Module:
    """The base model with the task's head and the recipe's tuning; head and adapters are new, from `train.seed`."""
    torch.manual_seed(recipe.train.seed)
    options = {**_pinned(recipe.model), **_weights(recipe.model), **quantization(recipe)}
    if problems := [
        problem for problem in missing_packages(recipe) if problem.path in ("model.attention", "tuning.method")
    ]:
        raise UserError(problems)  # before transformers fetches kernels from the hub instead
    try:
        model = task.build_model(
            model_source(recipe.model.path), options.pop("revision"), recipe.model.config, processor, **options
        )
    except Exception as error:  # of every type, too
        raise _explained(error, recipe.model) from error
    attention, model_attention = recipe.model.attention, model.config._attn_implementation
    if attention is not None and attention != model_attention:
        message = f"{type(model).__name__} does not have it, and would use {model_attention} instead"
        raise UserError(Problem(message, "model.attention", value=attention))
    if getattr(model.config, "pad_token_id", None) is None and getattr(processor, "pad_token_id", None) is not None:
        model.config.pad_token_id = processor.pad_token_id
    if getattr(model.config, "use_cache", False) and not model.can_generate():
        # A decoder that only classifies never reads its key-value cache. Gradient checkpointing turns the cache off, which
        # changes the layout of the keys in memory, so other kernels multiply them and the last bits of the loss change.
        model.config.use_cache = False
    return apply_tuning(model, recipe.tuning, task.peft_task)


def _pinned(model: Model) -> dict[str, Any]:
    """Which files of a hub repository, and whether code among them may run: only that of the commit the recipe names."""
    if model.trust_remote_code is None:
        return {"revision": model.revision, "trust_remote_code": False}
    commit = model.trust_remote_code
    if not is_hub(model.path):  # a recipe that no launcher has checked
        message = "trust_remote_code works for hub models only"
        raise UserError(Problem(message, "model.trust_remote_code", value=commit))
    return {"revision": model.revision or commit, "trust_remote_code": True, "code_revision": commit}


def _weights(model: Model) -> dict[str, Any]:
    """safetensors, or by the recipe's leave a pickle, of which only tensors are taken."""
    options: dict[str, Any] = {"use_safetensors": None if model.allow_pickle else True, "weights_only": True}
    return {**options, "attn_implementation": model.attention} if model.attention else options


def _explained(error: Exception, model: Model, path: str = "model.path") -> Exception:
    """Explains an error of transformers with the recipe setting that would let it load the model, or with the file that is
    broken. Returns errors of the machine (memory, network, disk) as they are."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError | Failure) or is_out_of_memory(error):
        return error
    if "trust_remote_code" in text:
        hint = "read that code, then name the commit you have read: model.trust_remote_code: <40 hexadecimal digits>"
        return UserError(Problem("needs code that comes with it", "model.path", value=model.path, hint=hint))
    if (
        isinstance(error, OSError)
        and "safetensors" in text
        and not model.allow_pickle
        and not _of_broken_file(model.path, path)
    ):
        hint = "if they are there as a pickle (.bin) and you trust them: model.allow_pickle: true"
        return UserError(Problem("has no weights in a .safetensors file", "model.path", value=model.path, hint=hint))
    if isinstance(error, UnpicklingError):
        message = "its pickle holds more than tensors, and is not read"
        return UserError(
            Problem(message, "model.path", value=model.path, hint="save it as safetensors where you trust it")
        )
    if model.attention and "attention" in text.lower():
        return UserError(Problem(text.split(". ")[0], "model.attention", value=model.attention))
    source = model.path if path == "model.path" else str(model.tokenizer)
    if isinstance(error, OSError) and is_hub(source) and (refusal := _of_hub(text, source, path)):
        return refusal
    return _of_broken_file(source, path) or (error if isinstance(error, OSError) else _not_loaded(error, source, path))


def _of_hub(text: str, source: str, path: str) -> UserError | None:
    if "not a valid model identifier" in text or "not a valid git identifier" in text or "gated repo" in text:
        hint = "check the id, the revision, and whether your token (hf auth login) may read it; or name a folder"
        return UserError(Problem("the hub has no such model, or none that you may read", path, value=source, hint=hint))
    if "couldn't connect to" not in text and "offline mode" not in text:
        return None
    offline = is_offline_mode()
    reason = "HF_HUB_OFFLINE forbids to ask the hub" if offline else "the hub cannot be reached"
    message = f"{reason}, and the Hugging Face cache of this machine does not have all files of the model"
    hint = f"download it where there is a network, into the same cache: hf download {source}; or name a folder"
    return (NotInCache if offline else HubUnreachable)(Problem(message, path, value=source, hint=hint))


def _of_broken_file(source: str, path: str) -> UserError | None:
    folder = Path(model_source(source))
    fault = broken_file(folder) or _tokenizer_fault(folder / "tokenizer.json") if folder.is_dir() else ""
    return UserError(Problem(fault, path, value=source, hint=HINT)) if fault else None


def _tokenizer_fault(file: Path) -> str:
    if not file.exists():
        return ""
    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # `tokenizers` has no type of its own
        return f"{file}: not a tokenizer ({' '.join(str(error).split())})"
    return ""


def _not_loaded(error: Exception, source: str, path: str) -> UserError:
    text = " ".join(str(error).split())[:300]
    hint = "compare its config.json with that of a model that works"
    if isinstance(error, ImportError):
        hint = "install that package; or, where the weights are quantized, use the model that was not"
    return UserError(Problem(f"cannot be loaded: {type(error).__name__}: {text}", path, value=source, hint=hint))
