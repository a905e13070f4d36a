"""Tasks of other installed packages: how the `task` section of a recipe reaches them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import GetCoreSchemaHandler, GetPydanticSchema, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from sft_dist.recipe.entry_points import TASKS_GROUP, installed_names, invalid, load_object
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.tasks.base import MEDIA_KINDS, TaskSettings

log = logging.getLogger("sft_dist")

FACTS = ("work", "columns", "kinds", "starters")


@dataclass(frozen=True)
class InstalledTasks:
    """Annotation of the `task` section: opens the union of built-in tasks to those of installed packages."""

    builtin: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        """Returns the names of installed tasks. Imports none of them."""
        return tuple(name for name in installed_names(TASKS_GROUP) if name not in self.builtin)

    def settings_of(self, name: str) -> type[TaskSettings] | None:
        """Returns the class of an installed task; None when no package provides it. Raises UserError."""
        return _settings_class(name, self.builtin) if name in self.names() else None

    def classes(self) -> dict[str, type[TaskSettings]]:
        """Returns every installed task that is usable, by its name. Logs a warning for each of the others."""
        usable = {}
        for name in installed_names(TASKS_GROUP):
            try:
                usable[name] = _settings_class(name, self.builtin)
            except UserError as error:
                log.warning("%s", error)
        return usable

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # "any": by the class of the value, so that the options of an installed task are kept.
        dump = core_schema.simple_ser_schema("any")
        return core_schema.with_info_wrap_validator_function(self._validate, handler(source), serialization=dump)

    def _validate(self, value: Any, validate_builtin: Callable[[Any], Any], info: core_schema.ValidationInfo) -> Any:
        name = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        if not isinstance(name, str) or name in self.builtin:
            return validate_builtin(value)
        try:
            settings = self.settings_of(name)
        except UserError as error:
            details: Any = {"type": "value_error", "loc": (), "input": name, "ctx": {"error": ValueError(str(error))}}
            raise ValidationError.from_exception_data("task", [details]) from error
        if settings is None:
            return validate_builtin(value)
        if info.mode == "json":
            return _adapter(settings).validate_json(json.dumps(value))
        return _adapter(settings).validate_python(value)


@cache
def _settings_class(name: str, builtin: tuple[str, ...]) -> type[TaskSettings]:
    settings = load_object(TASKS_GROUP, name)
    if reason := _fault(name, settings, builtin):
        raise invalid(TASKS_GROUP, name, reason)
    checked: type[TaskSettings] = settings
    return checked


def _fault(name: str, settings: Any, builtin: tuple[str, ...]) -> str:
    """Returns how a class breaks the contract of a task; empty where it does not."""
    if not isinstance(settings, type) or not issubclass(settings, TaskSettings):
        return f"{settings!r} is not a subclass of sft_dist.recipe.tasks.base.TaskSettings"
    field = settings.model_fields["type"]
    names = get_args(field.annotation) if get_origin(field.annotation) is Literal and field.is_required() else ()
    if name not in names:
        return f"{settings.__name__}.type must be Literal[{name!r}] without a default"
    if claimed := sorted(set(names) & set(builtin)):
        return f"{claimed[0]} is the name of a built-in task; choose another name"
    if missing := [fact for fact in FACTS if not hasattr(settings, fact)]:
        return f"{settings.__name__} lacks `{missing[0]}`"
    if settings.work.count(":") != 1:
        return f"{settings.__name__}.work must be 'module:Class', and is {settings.work!r}"
    if not settings.kinds or not all(kind.metrics for kind in settings.kinds):
        return f"{settings.__name__}.kinds needs at least one Kind, each with its metrics"
    if reason := _media_fault(settings):
        return reason
    if name not in settings.starters:
        return f"{settings.__name__}.starters lacks {name!r}"
    return ""


def _media_fault(settings: type[TaskSettings]) -> str:
    """Files that a row names are confined by this fact, so it must be right."""
    if not isinstance(settings.media, Mapping) or not set(settings.media.values()) <= set(MEDIA_KINDS):
        return f"{settings.__name__}.media must map roles to {', '.join(MEDIA_KINDS)}, and is {settings.media!r}"
    if unknown := sorted(set(settings.media) - set(settings.columns)):
        return f"{settings.__name__}.media names {unknown[0]!r}, which is not among its columns"
    return ""


@cache
def _adapter(settings: type[TaskSettings]) -> TypeAdapter[Any]:
    """Returns a validator whose errors have the name of the task in their path, as those of built-in tasks have."""
    names = get_args(settings.model_fields["type"].annotation)

    def tagged(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        return core_schema.tagged_union_schema(dict.fromkeys(names, schema), "type")

    annotation: Any = Annotated[settings, GetPydanticSchema(tagged)]
    return TypeAdapter(annotation)
