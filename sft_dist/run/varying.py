"""What varies between runs, from their sealed recipes: runs are called by it, because ids say nothing to people."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sft_dist.recipe.files import read_json
from sft_dist.run.folder import RunFolder

Settings = dict[str, Any]  # key path -> value
Key = TypeVar("Key", bound=Hashable)

UNNAMED = ("name", "description", "matrix", "search")  # not part of a run's identity


def settings_in(recipe: Mapping[str, Any]) -> Settings:
    """Returns the settings of a resolved recipe by their key paths."""
    return dict(_leaves({key: value for key, value in recipe.items() if key not in UNNAMED}))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def varying_settings(settings: Mapping[Key, Settings]) -> dict[Key, Settings]:
    """Returns of each run its settings that differ from another run's, in the order of the recipe. A setting that a run does not
    have, such as one of a loss that it does not use, counts as null."""
    keys = dict.fromkeys(key for values in settings.values() for key in values)
    first = next(iter(settings.values()), {})
    varying = [key for key in keys if any(values.get(key) != first.get(key) for values in settings.values())]
    return {run: {key: values[key] for key in varying if key in values} for run, values in settings.items()}


def naming_settings(varying: Mapping[Key, Settings]) -> dict[Key, Settings]:
    """Returns the varying settings by which to call the runs: those that all runs have, where these tell them apart. Settings of
    one run's method alone would make names long."""
    shared = [key for key in next(iter(varying.values()), {}) if all(key in values for values in varying.values())]
    names = {run: {key: values[key] for key in shared} for run, values in varying.items()}
    return names if len({repr(name) for name in names.values()}) == len(names) else dict(varying)


def varying_between(folders: Iterable[Path]) -> dict[Path, Settings]:
    """Returns of each run folder the settings by which to call it among the others; a folder that cannot be read has none."""
    recipes = {folder: read_json(RunFolder(folder).recipe_file) for folder in folders}
    readable = {folder: settings_in(recipe) for folder, recipe in recipes.items() if isinstance(recipe, dict)}
    varying = naming_settings(varying_settings(readable))
    return {folder: varying.get(folder, {}) for folder in recipes}


def describe_settings(settings: Mapping[str, Any]) -> str:
    """`lr=1e-4 seed=2`: the last words of key paths, with more of the path where two end alike."""
    last_words = [key.rsplit(".", 1)[-1] for key in settings]
    names = [key if last_words.count(word) > 1 else word for key, word in zip(settings, last_words, strict=True)]
    return " ".join(f"{name}={format_setting(value)}" for name, value in zip(names, settings.values(), strict=True))


def format_setting(value: Any, max_chars: int = 40) -> str:
    """`1e-4` as recipes write it, not 0.0001."""
    text = str(value)
    if isinstance(value, float):
        mantissa, exponent = f"{value:.6e}".split("e") if value and abs(value) < 1e-2 else (f"{value:g}", "")
        text = f"{float(mantissa):g}e{int(exponent)}" if exponent else mantissa
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
