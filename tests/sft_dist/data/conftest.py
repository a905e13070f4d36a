"""A web server for tests of what is read from one, and a file of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sft_dist.data import media
from tests.sft_dist.data.row_files import ROWS, write_csv
from tests.sft_dist.data.web import Web, serving


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """Counts as public, though it is on this machine."""
    monkeypatch.setattr(media, "is_public", lambda address: True)
    with serving(tmp_path / "web") as web:
        yield web


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "rows.csv", ROWS)
