"""Rules between settings: what contradicts, and what would have no effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.starters import starter
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.load import load
from sft_dist.recipe.tasks import TASKS
from tests.sft_dist.recipe.recipe_texts import GOOD, write

REGRESSION = "task={type: text-classification, problem: regression}"
MULTI = "task={type: text-classification, problem: multi-label}"
MIXUP = "task={type: image-classification, mixup: 0.2}"
STREAM = {
    "data.streaming": "true",
    "data.source": "{train: a.csv, validation: b.csv, test: c.csv}",
    "data.labels": "[a, b]",
    "train.epochs": "null",
    "train.steps": "100",
    "train.save_every": "50 steps",
}


def stream(**changes: str) -> list[str]:
    """Overrides of a recipe with a stream; a double underscore is a dot."""
    settings = STREAM | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in settings.items()]


@pytest.mark.parametrize(
    ("overrides", "path", "words"),
    [
        (["model.revision=main"], "model.revision", "only models on the hub"),
        (["model.config={a: {b: [.nan]}}"], "model.config.a.b.0", "expected a finite number"),
        (["data.columns={txt: review}"], "data.columns.txt", "did you mean `text`?"),
        (["data.columns={review: text}"], "data.columns.review", "did you mean `text: review`?"),
        (["data.columns={text: ''}"], "data.columns.text", "expected the name of a column"),
        (["data.source=[]"], "data.source", "at least one file"),
        (["data.source=''"], "data.source", "expected a file"),
        (["data.subset=en"], "data.subset", "has no effect"),
        (["data.source=package:x/y.csv", "data.revision=main"], "data.revision", "has no effect"),
        (
            ["data.source={train: a.csv, test: b.csv}", "data.split.test=0.2"],
            "data.split.test",
            "data.source names the test",
        ),
        (["data.split={validation: 0.5, test: 0.5}"], "data.split", "nothing is left to train on"),
        ([MULTI, "data.split.stratify=true"], "data.split.stratify", "has no effect with problem: multi-label"),
        ([REGRESSION, "data.labels=[a, b]"], "data.labels", "has no effect with problem: regression"),
        ([MIXUP, "train.micro_batch=1"], "task.mixup", "has no effect on micro-batches of one image"),
        (
            [MIXUP.replace("mixup", "cutmix"), "train.global_batch=1", "train.micro_batch=auto"],
            "task.cutmix",
            "no effect",
        ),
        (["data.labels=[a, b, a]"], "data.labels.2", "the same label twice"),
        (["data.labels=[a]"], "data.labels", "at least two classes"),
        (["train.loss=mse"], "train.loss", "it belongs to problem: regression"),
        ([MULTI, "train.loss=cross-entropy"], "train.loss", "valid: binary-cross-entropy"),
        (["train.loss={name: cross-entropy, class_weights: [1, 2]}"], "train.loss.class_weights", "needs data.labels"),
        (
            ["data.labels=[a, b, c]", "train.loss={name: cross-entropy, class_weights: [1, 2]}"],
            "train.loss.class_weights",
            "one weight for each of the 3 labels",
        ),
        (
            ["data.labels=[good, bad]", "train.loss={name: cross-entropy, class_weights: {god: 2}}"],
            "train.loss.class_weights.god",
            "did you mean `good`?",
        ),
        (stream(train__steps="null"), "train.steps", "the length of training is given in steps"),
        (stream(train__save_every="1 epoch"), "train.save_every", "not known with data.streaming"),
        (stream(train__warmup="0.5 epochs"), "train.warmup", "such as `200 steps`"),
        (
            stream(tuning="{method: freeze, train_last_layers: 2, unfreeze_every: 1 epoch}"),
            "tuning.unfreeze_every",
            "not known with data.streaming",
        ),
        (stream(data__source="{train: a.csv, test: c.csv}"), "data.source.validation", "cannot be held out"),
        (
            stream(evaluate__report_on="[test]", data__source="{train: a.csv, validation: c.csv}"),
            "evaluate.report_on",
            "there is no test split",
        ),
        (stream(data__labels="null"), "data.labels", "not known before its end"),
        (
            stream(train__loss="{name: cross-entropy, class_weights: balanced}"),
            "train.loss.class_weights",
            "give the weights",
        ),
        (stream(evaluate__report_on="[train]"), "evaluate.report_on", "not with data.streaming"),
        (stream(data__limit="10"), "data.limit", "use train.steps"),
        (stream(data__sampling="balanced"), "data.sampling", "has no effect with data.streaming"),
        (stream(data__split__group="speaker"), "data.split.group", "has no effect with data.streaming"),
        (stream(data__streaming="{buffers: 10}"), "data.streaming.buffers", "did you mean `buffer`?"),
        (["model.attention=flash_attention_2"], "model.attention", "works in 16 bits only"),
        (["train.micro_batch=64"], "train.micro_batch", "more than train.global_batch, which is 32"),
        (["train.keep_every=1 epoch"], "train.keep_every", "has no effect without train.keep_last"),
        (["evaluate.metric=accuracyy"], "evaluate.metric", "did you mean `accuracy`?"),
        ([REGRESSION, "evaluate.metric=accuracy"], "evaluate.metric", "valid: mse, rmse"),
        (["evaluate.direction=max"], "evaluate.direction", "has no effect without evaluate.metric"),
        (["evaluate.slices=[a, b, a]"], "evaluate.slices", "names a column twice"),
        ([REGRESSION, "evaluate.temperature=true"], "evaluate.temperature", "has no effect with"),
        (["evaluate={temperature: true, export: none}"], "evaluate.temperature", "with evaluate.export: none"),
        (["tuning=full", "evaluate.export=adapter"], "evaluate.export", "there is no adapter with tuning: full"),
        (["train.optimizer=lomo"], "train.optimizer", "changes weights during the backward pass"),
        (["train.optimizer=galore_adamw"], "train.optimizer", "projections that are objects"),
        (
            ["train.optimizer={name: adagrad, options: {lr: 1}}"],
            "train.optimizer.options.lr",
            "use train.lr",
        ),
        (["train.optimizer=schedule_free_adamw"], "train.schedule", "valid: constant, constant_with_warmup"),
        (["tuning=prefix", "train.gradient_checkpointing=true"], "train.gradient_checkpointing", "tuning: prefix"),
        (["train.strategy=zero3", "train.compile=true"], "train.compile", "use zero2, fsdp2 or ddp"),
        (
            [f"model.trust_remote_code={'a' * 40}"],
            "model.trust_remote_code",
            "trust_remote_code works for hub models only",
        ),
    ],
)
def test_a_contradiction_is_one_problem_with_its_place(
    overrides: list[str], path: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load(write(tmp_path), overrides)
    (problem,) = caught.value.problems
    assert problem.path == path
    assert words in problem.render()
    assert problem.mark
    assert problem.mark.file.startswith("command line: ")


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.source=org/name", "data.subset=en", "data.revision=main"],
        ["model.path=org/name", "model.revision=main"],
        ["model.tokenizer=org/name", "model.revision=main"],
        ["data.split={validation: 0.5, test: 0.4}"],
        ["data.source={train: a.csv, test: b.csv}", "data.split.validation=0.2"],
        ["train.loss={name: cross-entropy, class_weights: balanced, label_smoothing: 0.1}"],
        ["data.labels=[a, b]", "train.loss={name: cross-entropy, class_weights: {a: 2}}"],
        [MULTI, "data.labels=[a]", "train.loss={name: binary-cross-entropy, class_weights: [3]}"],
        [REGRESSION, "train.loss=mse", "evaluate={metric: r2, direction: max}"],
        [REGRESSION],
        ["evaluate.export=adapter"],
        ["evaluate={slices: [lang], temperature: true}"],
        ["train.micro_batch=32"],
        ["model.attention=flash_attention_2", "train.precision=bf16"],
        ["train.optimizer={name: adagrad, options: {lr_decay: 0.1}}"],
        ["train.optimizer=schedule_free_adamw", "train.schedule=constant_with_warmup"],
        ["tuning=lora", "train.gradient_checkpointing=true", "train.compile=true"],
        ["model.path=org/name", f"model.trust_remote_code={'a' * 40}"],
        stream(),
        stream(data__streaming="{buffer: 50}", train__eval_every="25 steps", train__warmup="6%"),
        stream(data__source="org/name"),
        ["data.streaming=false"],
        [MIXUP, "train.micro_batch=2"],
    ],
)
def test_what_has_an_effect_is_accepted(overrides: list[str], tmp_path: Path) -> None:
    assert load(write(tmp_path), overrides)


@pytest.mark.parametrize("task", TASKS)
def test_augmentation_is_of_what_the_task_reads(task: str, tmp_path: Path) -> None:
    file = write(tmp_path, starter(task))
    texts = {"text"} if task == "text-classification" else set()
    for key in ("text", "image", "audio"):
        if key in texts | {"image", "audio"} & set(TASKS[task].columns):
            assert load(file, [f"data.augment.{key}={{}}"])
        else:
            with pytest.raises(UserError, match=f"data.augment.{key}: has no effect with task: {task}"):
                load(file, [f"data.augment.{key}={{}}"])


def test_all_contradictions_are_reported_at_once_with_lines(tmp_path: Path) -> None:
    text = GOOD.replace("lr: 1e-4", "lr: 1\n  micro_batch: 64\n  loss: mse") + "evaluate: {metric: f2}\n"
    with pytest.raises(UserError) as caught:
        load(write(tmp_path, text))
    assert [(one.path, one.mark.line) for one in caught.value.problems if one.mark] == [
        ("train.loss", 13),
        ("train.micro_batch", 12),
        ("evaluate.metric", 14),
    ]
