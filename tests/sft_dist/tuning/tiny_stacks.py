"""Tiny models with several stacks of layers, and how deep their weights lie."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from torch import nn

ENCODER, DECODER = 2, 3  # layers
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_SEQ2SEQ = {
    **_ENDS, "vocab_size": 50, "d_model": 8, "encoder_layers": ENCODER, "decoder_layers": DECODER,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8,
}  # fmt: skip
_T5 = {
    **_ENDS, "vocab_size": 50, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": ENCODER,
    "num_decoder_layers": DECODER,
}  # fmt: skip
_DETR = {
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8,
    "decoder_layers": DECODER, "num_queries": 5,
}  # fmt: skip
_STAGES = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}


def _rt_detr() -> tf.RTDetrConfig:
    backbone = tf.RTDetrResNetConfig(**_STAGES, out_features=["stage1", "stage2"])
    return tf.RTDetrConfig(
        **_DETR, backbone_config=backbone, d_model=16, encoder_hidden_dim=16, encoder_layers=1, num_feature_levels=2,
        encoder_in_channels=[8, 8], feat_strides=[4, 8], decoder_in_channels=[16, 16], encode_proj_layers=[1],
    )  # fmt: skip


def _detr() -> tf.DetrConfig:
    backbone = tf.ResNetConfig(**_STAGES, out_features=["stage2"])
    return tf.DetrConfig(
        **_DETR, use_timm_backbone=False, backbone=None, backbone_config=backbone, d_model=8, encoder_layers=ENCODER
    )


def _config(kind: str) -> tuple[Any, Any]:
    match kind:
        case "t5":
            return tf.T5ForConditionalGeneration, tf.T5Config(**_T5)
        case "marian":
            return tf.MarianMTModel, tf.MarianConfig(**_SEQ2SEQ)
        case "bart":
            return tf.BartForConditionalGeneration, tf.BartConfig(**_SEQ2SEQ)
        case "bart-classifier":
            return tf.BartForSequenceClassification, tf.BartConfig(**_SEQ2SEQ)
        case "whisper-untied":
            config = tf.WhisperConfig(**_SEQ2SEQ, num_mel_bins=8, tie_word_embeddings=False)
            return tf.WhisperForConditionalGeneration, config
        case "whisper":
            return tf.WhisperForConditionalGeneration, tf.WhisperConfig(**_SEQ2SEQ, num_mel_bins=8)
        case "detr":
            return tf.DetrForObjectDetection, _detr()
        case "rt-detr":
            return tf.RTDetrForObjectDetection, _rt_detr()
        case "gpt2":
            return tf.GPT2LMHeadModel, tf.GPT2Config(vocab_size=50, n_embd=8, n_layer=DECODER, n_head=2)
    raise ValueError(kind)


def build_stacked(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model, config = _config(kind)
    return model(config)


def _layers(encoder: str, decoder: str) -> list[tuple[str, int]]:
    """The decoder's layers from 1 on, then the encoder's."""
    return [
        *((f"{decoder}.{n}.", DECODER - n) for n in range(DECODER)),
        *((f"{encoder}.{n}.", DECODER + ENCODER - n) for n in range(ENCODER)),
    ]


_FIRST = DECODER + ENCODER + 1
_SEQ2SEQ_DEPTHS = _layers("model.encoder.layers", "model.decoder.layers")
_POSITIONS = [("model.encoder.embed_positions.", _FIRST), ("model.decoder.embed_positions.", _FIRST)]
_BART_DEPTHS = [
    *_SEQ2SEQ_DEPTHS, *_POSITIONS, ("model.shared.", _FIRST),
    ("model.encoder.layernorm_embedding.", _FIRST), ("model.decoder.layernorm_embedding.", _FIRST),
]  # fmt: skip
_WHISPER_DEPTHS = [
    *_SEQ2SEQ_DEPTHS, *_POSITIONS, ("model.decoder.embed_tokens.", _FIRST), ("model.encoder.conv", _FIRST),
    ("model.encoder.layer_norm.", DECODER + 1), ("model.decoder.layer_norm.", 0),
]  # fmt: skip
# Prefix and depth.
DEPTHS: dict[str, list[tuple[str, int]]] = {
    "t5": [
        *_layers("encoder.block", "decoder.block"), ("encoder.final_layer_norm.", DECODER + 1),
        ("decoder.final_layer_norm.", 0), ("shared.", _FIRST),
    ],
    "marian": [*_SEQ2SEQ_DEPTHS, *_POSITIONS, ("model.shared.", _FIRST)],
    "bart": _BART_DEPTHS,
    "bart-classifier": [*_BART_DEPTHS, ("classification_head.", 0)],
    "whisper": _WHISPER_DEPTHS,
    "whisper-untied": [*_WHISPER_DEPTHS, ("proj_out.", 0)],
    "detr": [
        ("model.backbone.model.embedder.", 8), ("model.backbone.model.encoder.stages.0.", 7),
        ("model.backbone.model.encoder.stages.1.", 6), ("model.input_projection.", 5),
        ("model.query_position_embeddings.", 8), *_SEQ2SEQ_DEPTHS, ("model.decoder.layernorm.", 0),
        ("class_labels_classifier.", 0), ("bbox_predictor.", 0),
    ],
    "rt-detr": [
        ("model.backbone.", 6), ("model.backbone.model.encoder.stages.0.", 6),
        ("model.backbone.model.encoder.stages.1.", 5), ("model.backbone.model.embedder.", 7),
        ("model.encoder", 4), ("model.enc_", 3), ("model.decoder_input_proj.", 3), ("model.decoder.", 0),
        *((f"model.decoder.layers.{n}.", DECODER - n) for n in range(DECODER)),
        ("model.denoising_class_embed.", 7),
    ],
}  # fmt: skip
STACKED = sorted(DEPTHS)
TIED = ["t5", "marian", "bart", "whisper", "gpt2"]
