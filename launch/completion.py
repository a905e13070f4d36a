"""Completion of the command line in bash, zsh and fish: files, tasks, strategies, clusters, findings, runs, keys of overrides.

Each function gets what click passes to `shell_complete`. Nothing is read before a name of that kind is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

COMPLETE_VARIABLE = "_SFT_DIST_COMPLETE"  # click reads it, by the program's name
NO_SPACE = "    [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace  # a value follows\n\n    return 0\n"


def script_for(shell: str, group: click.Command) -> str:
    """Returns the script that a shell evaluates."""
    shell_class = get_completion_class(shell)
    assert shell_class is not None
    text = shell_class(group, {}, "sft-dist", COMPLETE_VARIABLE).source()
    return text.replace("    return 0\n", NO_SPACE, 1) if shell == "bash" else text


def complete_tasks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from sft_dist.recipe.tasks import TASKS

    return _matching(TASKS, incomplete)


def complete_strategies(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from sft_dist.recipe.strategies import STRATEGIES

    return _matching(STRATEGIES, incomplete)


def complete_clusters(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from launch.slurm.clusters import LOCAL, known_clusters

    return _matching([LOCAL, *known_clusters()], incomplete) or [CompletionItem(incomplete, "file")]


def complete_findings(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from sft_dist.recipe.findings import KINDS

    return _matching([name for name, kind in KINDS.items() if kind.severity == "error"], incomplete)


def complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, "file")]


def complete_overrides(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Returns key paths; the shell completes what follows the `=`."""
    from sft_dist.recipe.reflection import keys_of, sections

    paths = [(*path, key) for path, classes in sections().items() for section in classes for key in keys_of(section)]
    return _matching([f"{'.'.join(path)}=" for path in paths], incomplete)


def complete_runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids, and ids behind their recipe's name; files where none begins so."""
    from launch.run_folders import all_run_folders, runs_root

    folders = all_run_folders(runs_root(ctx.params.get("runs")))
    if "/" in incomplete:
        names = [f"{path.parent.name}/{path.name}" for path in folders]
    else:
        names = [path.name for path in folders]
        names += [path.parent.name for path in folders]
        names += [path.name for pattern in ("*.yaml", "*.yml") for path in Path().glob(pattern)]
    return _matching(names, incomplete) or [CompletionItem(incomplete, "file")]


def _matching(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(incomplete)]
