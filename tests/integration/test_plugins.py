"""A task and a metric of another package, built as a wheel from `examples/plugin` and used through the command line."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_python")]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "plugin"
ROWS = [("good " * stars + "film", stars) for stars in range(3)] * 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel is installed."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, folder / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", folder / "source"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return folder / "site"


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "stars"), *ROWS])
    settings = {
        "task": {"type": "ordinal-text", "levels": 3},
        "model": {"path": str(tiny_model)},
        "data": {"source": "train.csv", "columns": {"label": "stars"}, "clean": {"drop_duplicates": False}},
        "tuning": "full",
        "train": {"steps": 4, "global_batch": 8, "lr": 1e-3, "save_every": "2 steps"},
        "evaluate": {"metric": "within_one"},
        "resources": {"processes_per_node": 1},
    }
    (tmp_path / "ratings.yaml").write_text(json.dumps(settings, indent=1))
    return tmp_path / "ratings.yaml"


def sft_dist(folder: Path, *words: str, plugins: Path | None, expect: int = 0, stdin: str = "") -> Any:
    path = os.pathsep.join(map(str, filter(None, [ROOT, plugins])))
    done = subprocess.run(
        [sys.executable, "-m", "launch", *words], cwd=folder, env={**os.environ, "PYTHONPATH": path},
        input=stdin, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
    assert expect != 2 or "Traceback" not in done.stderr
    return done


def python(program: str, folder: Path, plugins: Path) -> bytes:
    """Returns what the program printed."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{plugins}"}
    return subprocess.check_output([sys.executable, "-c", program], cwd=folder, env=environment)


def edited(site: Path, target: Path, file: str, old: str, new: str) -> Path:
    """A copy of the installed packages with a change in a file."""
    shutil.copytree(site, target)
    (path,) = target.rglob(file)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return target


def test_the_page_quotes_the_example() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text()
    for path in ("pyproject.toml", *(f"src/ordinal_plugin/{name}.py" for name in ("settings", "work", "metrics"))):
        assert (EXAMPLE / path).read_text().strip() in page, path


# ── without training ────────────────────────────────────────────────────────────────────────────────────────────────
def test_init_writes_a_starter_that_plan_reads(site: Path, tmp_path: Path) -> None:
    sft_dist(tmp_path, "init", "ordinal-text", "-o", "my.yaml", plugins=site)
    text = (tmp_path / "my.yaml").read_text()
    assert "  type: ordinal-text" in text
    assert "  # Number of ratings; the first is 0." in text
    assert "  levels: 5" in text
    (tmp_path / "train.csv").write_text("text,stars\nfine,1\n")
    error = sft_dist(tmp_path, "plan", "my.yaml", "task.levls=3", plugins=site, expect=2).stderr
    assert "did you mean `levels`?" in error


def test_schema_has_the_task(site: Path, tmp_path: Path) -> None:
    schema = json.loads(sft_dist(tmp_path, "schema", plugins=site).stdout)
    builtin = json.loads(sft_dist(tmp_path, "schema", plugins=None).stdout)
    assert "levels" in schema["$defs"]["OrdinalTextTask"]["properties"]
    assert {"$ref": "#/$defs/OrdinalTextTask"} in schema["properties"]["task"]["anyOf"]
    assert "ordinal-text" in schema["properties"]["task"]["anyOf"][0]["enum"]
    assert "OrdinalTextTask" not in builtin["$defs"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.levls=3", ["unknown key `levls` in task", "did you mean `levels`?", "valid: type, levels"]),
        ("task.levels=1", ["task.levels", "at least 2"]),
        ("task.threshold=0.5", ["belongs to task type `text-classification`", "says `ordinal-text`"]),
        ("task=ordinl-text", ["no such type", "text-classification", "did you mean `ordinal-text`?"]),
        (
            "evaluate.metric=within_on",
            ["no such score", "mae, accuracy, loss, within_one", "did you mean `within_one`?"],
        ),
    ],
)
def test_mistakes_are_explained_as_those_of_a_built_in_task(
    override: str, words: list[str], site: Path, recipe: Path
) -> None:
    error = sft_dist(recipe.parent, "plan", recipe.name, override, plugins=site, expect=2).stderr
    assert [word for word in words if word not in error] == [], error


def test_a_mistake_in_the_file_has_its_line(site: Path, recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace('"levels"', '"levls"'))
    assert "ratings.yaml:4:3: task.levls" in sft_dist(recipe.parent, "plan", recipe.name, plugins=site, expect=2).stderr


def test_a_metric_for_other_tasks_is_refused(site: Path, recipe: Path) -> None:
    words = ["plan", recipe.name, "task=text-classification"]
    error = sft_dist(recipe.parent, *words, plugins=site, expect=2).stderr
    assert "does not score task: text-classification, but ordinal-text" in error


BROKEN = [
    ("settings.py", "from pydantic", "from pydantik", "cannot be imported"),
    ("settings.py", "OrdinalTextTask(TaskSettings)", "OrdinalTextTask", "is not a subclass"),
    ("settings.py", '["ordinal-text"]', '["ordinal-text", "translation"]', "the name of a built-in task"),
    ("settings.py", "    work =", "    werk: ClassVar[str] =", "lacks `work`"),
    ("metrics.py", 'name="within_one"', 'name="within_two"', "the two names must be equal"),
    ("metrics.py", 'better="max"', 'better="up"', "`better` must be"),
]


@pytest.mark.parametrize(("file", "old", "new", "message"), BROKEN)
def test_a_broken_plugin_is_named_and_harms_only_its_users(
    file: str, old: str, new: str, message: str, site: Path, recipe: Path, tmp_path: Path
) -> None:
    broken = edited(site, tmp_path / "broken", file, old, new)
    error = sft_dist(tmp_path, "plan", recipe.name, plugins=broken, expect=2).stderr
    assert message in error
    assert "ordinal-plugin 0.1.0" in error
    assert "ratings.yaml:" in error
    python("from sft_dist.recipe.load import load; load('ratings.yaml', ['task=text-classification', 'evaluate.metric=loss'])",
           folder=tmp_path, plugins=broken)  # fmt: skip


def test_edited_code_of_a_plugin_makes_data_anew(site: Path, recipe: Path, tmp_path: Path) -> None:
    program = (
        "from sft_dist.recipe.load import load; from sft_dist.recipe.fingerprint import data_fingerprint;"
        "print(data_fingerprint(load('ratings.yaml')))"
    )
    changed = edited(site, tmp_path / "changed", "work.py", '"no label"', '"no rating"')
    digests = [python(program, folder=tmp_path, plugins=plugins) for plugins in (site, site, changed)]
    assert digests[0] == digests[1] != digests[2]


# ── with training ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_run_is_trained_evaluated_exported_and_used(site: Path, recipe: Path) -> None:
    where = recipe.parent
    assert "1 node x 1 process" in sft_dist(where, "plan", recipe.name, plugins=site).stdout
    sft_dist(where, "check", recipe.name, "--allow", "leak", plugins=site)
    sft_dist(where, "run", recipe.name, plugins=site)
    (folder,) = (path for path in (where / "runs/ratings").iterdir() if (path / "recipe.json").is_file())
    plugins = json.loads((folder / "plugins.json").read_text())
    assert [(plugin["name"], plugin["version"]) for plugin in plugins] == [
        ("ordinal-text", "0.1.0"),
        ("within_one", "0.1.0"),
    ]
    words = ["eval", recipe.name, "--json"]
    board = json.loads(sft_dist(where, *words, "--require", "within_one=0", plugins=site).stdout)
    assert (board["metric"], board["direction"]) == ("within_one", "max")
    assert board["winner"]["test"].keys() >= {"within_one", "mae", "accuracy", "loss"}
    to = where / "exported"
    sft_dist(where, "export", folder.name, "--to", str(to), plugins=site)
    lines = sft_dist(where, "predict", str(to), "--json", plugins=site, stdin="good film\n").stdout
    assert json.loads(lines)["rating"] in range(3)
    for verb in (["eval", str(folder)], ["predict", str(to)], ["resume", folder.name]):
        error = sft_dist(where, *verb, plugins=None, expect=2, stdin="good\n").stderr
        assert "needs the task ordinal-text of ordinal-plugin 0.1.0, which is not installed" in error
        assert "pip install 'ordinal-plugin==0.1.0'" in error
    for body, message in (("1 / 0", "failed: ZeroDivisionError"), ("'high'", "returned 'high'; a number is needed")):
        broken = edited(site, where / f"broken-{len(message)}", "metrics.py", "sum(close) / len(close)", body)
        error = sft_dist(where, "eval", str(folder), "--force", plugins=broken, expect=2).stderr
        assert f"metric within_one of ordinal-plugin 0.1.0 {message}" in error
