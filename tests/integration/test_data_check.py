"""`sft-dist check` and what `submit` makes of it, as a user meets them: processes, exit codes, files."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.check import check_before_submit
from launch.expand import Run, expand
from launch.planning import PlannedRun
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import cache_root
from sft_dist.recipe.load import read
from tests.conftest import write_reviews

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_python")]

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """\
task: text-classification
model: {{path: {model}}}
data: {{source: {{train: ./train.csv, validation: ./validation.csv, test: ./test.csv}}, max_length: 32}}
tuning: full
train: {{lr: 1.0e-3, global_batch: 8, epochs: 2, seed: 3}}
"""


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path) -> Path:
    """A recipe whose data are clean: three files of different texts."""
    for split, (rows, seed) in {"train": (80, 0), "validation": (20, 1), "test": (20, 2)}.items():
        write_reviews(tmp_path / f"{split}.csv", rows, seed)
        text = (tmp_path / f"{split}.csv").read_text()
        (tmp_path / f"{split}.csv").write_text(re.sub(r"\bn(\d+)\b", rf"{split}\1 said{split}\1", text))
    (tmp_path / "demo.yaml").write_text(RECIPE.format(model=tiny_model))
    return tmp_path


def put_leak(place: Path) -> None:
    """Row 4 of train becomes row 9 of test."""
    with (place / "train.csv").open(newline="") as file:
        leaked = list(csv.reader(file))[1 + 4]
    with (place / "test.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    rows[1 + 9] = leaked
    with (place / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def sft_dist(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch", *words], cwd=place, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=400,
    )  # fmt: skip


def test_clean_data_pass_with_exit_code_0_a_page_and_exact_steps(place: Path):
    done = sft_dist(place, "check", "demo.yaml", "--preview", "2")
    assert done.returncode == 0, done.stderr
    assert "80 train, 20 validation, 20 test" in done.stdout
    assert "20 (10 an epoch)" in done.stdout
    assert "0 errors" in done.stdout
    page = place / "runs/demo/check.html"
    assert f"page      {page}" in done.stdout
    assert page.read_text().count('<section class="example">') == 2
    assert "reading 80 rows of train" in done.stderr
    assert list(place.glob("runs/demo/*/recipe.json")) == []  # looking starts no run


def test_errors_end_with_1_and_are_in_the_json_with_their_rows(place: Path):
    put_leak(place)
    done = sft_dist(place, "check", "demo.yaml", "--json", "--html", "page.html")
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    (leak,) = [one for one in answer["findings"] if one["severity"] == "error"]
    assert leak["kind"] == "leak"
    assert leak["rows"] == [{"split": "train", "row": 4}, {"split": "test", "row": 9}]
    assert not answer["ok"]
    assert (place / "page.html").is_file()
    allowed = sft_dist(place, "check", "demo.yaml", "--allow", "leak")
    assert allowed.returncode == 0, allowed.stderr
    assert "allowed" in allowed.stdout


def test_a_mistake_of_the_recipe_ends_with_2(place: Path):
    (place / "train.csv").unlink()
    done = sft_dist(place, "check", "demo.yaml")
    assert done.returncode == 2
    assert "train.csv" in done.stderr
    wrong = sft_dist(place, "check", "demo.yaml", "--allow", "leek")
    assert wrong.returncode == 2
    assert "leak" in wrong.stderr


def test_submit_sends_nothing_while_there_are_errors(place: Path):
    put_leak(place)
    done = sft_dist(place, "submit", "demo.yaml", "--cluster", "local")
    assert done.returncode == 2, done.stderr
    assert "leak: the same input in train and test" in done.stderr
    assert "train 4, test 9" in done.stderr
    assert "--allow leak" in done.stderr
    assert list(place.glob("runs/demo/*/recipe.json")) == []


def test_the_data_check_asks_once_for_the_same_data_and_lets_through_what_is_allowed(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    put_leak(place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (run,) = expand(read("demo.yaml", []))
    other = Run("other", run.recipe.model_copy(update={"train": run.recipe.train.model_copy(update={"seed": 9})}), {})
    two = [PlannedRun(run, None), PlannedRun(other, None)]  # type: ignore[arg-type]
    before = set((cache_root() / "checks").glob("*")) if (cache_root() / "checks").is_dir() else set()
    with pytest.raises(UserError, match="leak"):
        check_before_submit(two)
    assert len(set((cache_root() / "checks").glob("*")) - before) == 1
    monkeypatch.setattr("launch.check._check_in_subprocess", lambda *_: pytest.fail("it was known"))
    check_before_submit(two, ["leak"])
