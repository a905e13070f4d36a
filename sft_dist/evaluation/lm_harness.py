"""Tasks of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness) on a model that is in memory. It imports
lm-eval, which takes seconds, so it is imported where a recipe has such tasks.

`lm_eval.evaluate` is called as `lm_eval.simple_evaluate` calls it, but without the report about the machine, for which that starts
processes. What runs code that did not come with lm-eval needs `allow_code`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import logging
import os
import random
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import evaluate as hub_metrics
import lm_eval
import numpy as np
import torch
from huggingface_hub import is_offline_mode
from lm_eval.api.registry import AGGREGATION_REGISTRY
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.lm_eval import is_task_file, task_files
from sft_dist.recipe.schema import LmEval, Recipe
from sft_dist.recipe.suggest import similar_to
from sft_dist.run.failures import Failure, is_out_of_memory
from sft_dist.tasks.instruction_tuning import with_default_system

VERSION = version("lm_eval")
# Its warnings are about settings that are meant so.
logging.getLogger("lm_eval").setLevel(logging.ERROR)

_TASKS = "evaluate.lm_eval.tasks"
_CONSENT = "where you trust it, set evaluate.lm_eval.allow_code: true"
_PRECISIONS = {"fp32": None, "fp16": torch.float16}  # others: bf16, as `engines.precision.autocast` has it


class Harness:
    """The tasks of a recipe, loaded once for several models. Raises UserError for tasks that cannot be loaded, or may not."""

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.evaluate.lm_eval is not None
        self._recipe, self._settings = recipe, recipe.evaluate.lm_eval
        self._requests = _load(self._settings)
        for task in self._tasks.values():
            _prepare(task, self._settings)

    @property
    def _tasks(self) -> dict[str, Any]:
        return {name: task for request in self._requests.values() for name, task in request["tasks"].items()}

    def evaluate(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        """Returns `tasks`: name -> `documents` (a digest), `metrics` (`score`, `better`, `aggregation`, and a value for each
        document); `groups`: name -> metric -> score; `sets`: name -> (task, metric) that are tested together; `samples`: what was
        answered to each document. Raises UserError for what lm-eval refuses."""
        groups = {name: group for request in self._requests.values() for name, group in request["groups"].items()}
        children = {name: names for request in self._requests.values() for name, names in request["group_map"].items()}
        harness_model = _harness_model(model, tokenizer, self._recipe)
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.manual_seed(DEFAULT_OTHER_SEED)
        with _refusing_hub_metrics(self._settings.allow_code), _quiet(), _explained(self._settings.tasks):
            results = lm_eval.evaluate(
                lm=harness_model,
                task_dict={"tasks": self._tasks, "groups": groups, "group_map": children},
                limit=self._settings.limit,
                bootstrap_iters=0,  # our own intervals and tests say how certain scores are
                apply_chat_template=self._settings.apply_chat_template,
                fewshot_as_multiturn=True,
                confirm_run_unsafe_code=self._settings.allow_code,
            )
        tasks = {name: self._scores(name, task, results) for name, task in self._tasks.items()}
        return {
            "tasks": tasks,
            "groups": {name: _group_scores(results["results"][name]) for name in groups},
            "sets": {
                name: members for request in self._requests.values() for name, members in _sets(request, tasks).items()
            },
            "samples": [row for name in tasks for row in _answers(name, results["samples"][name])],
        }

    def _scores(self, name: str, task: Any, results: dict[str, Any]) -> dict[str, Any]:
        samples, scores, better = results["samples"][name], results["results"][name], task.higher_is_better()
        names = {function: name for name, function in AGGREGATION_REGISTRY.items()}
        aggregations = task.aggregation()
        metrics = {}
        for key in dict.fromkeys((metric, sample["filter"]) for sample in samples for metric in sample["metrics"]):
            metric, filter_name = key
            values = [sample[metric] for sample in samples if sample["filter"] == filter_name and metric in sample]
            direction = {True: "max", False: "min"}.get(better.get(metric))
            metrics[_metric_name(metric, filter_name)] = {
                "score": float(scores[f"{metric},{filter_name}"]),
                "better": direction,
                # a metric of the task's own without an aggregation is averaged by lm-eval
                "aggregation": names.get(aggregations[metric]) if metric in aggregations else "mean",
                "values": _plain(values),
            }
        hashes = "".join(f"{sample['doc_hash']}{sample['prompt_hash']}{sample['target_hash']}" for sample in samples)
        return {"documents": hashlib.sha256(hashes.encode()).hexdigest(), "metrics": metrics}


# ── tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def _load(settings: LmEval) -> dict[str, dict[str, Any]]:
    """Returns what each entry of `tasks` stands for: tasks, and groups of them. Raises UserError."""
    if (files := task_files(settings)) and not settings.allow_code:  # a recipe that no launcher has checked
        raise UserError(Problem("files of tasks can run Python", _TASKS, value=", ".join(files), hint=_CONSENT))
    with _quiet():
        manager = _manager(settings)
    requests = {}
    for name in settings.tasks:
        if not is_task_file(name) and name not in manager.task_index:
            hint = similar_to(name, manager.all_tasks)
            raise UserError(Problem("lm-eval has no task, group or tag of this name", _TASKS, value=name, hint=hint))
        with (
            _refusing_hub_metrics(settings.allow_code),
            _working_directory(_folder_of(name, manager, settings)),
            _quiet(),
            _explained([name]),
        ):
            requests[name] = {"groups": {}, "group_map": {}, **manager.load([name])}
    names = [task for request in requests.values() for task in request["tasks"]]
    for name in names:
        if names.count(name) > 1:
            raise UserError(Problem("a task is in two entries", _TASKS, value=name, hint="remove one of them"))
    return requests


def _manager(settings: LmEval) -> TaskManager:
    """Reads the thousands of files that come with lm-eval only where one may be meant."""
    manager = TaskManager(include_path=settings.include_path, include_defaults=False)

    def is_complete(name: str) -> bool:
        if is_task_file(name):
            return not re.search(r"^group\s*:", Path(name).read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        return name in manager.task_index and name not in manager.all_groups

    if all(map(is_complete, settings.tasks)):
        return manager
    return TaskManager(include_path=settings.include_path)


def _folder_of(name: str, manager: TaskManager, settings: LmEval) -> Path | None:
    """Returns the folder to which names of data files in a task of the user are relative; None for those of lm-eval."""
    if is_task_file(name):
        return Path(name).parent
    file = manager.task_index[name].yaml_path
    own = settings.include_path
    return Path(file).parent if file and own and Path(file).is_relative_to(own) else None


def _prepare(task: Any, settings: LmEval) -> None:
    """What `simple_evaluate` does to each task. Raises UserError for a task that runs what the model writes."""
    if getattr(task, "UNSAFE_CODE", False) and not settings.allow_code:
        message = "is marked as unsafe: it runs the code that the model writes"
        raise UserError(Problem(message, _TASKS, value=task.config.task, hint=_CONSENT))
    own = task.get_config("num_fewshot")
    if settings.num_fewshot is not None and own != 0:  # 0: the task works without examples alone
        task.set_config(key="num_fewshot", value=settings.num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def _sets(request: dict[str, Any], tasks: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Returns what is tested as a whole: a task by its first metric with a better direction; a group whose tasks share that metric
    by the mean over all of its documents."""
    firsts = {name: _first_metric(tasks[name]["metrics"]) for name in request["tasks"]}
    members = [(name, metric) for name, metric in firsts.items() if metric]
    shared = {metric for _, metric in members}
    if not request["groups"] or len(shared) != 1 or any(tasks[name]["metrics"][metric]["aggregation"] != "mean" for name, metric in members):  # fmt: skip
        return {f"{name}/{metric}": [(name, metric)] for name, metric in members}
    return {f"{next(iter(request['groups']))}/{shared.pop()}": members}


def _first_metric(metrics: dict[str, Any]) -> str:
    return next((name for name, metric in metrics.items() if metric["better"]), "")


# ── model and results ───────────────────────────────────────────────────────────────────────────────────────────────
def _harness_model(model: Any, tokenizer: Any, recipe: Recipe) -> HFLM:
    own = copy.deepcopy(tokenizer)  # it may get another padding token
    if (system := getattr(recipe.task, "system", None)) and own.chat_template:
        own.chat_template = with_default_system(own.chat_template, system)  # as the exported model has it
    with _quiet():
        return HFLM(
            pretrained=model,
            tokenizer=own,
            backend="causal",
            batch_size=recipe.evaluate.micro_batch,
            mixed_precision_dtype=_PRECISIONS.get(recipe.train.precision, torch.bfloat16),
            softmax_dtype=torch.float32,
        )


def _metric_name(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _group_scores(results: dict[str, Any]) -> dict[str, float]:
    pairs = [(key.rpartition(",")[::2], value) for key, value in results.items() if "," in key]
    return {_metric_name(*key): float(value) for key, value in pairs if not isinstance(value, str)}


def _answers(name: str, samples: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields what was answered to each document, without the document, which the task has."""
    for sample in samples:
        names = ("doc_id", "filter", "target", "filtered_resps", *sample["metrics"])
        yield {"task": name, **{key: _plain(sample[key]) for key in names}}


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    return json.loads(json.dumps(value, default=lambda item: item.item() if isinstance(item, np.generic) else str(item)))  # fmt: skip


# ── around calls of lm-eval ─────────────────────────────────────────────────────────────────────────────────────────
@contextlib.contextmanager
def _explained(names: Sequence[str]) -> Iterator[None]:
    """Raises what lm-eval and the libraries below it raise, which is of every type, as UserError; errors of the machine as they
    are."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError | Failure) or is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:400]
        hint = "names of data files are relative to the task's own file" if isinstance(error, FileNotFoundError) else ""
        if is_offline_mode() and not hint:
            hint = "HF_HUB_OFFLINE forbids to ask the hub: fetch the task's data where there is a network, into the same cache"
        message = f"lm-eval cannot use it: {type(error).__name__}: {text}"
        raise UserError(Problem(message, _TASKS, value=", ".join(names), hint=hint)) from error


@contextlib.contextmanager
def _refusing_hub_metrics(allow_code: bool) -> Iterator[None]:
    """Refuses metrics of the hub, which are programs that `evaluate` fetches and runs. Where they are allowed, it fetches none in
    offline mode, which it would not know of."""
    if allow_code:
        offline, hub_metrics.config.HF_EVALUATE_OFFLINE = hub_metrics.config.HF_EVALUATE_OFFLINE, is_offline_mode()
        try:
            yield
        finally:
            hub_metrics.config.HF_EVALUATE_OFFLINE = offline
        return
    refused: list[str] = []

    def refuse(name: str, *arguments: Any, **options: Any) -> None:
        refused.append(name)
        raise PermissionError(name)

    load, hub_metrics.load = hub_metrics.load, refuse
    try:
        yield
    finally:
        hub_metrics.load = load
        if refused:  # lm-eval continues without the metric
            message = "a task needs this metric, which is a program of the hub"
            raise UserError(Problem(message, _TASKS, value=refused[0], hint=_CONSENT))


@contextlib.contextmanager
def _working_directory(folder: Path | None) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder or before)
    try:
        yield
    finally:
        os.chdir(before)


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Keeps bars of progress out of logs; a terminal shows them."""
    return contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
