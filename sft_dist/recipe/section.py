"""Base class and helpers of all sections of a recipe."""

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """Unknown keys are refused, text is never turned into a number, and a validated recipe cannot be changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def shorthand(tag: str) -> BeforeValidator:
    """`optimizer: sgd` means `optimizer: {name: sgd}`: a bare string stands for the choice with its defaults."""
    return BeforeValidator(lambda value: {tag: value} if isinstance(value, str) else value)


def switch() -> BeforeValidator:
    """`streaming: true` means `streaming: {}`, and `false` means no such key."""
    return BeforeValidator(lambda value: ({} if value else None) if isinstance(value, bool) else value)


def mapping() -> dict[str, Any]:  # `dict` itself has no signature, which pydantic spends milliseconds to find out
    return {}


def listing() -> list[Any]:
    return []
