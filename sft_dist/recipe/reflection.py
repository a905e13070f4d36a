"""What the schema says about itself: sections, their keys, and the choices at a key path."""

from __future__ import annotations

import types
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.yaml_lines import KeyPath


def keys_of(section: type[BaseModel]) -> tuple[str, ...]:
    return tuple(section.model_fields)


def type_of(field: FieldInfo) -> Any:
    """A field's annotation with the metadata pydantic took off it."""
    noted: Any = field.annotation
    for note in field.metadata:
        noted = Annotated[noted, note]
    return noted


@cache
def members_of(annotation: Any) -> tuple[Any, ...]:
    """What a value may be: the members of a union without None and without nesting; else the type itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        members = members_of(get_args(annotation)[0])
        return members if len(members) > 1 or is_section(members[0]) else (annotation,)
    if origin in (Union, types.UnionType):
        return tuple(one for part in get_args(annotation) if part is not type(None) for one in members_of(part))
    return (annotation,)


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def tag_name(section: type[BaseModel]) -> str | None:
    """The key that names a choice: its first field when that is a required literal (`method`, `name`, `type`)."""
    name, field = next(iter(section.model_fields.items()))
    return name if get_origin(field.annotation) is Literal and field.is_required() else None


def tags_of(section: type[BaseModel]) -> tuple[str, ...]:
    name = tag_name(section)
    return get_args(section.model_fields[name].annotation) if name else ()


def bare(annotation: Any) -> Any:
    """The type without Annotated."""
    return bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


@cache
def sections(root: type[BaseModel] = Recipe) -> dict[KeyPath, tuple[type[BaseModel], ...]]:
    """Key path -> the section there, or all the choices."""
    found: dict[KeyPath, tuple[type[BaseModel], ...]] = {}

    def visit(path: KeyPath, classes: tuple[type[BaseModel], ...]) -> None:
        found[path] = classes
        for one in classes:
            for key, info in one.model_fields.items():
                inner = tuple(member for member in members_of(type_of(info)) if is_section(member))
                if inner:
                    visit((*path, key), inner)

    visit((), (root,))
    return found
