"""Pretrained models and processors as tasks need them: labels in the config, fp32 weights, no silent typos."""

from __future__ import annotations

import difflib
import logging
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.tuning.quantize import spare_heads

log = logging.getLogger("sft_dist")


def load_tokenizer(source: str, **options: Any) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_pretrained(
    auto_class: Any,
    folder: str,
    revision: str | None,
    config: dict[str, Any],
    labels: list[str] | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> PreTrainedModel:
    """A model of `auto_class`. `config`: the user's values, checked; `settings`: the task's own; `labels`: names of the
    outputs. Raises UserError for a value that the model's config does not have."""
    options = {"trust_remote_code": False, "use_safetensors": True, "weights_only": True, **options}
    code = {key: value for key, value in options.items() if key in ("trust_remote_code", "code_revision")}
    names: dict[str, Any] = {}
    if labels is not None:
        numbered = dict(enumerate(labels))
        names = {
            "id2label": numbered,
            "label2id": {name: i for i, name in numbered.items()},
        }
    found = AutoConfig.from_pretrained(folder, revision=revision, **names, **(settings or {}), **code)
    known = found.to_dict()
    for key, value in config.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 3)
            hint = f"did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else ""
            what = f"the config of {type(found).__name__} has no such value"
            raise UserError(Problem(what, path=f"model.config.{key}", found=key, hint=hint))
        setattr(found, key, value)
    spare_heads(options, auto_class, found, **code)
    # fp32 weights whatever the checkpoint holds: bf16 weights would train without a master copy.
    model, info = auto_class.from_pretrained(
        folder, revision=revision, config=found, dtype=torch.float32, output_loading_info=True, **options
    )
    new = sorted({*info["missing_keys"], *(one[0] for one in info.get("mismatched_keys") or ())})
    if new:
        log.info("new weights, not in %s: %s", folder, _some(new))
    model.new_weights = new  # adapters alone would leave them as they are
    return model


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
