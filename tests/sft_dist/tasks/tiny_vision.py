"""Tiny vision models of the true architectures, saved with their image processors, and what tests do with every task."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from PIL import Image
from pydantic import TypeAdapter

from sft_dist.data.rows import ROW, Examples, Rows
from sft_dist.evaluation.inference import normalizers_of, weights_of
from sft_dist.recipe.schema import Recipe, Tuning
from sft_dist.tuning import apply_tuning, load_weights, save_weights

SIDE = 32
FIXED = {"size": {"height": SIDE, "width": SIDE}}


def vit(**settings: Any) -> transformers.ViTConfig:
    return transformers.ViTConfig(
        **{"image_size": SIDE, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **settings}
    )  # fmt: skip


def resnet(**settings: Any) -> transformers.ResNetConfig:
    return transformers.ResNetConfig(
        **{"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", **settings}
    )


def convnext(**settings: Any) -> transformers.ConvNextConfig:
    return transformers.ConvNextConfig(
        **{"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "image_size": SIDE, **settings}
    )


def _small_resnet() -> transformers.ResNetConfig:
    return resnet(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"])


def detr(**settings: Any) -> transformers.DetrConfig:
    return transformers.DetrConfig(
        **{"backbone_config": resnet(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage4"]),
        "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "num_queries": 12, "d_model": 32,
        "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "dropout": 0.0, **settings}
    )  # fmt: skip


def rt_detr(**settings: Any) -> transformers.RTDetrConfig:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return transformers.RTDetrConfig(
        **{"backbone_config": backbone, "encoder_hidden_dim": 32, "encoder_in_channels": [8, 16, 16], "encoder_layers": 1,
        "encoder_ffn_dim": 32, "encoder_attention_heads": 2, "d_model": 32, "num_queries": 12, "decoder_layers": 2,
        "decoder_ffn_dim": 32, "decoder_attention_heads": 2, "decoder_in_channels": [32, 32, 32], "num_denoising": 8,
        "dropout": 0.0, "disable_custom_kernels": True, **settings}
    )  # fmt: skip


def yolos(**settings: Any) -> transformers.YolosConfig:
    return transformers.YolosConfig(
        **{"image_size": [SIDE, SIDE], "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "num_detection_tokens": 12, "hidden_dropout_prob": 0.0,
        "use_mid_position_embeddings": False, **settings}
    )  # fmt: skip


def segformer(**settings: Any) -> transformers.SegformerConfig:
    return transformers.SegformerConfig(
        **{"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16, "classifier_dropout_prob": 0.0, "drop_path_rate": 0.0, **settings}
    )  # fmt: skip


def upernet(**settings: Any) -> transformers.UperNetConfig:
    backbone = convnext(hidden_sizes=[8, 8, 16, 16], out_features=["stage1", "stage2", "stage3", "stage4"])
    return transformers.UperNetConfig(
        **{"backbone_config": backbone, "hidden_size": 16, "auxiliary_channels": 8, "auxiliary_in_channels": 16,
        "use_auxiliary_head": True, "pool_scales": [1, 2], **settings}
    )  # fmt: skip


def save(folder: Path, model_class: Any, config: Any, processor_class: Any, seed: int = 0, **settings: Any) -> Path:
    """A model with random weights, and its image processor, as a folder."""
    torch.manual_seed(seed)
    model_class(config).save_pretrained(folder)
    processor_class(**settings).save_pretrained(folder)
    return folder


def recipe_of(task: dict[str, Any], folder: Path | str = "./model", **more: Any) -> Recipe:
    data = {"source": "./none", **more.pop("data", {})}
    train = {"lr": 1e-3, **more.pop("train", {})}
    return Recipe.model_validate(
        {"name": "tiny", "task": task, "model": {"path": str(folder)}, "data": data,
        "tuning": {"method": "full"}, "train": train, **more}
    )  # fmt: skip


def as_png(pixels: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"path": None, "bytes": file.getvalue()}


def rows_of(task: Any, rows: list[dict[str, Any]]) -> Rows:
    """Read as the product reads them."""
    read = [task.read(row, number) for number, row in enumerate(rows)]
    assert not [one for one in read if isinstance(one, str)], read
    table = Dataset.from_list(read, features=task.row_features)
    return Rows(table.add_column(ROW, list(range(len(read)))))


def examples_of(task: Any, rows: Rows, processor: Any, split: str = "train") -> Examples:
    columns = task.encode(rows.table[:], processor)
    table = Dataset.from_dict(columns)
    if task.encoded_features:
        table = table.cast(type(table.features)({**table.features, **task.encoded_features}))
    return Examples(table.add_column(ROW, rows.ids.tolist()), split=split)


def step_loss(task: Any, model: Any, loss: Any, examples: Examples, processor: Any, micro_batches: int) -> torch.Tensor:
    """The loss of all examples as one global batch, computed in so many micro-batches, as the loop does."""
    divisors = normalizers_of(weights_of(task, loss, examples))
    total = torch.zeros(len(divisors))
    for part in np.array_split(np.arange(len(examples)), micro_batches):
        inputs, targets = task.collate(examples.at(part), processor, None)
        total = total + loss.total(task.forward(model, inputs), targets).reshape(-1)
    return (total / torch.from_numpy(divisors).float()).sum()


def predictions_of(task: Any, model: Any, examples: Examples, processor: Any, batch: int = 4) -> list[Any]:
    model.eval()
    found: list[Any] = []
    with torch.no_grad():
        for part in np.array_split(np.arange(len(examples)), -(-len(examples) // batch)):
            inputs, _ = task.collate(examples.at(part), processor, None)
            found += task.predict(model, inputs, task.forward(model, inputs), processor)
    return found


def train(
    task: Any, model: Any, loss: Any, examples: Examples, processor: Any, steps: int, lr: float = 3e-3, batch: int = 8,
    rngs: Callable[[int, np.ndarray], Any] = lambda step, chosen: None,
) -> list[float]:  # fmt: skip
    """A few plain steps of AdamW. Returns the losses."""
    weights = weights_of(task, loss, examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses, rng = [], np.random.default_rng(0)
    model.train()
    for step in range(steps):
        chosen = rng.choice(len(examples), batch, replace=False)
        inputs, targets = task.collate(examples.at(chosen), processor, rngs(step, chosen))
        total = loss.total(task.forward(model, inputs), targets).reshape(-1)
        value = (total / torch.from_numpy(normalizers_of(weights[chosen])).float()).sum()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(value.item())
    return losses


def tuned_and_back(task: Any, folder: Path, method: str, examples: Examples, processor: Any, into: Path) -> set[str]:
    """Tunes a model for a step, saves it and loads it into a new one, which must say the same. Returns the names of the whole
    weights (not of adapters) that were trained."""
    tuning = TypeAdapter(Tuning).validate_python(method)

    def fresh(seed: int) -> Any:
        torch.manual_seed(seed)  # a head that was not saved would be another one
        model = task.build_model(str(folder), None, {}, processor)
        return apply_tuning(model, tuning, task.peft_task)

    model = fresh(1)
    train(task, model, task.build_loss(examples), examples, processor, 2, lr=0.05, batch=4)
    save_weights(model, model.state_dict(), into)
    again = fresh(2)
    load_weights(again, into)
    inputs, _ = task.collate(examples.at(range(2)), processor, None)
    for one, other in zip(
        *(_tensors(task.forward(each.eval(), inputs)) for each in (model, again)), strict=True
    ):  # fmt: skip
        torch.testing.assert_close(one, other)
    trained = (name for name, weight in model.named_parameters() if weight.requires_grad and "lora" not in name)
    return {name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for name in trained}


def _tensors(outputs: Any) -> list[torch.Tensor]:
    return [outputs] if torch.is_tensor(outputs) else [value for value in outputs.values() if torch.is_tensor(value)]
