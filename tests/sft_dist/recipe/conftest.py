from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFT_DIST_CACHE", str(tmp_path))
    for name in ("trees/train.json", "trees/test.json", ".trees.lock", "bert/config.json"):
        (tmp_path / "samples" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "samples" / name).write_text("{}")
    return tmp_path / "samples"
