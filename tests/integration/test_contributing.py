"""The recipes of CONTRIBUTING.md work as they are written: each is followed in a copy of the sources, and its files are counted."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.launch.conftest import STUBS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_python")]

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("launch", "sft_dist", "recipes", "slurm")
BLOCK = re.compile(r"^ *```(python|yaml|diff|console)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"en": "the dog and a house on the hill", "fr": "le chien et une maison sur la colline"}


@dataclass
class Checkout:
    """A copy of the sources in which a recipe is followed."""

    path: Path
    added: list[str] = field(default_factory=list)  # files, in the order of the steps
    changed: list[str] = field(default_factory=list)

    def follow(self, heading: str) -> None:
        section = (ROOT / "CONTRIBUTING.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
        for language, indented in BLOCK.findall(section):
            block = textwrap.dedent(indented)
            if language == "console":
                for line in block.splitlines():
                    self.command(*line.split())
                continue
            name, text = block.split("\n", 1)
            if language == "diff":
                self._change(name.removeprefix("# "), text)
            else:
                self._add(name.removeprefix("# "), text)

    def _add(self, name: str, text: str) -> None:
        with (self.path / name).open("x") as file:  # a new file in a folder that exists
            file.write(text)
        self.added.append(name)

    def _change(self, name: str, diff: str) -> None:
        """Replaces the context and the removed lines of each hunk, which have to occur exactly once."""
        text = (self.path / name).read_text()
        for hunk in diff.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            assert text.count(before) == 1, f"{name}: {before!r} occurs {text.count(before)} times"
            text = text.replace(before, "".join(line[1:] for line in lines if line[0] in " +"))
        (self.path / name).write_text(text)
        self.changed.append(name)

    def command(self, *words: str, expect: int = 0) -> str:
        """Returns standard output, or for a failure standard error."""
        command = [sys.executable, "-m", "launch", *words[1:]] if words[0] == "sft-dist" else words
        path = f"{STUBS / 'slurm'}:{os.environ['PATH']}"
        env = {**os.environ, "PYTHONPATH": str(self.path), "PATH": path, "STUB_LOG": str(self.path / "slurm.log")}
        done = subprocess.run(command, cwd=self.path, env=env, capture_output=True, text=True)
        assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stderr if expect else done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    for name in SOURCES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return Checkout(tmp_path)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all tests, so that its rows are counted once a task. Every first word occurs in four rows."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    languages = list(LANGUAGES)
    lines = [
        (languages[number % 2], f"{number // 4} {LANGUAGES[languages[number % 2]]} {number}") for number in range(80)
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("label", "text"), *lines])
    return path


@pytest.fixture
def recipe(checkout: Checkout, rows: Path, tiny_model: Path) -> str:
    data = {
        "name": "toy", "task": "text-classification", "model": {"path": str(tiny_model)}, "data": {"source": str(rows)},
        "tuning": "full", "train": {"lr": 5e-3, "epochs": 2, "global_batch": 12},
    }  # fmt: skip
    (checkout.path / "recipe.yaml").write_text(json.dumps(data))
    return "recipe.yaml"


def test_a_task_is_two_modules_and_its_entry_in_one_table_and_learns(checkout: Checkout, recipe: str) -> None:
    checkout.follow("Add a task")
    task = "language-identification"
    assert checkout.added == [
        "sft_dist/recipe/tasks/language_identification.py",
        "sft_dist/tasks/language_identification.py",
    ]
    assert checkout.changed == ["sft_dist/recipe/tasks/__init__.py"]
    starter = (checkout.path / "recipes" / task / "quickstart.yaml").read_text()
    assert "# max_words:" in starter
    definitions = json.loads(checkout.command("sft-dist", "schema"))["$defs"]
    assert definitions["LanguageIdentificationTask"]["properties"]["type"]["const"] == task
    (plan,) = json.loads(checkout.command("sft-dist", "plan", recipe, f"task={{type: {task}, max_words: 2}}", "--json"))
    assert plan["rows"]["labels"] == ["en", "fr"]
    assert plan["rows"]["dropped"]["duplicate"] == 40
    assert task in checkout.command("sft-dist", "plan", recipe, "task=language-identifcation", expect=2)
    checkout.command("sft-dist", "run", recipe, f"task={task}", "--processes", "1")
    checkout.command("sft-dist", "eval", "runs/toy", "--require", "accuracy=0.9")


def test_a_cluster_is_one_file(checkout: Checkout, recipe: str) -> None:
    checkout.follow("Add a cluster")
    assert (checkout.added, checkout.changed) == (["slurm/clusters/lab.yaml"], [])
    assert "lab" in json.loads(checkout.command("sft-dist", "cluster", "list", "--json"))
    script = checkout.command("sft-dist", "plan", recipe, "--cluster", "lab", "--script")
    assert "#SBATCH --partition=gpu\n" in script
    assert "/shared/venvs/sft" in script
    assert "would submit one job: 1 node, 4 GPUs, 64 CPUs" in checkout.command(
        "sft-dist", "submit", recipe, "--cluster", "lab", "--dry-run"
    )


def test_a_strategy_is_one_row_and_its_name(checkout: Checkout, recipe: str) -> None:
    checkout.follow("Add a strategy")
    assert (checkout.added, checkout.changed) == ([], ["sft_dist/recipe/strategies.py", "sft_dist/recipe/schema.py"])
    assert "duo" in checkout.command("sft-dist", "plan", recipe, "train.strategy=duo", "--processes", "2")
    refusal = checkout.command("sft-dist", "plan", recipe, "train.strategy=duo", "--processes", "3", expect=2)
    assert "strategy `duo` runs" in refusal
    assert "duo" in checkout.command("sft-dist", "resume", "--help")
