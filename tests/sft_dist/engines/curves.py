"""A training loop as small as can be, around any engine: what a strategy must not change can be compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

GLOBAL_BATCH = 8
LENGTH = 12
CLASSES = 3  # fewer rows than four ranks: some have nothing of the head


@dataclass(frozen=True)
class Case:
    strategy: dict[str, Any]
    model: str = "bert"
    steps: int = 8  # two of them validated; an optimizer or engine that differs does so in the first
    accumulation: int = 1
    clip_norm: float | None = 0.5
    precision: str = "fp32"
    optimizer: str = "adamw"
    start: int = 0
    resume_from: Path | None = None  # a folder that `save_to` was, with weights.pt of step `start`
    save_to: Path | None = None
    bad_step: int | None = None  # this step's loss is infinite


@dataclass
class Curve:
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    wrapper: str = ""


def train(case: Case) -> Curve:
    """One rank of `case.steps` steps. Losses are the global batch's mean; weights come from rank 0 only."""
    from sft_dist.checkpoints.optimizer_state import SavedState, write_pieces
    from sft_dist.engines.base import NonFiniteGradient, Setup

    engine = engine_of(case.strategy["name"])(Setup(case.precision, "/tmp", case.strategy))
    model = build(case.model)
    if case.resume_from:
        model.load_state_dict(torch.load(case.resume_from / "weights.pt", weights_only=True))
    engine.prepare(model, OPTIMIZERS[case.optimizer])
    schedule = torch.optim.lr_scheduler.LambdaLR(engine.optimizer, lambda step: 1 / (1 + (step + case.start) / 10))
    if case.resume_from:
        with SavedState(case.resume_from / "state") as saved:
            engine.load(saved)
    rank, world = engine.accelerator.process_index, engine.accelerator.num_processes
    curve = Curve(wrapper=type(engine.model).__name__)
    size = GLOBAL_BATCH // (world * case.accumulation)
    for step in range(case.start, case.start + case.steps):
        ids, targets = batch(step)
        engine.model.train()
        mean = torch.zeros(())
        for turn in range(case.accumulation):
            first = (rank * case.accumulation + turn) * size
            with engine.accumulate(last=turn == case.accumulation - 1):
                with engine.autocast():
                    logits = engine.model(input_ids=ids[first : first + size]).logits.float()
                total = loss_of(logits, ids[first : first + size], targets[first : first + size])
                engine.backward(total * (float("inf") if step == case.bad_step else 1) * (world / GLOBAL_BATCH))
            mean += total.detach() / GLOBAL_BATCH
        curve.losses.append(engine.accelerator.reduce(mean, "sum").item())
        try:
            curve.norms.append(engine.step(case.clip_norm))
        except NonFiniteGradient:
            engine.discard_gradients()
        schedule.step()
        if step % 5 == 2:  # validation leaves its traces in some wrappers
            engine.model.eval()
            with torch.no_grad(), engine.autocast():
                engine.model(input_ids=ids[:1])
    curve.weights = engine.weights() or {}
    if case.save_to:
        write_pieces(engine.pieces(), case.save_to / "state", rank)
        if rank == 0:
            torch.save(curve.weights, case.save_to / "weights.pt")
        engine.accelerator.wait_for_everyone()
    return curve


def engine_of(strategy: str) -> Any:
    from sft_dist.engines import engine_class

    return engine_class(strategy)


def build(kind: str) -> nn.Module:
    from transformers import AlbertConfig, BertConfig, GPT2Config, GPT2LMHeadModel
    from transformers import AlbertForSequenceClassification as Albert
    from transformers import BertForSequenceClassification as Bert

    torch.manual_seed(1)
    still: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": CLASSES}
    sizes: dict[str, Any] = {
        "vocab_size": 61, "hidden_size": 18, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 35,
        "max_position_embeddings": 16,
    }  # fmt: skip
    if kind == "gpt2":  # the head is the embedding
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=61, n_embd=18, n_layer=3, n_head=2, n_positions=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
            )
        )
    if kind == "albert":  # all layers are one
        return Albert(AlbertConfig(embedding_size=10, classifier_dropout_prob=0.0, **sizes, **still))
    model = Bert(BertConfig(**sizes, **still))
    if kind in ("lora", "dora"):
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            task_type="SEQ_CLS", r=3, target_modules="all-linear", init_lora_weights=False, use_dora=kind == "dora"
        )
        return get_peft_model(model, config)
    if kind == "frozen":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith(("classifier", "bert.pooler", "bert.encoder.layer.2"))
    if kind == "bias":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("classifier") or name.endswith("bias")
    if kind == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(0, 61, (GLOBAL_BATCH, LENGTH), generator=generator)
    return ids, ids[:, 0] % CLASSES


def loss_of(logits: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    """Summed over examples."""
    if logits.ndim == 2:
        return nn.functional.cross_entropy(logits, targets, reduction="sum")
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") / LENGTH


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    matrices = [one for one in _trained(model) if one.ndim >= 2]
    vectors = [one for one in _trained(model) if one.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2, eps=1e-3)


OPTIMIZERS = {
    "adamw": _adamw,
    "fused": lambda model: torch.optim.AdamW(_trained(model), lr=1e-2, eps=1e-3, fused=True),
    "sgd": lambda model: torch.optim.SGD(_trained(model), lr=0.1, momentum=0.9, nesterov=True),
}
