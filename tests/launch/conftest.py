"""Run folders whose training is a few lines of standard library, so that processes and signals can be tested in seconds.

The stub `accelerate` starts its ranks as torchrun does, each in a session of its own; what the real one does is asserted
in test_local_accelerate.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import launch
from launch.row_counts import RowCounts
from sft_dist.recipe.files import write_json
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder

ROOT = Path(launch.__file__).parent.parent
STUBS = Path(__file__).parent / "stubs"
GOLDEN = Path(__file__).parent.parent / "golden"
ROWS = RowCounts({"train": 320, "validation": 40, "test": 40}, {"empty": 2}, ("neg", "pos"))

RECIPE = """\
task: text-classification
model: {path: ./model}
data: {source: ./rows.csv}
tuning: full
train: {lr: 1.0e-3, global_batch: 32, epochs: 2}
resources: {processes_per_node: 2}
"""


def make_recipe(**changes: object) -> Recipe:
    """A small valid recipe; `train={"lr": 1.0}` replaces settings of a section."""
    data: dict[str, object] = {
        "name": "demo",
        "task": "text-classification",
        "model": {"path": "/models/tiny"},
        "data": {"source": "/data/rows.csv"},
        "tuning": "full",
        "train": {"lr": 1e-3, "epochs": 2.0},
        "resources": {"processes_per_node": 2},
    }
    for section, values in changes.items():
        old = data.get(section)
        data[section] = {**old, **values} if isinstance(old, dict) and isinstance(values, dict) else values
    return Recipe.model_validate(data)


@dataclass
class Workplace:
    """A folder with a recipe whose rows are known, and run folders with stubs for source."""

    path: Path
    env: dict[str, str]

    @property
    def recipe(self) -> Path:
        return self.path / "demo.yaml"

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launch", *arguments],
            cwd=self.path, env=self.env, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "launch", *arguments],
            cwd=self.path, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def plans(self, *overrides: str) -> list[dict[str, object]]:
        done = self.run("plan", "demo.yaml", *overrides, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def run_folders(self, *overrides: str) -> list[RunFolder]:
        """Puts the stubs where `create_run_folder` would copy the package to; it does not replace them."""
        folders = [RunFolder(Path(str(plan["folder"]))) for plan in self.plans(*overrides)]
        for folder in folders:
            put_stubs(folder)
        return folders

    def say(self, **settings: object) -> None:
        """How the stub trainer behaves: steps, step_s, fail_rank, fail_step, deaf."""
        self.env["STUB"] = json.dumps(settings)

    def processes(self) -> list[int]:
        """Live processes that were started for this workplace's attempts."""
        wanted = f"STUB_WORKPLACE={self.path}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if wanted in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found


def put_stubs(folder: RunFolder) -> None:
    for name in ("sft_dist", "accelerate/commands"):
        (folder.source / name).mkdir(parents=True, mode=0o700)
    for package in ("sft_dist", "accelerate", "accelerate/commands"):
        (folder.source / package / "__init__.py").touch()
    (folder.source / "sft_dist/train.py").write_text((STUBS / "train.py").read_text())
    (folder.source / "accelerate/commands/launch.py").write_text((STUBS / "accelerate_launch.py").read_text())


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    from sft_dist.recipe.fingerprint import data_fingerprint
    from sft_dist.recipe.load import load

    (tmp_path / "demo.yaml").write_text(RECIPE)
    (tmp_path / "rows.csv").write_text("text,label\na,0\nb,1\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    cache = tmp_path / "cache"
    monkeypatch.setenv("SFT_DIST_CACHE", str(cache))
    (cache / "rows").mkdir(parents=True)
    counted = {"splits": ROWS.splits, "dropped": ROWS.dropped, "labels": list(ROWS.labels)}
    write_json(cache / "rows" / f"{data_fingerprint(load(tmp_path / 'demo.yaml'))}.json", counted)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SFT_DIST", "CUDA_VISIBLE"))}
    env |= {"SFT_DIST_CACHE": str(cache), "PYTHONPATH": str(ROOT), "STUB_WORKPLACE": str(tmp_path), "STUB": "{}"}
    return Workplace(tmp_path, env)


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compare with tests/golden/NAME; GOLDEN=write renews the files (read the difference before it is committed)."""

    def compare(name: str, text: str) -> None:
        file = GOLDEN / name
        if os.environ.get("GOLDEN") == "write":
            file.write_text(text)
        assert text == file.read_text()

    return compare


def wait_for(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
