"""Trains one run of the gallery in about a second, and returns what a diagnosis would read of its folder.

Models, optimizers and schedules are those that `sft-dist run` uses, and what is recorded has the same meaning; batches are plain, and
nothing is saved.
"""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, get_scheduler

from launch.diagnose.evidence import CheckFinding, DataCheck, Evaluation, Evidence
from samples.fetch import need
from sft_dist.quality.labels import review_labels, text_features
from sft_dist.recipe.metrics import selection_metric
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.units import amount_in_steps
from sft_dist.run.varying import settings_in

WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
UNRECORDED = ("name", "model", "data.source", "evaluate", "resources")  # they say nothing of the training
TRUNCATION_SHARE = 0.05  # above it the data check reports truncation
EVAL_BATCH = 200


@dataclass(frozen=True)
class Split:
    """Examples as tensors; images stay encoded where they are decoded batch by batch."""

    inputs: dict[str, Tensor]
    targets: Tensor  # (examples,) classes, or (examples, tokens) with -100 where nothing is learned
    images: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Any) -> tuple[dict[str, Tensor], Tensor]:
        if self.images is None:
            return {name: values[indices] for name, values in self.inputs.items()}, self.targets[indices]
        pixels = torch.stack([pixels_of(self.images[index]) for index in indices])
        return {"pixel_values": pixels}, self.targets[indices]


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@cache
def tokenizer_of(name: str) -> Any:
    return AutoTokenizer.from_pretrained(need(name))


def pixels_of(encoded: bytes) -> Tensor:
    """(3, 28, 28), as ViT's image processor makes them."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        array = np.asarray(image.convert("RGB").resize((28, 28), Image.Resampling.BILINEAR), np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)


def splits_of(recipe: Recipe, rows: dict[str, list[Any]]) -> tuple[dict[str, Split], dict[str, float], list[str]]:
    """Returns the splits, the share of each that is truncated, and the classes."""
    longest = recipe.data.max_length
    if "image" in rows["train"][0]:
        labels = sorted({row["label"] for of_split in rows.values() for row in of_split})
        return {split: image_split(of_split, labels) for split, of_split in rows.items()}, {}, labels
    if "label" in rows["train"][0]:
        labels = sorted({row["label"] for of_split in rows.values() for row in of_split})
        encoded = {split: text_split(of_split, labels, longest) for split, of_split in rows.items()}
    else:
        labels = []
        encoded = {split: chat_split(of_split, longest) for split, of_split in rows.items()}
    return (
        {split: pair[0] for split, pair in encoded.items()},
        {split: pair[1] for split, pair in encoded.items()},
        labels,
    )


def image_split(rows: list[Any], labels: list[str]) -> Split:
    images = [row["image"]["bytes"] for row in rows]
    targets = torch.tensor([labels.index(row["label"]) for row in rows])
    if len(images[0]) > 20_000:  # large ones are decoded anew for each batch, as training does
        return Split({}, targets, images)
    return Split({"pixel_values": torch.stack([pixels_of(image) for image in images])}, targets)


def text_split(rows: list[Any], labels: list[str], longest: int) -> tuple[Split, float]:
    tokenizer = tokenizer_of("tiny-bert")
    lengths = [len(ids) for ids in tokenizer([row["text"] for row in rows])["input_ids"]]
    encoded = tokenizer(
        [row["text"] for row in rows], truncation=True, max_length=longest, padding=True, return_tensors="pt"
    )
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    targets = torch.tensor([labels.index(row["label"]) for row in rows])
    return Split(inputs, targets), float(np.mean(np.array(lengths) > longest))


def chat_split(rows: list[Any], longest: int) -> tuple[Split, float]:
    """Rows of which no answer is left are dropped."""
    tokenizer = tokenizer_of("tiny-llama")
    ids, targets, cut = [], [], []
    for row in rows:
        prompt = tokenizer(f"{row['instruction']}\n{row['input']}\n### ")["input_ids"]
        answer = [*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]
        both = (prompt + answer)[:longest]
        if len(both) <= len(prompt):
            continue
        cut.append(len(prompt) + len(answer) > longest)
        padding = longest - len(both)
        ids.append(both + [tokenizer.eos_token_id] * padding)
        targets.append([-100] * len(prompt) + both[len(prompt) :] + [-100] * padding)
    inputs = torch.tensor(ids)
    return Split({"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}, torch.tensor(targets)), float(
        np.mean(cut)
    )


def data_check(rows: dict[str, list[Any]], truncated: dict[str, float], longest: int) -> DataCheck | None:
    """What `sft-dist check` reports of such rows about copies, truncation and labels. Of images, no more than copies."""
    findings = []
    inputs = {split: [_input_of(row) for row in of_split] for split, of_split in rows.items()}
    copies = sum(text in set(inputs["train"]) for split in ("validation", "test") for text in inputs[split])
    if copies:
        findings.append(CheckFinding("leak", f"the same input in several splits: {copies} rows", copies))
    findings += [
        CheckFinding(
            "truncation",
            f"{share:.0%} of the {split} rows are cut at {longest} tokens",
            round(share * len(rows[split])),
            share,
        )
        for split, share in truncated.items()
        if share > TRUNCATION_SHARE
    ]
    if "text" in rows["train"][0]:
        every = [row for of_split in rows.values() for row in of_split]
        review = review_labels(text_features([row["text"] for row in every]), [row["label"] for row in every])
        if review is not None and review.accuracy >= 0.8 and review.suspicions:
            count = len(review.suspicions)
            findings.append(CheckFinding("suspicious-label", f"{count} rows probably have another label", count))
    return DataCheck(tuple(findings), {split: len(of_split) for split, of_split in rows.items()}, {})


def _input_of(row: Any) -> Any:
    return (
        row["image"]["bytes"]
        if "image" in row
        else row["text"]
        if "text" in row
        else (row["instruction"], row["input"])
    )


# ── models ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def build_model(task: str, num_labels: int, seed: int) -> nn.Module:
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
        ViTConfig,
        ViTForImageClassification,
    )

    torch.manual_seed(seed)
    if task == "text-classification":
        vocabulary = len(tokenizer_of("tiny-bert"))
        return BertForSequenceClassification(
            BertConfig(vocab_size=vocabulary, max_position_embeddings=64, num_labels=num_labels, **WIDE)
        )
    if task == "image-classification":
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return ViTForImageClassification(
            ViTConfig(image_size=28, patch_size=7, num_labels=num_labels, **dropout, **WIDE)
        )
    vocabulary = len(tokenizer_of("tiny-llama"))
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, num_key_value_heads=2, max_position_embeddings=256, **WIDE)
    )


def losses_of(
    model: nn.Module, inputs: dict[str, Tensor], targets: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the loss of the batch, and its logits."""
    if targets.dim() == 1:
        logits = model(**inputs).logits
        return nn.functional.cross_entropy(logits, targets, weight=weights), logits
    last = int((targets != -100).any(0).nonzero().max()) + 1  # padding that all rows share costs time alone
    inputs = {name: values[:, :last] for name, values in inputs.items()}
    learned = targets[:, 1:last] != -100
    hidden = model.model(**inputs).last_hidden_state[:, :-1][learned]
    logits = model.lm_head(hidden)
    return nn.functional.cross_entropy(logits, targets[:, 1:last][learned]), logits


@torch.no_grad()
def scores_of(model: nn.Module, split: Split) -> tuple[dict[str, float], list[list[int]]]:
    """Returns the scores, and the confusion matrix of classes."""
    model.eval()
    loss, logits = losses_of(model, *split.batch(np.arange(len(split))))
    scores = {"examples": len(split), "loss": loss.item()}
    if split.targets.dim() > 1:
        return scores, []
    predicted = logits.argmax(1)
    matrix = torch.zeros(logits.shape[1], logits.shape[1], dtype=torch.int64)
    for target, answer in zip(split.targets.tolist(), predicted.tolist(), strict=True):
        matrix[target, answer] += 1
    return {**scores, "accuracy": float((predicted == split.targets).float().mean())}, matrix.tolist()


# ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────────────
def batches_of(split: Split, size: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    queue = np.array([], dtype=np.int64)
    while True:
        while len(queue) < size:
            queue = np.concatenate([queue, rng.permutation(len(split))])
        yield queue[:size]
        queue = queue[size:]


def optimizer_of(recipe: Recipe, model: nn.Module) -> Any:
    settings, lr = recipe.train.optimizer, recipe.train.lr
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=settings.momentum)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=settings.weight_decay)


def schedule_of(recipe: Recipe, optimizer: Any, steps: int, per_epoch: int) -> Any:
    train = recipe.train
    warmup = amount_in_steps(train.warmup, steps, per_epoch) if train.warmup else 0
    options = (
        {"power": train.schedule.power, "lr_end": train.schedule.lr_end} if train.schedule.name == "polynomial" else {}
    )
    return get_scheduler(train.schedule.name, optimizer, warmup, steps, options)


def train_run(name: str, tree: dict[str, Any], rows: dict[str, list[Any]]) -> Evidence:
    """Trains, and scores the best step on validation and test."""
    recipe = Recipe.model_validate(tree)
    train = recipe.train
    splits, truncated, labels = splits_of(recipe, rows)
    model = build_model(recipe.task.type, len(labels), train.seed)
    if recipe.tuning.method == "freeze":
        for key, weight in model.named_parameters():
            weight.requires_grad = key.startswith(("classifier", "lm_head"))
    metric, direction = selection_metric(recipe)
    per_epoch = max(1, math.ceil(len(splits["train"]) / train.global_batch))
    steps = train.steps or math.ceil(train.epochs * per_epoch)
    validate_every = int(train.save_every.split()[0])
    optimizer = optimizer_of(recipe, model)
    schedule = schedule_of(recipe, optimizer, steps, per_epoch)
    weights = class_weights(recipe, splits["train"], len(labels))
    untrained, _ = scores_of(model, splits["validation"])
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {
        "train": {key: [] for key in ("loss", "lr", "grad_norm", "loading_share")},
        "validation": {},
    }
    batches = batches_of(splits["train"], train.global_batch, train.seed)
    best: tuple[Any, ...] = ()
    state, cause, num_bad, step = "finished", "all steps done", 0, 0
    without_gain = 0
    for step in range(1, steps + 1):
        started = time.perf_counter()
        inputs, targets = splits["train"].batch(next(batches))
        loaded = time.perf_counter()
        model.train()
        loss, _ = losses_of(model, inputs, targets, weights)
        optimizer.zero_grad()
        loss.backward()
        limit = train.clip_norm or math.inf
        grad_norm = float(nn.utils.clip_grad_norm_([w for w in model.parameters() if w.requires_grad], limit))
        if not math.isfinite(loss.item()) or not math.isfinite(grad_norm):
            state, cause, num_bad = "failed", f"step {step}: the loss is NaN or infinite", 1
            break
        optimizer.step()
        lr = float(schedule.get_last_lr()[0])
        schedule.step()
        share = (loaded - started) / max(time.perf_counter() - started, 1e-9)
        if step == 1 or step % train.log_every == 0 or step == steps:
            for key, value in (("loss", loss.item()), ("lr", lr), ("grad_norm", grad_norm), ("loading_share", share)):
                curves["train"][key].append((step, value))
        if step % validate_every == 0 or step == steps:
            scores, matrix = scores_of(model, splits["validation"])
            if not math.isfinite(scores["loss"]):
                state, cause, num_bad = "failed", f"step {step}: the validation loss is NaN or infinite", 1
                break
            for key in scores.keys() & {"loss", "accuracy"}:
                curves["validation"].setdefault(key, []).append((step, scores[key]))
            sign = -1 if direction == "max" else 1
            key = (sign * scores[metric], scores["loss"])
            without_gain = 0 if not best or key[0] < best[0][0] else without_gain + 1
            if not best or key < best[0]:
                best = (key, step, scores, matrix, copy.deepcopy(model.state_dict()))
            if train.early_stopping and without_gain >= train.early_stopping.patience:
                break
    if best:
        model.load_state_dict(best[4])
        test, _ = scores_of(model, splits["test"])
    evaluation = best and Evaluation(best[2], test, untrained, tuple(map(tuple, best[3])), tuple(labels))
    return Evidence(
        run=name, folder="", state=state, cause=cause,
        settings={key: value for key, value in settings_in(recipe.model_dump(mode="json")).items() if not key.startswith(UNRECORDED)},
        step=step, total_steps=steps, epochs=step / per_epoch,
        train={key: tuple(points) for key, points in curves["train"].items()},
        validation={key: tuple(points) for key, points in curves["validation"].items()},
        num_bad_losses=num_bad, metric=metric, direction=direction, evaluation=evaluation or None,
        data_check=data_check(rows, truncated, recipe.data.max_length),
    )  # fmt: skip


def class_weights(recipe: Recipe, split: Split, num_labels: int) -> Tensor | None:
    if getattr(recipe.train.loss, "class_weights", None) != "balanced":
        return None
    counts = torch.bincount(split.targets, minlength=num_labels).float()
    return len(split) / (num_labels * counts.clamp(min=1))
