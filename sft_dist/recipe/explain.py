"""Turns pydantic's errors into problems of a recipe: key path, place, value, what is valid, and what was probably meant.

Works from the schema's own types, so a new section or choice needs nothing here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sft_dist.recipe.errors import Problem
from sft_dist.recipe.reflection import (
    bare,
    choice_of,
    choices_of,
    is_section,
    keys_of,
    members_of,
    notes_of,
    sections,
    tag_name,
    tags_of,
    type_of,
)
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.source import RECIPE, Source
from sft_dist.recipe.suggest import similar_to
from sft_dist.recipe.yaml_lines import KeyPath
from sft_dist.recipe.yaml_values import parse_scalar, to_yaml

MOST_SHOWN = 60
_QUOTED = re.compile(r"`(\w+)`")


@dataclass(frozen=True)
class _Spot:
    """Where in the schema an error lies."""

    path: KeyPath  # without the names of union members
    type: Any  # the annotation there; None where the schema knows nothing
    unknown: str | None = None  # the key that the section does not have
    section: type[BaseModel] | None = None  # the section around it
    union: KeyPath | None = None  # path of the first union on the way, whose members each report errors
    tag: str = ""  # the last choice on the way, such as `lora`


def problems_from(
    error: ValidationError, source: Source, remap: Callable[[KeyPath], KeyPath] | None = None
) -> list[Problem]:
    """Returns every problem, in the order of the file. `remap` says where a key path's value was written (the matrix)."""
    moved = remap or (lambda path: path)
    by_path: dict[KeyPath, list[tuple[_Spot, ErrorDetails]]] = {}
    for details in error.errors(include_url=False):
        spot = _locate(details["loc"], details["type"], source.schema.root)
        by_path.setdefault(spot.path if spot.union is None else spot.union, []).append((spot, details))
    problems = []
    for reports in by_path.values():
        for group in _deepest(reports):
            problems.append(_problem(group, source, moved))
    return sorted(problems, key=lambda problem: (problem.mark.line, problem.mark.column) if problem.mark else (0, 0))


# Values for required settings that are wrong or missing, so that the other settings can still be checked.
STAND_INS: dict[KeyPath, Any] = {
    ("model",): {"path": "stand/in"},
    ("model", "path"): "stand/in",
    ("data",): {"source": "stand/in"},
    ("data", "source"): "stand/in",
    ("train",): {"lr": 1.0},
    ("train", "lr"): 1.0,
    ("name",): "stand-in",
}
TAGS = ("type", "method", "name", "problem")


def without_wrong_values(data: dict[str, Any], error: ValidationError) -> Recipe | None:
    """Returns the recipe without its wrong values, so that the others can be checked; None if too much would be a guess."""
    remaining = copy.deepcopy(data)
    for _ in range(3):  # without a required value it is missing, and is then replaced by a stand-in
        for details in error.errors(include_url=False):
            path = _locate(details["loc"], details["type"], Recipe).path
            if details["type"] == "missing" and path in STAND_INS:
                _put(remaining, path, STAND_INS[path])
            elif len(path) < 2 or path[-1] in TAGS or path[0] in ("matrix", "search") or not _take_out(remaining, path):
                return None
        try:
            return Recipe.model_validate(remaining)
        except ValidationError as next_error:
            error = next_error
    return None


def _put(data: dict[str, Any], path: KeyPath, value: Any) -> None:
    *parents, last = path
    for key in parents:
        data = data[str(key)]
    data[str(last)] = value


def _take_out(data: Any, path: KeyPath) -> bool:
    """Remove the value at a path, or the list it stands in. False when there is no such value."""
    for key in path[:-1]:
        if not isinstance(data, dict) or key not in data:
            return False
        if isinstance(data[key], list):
            return data.pop(key) is not None
        data = data[key]
    return isinstance(data, dict) and data.pop(path[-1], data) is not data


# ── from pydantic's loc to a key path ───────────────────────────────────────────────────────────────────────────────
def _locate(loc: tuple[int | str, ...], kind: str, root: type[BaseModel]) -> _Spot:
    """Follows `loc` through the schema, without the names of the union members that pydantic tried."""
    annotation: Any = root
    path: list[Any] = []
    section: type[BaseModel] | None = None
    union: KeyPath | None = None
    tag = ""
    steps = list(loc)
    while steps:
        members = members_of(annotation)
        sections = [member for member in members if is_section(member)]
        if len(members) > 1:
            member_name = str(steps.pop(0))
            if len(sections) == len(members):  # a choice: the tag names it
                tag = member_name
                annotation = choice_of(annotation, tag)
            else:
                union = tuple(path) if union is None else union
                annotation = next((member for member in members if _is_tag_of(member_name, member)), None)
            continue
        step = steps.pop(0)
        annotation = members[0] if members else None
        if is_section(annotation):
            section = annotation
            path.append(step)
            if kind == "extra_forbidden" and not steps:
                return _Spot(tuple(path), None, str(step), section, union, tag)
            field = annotation.model_fields.get(str(step))
            annotation = type_of(field) if field else Any
        elif get_origin(bare(annotation)) in (list, dict):
            path.append(step)
            annotation = get_args(bare(annotation))[-1]
        elif annotation is Any or annotation is None:
            path.append(step)
    return _Spot(tuple(path), annotation, None, section, union, tag)


def _is_tag_of(tag: str, member: Any) -> bool:
    """Whether pydantic's name of a union member (`list[str]`, `constrained-int`) means this member."""
    kind = bare(member)
    if get_origin(kind) is Literal:
        return tag.startswith("literal")
    if get_origin(kind) in (list, dict):
        return tag.startswith(get_origin(kind).__name__)
    name = str(getattr(kind, "__name__", kind))
    return tag in (name, f"constrained-{name}")


def _deepest(reports: list[tuple[_Spot, ErrorDetails]]) -> list[list[tuple[_Spot, ErrorDetails]]]:
    """Groups reports to one problem each. Of a union's members, the one that accepted the value's shape counts."""
    inside = [
        report for report in reports if report[0].union is not None and len(report[0].path) > len(report[0].union)
    ]
    groups: dict[KeyPath, list[tuple[_Spot, ErrorDetails]]] = {}
    for report in inside or reports:
        groups.setdefault(report[0].path, []).append(report)
    return list(groups.values())


# ── one problem ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _problem(group: list[tuple[_Spot, ErrorDetails]], source: Source, moved: Callable[[KeyPath], KeyPath]) -> Problem:
    spot, details = group[0]
    kind, value = details["type"], details["input"]
    if spot.unknown is not None:
        return _unknown_key(spot, source, moved)
    path = spot.path
    if kind == "missing":
        return _missing(spot, source, moved)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _choice(spot, details, source, moved)
    if spot.section and path and path[-1] == tag_name(spot.section) and moved(path) not in source.values:
        path = path[:-1]  # `task: text-clasification` is where the user wrote the type
    message, valid, hint = _wrong_value(group)
    if kind == "value_error" and isinstance(value, dict):
        named = [key for key in _QUOTED.findall(message) if key in value]  # a rule between settings names the culprit
        path, value = ((*path, named[0]), value[named[0]]) if named else (path, value)
    written_path = moved(path)
    if path == ("name",) and written_path not in source.values:
        hint = "without `name:` it is the file's name"
    return Problem(
        message,
        _dotted(path),
        mark=source.mark(written_path),
        value=_value_as_written(value, written_path, source),
        valid=valid,
        hint=hint,
    )


def _unknown_key(spot: _Spot, source: Source, moved: Callable[[KeyPath], KeyPath]) -> Problem:
    assert spot.section is not None
    assert spot.unknown is not None
    key, valid, schema = spot.unknown, keys_of(spot.section), source.schema
    written_path = moved(spot.path)
    while written_path and isinstance(written_path[-1], int):
        written_path = written_path[:-1]  # a key of the matrix: reported once, not for each of its values
    mark = source.keys.get(written_path) or source.mark(written_path)
    if owners := _owners(spot, key, schema.root):
        tag = tag_name(spot.section)
        names = " or ".join(f"`{name}`" for name in owners)
        message = f"`{key}` belongs to {' '.join(map(str, spot.path[:-1]))} {tag} {names}; this {schema.noun} says `{spot.tag}`"
        return Problem(
            message, _dotted(spot.path), mark=mark, valid=valid, hint=f"remove it, or write {tag}: {owners[0]}"
        )
    hint = similar_to(key, valid) if key not in schema.other_names else ""
    if "." in key and schema is RECIPE:
        hint = f"key paths are for the command line; in a file: {key.replace('.', ': {')}: ...{'}' * key.count('.')}"
    if not hint:
        elsewhere = [schema.other_names[key]] if key in schema.other_names else list(_elsewhere(key, schema.root))
        hint = f"did you mean {' or '.join(f'`{path}`' for path in elsewhere[:3])}?" if elsewhere else ""
    section = f"in {_dotted(spot.path[:-1])}" if len(spot.path) > 1 else f"at the top of a {schema.noun}"
    return Problem(f"unknown key `{_cut(key)}` {section}", _dotted(spot.path), mark=mark, valid=valid, hint=hint)


def _owners(spot: _Spot, key: str, root: type[BaseModel]) -> list[str]:
    """Returns the other choices at this key path that have the key."""
    siblings = next((group for group in _choices(root) if spot.section in group), ())
    if not siblings and spot.tag:  # an installed task
        siblings = sections(root).get(spot.path[:-1], ())
    return [tag for sibling in siblings if key in sibling.model_fields for tag in tags_of(sibling)]


def _missing(spot: _Spot, source: Source, moved: Callable[[KeyPath], KeyPath]) -> Problem:
    key = str(spot.path[-1])
    field = spot.section.model_fields[key] if spot.section and key in spot.section.model_fields else None
    about = field.description if field and field.description else ""
    mark = source.mark(moved(spot.path[:-1]))
    return Problem(f"`{key}` is missing", _dotted(spot.path), mark=mark, hint=f"{key}: {about}" if about else "")


def _choice(spot: _Spot, details: ErrorDetails, source: Source, moved: Callable[[KeyPath], KeyPath]) -> Problem:
    """Returns the problem of a choice whose tag is missing or unknown."""
    sections = [member for member in members_of(spot.type) if is_section(member)]
    tag = tag_name(sections[0]) or ""
    valid = choices_of(spot.type)
    if details["type"] == "union_tag_not_found":
        similar = [key for key in details["input"] if isinstance(key, str) and similar_to(key, [tag])]
        hint = f"did you mean `{tag}` by `{_cut(similar[0])}`?" if similar else f"such as {tag}: {valid[0]}"
        return Problem(
            f"`{tag}` is missing", _dotted(spot.path), mark=source.mark(moved(spot.path)), valid=valid, hint=hint
        )
    longer = (*spot.path, tag)
    path = longer if moved(longer) in source.values else spot.path
    value = details["input"][tag]
    hint = similar_to(value, valid) if isinstance(value, str) else ""
    written_path = moved(path)
    return Problem(
        f"no such {tag}",
        _dotted(path),
        mark=source.mark(written_path),
        value=_value_as_written(value, written_path, source),
        valid=valid,
        hint=hint,
    )


# ── wrong values ────────────────────────────────────────────────────────────────────────────────────────────────────
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping (`key: value`)",
    "model_type": "a mapping (`key: value`)",
    "model_attributes_type": "a name, or a mapping (`key: value`)",
    "finite_number": "a finite number",
    "int_parsing_size": "a smaller number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "text that is not empty",
    "string_too_long": "at most {max_length} characters",
    "too_long": "at most {max_length} values, not {actual_length}",
    "string_pattern_mismatch": "a name of letters, digits, `.`, `_` and `-`, at most 64, that begins with a letter or digit",
    "string_unicode": "text without broken characters",
    "invalid_key": "text as a key",
}
_TYPE_ERRORS = {"int_type", "int_from_float", "float_type", "bool_type", "string_type", "list_type", "dict_type"} | {
    "model_type",
    "model_attributes_type",
}


def _wrong_value(group: list[tuple[_Spot, ErrorDetails]]) -> tuple[str, tuple[str, ...], str]:
    """(message, valid choices, hint) for a value that no member of its type accepts."""
    spot, details = group[0]
    value = details["input"]
    own = _own_words(spot, details)
    if own:
        return own, (), ""
    valid = tuple(
        name for member, report in group if report["type"] == "literal_error" for name in _literals(member.type)
    )
    expected = list(dict.fromkeys(filter(None, (_expected(report) for _, report in group))))
    if is_section(bare(spot.type)) and tag_name(spot.type) and expected == [_EXPECTED["model_type"]]:
        expected = [_EXPECTED["model_attributes_type"]]  # `task: text-classification` will do
    if "a number" in expected:
        expected = [name for name in expected if name != "a whole number"]
    hint = similar_to(value, valid) if isinstance(value, str) else ""
    if isinstance(value, bool) and len(valid) > 1:
        hint = ""
    holds_mappings = get_origin(bare(spot.type)) is list and get_origin(bare(get_args(bare(spot.type))[0])) is dict
    hint = hint or _hint({report["type"] for _, report in group}, value, holds_mappings)
    if valid and not expected:
        return "not one of the choices", valid, hint
    alternatives = [*expected, *(f"`{name}`" for name in valid)]
    joined = alternatives[0] if len(alternatives) == 1 else f"{', '.join(alternatives[:-1])} or {alternatives[-1]}"
    types_only = all(report["type"] in _TYPE_ERRORS | {"literal_error"} for _, report in group)
    actual = f", found {_kind_of(value)}" if types_only and not (valid and isinstance(value, str)) else ""
    return f"expected {joined}{actual}", valid if len(valid) > 1 else (), hint


def _own_words(spot: _Spot, details: ErrorDetails) -> str:
    """The schema's own message: a check's ValueError, also for a number without its unit (`warmup: 100`)."""
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    if details["type"] == "string_type" and isinstance(details["input"], (int, float)) and spot.union is None:
        for note in notes_of(spot.type):
            if isinstance(note, AfterValidator):
                try:
                    note.func(str(details["input"]))  # type: ignore[call-arg]
                except ValueError as error:
                    return str(error)
    return ""


def _expected(details: ErrorDetails) -> str:
    kind = details["type"]
    if kind == "literal_error":
        return ""
    if kind == "too_short":
        length = details["ctx"]["min_length"]
        return "at least one value" if length == 1 else f"{length} values"
    if kind in _EXPECTED:
        return _EXPECTED[kind].format(**{key: _format_number(value) for key, value in details.get("ctx", {}).items()})
    return details["msg"].removeprefix("Input should be ")


def _format_number(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def _literals(annotation: Any) -> tuple[str, ...]:
    return tuple(
        str(name)
        for member in members_of(annotation)
        if get_origin(bare(member)) is Literal
        for name in get_args(bare(member))
    )


def _hint(kinds: set[str], value: Any, holds_mappings: bool) -> str:
    """Returns what to write instead, if that is clear."""
    number = bool(kinds & {"int_type", "int_from_float", "float_type"})
    if number and isinstance(value, str):
        return _number_hint(value, only_int="float_type" not in kinds)
    if number and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"write {int(value)}"
    if "bool_type" in kinds and str(value).lower() in ("yes", "on", "y", "1", "true"):
        return "write true"
    if "bool_type" in kinds and str(value).lower() in ("no", "off", "n", "0", "false"):
        return "write false"
    if kinds == {"list_type"} and isinstance(value, (str, int, float)) and not holds_mappings:
        return f"write [{_cut(to_yaml(value))}]"
    if "string_type" in kinds and isinstance(value, (bool, int, float)):
        return f'to have it as text, put it in quotes: "{to_yaml(value)}"'
    if value is None:
        return "give it a value, or remove the line"
    return ""


def _number_hint(text: str, only_int: bool) -> str:
    stripped = text.strip().replace("_", "").replace(",", "")
    if stripped.endswith("%"):
        share = parse_scalar(stripped[:-1].strip() or "~")
        return f"write {share / 100:g}" if isinstance(share, (int, float)) and not only_int else ""
    number = parse_scalar(stripped.lstrip("0") or "0") if stripped else None
    if isinstance(number, int) or (isinstance(number, float) and not only_int):
        quoted = stripped == text and parse_scalar(text) != text
        return f"write {to_yaml(number)}, without quotes" if quoted else f"write {to_yaml(number)}"
    return ""


def _kind_of(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true/false"
    for type_, name in (
        (int, "a whole number"),
        (float, "a number"),
        (str, "text"),
        (list, "a list"),
        (dict, "a mapping"),
    ):
        if isinstance(value, type_):
            return name
    return "something else"


def _value_as_written(value: Any, path: KeyPath, source: Source) -> str:
    if value is None:
        return source.texts.get(path) or "nothing after the `:`"
    return _cut(source.texts.get(path, to_yaml(value)))


# ── what the schema knows ───────────────────────────────────────────────────────────────────────────────────────────


def _choices(root: type[BaseModel]) -> Iterable[tuple[type[BaseModel], ...]]:
    return [classes for classes in sections(root).values() if len(classes) > 1]


def _elsewhere(key: str, root: type[BaseModel]) -> Iterator[str]:
    """Key paths of settings with this very name."""
    for path, classes in sections(root).items():
        if path and any(key in section.model_fields for section in classes):
            yield _dotted((*path, key))


def _dotted(path: KeyPath) -> str:
    return ".".join(_cut(str(key)) for key in path)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."
