"""Scores checkpoints one after another, keeping data, tokens and base model from one to the next."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from sft_dist.checkpoints.store import Checkpoint
from sft_dist.data.prepare import Prepared, prepare
from sft_dist.data.rows import Examples
from sft_dist.data.splits import check_splits
from sft_dist.engines.precision import autocast
from sft_dist.evaluation.inference import assemble, forward, length_sorted_batches, losses_of_each, scores_of
from sft_dist.evaluation.kept_batches import KeptBatches
from sft_dist.evaluation.predictions import keep_predictions
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder
from sft_dist.tasks import task_of
from sft_dist.tasks.base import Loss
from sft_dist.tasks.models import build_model, load_processor
from sft_dist.tuning import is_adapter, load_weights

log = logging.getLogger("sft_dist")


@dataclass
class _Loaded:
    data_key: str
    data: Prepared
    collate: KeptBatches = field(default_factory=KeptBatches)
    model_key: str = ""
    model: nn.Module | None = None


class Evaluator:
    """Reads data again only when the data settings change, and the base only when model or tuning do."""

    def __init__(self, device_number: int = 0) -> None:
        self.device = _device(device_number)
        self._data: dict[str, Prepared] = {}  # by its settings; mapped from files, so it takes little memory
        self._loaded: _Loaded | None = None

    def score(self, recipe: Recipe, checkpoint: Checkpoint, split: str) -> dict[str, Any]:
        """Scores of one checkpoint on one split. Raises UserError when the split is empty, or not the one that the run began
        with: rows that were trained on could then be tested on."""
        loaded = self._load(recipe, checkpoint.run_folder, split)
        model = self._model(loaded, recipe)
        load_weights(model, checkpoint.model)
        return self._scores(loaded, model, recipe, split, checkpoint)

    def score_untrained(self, recipe: Recipe, folder: RunFolder, split: str) -> dict[str, Any]:
        """Scores of the model that the run began with: the base and, where the task has one, the new head. Raises UserError like
        `score`."""
        loaded = self._load(recipe, folder, split)
        loaded.model = None  # a checkpoint's weights are in it; two models might not fit into the memory
        return self._scores(loaded, self._model(loaded, recipe), recipe, split)

    def trained(self, recipe: Recipe, checkpoint: Checkpoint) -> tuple[nn.Module, Any]:
        """Returns the model with the weights of a checkpoint, until another is asked for, and its processor. Raises UserError like
        `score`."""
        loaded = self._load(recipe, checkpoint.run_folder, "validation")
        model = self._model(loaded, recipe)
        load_weights(model, checkpoint.model)
        return model.eval(), loaded.data.processor

    @contextmanager
    def base(self, recipe: Recipe, folder: RunFolder) -> Iterator[tuple[nn.Module, Any]]:
        """Yields the model that the run fine-tuned, without anything of the run, and its processor: without its adapters and
        prompts, which begin at random. Raises UserError like `score`."""
        loaded = self._load(recipe, folder, "validation")
        if not is_adapter(loaded.model):
            loaded.model = None  # a checkpoint's weights are in it; two models might not fit into the memory
        model = self._model(loaded, recipe).eval()
        with model.disable_adapter() if is_adapter(model) else nullcontext():  # type: ignore[operator]
            yield model, loaded.data.processor

    def score_base(self, recipe: Recipe, record: Checkpoint, split: str) -> tuple[dict[str, Any], list[str]]:
        """Returns scores of the model that the run fine-tuned, whose predictions are kept as those of `record`; or no scores, and
        the names of its new weights, which make them meaningless. Raises UserError like `score`."""
        loaded = self._load(recipe, record.run_folder, split)
        with self.base(recipe, record.run_folder) as (model, _):
            new = sorted(getattr(model, "new_weights", ()))
            return ({} if new else self._scores(loaded, model, recipe, split, record)), new

    def score_model(self, recipe: Recipe, adapter: Path | None, split: str, labels: tuple[str, ...]) -> dict[str, Any]:
        """Scores of the recipe's own model, with the weights of an adapter where one is named. Raises UserError where they do not
        fit, and where the model's classes, if it names them, are not those of the data."""
        loaded = self._load(recipe, None, split)
        if labels and [*labels] != loaded.data.task.labels:
            raise UserError(_different_labels(labels, loaded.data.task.labels))
        model = self._model(loaded, recipe)
        if adapter is not None:
            try:
                load_weights(model, adapter)
            except (ValueError, SafetensorError) as error:
                raise UserError(f"{adapter}: cannot be loaded on {recipe.model.path}: {error}") from error
        elif new := getattr(model, "new_weights", ()):
            log.warning(
                "%d weights are not in the model, such as %s: these are scores of an untrained head", len(new), min(new)
            )
        return self._scores(loaded, model, recipe, split)

    def scored_model(self) -> tuple[nn.Module, Any]:
        """Returns the model that was scored last, and its processor."""
        assert self._loaded is not None
        assert self._loaded.model is not None
        return self._loaded.model, self._loaded.data.processor

    def _scores(
        self, loaded: _Loaded, model: nn.Module, recipe: Recipe, split: str, checkpoint: Checkpoint | None = None
    ) -> dict[str, Any]:
        """Also keeps the predictions, where they are a checkpoint's."""
        examples = _examples(loaded.data, split)
        # The task in memory may come from another run of a matrix, which has the same data and another loss.
        task = task_of(recipe)
        task.labels = loaded.data.task.labels
        # A stream's training rows are not there, and its recipe gives the weights that would be counted on them.
        loss: Loss = task.build_loss(loaded.data.examples.get("train", examples))
        batches = length_sorted_batches(examples.lengths, recipe.evaluate.micro_batch)
        parts = forward(
            model,
            task,
            loss,
            loaded.data.processor,
            examples,
            batches,
            self.device,
            autocast(self.device, recipe.train.precision),
            collate=loaded.collate,
            with_losses=checkpoint is not None,
        )
        predictions, totals = assemble(parts, len(examples))
        if checkpoint:
            keep_predictions(checkpoint, split, predictions, loaded.data, losses_of_each(parts))
        scores = scores_of(task, loss, predictions, totals, examples, loaded.data.processor)
        return {"examples": len(examples), **scores}

    def prepared(self, recipe: Recipe) -> Prepared:
        """Returns the recipe's data, prepared once for recipes that share it. Raises UserError."""
        key = _data_key(recipe)
        if key not in self._data:
            task = task_of(recipe)
            self._data[key] = prepare(recipe, task, load_processor(recipe, task))
        return self._data[key]

    def _load(self, recipe: Recipe, folder: RunFolder | None, split: str) -> _Loaded:
        """Raises UserError when the split is empty or not the one that the run began with."""
        key = _data_key(recipe)
        if self._loaded is None or self._loaded.data_key != key:
            data, before = self.prepared(recipe), self._loaded
            self._loaded = _Loaded(key, data)
            if before is not None:  # the same model may be scored on other data
                self._loaded.model_key, self._loaded.model = before.model_key, before.model
        _examples(self._loaded.data, split)
        if folder is not None:
            ids = {name: rows.ids for name, rows in self._loaded.data.splits.items()}
            check_splits(folder.splits_file, ids, self._loaded.data.contents)
        return self._loaded

    def _model(self, loaded: _Loaded, recipe: Recipe) -> nn.Module:
        # The head depends on the task and on the classes.
        key = recipe.model_dump_json(include={"task", "model", "tuning"}) + json.dumps(loaded.data.task.labels)
        if loaded.model is None or loaded.model_key != key:
            loaded.model = None  # two models might not fit into the memory
            loaded.model = build_model(recipe, loaded.data.task, loaded.data.processor).to(self.device)
            loaded.model_key = key
        return loaded.model


def _data_key(recipe: Recipe) -> str:
    return recipe.model_dump_json(include={"task", "data", "model"})


def _different_labels(model: Sequence[str], data: Sequence[str]) -> Problem:
    message = f"the model has the classes {', '.join(model)}, and the data {', '.join(data)}"
    return Problem(
        message,
        "--model",
        hint="list the model's classes in data.labels, or rename those of the data: data.clean.map_labels",
    )


def _device(number: int) -> torch.device:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, number % torch.accelerator.device_count())


def _examples(data: Prepared, split: str) -> Examples:
    if split not in data.examples:
        way = "" if split == "validation" else f", or remove {split} from evaluate.report_on"
        raise UserError(f"the data has no {split} split: set data.split.{split} above 0{way}")
    return data.examples[split]
