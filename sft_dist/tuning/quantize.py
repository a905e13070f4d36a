"""The base of QLoRA: 4 bits a weight (Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes."""

from __future__ import annotations

import copy
from typing import Any

import torch

from sft_dist.recipe.schema import QloraTuning, Recipe

HEADS = ("classifier", "pre_classifier", "score")  # trained in full, so not in 4 bits
_COMPUTE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def quantization(recipe: Recipe) -> dict[str, Any]:
    """Returns options of `from_pretrained`; empty where nothing is quantised. Head and adapters stay fp32."""
    if not isinstance(recipe.tuning, QloraTuning):
        return {}
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=[*HEADS, *recipe.tuning.modules_to_save],
        bnb_4bit_compute_dtype=_COMPUTE.get(recipe.train.precision, torch.float32),
    )
    return {"quantization_config": config}


def spare_heads(options: dict[str, Any], auto_class: Any, config: Any, **code: Any) -> None:
    """Adds to the layers that `quantization` skips what only the model's structure tells: with a list of its own, transformers
    skips none of the layers that it would otherwise."""
    if "quantization_config" in options:
        with torch.device("meta"):
            model = auto_class.from_config(copy.deepcopy(config), **code)
        options["quantization_config"].llm_int8_skip_modules += heads_of(model)


def heads_of(model: Any) -> list[str]:
    """Returns the output embedding, what shares its weights with another layer, and all that is put on top of the body, whatever
    its name: those layers may be new."""
    from transformers import PreTrainedModel
    from transformers.quantizers.base import get_keys_to_not_convert

    body = getattr(model, model.base_model_prefix, None)
    on_top = [
        name
        for name, child in model.named_children()
        # Some models, such as T5, have an encoder and a decoder in place of one body.
        if child is not body and not (body is None and isinstance(child, PreTrainedModel))
    ]
    return sorted({*on_top, *get_keys_to_not_convert(model)})
