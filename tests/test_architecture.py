"""The shape of the project: who may import whom, and that every entry of a table leads somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from launch.expand import expand
from samples.fetch import SAMPLES
from sft_dist.engines import engine_class
from sft_dist.recipe import schema
from sft_dist.recipe.load import read
from sft_dist.recipe.references import check_references
from sft_dist.recipe.strategies import STRATEGIES
from sft_dist.recipe.tasks import TASKS
from sft_dist.tuning.optimizers import OPTIMIZERS

ROOT = Path(__file__).resolve().parents[1]
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def test_import_contracts_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("target", sorted({settings.work for settings in TASKS.values()}))
def test_every_task_of_the_table_exists_and_keeps_the_protocol(target):
    from sft_dist.tasks.base import Task

    module, name = target.split(":")
    task = getattr(import_module(module), name)
    wanted = [member for member in vars(Task) if not member.startswith("_")]
    assert [member for member in wanted if not hasattr(task, member)] == []


def test_tables_agree_with_the_schema():
    assert {task for settings in TASKS.values() for task in settings.starters} == set(TASKS)
    for settings in TASKS.values():
        assert set(settings.media) <= set(settings.columns)
        assert all(kind.metrics and kind.losses for kind in settings.kinds)
    names = {schema.AdamW, schema.Adam, schema.Sgd, schema.Adafactor}
    assert set(OPTIMIZERS) == {one.model_fields["name"].annotation.__args__[0] for one in names}
    kinds = (schema.PlainStrategy, schema.ZeroStrategy, schema.Zero3Strategy, schema.Fsdp2Strategy)
    strategies = {name for one in kinds for name in get_args(one.model_fields["name"].annotation)} - {"auto"}
    assert set(STRATEGIES) == strategies
    assert all(name in get_args(row.settings.model_fields["name"].annotation) for name, row in STRATEGIES.items())
    assert {row.next_strategy for row in STRATEGIES.values()} <= {*strategies, ""}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_has_an_engine(strategy):
    from sft_dist.engines.base import Engine

    methods = [name for name in vars(Engine) if not name.startswith("_")]
    assert [name for name in methods if not hasattr(engine_class(strategy), name)] == []


def test_few_files_name_a_strategy():
    """A new strategy is a row, its name in the schema, and an engine if none serves."""
    word = re.compile(rf"\b({'|'.join(STRATEGIES.keys() - {'single'})})\b")
    files = set()
    for path in _modules().values():
        nodes = _nodes(path)
        strings = [node.value for node in nodes if isinstance(node, ast.Constant)]
        docstrings = {ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, _DOCUMENTED)}
        if any(isinstance(text, str) and text not in docstrings and word.search(text) for text in strings):
            files.add(str(path.relative_to(ROOT)))
    assert files == {"launch/starters.py", "sft_dist/recipe/schema.py", "sft_dist/recipe/strategies.py"}


def test_only_its_own_modules_name_a_task():
    """What a task is like, others read from its facts. Examples in help texts may name a recipe."""
    files = set()
    for path in _modules().values():
        strings = {
            node.value for node in _nodes(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if path.parent.name != "tasks" and strings & TASKS.keys():
            files.add(str(path.relative_to(ROOT)))
    assert files == set()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_at_every_point_and_points_to_things_that_exist(path):
    runs = expand(read(path))
    assert len(runs) == {"lr-sweep": 6}.get(path.stem, 1)
    problems = [problem for run in runs for problem in check_references(run.recipe)]
    # Samples are fetched by the tests that train on them; here they have to be known.
    lacking = [problem.value or "" for problem in problems if (problem.value or "").startswith("sample:")]
    assert {text.removeprefix("sample:").split("/")[0] for text in lacking} <= set(SAMPLES)
    assert len(problems) == len(lacking), problems


# ── modules ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Import:
    """One import of a module of ours."""

    importer: str
    imported: str
    line: int
    in_function: bool


@cache
def _modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the project."""
    files = [path for package in ("launch", "sft_dist") for path in (ROOT / package).rglob("*.py")]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    return {name.removesuffix(".__init__"): path for path, name in names.items() if "_shipped" not in path.parts}


@cache
def _nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text())))


@cache
def _imports() -> list[Import]:
    """All imports among the project's modules: at the top, within functions and for type checking."""
    modules, imports = _modules(), []
    for importer, path in modules.items():
        nodes = _nodes(path)
        functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        inside = {id(node) for function in functions for node in ast.walk(function)}
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = {name if name in modules else node.module for name in names}
            elif isinstance(node, ast.Import):
                targets = {alias.name for alias in node.names}
            else:
                continue
            imports += [Import(importer, name, node.lineno, id(node) in inside) for name in targets if name in modules]
    return imports


def test_no_module_imports_itself_by_a_detour():
    graph: dict[str, set[str]] = {}
    for one in _imports():
        graph.setdefault(one.importer, set()).add(one.imported)
    try:
        TopologicalSorter({name: targets - {name} for name, targets in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


# Modules that import others of ours within functions: programs that answer before torch is loaded, and what needs an extra.
IMPORT_LATE = {
    "sft_dist.batches.stream", "sft_dist.check", "sft_dist.count", "sft_dist.engines", "sft_dist.evaluate",
    "sft_dist.evaluate_model",
    "sft_dist.evaluation.general_sets", "sft_dist.evaluation.inputs", "sft_dist.export",
    "sft_dist.predict", "sft_dist.quality.preview", "sft_dist.run.folder", "sft_dist.train",
}  # fmt: skip


def test_imports_within_functions_have_a_reason():
    """It stands beside the import, or above the block of imports."""
    late = [edge for edge in _imports() if edge.in_function and edge.importer.startswith("sft_dist")]
    assert {edge.importer for edge in late} == IMPORT_LATE
    modules = _modules()
    for edge in late:
        lines = modules[edge.importer].read_text().splitlines()
        block = [lines[edge.line - 1]]
        for line in reversed(lines[: edge.line - 1]):
            block.append(line)
            if line.strip() and not re.match(r"\s+(from|import) ", line):
                break
        assert any("#" in line for line in block), f"{modules[edge.importer]}:{edge.line}: say why it is imported late"


def test_every_test_module_mirrors_a_source_module_or_is_an_integration_test():
    strangers = []
    for package in ("launch", "sft_dist"):
        for path in sorted((ROOT / "tests" / package).rglob("test_*.py")):
            source = (ROOT / path.relative_to(ROOT / "tests")).with_name(
                path.name.removeprefix("test_").replace("init.py", "__init__.py")
            )
            if not source.exists() and not source.with_suffix("").is_dir():
                strangers.append(str(path.relative_to(ROOT)))
    assert not strangers, strangers
