"""Tiny models of the true architectures, and what the tests of tuning ask of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

LAYERS = 3
_TEXT = {"vocab_size": 50, "pad_token_id": 0}
_SIZES = {"hidden_size": 8, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 16}
_BERT = {**_TEXT, **_SIZES, "max_position_embeddings": 16}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}

BUILDERS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "bert": (BertForSequenceClassification, BertConfig, _BERT),
    "albert": (AlbertForSequenceClassification, AlbertConfig, {**_BERT, **_ENDS, "embedding_size": 4}),
    "deberta-v2": (
        DebertaV2ForSequenceClassification,
        DebertaV2Config,
        {**_BERT, "relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 8},
    ),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig,
        {**_TEXT, "dim": 8, "hidden_dim": 16, "n_layers": LAYERS, "n_heads": 2, "max_position_embeddings": 16},
    ),
    "modernbert": (
        ModernBertForSequenceClassification,
        ModernBertConfig,
        {**_BERT, **_ENDS, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "gpt2": (
        GPT2ForSequenceClassification,
        GPT2Config,
        {**_TEXT, **_ENDS, "n_embd": 8, "n_layer": LAYERS, "n_head": 2, "n_positions": 16},
    ),
    "llama": (LlamaForSequenceClassification, LlamaConfig, {**_BERT, **_ENDS, "num_key_value_heads": 2}),
    "qwen2": (Qwen2ForSequenceClassification, Qwen2Config, {**_BERT, **_ENDS, "num_key_value_heads": 1}),
    "vit": (ViTForImageClassification, ViTConfig, {**_SIZES, "image_size": 8, "patch_size": 4}),
}

# What stands before the layers, in them (with {n} for the number), after them, and the head.
NAMES = {
    "bert": ("bert.embeddings.", "bert.encoder.layer.{n}.", "bert.pooler.", "classifier."),
    "deberta-v2": (
        "deberta.embeddings.|deberta.encoder.rel_embeddings.",
        "deberta.encoder.layer.{n}.",
        "pooler.",
        "classifier.",
    ),
    "distilbert": ("distilbert.embeddings.", "distilbert.transformer.layer.{n}.", "pre_classifier.", "classifier."),
    "modernbert": ("model.embeddings.", "model.layers.{n}.", "model.final_norm.|head.", "classifier."),
    "gpt2": ("transformer.wte.|transformer.wpe.", "transformer.h.{n}.", "transformer.ln_f.", "score."),
    "llama": ("model.embed_tokens.", "model.layers.{n}.", "model.norm.", "score."),
    "qwen2": ("model.embed_tokens.", "model.layers.{n}.", "model.norm.", "score."),
    "vit": ("vit.embeddings.", "vit.encoder.layer.{n}.|vit.layers.{n}.", "vit.layernorm.", "classifier."),
}
KINDS = sorted(NAMES)


def build(kind: str, num_labels: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model, config, settings = BUILDERS[kind]
    return model(config(num_labels=num_labels, **settings))


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def starting(model: nn.Module, *prefixes: str) -> set[str]:
    """Names with one of the prefixes; each prefix must occur."""
    found = {
        prefix: {name for name, _ in model.named_parameters() if name.startswith(tuple(prefix.split("|")))}
        for prefix in prefixes
    }
    assert all(found.values()), found
    return set().union(*found.values())


def layers(kind: str, *numbers: int) -> list[str]:
    return [NAMES[kind][1].format(n=number) for number in numbers]


def logits(model: nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([[3, 4, 5], [6, 7, 0]]), attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]])
        ).logits


def step(model: nn.Module, seed: int = 1, lr: float = 0.5) -> set[str]:
    """One step of SGD; names of the weights that moved."""
    torch.manual_seed(seed)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.train()
    loss = nn.functional.cross_entropy(model(input_ids=torch.randint(5, 50, (8, 6))).logits, torch.arange(8) % 2)
    loss.backward()
    torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=lr).step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
