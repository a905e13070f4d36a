"""The base of QLoRA: 4 bits a weight (Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch

from sft_dist.recipe.schema import QloraTuning, Recipe

HEADS = ("classifier", "pre_classifier", "score")  # trained in full, so not in 4 bits
_COMPUTE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def quantization(recipe: Recipe) -> dict[str, Any]:
    """Options of `from_pretrained`; empty where nothing is quantised. Head and adapters stay fp32."""
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
