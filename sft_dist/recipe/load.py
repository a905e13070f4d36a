"""From a YAML file and command-line overrides to a validated recipe, or to every mistake in it with its place.

    read      base files merged in, overrides applied, local paths made absolute -> Source
    validate  Source -> Recipe

Both raise UserError only. `explain.py` words what pydantic reports.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sft_dist.recipe.checks import cross_checks
from sft_dist.recipe.errors import Mark, Problem, UserError
from sft_dist.recipe.explain import problems_from, without_wrong_values
from sft_dist.recipe.files import shipped
from sft_dist.recipe.lm_eval import is_task_file
from sft_dist.recipe.references import absolute
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.source import Base, Source, display_name
from sft_dist.recipe.suggest import neighbours_of, similar_to
from sft_dist.recipe.yaml_lines import Document, KeyPath, parse_yaml, read_yaml
from sft_dist.recipe.yaml_values import parse_scalar

MOST_PROBLEMS = 50
MOST_PARENTS = 10

# Mappings in which one key names a choice; `tuning: lora` is short for `tuning: {method: lora}`.
CHOICES: dict[KeyPath, str] = {
    ("task",): "type",
    ("tuning",): "method",
    ("train", "loss"): "name",
    ("train", "optimizer"): "name",
    ("train", "schedule"): "name",
    ("train", "strategy"): "name",
    ("search", "pruning"): "name",
}
# Mappings whose keys are key paths themselves.
KEYED_BY_PATH: tuple[KeyPath, ...] = (("matrix",), ("search", "space"))
# Settings that exclude each other: one that is given replaces the other where the parent recipe gave it.
RIVALS = ((("train", "epochs"), ("train", "steps")),)
# These say which file it is, so a recipe does not take them from its parent.
OWN = ("name", "description")


def load(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe. Raises UserError with every problem."""
    return validate(read(path, overrides))


def validate(source: Source) -> Recipe:
    """Returns the recipe. Raises UserError with every problem of single settings and between settings."""
    problems: list[Problem] = []
    try:
        recipe = Recipe.model_validate(source.data)
    except ValidationError as error:
        problems = problems_from(error, source)
        if (valid_recipe := without_wrong_values(source.data, error)) is None:
            raise UserError(_shortened(problems)) from None
        recipe = valid_recipe
    for problem in cross_checks(recipe):
        mark = problem.mark or source.mark(tuple(problem.path.split(".")))
        problems.append(replace(problem, mark=mark))
    if problems:
        raise UserError(_shortened(problems))
    return recipe


def read(path: Path | str, overrides: Sequence[str] = ()) -> Source:
    """Reads the recipe in a file (or a shipped one, by its name), merged with its base files and overrides. Raises UserError."""
    file = _find(Path(path), None)
    source = _with_parents(file, [], None)
    data = {"name": file.stem, **source.data}
    data.pop("base", None)
    source = replace(source, data=data, file=file)
    return _overridden(source, overrides) if overrides else source


# ── files and their parents ─────────────────────────────────────────────────────────────────────────────────────────
def _with_parents(file: Path, children: list[Path], named_at: Mark | None) -> Source:
    """The file merged over its `base`, its base's base, and so on."""
    resolved = file.resolve()
    if resolved in children:
        circle = " -> ".join(path.name for path in [*children[children.index(resolved) :], resolved])
        raise UserError(Problem(f"circular base: {circle}", "base", mark=named_at))
    if len(children) > MOST_PARENTS:
        raise UserError(Problem(f"more than {MOST_PARENTS} base files in a chain", "base", mark=named_at))
    document = read_yaml(file, display_name(file))
    own = _source_of(document, file)
    if "base" not in own.data:
        return own
    base, mark = own.data["base"], own.mark(("base",))
    if not isinstance(base, str) or not base:
        raise UserError(
            Problem(
                "expected one file",
                "base",
                mark=mark,
                value=None if base is None else str(base),
                hint="such as base: ../common.yaml",
            )
        )
    parent = _with_parents(_find(file.parent / base, mark, base), [*children, resolved], mark)
    inherited = {key: value for key, value in parent.data.items() if key not in OWN}
    return replace(_merged(replace(parent, data=inherited), own), base=Base(base, inherited))


def _source_of(document: Document, file: Path) -> Source:
    data = dict(document.data)
    _make_absolute(data, file.parent)
    return Source(data, file, document.keys, document.values, document.texts)


def _find(path: Path, named_at: Mark | None, text: str | None = None) -> Path:
    """The file itself, or the shipped recipe of this name when there is no such file. Raises UserError."""
    text = str(path) if text is None else text
    try:
        if path.exists() or os.path.isabs(text):
            return path
        parts = Path(text).parts
        parts = parts[1:] if parts[:1] == ("recipes",) else parts
        root = shipped("recipes")
        if parts and ".." not in parts:
            for name in (root.joinpath(*parts), root.joinpath(*parts).with_name(f"{parts[-1]}.yaml")):
                if name.exists():
                    return name
        recipes = [str(recipe.relative_to(root.parent)) for recipe in sorted(root.rglob("*.yaml"))]
    except (OSError, ValueError) as error:
        raise UserError(
            Problem(f"no such file: {error}", "base" if named_at else "", mark=named_at, value=text)
        ) from None
    hint = neighbours_of(path)
    if not hint.startswith("did you"):
        hint = similar_to(text, recipes) or hint
    if named_at:
        raise UserError(Problem("no such file", "base", mark=named_at, value=text, hint=hint))
    raise UserError(Problem("no such file", mark=Mark(text), hint=hint))


# ── merging ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def _merged(parent: Source, child: Source) -> Source:
    """The child laid over the parent: mappings merge key by key, all else is replaced, and so is a choice that changes."""
    replaced: list[KeyPath] = []
    data = _merge(parent.data, child.data, (), replaced)
    for winner, rival in (pair[::direction] for pair in RIVALS for direction in (1, -1)):
        if _at(child.data, winner) is not None and _at(child.data, rival) is None and _at(data, rival) is not None:
            del _at(data, rival[:-1])[rival[-1]]
            replaced.append(rival)

    def without_replaced(values: dict[KeyPath, Any]) -> dict[KeyPath, Any]:
        return {path: value for path, value in values.items() if not any(path[: len(r)] == r for r in replaced)}

    return Source(
        data,
        child.file,
        {**without_replaced(parent.keys), **child.keys},
        {**without_replaced(parent.values), **child.values},
        {**without_replaced(parent.texts), **child.texts},
        base=parent.base,
    )


def changes_of_base(source: Source) -> dict[str, list[Any]]:
    """Returns key path -> its value in the parent and in the recipe, as they are written, where these differ; null where one of
    them does not have it. Without a parent there is none."""
    if source.base is None:
        return {}
    parent, own = (dict(_leaves(data)) for data in (source.base.data, source.data))
    keys = [key for key in {**parent, **own} if key not in OWN and not key.startswith("matrix")]
    return {key: [parent.get(key), own.get(key)] for key in keys if parent.get(key) != own.get(key)}


def _leaves(data: dict[str, Any], path: KeyPath = ()) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        key_path = (*path, key)
        tag = CHOICES.get(key_path)
        inner = {tag: value} if tag and isinstance(value, str) else value
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, key_path)
        else:
            yield ".".join(key_path), inner


def _merge(old: dict[str, Any], new: dict[str, Any], path: KeyPath, replaced: list[KeyPath]) -> dict[str, Any]:
    data = dict(old)
    for key, value in new.items():
        key_path = (*path, key)
        before = data.get(key)
        tag = CHOICES.get(key_path)
        if tag and isinstance(before, str) and isinstance(value, dict):
            before = {tag: before}
        changes_choice = tag and isinstance(value, dict) and isinstance(before, dict) and _differs(before, value, tag)
        replaces = changes_choice or path in KEYED_BY_PATH
        if isinstance(before, dict) and isinstance(value, dict) and not replaces:
            data[key] = _merge(before, value, key_path, replaced)
        else:
            if key in data:
                replaced.append(key_path)
            data[key] = value
    return data


def _differs(before: dict[str, Any], value: dict[str, Any], tag: str) -> bool:
    return tag in value and value[tag] != before.get(tag)


def _at(data: Any, path: KeyPath) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


# ── overrides ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _overridden(source: Source, overrides: Sequence[str]) -> Source:
    """`train.lr=1e-4` and the like laid over the recipe, as a child file would be. Raises UserError."""
    problems: list[Problem] = []
    layer = Source({}, source.file)
    by_path: dict[KeyPath, Document] = {}
    for text in overrides:
        mark = Mark(f"command line: {_cut(text)}")
        try:
            path, document = _parse_override(text, mark)
        except UserError as error:
            problems += [replace(problem, mark=mark) for problem in error.problems]
            continue
        if path == ("base",):
            problems.append(Problem("`base` can only be written in a file", "base", mark=mark))
        elif path in by_path:
            problems.append(Problem("given twice", ".".join(path), mark=mark))
        elif path[0] != "matrix" and _varies(source.data, path):
            name = ".".join(path)
            hint = f"to replace the list: matrix.{name}=[...]; to have one run: matrix=null {name}=..."
            problems.append(Problem("has no effect: the matrix sets it", name, mark=mark, hint=hint))
        else:
            by_path[path] = document
    for path in sorted(
        by_path, key=len
    ):  # `tuning=lora` comes before `tuning.r=8`, in whatever order they were written
        _lay(layer, path, by_path[path], problems)
    if problems:
        raise UserError(_shortened(problems))
    _make_absolute(layer.data, Path.cwd())
    return _merged(source, layer)


def _parse_override(text: str, mark: Mark) -> tuple[tuple[str, ...], Document]:
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name:
        raise UserError(Problem("expected KEY=VALUE", mark=mark, hint="such as train.lr=1e-4"))
    path = tuple(name.split("."))
    for section in KEYED_BY_PATH:
        if path[: len(section)] == section and len(path) > len(section) + 1:
            path = (*section, ".".join(path[len(section) :]))
    if not all(path):
        raise UserError(Problem("expected a key path such as train.lr", mark=mark, value=name))
    if value[:1] in ("[", "{", '"', "'"):
        return path, parse_yaml(value, str(mark))
    if not value.isprintable():
        raise UserError(Problem("a control character in the value", mark=mark))
    return path, Document(parse_scalar(value), {}, {(): mark}, {(): value})


def _varies(data: dict[str, Any], path: KeyPath) -> bool:
    """Whether the recipe's matrix sets this key path, in its grid or in a group."""
    matrix = data.get("matrix")
    if not isinstance(matrix, dict):
        return False
    groups = matrix.get("zip")
    keys = [
        key
        for group in (matrix, *(groups if isinstance(groups, list) else ()))
        if isinstance(group, dict)
        for key in group
    ]
    return ".".join(path) in keys


def _lay(layer: Source, path: KeyPath, document: Document, problems: list[Problem]) -> None:
    """Puts an override's value into the layer, with the command line as its place."""
    mark = replace(document.values[()], line=0, column=0)
    section = layer.data
    for depth, key in enumerate(path[:-1], start=1):
        tag = CHOICES.get(path[:depth])
        if tag and isinstance(section.get(key), str):
            section[key] = {tag: section[key]}
        inner = section.setdefault(key, {})
        if not isinstance(inner, dict):
            problems.append(
                Problem(f"`{'.'.join(path[:depth])}` is also set, and is not a mapping", ".".join(path), mark=mark)
            )
            return
        section = inner
        layer.keys.setdefault(path[:depth], mark)
        layer.values.setdefault(path[:depth], mark)
    section[path[-1]] = document.data
    layer.keys[path] = mark
    for inner_path in (*document.keys, *document.values):
        layer.values[(*path, *inner_path)] = mark
        layer.keys[(*path, *inner_path)] = mark
    for inner_path, text in document.texts.items():
        layer.texts[(*path, *inner_path)] = text


# ── local paths ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _make_absolute(data: dict[str, Any], folder: Path) -> None:
    """Local paths relative to `folder` become absolute, those in the matrix too. Changes `data`."""
    folder = Path(os.path.abspath(folder))
    for path in (("model", "path"), ("model", "tokenizer"), ("data", "source"), ("task", "chat_template")):
        section = data.get(path[0])
        if isinstance(section, dict) and path[1] in section:
            value = section[path[1]]
            if path == ("task", "chat_template") and isinstance(value, str):  # always a file, never a hub id
                data["task"] = {**section, "chat_template": os.path.abspath(folder / os.path.expanduser(value))}
            else:
                data[path[0]] = {**section, path[1]: _absolute(value, folder)}
    evaluate = data.get("evaluate")
    if isinstance(evaluate, dict) and isinstance(settings := evaluate.get("lm_eval"), dict):
        data["evaluate"] = {**evaluate, "lm_eval": _absolute_task_files(settings, folder)}
    if isinstance(matrix := data.get("matrix"), dict):
        data["matrix"] = _absolute_matrix(matrix, folder)
    if isinstance(search := data.get("search"), dict) and isinstance(space := search.get("space"), dict):
        data["search"] = {**search, "space": _absolute_space(space, folder)}


def _absolute_space(space: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the space with the choices of each dimension treated as the values of a matrix."""
    choices = {key: value["choice"] for key, value in space.items() if isinstance(value, dict) and "choice" in value}
    return {
        **space,
        **{key: {**space[key], "choice": choice} for key, choice in _absolute_matrix(choices, folder).items()},
    }


def _absolute_task_files(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Names of tasks stay; files of tasks and the folder with further ones become absolute."""
    changed = dict(settings)
    if isinstance(path := settings.get("include_path"), str):
        changed["include_path"] = os.path.abspath(folder / os.path.expanduser(path))
    if isinstance(tasks := settings.get("tasks"), list):
        changed["tasks"] = [
            os.path.abspath(folder / os.path.expanduser(task)) if isinstance(task, str) and is_task_file(task) else task
            for task in tasks
        ]
    return changed


def _absolute_matrix(matrix: dict[str, Any], folder: Path) -> dict[str, Any]:
    changed = dict(matrix)
    for key, values in matrix.items():
        if key == "zip" and isinstance(values, list):
            changed[key] = [_absolute_matrix(group, folder) if isinstance(group, dict) else group for group in values]
        elif key in ("model.path", "model.tokenizer") or str(key).startswith("data.source"):
            changed[key] = _absolute(values, folder)
        elif key in ("model", "data") and isinstance(values, list):
            changed[key] = [
                dict(_sections(key, value, folder)) if isinstance(value, dict) else value for value in values
            ]
    return changed


def _sections(key: str, value: dict[str, Any], folder: Path) -> Iterable[tuple[str, Any]]:
    data = {key: value}
    _make_absolute(data, folder)
    return data[key].items()


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return absolute(value, folder) if value else value
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    if isinstance(value, dict):
        return {key: _absolute(item, folder) for key, item in value.items()}
    return value


# ── small things ────────────────────────────────────────────────────────────────────────────────────────────────────
def _shortened(problems: Sequence[Problem]) -> list[Problem]:
    if len(problems) <= MOST_PROBLEMS:
        return list(problems)
    return [*problems[:MOST_PROBLEMS], Problem(f"and {len(problems) - MOST_PROBLEMS:,} more problems")]


def _cut(text: str, max_length: int = 60) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 3]}..."
