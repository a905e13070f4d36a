"""What the schema says about itself: sections, their keys, and the choices at a key path."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tasks import INSTALLED_TASKS
from sft_dist.recipe.tasks.installed import InstalledTasks
from sft_dist.recipe.yaml_lines import KeyPath


def keys_of(section: type[BaseModel]) -> tuple[str, ...]:
    """Returns the keys of a section."""
    return tuple(section.model_fields)


def type_of(field: FieldInfo) -> Any:
    """Returns a field's annotation with the metadata that pydantic took off it."""
    annotation: Any = field.annotation
    for note in field.metadata:
        annotation = Annotated[annotation, note]
    return annotation


@cache
def members_of(annotation: Any) -> tuple[Any, ...]:
    """Returns the types of a value: the members of a union without None and nesting; else the type itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        members = members_of(get_args(annotation)[0])
        return members if len(members) > 1 or is_section(members[0]) else (annotation,)
    if origin in (Union, types.UnionType):
        return tuple(
            member for outer in get_args(annotation) if outer is not type(None) for member in members_of(outer)
        )
    return (annotation,)


def is_section(annotation: Any) -> bool:
    """Whether this is a section of a recipe."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def tag_name(section: type[BaseModel]) -> str | None:
    """Returns the key that names a choice: its first field when that is a required literal (`method`, `name`, `type`)."""
    name, field = next(iter(section.model_fields.items()))
    return name if get_origin(field.annotation) is Literal and field.is_required() else None


def tags_of(section: type[BaseModel]) -> tuple[str, ...]:
    """Returns the values of the key that names a choice."""
    name = tag_name(section)
    return get_args(section.model_fields[name].annotation) if name else ()


def notes_of(annotation: Any) -> Iterator[Any]:
    """Yields all metadata in an annotation, that of optional values too."""
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        yield from notes
        yield from notes_of(inner)
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from notes_of(member)


def choice_of(annotation: Any, tag: str) -> type[BaseModel] | None:
    """Returns the section that a tag chooses, also one that an installed package provides."""
    if members := [member for member in members_of(annotation) if is_section(member) and tag in tags_of(member)]:
        chosen: type[BaseModel] = members[0]
        return chosen
    openings = [note for note in notes_of(annotation) if isinstance(note, InstalledTasks)]
    return openings[0].settings_of(tag) if openings else None


def choices_of(annotation: Any) -> tuple[str, ...]:
    """Returns the tags of all choices, also of those that installed packages provide. Imports none of these."""
    builtin = [tag for member in members_of(annotation) if is_section(member) for tag in tags_of(member)]
    openings = [note for note in notes_of(annotation) if isinstance(note, InstalledTasks)]
    return (*builtin, *(name for opening in openings for name in opening.names()))


def bare(annotation: Any) -> Any:
    """Returns the type without Annotated."""
    return bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


@cache
def sections(root: type[BaseModel] = Recipe, installed: bool = False) -> dict[KeyPath, tuple[type[BaseModel], ...]]:
    """Returns key path -> the section there, or all the choices; with `installed`, the tasks of installed packages too."""
    by_path: dict[KeyPath, tuple[type[BaseModel], ...]] = {}

    def visit(path: KeyPath, classes: tuple[type[BaseModel], ...]) -> None:
        by_path[path] = classes
        for section in classes:
            for key, info in section.model_fields.items():
                inner = tuple(member for member in members_of(type_of(info)) if is_section(member))
                if installed and any(note is INSTALLED_TASKS for note in info.metadata):
                    inner = (*inner, *dict.fromkeys(INSTALLED_TASKS.classes().values()))
                if inner:
                    visit((*path, key), inner)

    visit((), (root,))
    return by_path
