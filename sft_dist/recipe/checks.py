"""Rules between settings, which hold or fail once each setting is right by itself. Cheap: run for every point of a matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from sft_dist.recipe.entry_points import METRICS_GROUP, installed_names
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.lm_eval import task_files
from sft_dist.recipe.metrics import installed_metric
from sft_dist.recipe.optimizers import NAMED_OPTIMIZERS
from sft_dist.recipe.references import is_hub, sources_of
from sft_dist.recipe.schema import (
    FreezeTuning,
    NamedOptimizer,
    Polynomial,
    PrefixTuning,
    Recipe,
    Sgd,
    SplitSources,
)
from sft_dist.recipe.strategies import refusals
from sft_dist.recipe.suggest import similar_to
from sft_dist.recipe.tasks import TASKS
from sft_dist.recipe.tunings import has_adapter, merge_refusal
from sft_dist.recipe.units import in_epochs


def cross_checks(recipe: Recipe) -> list[Problem]:
    """Every problem, with its key path and without its place."""
    return [
        *_model(recipe),
        *_columns(recipe),
        *_sources(recipe),
        *_splits(recipe),
        *_streaming(recipe),
        *_labels(recipe),
        *_loss(recipe),
        *_examples(recipe),
        *_batch(recipe),
        *_saving(recipe),
        *_optimizer(recipe),
        *_tuning(recipe),
        *_switches(recipe),
        *_evaluate(recipe),
        *_lm_eval(recipe),
    ]


def _model(recipe: Recipe) -> Iterator[Problem]:
    model = recipe.model
    if model.revision is not None and not is_hub(model.path) and not (model.tokenizer and is_hub(model.tokenizer)):
        yield Problem("has no effect: only models on the hub have revisions", "model.revision", value=model.revision)
    if model.trust_remote_code is not None and not is_hub(model.path):
        # What lies in a folder can change between two attempts, and no commit says which code made the weights.
        hint = "push it to the hub, or install the code as a package that registers itself with transformers"
        commit = model.trust_remote_code
        yield Problem("trust_remote_code works for hub models only", "model.trust_remote_code", value=commit, hint=hint)
    if model.config:
        yield from _finite("model.config", model.config)


def _finite(path: str, value: Any) -> Iterator[Problem]:
    if isinstance(value, float) and not math.isfinite(value):
        yield Problem("expected a finite number", path, value=str(value))
    elif isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _finite(f"{path}.{key}", item)


def _columns(recipe: Recipe) -> Iterator[Problem]:
    roles = recipe.task.columns
    for role, column in recipe.data.columns.items():
        path = f"data.columns.{role}"
        if role not in roles:
            hint = similar_to(role, roles) or (f"did you mean `{column}: {role}`?" if column in roles else "")
            yield Problem(f"{recipe.task.type} has no role `{role}`", path, value=role, valid=tuple(roles), hint=hint)
        elif not column:
            yield Problem("expected the name of a column", path, value='""')


def _sources(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    texts = list(sources_of(data))
    for path, text in texts:
        if not text:
            yield Problem("expected a file, a folder or a hub id", path, value='""')
    if not texts or (isinstance(data.source, SplitSources) and not data.source.train):
        yield Problem("expected at least one file or data set", "data.source", value="[]")
    training = data.source.train if isinstance(data.source, SplitSources) else data.source
    if data.weights is not None and len(data.weights) != (len(training) if isinstance(training, list) else 1):
        message = "expected one weight for each training source"
        yield Problem(
            message, "data.weights", value=f"{len(data.weights)} weights", hint="data.source has to be a list"
        )
    if data.subset is None and data.revision is None:
        return
    if not any(is_hub(text) for _, text in texts):
        for key in ("subset", "revision"):
            if (value := getattr(data, key)) is not None:
                yield Problem("has no effect: only data sets on the hub have it", f"data.{key}", value=value)


def _splits(recipe: Recipe) -> Iterator[Problem]:
    split, source = recipe.data.split, recipe.data.source
    for key in ("validation", "test"):
        share = getattr(split, key)
        if share is not None and isinstance(source, SplitSources) and getattr(source, key) is not None:
            hint = f"remove it, or remove data.source.{key}"
            yield Problem(
                f"has no effect: data.source names the {key} split", f"data.split.{key}", value=str(share), hint=hint
            )
    if (split.validation or 0) + (split.test or 0) >= 1:
        shares = f"validation {split.validation} + test {split.test}"
        yield Problem("nothing is left to train on: the shares must add up to less than 1", "data.split", value=shares)
    task = recipe.task
    if "stratify" in split.model_fields_set and split.stratify and (not task.has_one_class or split.group):
        message = (
            f"has no effect with {recipe.task.described()}"
            if not task.has_one_class
            else "groups are kept together instead"
        )
        hint = "remove it: it works with one class an example, and without split.group"
        yield Problem(message, "data.split.stratify", value="true", hint=hint)


def _streaming(recipe: Recipe) -> Iterator[Problem]:
    """How long a stream is, and what comes in it, is not known before its end."""
    data, train = recipe.data, recipe.train
    if data.streaming is None:
        return
    if train.steps is None:
        epochs = None if train.epochs is None else f"epochs: {train.epochs:g}"
        yield Problem("with data.streaming the length of training is given in steps", "train.steps", value=epochs)
    periods = {
        "train.warmup": train.warmup,
        "train.save_every": train.save_every,
        "train.eval_every": train.eval_every,
        "train.keep_every": train.keep_every,
        "tuning.unfreeze_every": recipe.tuning.unfreeze_every if isinstance(recipe.tuning, FreezeTuning) else None,
    }
    for path, period in periods.items():
        if period is not None and in_epochs(period):
            yield Problem(
                "the length of an epoch is not known with data.streaming",
                path,
                value=period,
                hint="such as `200 steps`",
            )
    if isinstance(data.source, SplitSources) and data.source.validation is None:
        hint = "rows of a stream cannot be held out"
        yield Problem("with data.streaming the validation split is named", "data.source.validation", hint=hint)
    if data.labels is None and recipe.task.has_classes:
        hint = "list them, in the order of the model's outputs"
        yield Problem("the classes of a stream are not known before its end", "data.labels", hint=hint)
    if getattr(train.loss, "class_weights", None) == "balanced":
        hint = "give the weights as label -> weight"
        yield Problem("not with data.streaming", "train.loss.class_weights", value="balanced", hint=hint)
    if "train" in recipe.evaluate.report_on:
        yield Problem("not with data.streaming", "evaluate.report_on", value="train", valid=("test",))
    idle = {
        "data.limit": (data.limit, "use train.steps"),
        "data.split.validation": (data.split.validation, "name data.source.validation"),
        "data.split.test": (data.split.test, "name data.source.test, or remove it from evaluate.report_on"),
        "data.split.group": (data.split.group, "remove it"),
        "data.sampling": (data.sampling if data.sampling == "balanced" else None, "use train.loss.class_weights"),
    }
    for path, (value, hint) in idle.items():
        if value is not None:
            yield Problem("has no effect with data.streaming", path, value=str(value), hint=hint)


def _labels(recipe: Recipe) -> Iterator[Problem]:
    labels, task = recipe.data.labels, recipe.task
    if not task.has_classes:
        if labels is not None:
            message = f"has no effect with {recipe.task.described()}, which has no classes"
            yield Problem(message, "data.labels", hint="remove it")
        if recipe.data.clean.map_labels:
            yield Problem(f"has no effect with {recipe.task.described()}", "data.clean.map_labels", hint="remove it")
    elif labels is not None and len(set(labels)) < len(labels):
        first: dict[str, int] = {}
        for index, label in enumerate(labels):
            if first.setdefault(label, index) != index:
                yield Problem("the same label twice", f"data.labels.{index}", value=label)
    elif labels is not None and len(labels) < 2 and task.has_one_class:
        yield Problem("expected at least two classes", "data.labels", value=labels[0])


def _loss(recipe: Recipe) -> Iterator[Problem]:
    loss, task = recipe.train.loss, recipe.task
    if loss is None:
        return
    allowed = task.kind.losses
    if loss.name not in allowed:
        hint = f"it belongs to {_problem_with(loss.name)}"
        yield Problem(
            f"not a loss for {recipe.task.described()}", "train.loss", value=loss.name, valid=allowed, hint=hint
        )
        return
    labels, weights = recipe.data.labels, getattr(loss, "class_weights", None)
    path = "train.loss.class_weights"
    if weights is not None and not task.has_classes:
        yield Problem(f"has no effect with {recipe.task.described()}, which has no classes", path, hint="remove it")
        return
    if labels is None or weights is None or weights == "balanced":
        if isinstance(weights, list) and labels is None:
            hint = "name the labels, or give the weights as label -> weight"
            yield Problem("a list of weights needs data.labels for its order", path, hint=hint)
        return
    if isinstance(weights, list) and len(weights) != len(labels):
        yield Problem(
            f"expected one weight for each of the {len(labels)} labels", path, value=f"{len(weights)} weights"
        )
    if isinstance(weights, dict):
        for name in weights:
            if name not in labels:
                hint = similar_to(name, labels)
                yield Problem(
                    "not one of data.labels", f"{path}.{name}", value=name, valid=tuple(labels[:20]), hint=hint
                )


def _problem_with(loss: str) -> str:
    """Returns the first kind of problem that has this loss, in the words of a recipe."""
    kinds = ((name, kind) for name, settings in TASKS.items() for kind in settings.kinds)
    name, kind = next((name, kind) for name, kind in kinds if loss in kind.losses)
    return f"problem: {kind.problem}" if kind.problem else name


def _examples(recipe: Recipe) -> Iterator[Problem]:
    """Augmentation and sampling."""
    data, task = recipe.data, recipe.task
    for key, settings in data.augment:
        if settings is not None and key != task.augmentation:
            yield Problem(f"has no effect with task: {task.type}", f"data.augment.{key}", hint="remove it")
    if data.sampling == "balanced" and not task.has_one_class:
        message = f"has no effect with {recipe.task.described()}: an example has no one class"
        yield Problem(message, "data.sampling", value="balanced", valid=("natural",))
    yield from task.conflicts()


def _batch(recipe: Recipe) -> Iterator[Problem]:
    micro, global_batch = recipe.train.micro_batch, recipe.train.global_batch
    if micro != "auto" and micro > global_batch:
        yield Problem(f"more than train.global_batch, which is {global_batch}", "train.micro_batch", value=str(micro))
    for key, amount in recipe.task.mixing().items():
        if amount and 1 in (micro, global_batch):
            hint = f"raise train.micro_batch to 2 or more, or remove task.{key}"
            message = "has no effect on micro-batches of one image: images of one micro-batch are mixed"
            yield Problem(message, f"task.{key}", value=f"{amount:g}", hint=hint)


def _saving(recipe: Recipe) -> Iterator[Problem]:
    train = recipe.train
    if train.keep_every is not None and train.keep_last is None:
        hint = "set train.keep_last, or remove it: every checkpoint is kept"
        yield Problem(
            "has no effect without train.keep_last", "train.keep_every", value=str(train.keep_every), hint=hint
        )


def _optimizer(recipe: Recipe) -> Iterator[Problem]:
    train = recipe.train
    if isinstance(train.optimizer, NamedOptimizer):
        yield from _named_optimizer(train.optimizer, train.schedule.name)
    if isinstance(train.optimizer, Sgd) and train.optimizer.nesterov and train.optimizer.momentum == 0:
        hint = "set momentum, or remove nesterov"
        yield Problem("needs momentum above 0", "train.optimizer.nesterov", value="true", hint=hint)
    if isinstance(train.schedule, Polynomial) and train.schedule.lr_end >= train.lr:
        lr_end = f"{train.schedule.lr_end:g}"
        yield Problem(f"expected less than train.lr, which is {train.lr:g}", "train.schedule.lr_end", value=lr_end)


def _named_optimizer(optimizer: NamedOptimizer, schedule: str) -> Iterator[Problem]:
    if reason := NAMED_OPTIMIZERS[optimizer.name].refused:
        yield Problem(f"cannot be used here: {reason}", "train.optimizer", value=optimizer.name)
    for key in ("lr", "weight_decay", "params"):
        if key in optimizer.options:
            path = {"lr": "train.lr", "weight_decay": "train.optimizer.weight_decay"}.get(key)
            hint = f"use {path}" if path else "remove it: the weights come from the model"
            yield Problem("unknown option", f"train.optimizer.options.{key}", hint=hint)
    if optimizer.name.startswith("schedule_free") and not schedule.startswith("constant"):
        valid = ("constant", "constant_with_warmup")
        yield Problem(
            f"{optimizer.name} averages weights instead of lowering lr", "train.schedule", value=schedule, valid=valid
        )


def _tuning(recipe: Recipe) -> Iterator[Problem]:
    tuning, train = recipe.tuning, recipe.train
    yield from refusals(train.strategy.name, recipe)
    if train.layer_decay is not None and has_adapter(tuning):
        message = f"has no effect with tuning: {tuning.method}, whose base is not trained"
        yield Problem(
            message, "train.layer_decay", value=f"{train.layer_decay:g}", hint="it works with full, freeze and bitfit"
        )
    if train.gradient_checkpointing and isinstance(tuning, PrefixTuning):
        message = (
            "cannot be combined with tuning: prefix, whose keys and values would be lost when layers are recomputed"
        )
        yield Problem(
            message, "train.gradient_checkpointing", value="true", hint="use tuning: prompt or lora, or remove it"
        )


def _switches(recipe: Recipe) -> Iterator[Problem]:
    train, attention = recipe.train, recipe.model.attention
    if attention is not None and attention.startswith("flash") and train.precision == "fp32":
        message = "works in 16 bits only, and train.precision is fp32"
        yield Problem(
            message, "model.attention", value=attention, valid=("eager", "sdpa"), hint="or set train.precision: bf16"
        )


def _outside_metric(recipe: Recipe, name: str) -> Iterator[Problem]:
    """A metric that the task does not have: one of another package, or a mistake."""
    path, task = "evaluate.metric", recipe.task
    try:
        metric = installed_metric(recipe)
    except UserError as error:
        yield from (Problem(problem.message, path, value=name) for problem in error.problems)
        return
    if metric is None:
        valid = (*task.kind.metrics, *installed_names(METRICS_GROUP))
        message = f"no such score for {task.described()}"
        yield Problem(message, path, value=name, valid=valid, hint=similar_to(name, valid))
    elif metric.tasks and task.type not in metric.tasks:
        message = f"does not score task: {task.type}, but {', '.join(metric.tasks)}"
        yield Problem(message, path, value=name, valid=tuple(task.kind.metrics))


def _no_temperature(recipe: Recipe) -> str:
    if not recipe.task.has_one_class:
        return f"{recipe.task.described()}: probabilities of one class an example are scaled"
    return "evaluate.export: none" if recipe.evaluate.export == "none" else ""


def _evaluate(recipe: Recipe) -> Iterator[Problem]:
    evaluate, metrics = recipe.evaluate, recipe.task.kind.metrics
    if evaluate.metric is not None and evaluate.metric not in metrics:
        yield from _outside_metric(recipe, evaluate.metric)
    if evaluate.direction is not None and evaluate.metric is None:
        hint = "name the metric it is for"
        yield Problem(
            "has no effect without evaluate.metric", "evaluate.direction", value=evaluate.direction, hint=hint
        )
    if len(set(evaluate.slices)) < len(evaluate.slices):
        value = str([*evaluate.slices])
        yield Problem("names a column twice", "evaluate.slices", value=value, hint="name each column once")
    if evaluate.temperature and (obstacle := _no_temperature(recipe)):
        yield Problem(f"has no effect with {obstacle}", "evaluate.temperature", value="true", hint="remove it")
    named = isinstance(recipe.data.source, SplitSources) and recipe.data.source.test is not None
    streamed = recipe.data.streaming is not None
    if "test" in evaluate.report_on and not named and streamed and isinstance(recipe.data.source, SplitSources):
        hint = "name data.source.test, or set evaluate.report_on: []"
        yield Problem("there is no test split", "evaluate.report_on", value="test", hint=hint)
    elif "test" in evaluate.report_on and recipe.data.split.test == 0 and not named:
        hint = "give data.split.test a share, or set evaluate.report_on: []"
        yield Problem("there is no test split: data.split.test is 0", "evaluate.report_on", value="test", hint=hint)
    if evaluate.export == "merged" and (reason := merge_refusal(recipe.tuning)):
        yield Problem(
            f"tuning: {recipe.tuning.method} cannot be merged: {reason}",
            "evaluate.export",
            value="merged",
            valid=("adapter", "none"),
        )
    if evaluate.export == "adapter" and not has_adapter(recipe.tuning):
        hint = "use merged or none"
        message = f"there is no adapter with tuning: {recipe.tuning.method}"
        yield Problem(message, "evaluate.export", value="adapter", hint=hint)


def _lm_eval(recipe: Recipe) -> Iterator[Problem]:
    settings, path = recipe.evaluate.lm_eval, "evaluate.lm_eval"
    if settings is None:
        return
    if not recipe.task.is_causal_lm:
        message = f"asks a model to continue texts, which task: {recipe.task.type} does not train"
        yield Problem(message, path, hint="remove it: it works with task: instruction-tuning")
    for index, name in enumerate(settings.tasks):
        if name in settings.tasks[:index]:
            yield Problem("the same task twice", f"{path}.tasks.{index}", value=name)
    if (files := task_files(settings)) and not settings.allow_code:
        message = f"files of tasks can run Python (`!function`, `class`, templates): {', '.join(files)}"
        hint = "read them; where you trust them, set evaluate.lm_eval.allow_code: true"
        yield Problem(message, f"{path}.allow_code", value="false", hint=hint)
