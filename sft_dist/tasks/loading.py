"""Pretrained models and processors as tasks need them: labels in the config, fp32 weights, no silent typos."""

from __future__ import annotations

import difflib
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.model_files import folder_problems
from sft_dist.recipe.model_folder import cached_problems, usable_positions
from sft_dist.recipe.references import index_problems
from sft_dist.recipe.text import join_names
from sft_dist.tuning.quantize import spare_heads

if TYPE_CHECKING:
    from sft_dist.data.rows import Examples

log = logging.getLogger("sft_dist")

_GENERIC = re.compile(r"LABEL_\d+")  # transformers' names for outputs that were given none

# Settings that have no meaning without sampling, or without beams; transformers refuses to save them beside it.
_SAMPLING_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAM_SETTINGS = ("early_stopping", "length_penalty")


def load_tokenizer(source: str, **options: Any) -> PreTrainedTokenizerBase:
    revision = options.get("revision")
    if problems := folder_problems(Path(source), "model.tokenizer") or cached_problems(
        source, revision, "model.tokenizer"
    ):
        raise UserError(problems)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        message = "the tokenizer has neither a padding nor an end-of-text token, so texts cannot be put into one batch"
        hint = 'name one of its tokens: tokenizer.pad_token = "..."; tokenizer.save_pretrained(FOLDER); then model.tokenizer: FOLDER'
        raise UserError(Problem(message, "model.tokenizer", value=source, hint=hint))
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
    """Loads a model of `auto_class`. `config`: the user's values, checked; `settings`: the task's own; `labels`: names of
    the outputs. A pretrained head for another number of outputs is replaced by a new one. Raises UserError for a value that the
    model's config does not have."""
    if os.path.isdir(folder):
        allow_pickle = options.get("use_safetensors", True) is not True
        if problems := folder_problems(Path(folder)) or index_problems(Path(folder), allow_pickle):
            raise UserError(problems)
    # Only a task whose outputs have names expects other shapes than the checkpoint's.
    safe = {"trust_remote_code": False, "use_safetensors": True, "weights_only": True}
    options = {**safe, "ignore_mismatched_sizes": labels is not None, **options}
    code = {key: value for key, value in options.items() if key in ("trust_remote_code", "code_revision")}
    names: dict[str, Any] = {}
    theirs: dict[Any, str] = {}
    if labels is not None:
        theirs = AutoConfig.from_pretrained(folder, revision=revision, **code).id2label or {}
        numbered = dict(enumerate(labels))
        names = {
            "id2label": numbered,
            "label2id": {name: i for i, name in numbered.items()},
        }
    model_config = AutoConfig.from_pretrained(folder, revision=revision, **names, **(settings or {}), **code)
    valid = model_config.to_dict()
    for key, value in config.items():
        if key not in valid:
            matches = difflib.get_close_matches(key, valid, 3)
            hint = f"did you mean {' or '.join(f'`{name}`' for name in matches)}?" if matches else ""
            message = f"the config of {type(model_config).__name__} has no such value"
            raise UserError(Problem(message, path=f"model.config.{key}", value=key, hint=hint))
        setattr(model_config, key, value)
    spare_heads(options, auto_class, model_config, **code)
    # fp32 weights whatever the checkpoint holds: bf16 weights would train without a master copy.
    model, info = auto_class.from_pretrained(
        folder, revision=revision, config=model_config, dtype=torch.float32, output_loading_info=True, **options
    )
    new = sorted({*info["missing_keys"], *(mismatch[0] for mismatch in info.get("mismatched_keys") or ())})
    if not set(model.state_dict()) - set(new):
        message = f"none of its weights belongs to a {type(model).__name__}, so that nothing would be fine-tuned"
        raise UserError(Problem(message, "model.path", value=folder, hint="compare config.json with the weights"))
    if new:
        log.info("new weights, not in %s: %s", folder, join_names(new))
    model.new_weights = new  # adapters alone would leave them as they are
    body = f"{model.base_model_prefix}."
    if labels is not None and all(name.startswith(body) for name in new):
        _warn_of_other_names([theirs[number] for number in sorted(theirs)], labels, folder)
    return model


def _warn_of_other_names(theirs: list[str], labels: list[str], folder: str) -> None:
    """Warns of a kept head with as many outputs, which stand for other classes or for the same in another order."""
    if len(theirs) != len(labels) or len(labels) < 2 or any(map(_GENERIC.fullmatch, (*theirs, *labels))):
        return
    if [name.casefold() for name in theirs] != [name.casefold() for name in labels]:
        log.warning("the head of %s is kept, and its labels change: %s become %s", folder, join_names(theirs), join_names(labels))  # fmt: skip


def positions_of(config: Any) -> int | None:
    """Returns `usable_positions` of a loaded config, which has one name for what files call differently."""
    names = ("model_type", "max_position_embeddings", "pad_token_id")
    return usable_positions({name: getattr(config, name, None) for name in names})


def largest_tokens(examples: Examples) -> np.ndarray:  # (examples,)
    """The largest id among the tokens that each example reads or learns to write."""
    columns = [examples.column(name) for name in ("input_ids", "labels") if name in examples.table.column_names]
    return np.array([max((max(ids, default=0) for ids in row), default=0) for row in zip(*columns, strict=True)])


def greedy_or_beams(num_beams: int) -> dict[str, Any]:
    """Settings of generation that write the likeliest text, whatever a model's generation config says of sampling."""
    return {**dict.fromkeys(_SAMPLING_SETTINGS), "do_sample": False, "num_beams": num_beams}


def set_generation(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Puts the settings into the model's generation config, which is saved with it: other tools then write what `predict`
    does."""
    generation = model.generation_config
    assert generation is not None
    generation._from_model_config = None  # or transformers would make it again from the model's config
    lengths = {"max_length": None, "max_new_tokens": None, "num_return_sequences": None}
    beams = dict.fromkeys(_BEAM_SETTINGS) if settings["num_beams"] == 1 else {}
    generation.update(**{**lengths, **beams, **settings})


def were_cut(encoded: BatchEncoding, longest: int) -> list[bool]:
    """Texts that were truncated. Tokenizers not written in Rust do not report it: assumes it of all texts of full length."""
    if encoded.encodings is None:
        return [len(ids) >= longest for ids in encoded["input_ids"]]
    return [bool(encoding.overflowing) for encoding in encoded.encodings]
