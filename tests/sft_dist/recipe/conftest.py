from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sft_dist.recipe import entry_points, metrics
from sft_dist.recipe.entry_points import METRICS_GROUP, TASKS_GROUP
from sft_dist.recipe.tasks import installed

SETTINGS = """
from typing import ClassVar, Literal
from sft_dist.recipe.tasks.base import Kind, TaskSettings

class Scans(TaskSettings):
    type: Literal["scans"]
    depth: int = 3
    work = "scans.work:Scans"
    columns: ClassVar = {"scan": "required", "label": "required"}
    kinds = (Kind({"dice": "max", "loss": "min"}, ()),)
    media: ClassVar = {"scan": "image"}
    starters: ClassVar = {"scans": {}}
"""
METRIC = """
from sft_dist.recipe.metrics import Metric
METRIC = Metric("kappa", "max", lambda predictions, references: 0.0)
"""


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFT_DIST_CACHE", str(tmp_path))
    for name in ("trees/train.json", "trees/test.json", ".trees.lock", "bert/config.json"):
        (tmp_path / "samples" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "samples" / name).write_text("{}")
    return tmp_path / "samples"


def _forget_plugins() -> None:
    for function in (
        entry_points._entry_points, entry_points._warn_of_version, installed._settings_class, installed._adapter, metrics._load,
    ):  # fmt: skip
        function.cache_clear()
    for name in ("scans_settings", "kappa_metric"):
        sys.modules.pop(name, None)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a package with the task `scans` and the metric `kappa` on the path, as pip would."""

    def put(distribution: str = "scans", version: str = "1.0", settings: str = SETTINGS, metric: str = METRIC) -> None:
        site = tmp_path / f"site-{distribution}-{version}"
        info = site / f"{distribution}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(
            f"[{TASKS_GROUP}]\nscans = scans_settings:Scans\n[{METRICS_GROUP}]\nkappa = kappa_metric:METRIC\n"
        )
        (site / "scans_settings.py").write_text(settings)
        (site / "kappa_metric.py").write_text(metric)
        monkeypatch.syspath_prepend(site)
        _forget_plugins()

    yield put
    monkeypatch.undo()
    _forget_plugins()
