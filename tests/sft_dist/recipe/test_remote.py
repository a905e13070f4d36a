"""Remote data has a state, which is asked for once per process and remembered."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from sft_dist.recipe import remote
from sft_dist.recipe.fingerprint import data_fingerprint
from sft_dist.recipe.load import load
from tests.sft_dist.recipe.recipe_texts import GOOD, write


@pytest.fixture
def another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Uses an own cache; a call forgets what this process has learned."""
    monkeypatch.setenv("SFT_DIST_CACHE", str(tmp_path / "cache"))
    return lambda: monkeypatch.setattr(remote, "_states", {})


def test_the_fingerprint_of_what_never_answered_is_its_address(tmp_path: Path, another_process: Callable) -> None:
    another_process()
    fingerprints = {
        data_fingerprint(load(write(tmp_path, GOOD.replace("./train.csv", f"s3://no-such/{name}.csv"))))
        for name in ("a", "b", "a")
    }
    assert len(fingerprints) == 2


@pytest.mark.parametrize("inside", ["a.csv", "a.csv?x=1", ""])
def test_the_fingerprint_knows_when_a_file_on_a_web_server_changes(
    tmp_path: Path, another_process: Callable, inside: str
) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "web").mkdir()
    file = tmp_path / "web" / "a.csv"
    file.write_text("text,label\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(file.parent))) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{inside}"
        recipe = load(write(tmp_path, GOOD.replace("./train.csv", f"'{address}'")))
        another_process()
        first = data_fingerprint(recipe)
        file.write_text("text,label\nx,y\n")
        assert data_fingerprint(recipe) == first, "asked once per process"
        another_process()
        assert (second := data_fingerprint(recipe)) != first
        server.shutdown()
    another_process()
    assert data_fingerprint(recipe) == second, "without an answer the last one counts"


def test_the_fingerprint_knows_the_commit_of_a_hub_data_set(
    tmp_path: Path, another_process: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load(write(tmp_path, GOOD.replace("./train.csv", "org/name")))
    fingerprints = []
    for commit in ("1" * 40, "2" * 40, ""):
        another_process()
        monkeypatch.setattr(remote, "_commit", lambda name, revision, commit=commit: commit)
        fingerprints.append(data_fingerprint(recipe))
    assert fingerprints[0] != fingerprints[1] == fingerprints[2]


def test_a_filesystem_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, another_process: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_process()
    monkeypatch.setattr(remote, "ANSWER_S", 0.1)
    monkeypatch.setattr(remote, "_state_of_files", lambda url: time.sleep(5) or "late")
    began = time.monotonic()
    data_fingerprint(load(write(tmp_path, GOOD.replace("./train.csv", "s3://no-such/a.csv"))))
    assert time.monotonic() - began < 3


def test_every_plan_takes_a_database_for_changed(tmp_path: Path, another_process: Callable) -> None:
    recipe = load(write(tmp_path, GOOD.replace("./train.csv", "'postgresql://u:secret@host/db#reviews'")))
    plans = []
    for _ in range(2):
        another_process()
        plans.append(data_fingerprint(recipe, replan=True))
        assert data_fingerprint(recipe, replan=True) == plans[-1]
        another_process()
        assert data_fingerprint(recipe) == plans[-1], "a rank of the run that was planned"
    assert plans[0] != plans[1]
    assert not any("secret" in file.read_text() + file.name for file in (tmp_path / "cache" / "states").iterdir())
