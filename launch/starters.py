"""What `sft-dist init` and `sft-dist schema` print: a commented starter recipe and the JSON schema, both made from the
recipe's own schema, so that neither can fall behind it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.reflection import bare, members_of, sections, tag_name, tags_of, type_of
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.suggest import similar_to
from sft_dist.recipe.tasks import INSTALLED_TASKS, TASKS
from sft_dist.recipe.tasks.base import TaskSettings
from sft_dist.recipe.yaml_lines import KeyPath
from sft_dist.recipe.yaml_values import parse_scalar, to_yaml

WIDTH = 110

# Settings of a starter; every other setting is in it as a comment, with its default or with one of the samples.
_COMMON: dict[KeyPath, str] = {
    ("tuning", "method"): "full",
    ("train", "epochs"): "3",
    ("train", "global_batch"): "32",
    ("train", "lr"): "5e-5",
    ("train", "schedule"): "linear",
    ("train", "warmup"): "6%",
    ("train", "save_every"): "1 epoch",
    ("train", "seed"): "0",
}


def _starter_values(task: str, settings: type[TaskSettings]) -> dict[KeyPath, str]:
    own: dict[KeyPath, str] = {tuple(path.split(".")): value for path, value in settings.starters[task].items()}
    return {("task", "type"): task, **_COMMON, **own}


SAMPLES: dict[KeyPath, str] = {
    ("name",): "my-first-run",
    ("description",): "what this recipe is for",
    ("model", "revision"): "main",
    ("model", "tokenizer"): "./my-tokenizer",
    ("model", "config"): "{hidden_dropout_prob: 0.0}",
    ("data", "streaming"): "{buffer: 10000}",
    ("data", "subset"): "en",
    ("data", "revision"): "main",
    ("data", "labels"): "[negative, positive]",
    ("data", "where"): "{lang: [en, de]}",
    ("data", "limit"): "1000",
    ("data", "split", "validation"): "0.1",
    ("data", "split", "test"): "0.1",
    ("data", "split", "group"): "speaker",
    ("data", "weights"): "[0.7, 0.3]",
    ("data", "clean", "near_duplicates"): "0.8",
    ("data", "clean", "max_chars"): "10000",
    ("data", "clean", "map_labels"): "{pos: positive}",
    ("tuning", "modules_to_save"): "[embeddings]",
    ("train", "steps"): "1000",
    ("train", "optimizer"): "{name: adamw, weight_decay: 0.01}",
    ("train", "strategy"): "fsdp2",
    ("train", "eval_every"): "200 steps",
    ("train", "keep_last"): "2",
    ("train", "early_stopping"): "{patience: 3}",
    ("train", "tracking"): "[tensorboard]",
    ("evaluate", "direction"): "max",
    ("evaluate", "export"): "merged",
    ("resources", "threads_per_process"): "4",
    ("resources", "time"): "2h",
    ("resources", "memory"): "32GB",
    ("matrix",): "{train.lr: [1e-4, 5e-4], train.seed: [0, 1]}",
    ("search",): "{space: {train.lr: {log: [1e-6, 1e-3]}}, budget: {trials: 20}}",
}
_AUGMENT: dict[str | None, str] = {
    "text": "{text: {delete: 0.1, swap: 0.1}}",
    "image": "{image: {flip: 0.5, crop: 0.7}}",
    "audio": "{audio: {gain_db: 6}}",
    None: "",
}
# Settings for problems with one class per example, and for problems with classes.
_ONE_CLASS: tuple[KeyPath, ...] = (("data", "split", "stratify"), ("data", "sampling"))
_CLASSES: tuple[KeyPath, ...] = (("data", "labels"), ("data", "clean", "map_labels"))


def starter(task: str) -> str:
    """Returns a commented recipe for a task, which loads as it is. Raises UserError for an unknown task."""
    settings = _settings_of(task)
    if settings is None:
        valid = (*TASKS, *INSTALLED_TASKS.names())
        raise UserError(Problem("no such task", value=task, valid=valid, hint=similar_to(task, valid)))
    head = [
        f"# A recipe for {task}. Settings without a # are active; those with one show what can be set.",
        "# Show what it does: sft-dist plan FILE",
        "# base: ../common.yaml   # settings to start from; settings of this file replace them",
    ]
    return "\n".join([*head, *_section((), Recipe, _starter_values(task, settings))]) + "\n"


def _settings_of(task: str) -> type[TaskSettings] | None:
    return TASKS.get(task) or INSTALLED_TASKS.settings_of(task)


def write_starter(task: str, path: Path) -> None:
    """Writes the starter to a new file. Raises UserError."""
    text = starter(task)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path} exists already") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _task_of(task: str) -> TaskSettings:
    """Returns the task with the options of its starter."""
    settings = _settings_of(task)
    assert settings is not None
    options = {
        path[1]: parse_scalar(text) for path, text in _starter_values(task, settings).items() if path[0] == "task"
    }
    return settings.model_validate(options) if task not in TASKS else settings.model_validate({"type": task})


def _is_installed(settings: dict[KeyPath, str]) -> bool:
    return settings["task", "type"] not in TASKS


@cache
def _samples(task: str) -> dict[KeyPath, str]:
    """Values that comments show instead of defaults; "" for settings that do not apply to the task."""
    settings = _task_of(task)
    paths = (*(() if settings.has_one_class else _ONE_CLASS), *(() if settings.has_classes else _CLASSES))
    inapplicable = dict.fromkeys(paths, "")
    of_task: dict[KeyPath, str] = {("task", option): value for option, value in settings.samples.items()}
    return {
        **SAMPLES,
        **of_task,
        ("train", "loss"): next(iter(settings.kind.losses), ""),
        ("data", "augment"): _AUGMENT[settings.augmentation],
        ("evaluate", "lm_eval"): "{tasks: [arc_easy, hellaswag]}" if settings.is_causal_lm else "",
        **inapplicable,
    }


def _section(path: KeyPath, section: type[BaseModel], settings: dict[KeyPath, str]) -> Iterator[str]:
    samples = _samples(settings["task", "type"])
    for key, field in section.model_fields.items():
        key_path = (*path, key)
        classes = sections(installed=_is_installed(settings)).get(key_path, ())
        if key_path not in settings and samples.get(key_path) == "":
            continue
        if len(key_path) == 1:
            yield ""
        if classes and key_path not in samples and key_path not in settings:
            yield from _nested(key_path, classes, field, settings)
        else:
            yield from _setting(key_path, field, settings)


def _nested(
    path: KeyPath, classes: tuple[type[BaseModel], ...], field: FieldInfo, settings: dict[KeyPath, str]
) -> Iterator[str]:
    indent = "  " * (len(path) - 1)
    tag = tag_name(classes[0])
    section = next((cls for cls in classes if tag and settings.get((*path, tag)) in tags_of(cls)), classes[0])
    yield from _comment(field.description or "", indent)
    is_active = any(key_path[: len(path)] == path for key_path in settings)
    yield f"{indent}{'' if is_active else '# '}{path[-1]}:"
    yield from _section(path, section, settings)


def _setting(path: KeyPath, field: FieldInfo, settings: dict[KeyPath, str]) -> Iterator[str]:
    indent = "  " * (len(path) - 1)
    choices = _choices(path, field)
    yield from _comment((field.description or "") + (f" Choices: {', '.join(choices)}." if choices else ""), indent)
    value = settings.get(path) or _samples(settings["task", "type"]).get(path) or _default(field)
    yield f"{indent}{'' if path in settings else '# '}{path[-1]}: {value}"


def _choices(path: KeyPath, field: FieldInfo) -> list[str]:
    classes = sections().get(path) or sections().get(path[:-1], ())
    if path in sections() or (classes and tag_name(classes[0]) == path[-1]):
        return [tag for cls in classes for tag in tags_of(cls)] if len(classes) > 1 else []
    literals = [member for member in map(bare, members_of(type_of(field))) if get_origin(member) is Literal]
    names = [str(name) for literal in literals for name in get_args(literal)]
    return names if len(names) > 1 else []


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = next(iter(dict(value).values()))
    text = to_yaml(value)
    return text if not isinstance(value, float) or parse_scalar(text) == value else repr(value)


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


# ── JSON schema ─────────────────────────────────────────────────────────────────────────────────────────────────────
def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema (2020-12) of a recipe file, for editors: it has `base`, allows a bare name for a choice, and
    does not require what a base file or the matrix may give."""
    schema: dict[str, Any] = Recipe.model_json_schema()
    definitions = schema["$defs"]
    _add_installed_tasks(schema["properties"]["task"]["oneOf"], definitions)
    for path, classes in sections(installed=True).items():
        tag = tag_name(classes[0])
        if not path or tag is None:
            continue
        owner = schema if len(path) == 1 else definitions[sections()[path[:-1]][0].__name__]
        names = [name for cls in classes for name in tags_of(cls)]
        for cls in classes:  # the choice may have been made in the base file
            definition = definitions[cls.__name__]
            definition["required"] = [key for key in definition["required"] if key != tag]
        owner["properties"][path[-1]] = _with_shorthand(owner["properties"][path[-1]], names)
    needed = {key: list(definitions[_class_name(key)].get("required", ())) for key in ("model", "data", "train")}
    for key in needed:
        definitions[_class_name(key)].pop("required", None)
    about = "Recipe to start from, relative to this file; settings of this file replace its settings."
    properties = {"base": {"type": "string", "minLength": 1, "description": about}, **schema.pop("properties")}
    complete = {
        "required": [key for key in schema.pop("required") if key != "name"],
        "properties": {key: {"required": names} for key, names in needed.items()},
    }
    partial = {"anyOf": [{"required": [key]} for key in ("base", "matrix", "search")]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": properties,
        "if": partial,
        "else": complete,
    }


def _add_installed_tasks(choices: list[dict[str, Any]], definitions: dict[str, Any]) -> None:
    for settings in dict.fromkeys(INSTALLED_TASKS.classes().values()):
        definition = settings.model_json_schema()
        definitions.update(definition.pop("$defs", {}))
        name = (
            settings.__name__ if settings.__name__ not in definitions else f"{settings.__module__}.{settings.__name__}"
        )
        definitions[name] = {**definition, "required": [key for key in definition["required"] if key != "type"]}
        choices.append({"$ref": f"#/$defs/{name}"})


def _class_name(key: str) -> str:
    return sections()[(key,)][0].__name__


def _with_shorthand(schema: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """`optimizer: sgd` beside `optimizer: {name: sgd, ...}`."""
    notes: dict[str, Any] = {key: schema[key] for key in ("description", "default") if key in schema}
    return {**notes, "anyOf": [{"enum": names}, *_alternatives(schema)]}


def _alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the members of nested unions, side by side."""
    if "$ref" in schema:
        return [{"$ref": schema["$ref"]}]
    members = schema.get("anyOf") or schema.get("oneOf")
    return [leaf for member in members for leaf in _alternatives(member)] if members else [schema]
