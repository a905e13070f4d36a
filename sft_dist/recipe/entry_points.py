"""Entry points through which other installed packages provide tasks and metrics (`docs/plugins.md`).

They are read only for a name that is not built in, or to list names: a recipe of built-in tasks and metrics neither scans nor
imports outside packages, so a broken package cannot break it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from sft_dist.recipe.errors import Problem, UserError

log = logging.getLogger("sft_dist")

TASKS_GROUP = "sft_dist.tasks"
METRICS_GROUP = "sft_dist.metrics"
NOUNS = {TASKS_GROUP: "task", METRICS_GROUP: "metric"}


@dataclass(frozen=True)
class Plugin:
    """A task or metric of an installed package."""

    group: str
    name: str
    distribution: str
    version: str
    module: str

    def __str__(self) -> str:
        return f"{NOUNS[self.group]} {self.name} of {self.distribution} {self.version}"

    @property
    def requirement(self) -> str:
        """What pip installs it by."""
        return f"{self.distribution}=={self.version}"

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@cache
def _entry_points(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    by_name: dict[str, tuple[EntryPoint, ...]] = {}
    for entry_point in entry_points(group=group):
        by_name[entry_point.name] = (*by_name.get(entry_point.name, ()), entry_point)
    return dict(sorted(by_name.items()))


def installed_names(group: str) -> tuple[str, ...]:
    """Returns the names that installed packages provide. Imports none of them."""
    return tuple(_entry_points(group))


def plugin_of(group: str, name: str) -> Plugin:
    """Returns the plugin of an installed name."""
    entry_point = _entry_points(group)[name][0]
    assert entry_point.dist is not None
    return Plugin(group, name, entry_point.dist.name, entry_point.dist.version, entry_point.module)


def load_object(group: str, name: str) -> Any:
    """Imports what an installed name stands for. Raises UserError, which names the distribution."""
    candidates = _entry_points(group)[name]
    if len(candidates) > 1:
        owners = " and ".join(sorted(candidate.dist.name for candidate in candidates if candidate.dist))
        raise UserError(f"{owners} provide a {NOUNS[group]} named {name}, so it is ambiguous; uninstall all but one")
    try:
        return candidates[0].load()
    except Exception as error:  # whatever a package of somebody else raises while it is imported
        reason = f"`{candidates[0].value}` cannot be imported ({type(error).__name__}: {error})"
        raise invalid(group, name, reason) from error


def invalid(group: str, name: str, reason: str) -> UserError:
    """Returns the error of a plugin that breaks the contract."""
    plugin = plugin_of(group, name)
    return UserError(f"{plugin} is not usable: {reason}; fix, update or uninstall {plugin.distribution}")


def require_plugins(source: str, plugins: Iterable[Mapping[str, str]]) -> None:
    """Raises UserError for plugins, as `Plugin.to_json` writes them, that are not installed, and warns of those whose version
    differs. `source` is what needs them."""
    problems = []
    for values in plugins:
        plugin = Plugin(**values)
        if plugin.name not in _entry_points(plugin.group):
            hint = f"pip install '{plugin.requirement}'"
            problems.append(Problem(f"{source}: needs the {plugin}, which is not installed", hint=hint))
        elif (installed := plugin_of(plugin.group, plugin.name)).requirement != plugin.requirement:
            _warn_of_version(source, plugin, installed)
    if problems:
        raise UserError(problems)


@cache  # a run folder is read several times by one process
def _warn_of_version(source: str, recorded: Plugin, installed: Plugin) -> None:
    log.warning(
        "%s was made with %s, and %s is installed: scores and training can differ; to restore it: pip install '%s'",
        source, recorded, installed.requirement, recorded.requirement,
    )  # fmt: skip
