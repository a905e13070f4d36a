"""The report's section about a search."""

from __future__ import annotations

import json
from pathlib import Path

from launch.report.search import searches_of


def write_summary(parent: Path, summary: object) -> None:
    folder = parent / ".searches/0123456789"
    folder.mkdir(parents=True)
    (folder / "search.json").write_text(json.dumps(summary))


def test_a_search_stands_on_the_page_of_its_trials_alone(tmp_path: Path) -> None:
    trial = {
        "number": 0,
        "run": "0a1b2c3d4e",
        "state": "finished",
        "point": {"train.lr": 1e-3},
        "score": 0.5,
        "reason": "",
    }
    summary = {
        "metric": "f1",
        "sampler": "tpe",
        "best": 0,
        "dimensions": {"train.lr": {}},
        "importance": {},
        "trials": [trial],
    }
    write_summary(tmp_path, summary)
    (search,) = searches_of([tmp_path / "0a1b2c3d4e", tmp_path / "ffffffffff"])
    assert (search["metric"], search["best"], search["dimensions"]) == ("f1", 0, ["train.lr"])
    assert search["trials"] == [trial]
    assert searches_of([tmp_path / "ffffffffff"]) == []


def test_what_this_program_never_writes_counts_as_absent(tmp_path: Path) -> None:
    trials = [{"run": "0a1b2c3d4e", "score": "high", "point": 3, "reason": "x" * 1000}, 7]
    write_summary(tmp_path, {"trials": trials, "importance": [1], "best": "none"})
    (search,) = searches_of([tmp_path / "0a1b2c3d4e"])
    assert (search["best"], search["importance"]) == (None, {})
    assert (search["trials"][0]["score"], search["trials"][0]["point"]) == (None, {})
    assert len(search["trials"][0]["reason"]) == 200
