"""Chunks of a stream: every row once an epoch, and the same chunk made again from its position alone."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft_dist.batches.chunks import StreamPosition
from sft_dist.batches.stream import ON_DISK, Stream, build_chunks
from sft_dist.check import check
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_json
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder
from sft_dist.tasks import task_of
from sft_dist.tasks.models import load_processor
from tests.conftest import write_reviews

ROWS = 100
START = StreamPosition()


@pytest.fixture
def recipe(tiny_model, tmp_path) -> Recipe:
    write_reviews(tmp_path / "train.csv", ROWS)
    write_reviews(tmp_path / "validation.csv", 10, seed=1)
    return Recipe.model_validate(
        {
            "name": "streamed",
            "task": {"type": "text-classification"},
            "model": {"path": str(tiny_model)},
            "data": {
                "source": {split: str(tmp_path / f"{split}.csv") for split in ("train", "validation")},
                "streaming": {"buffer": 30},
                "labels": ["neg", "pos"],
            },
            "tuning": {"method": "full"},
            "train": {"lr": 1e-3, "steps": 40, "global_batch": 8, "save_every": "10 steps"},
        }
    )


def changed(recipe: Recipe, **data: Any) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})


def made(recipe: Recipe, folder: Path, count: int, position: StreamPosition = START) -> list[dict[str, Any]]:
    task = task_of(recipe)
    paths = islice(build_chunks(recipe, task, load_processor(recipe, task), position, folder), count)
    return [read_json(path / "about.json") for path in paths]


def chunks_of(recipe: Recipe, folder: Path, steps: range) -> list[Any]:
    """What each step finds, when all chunks are there."""
    run = RunFolder(folder)
    stream = Stream(run, recipe, StreamPosition(), None)
    return [stream.at(step) for step in steps]


@pytest.mark.slow
def test_every_row_is_met_once_an_epoch_and_every_example_once_a_chunk(recipe, tmp_path):
    about = made(recipe, tmp_path / "run/stream", 8)  # two epochs of 30 + 30 + 30 + 10
    assert [one["place"]["epoch"] for one in about] == [0] * 4 + [1] * 4
    assert [one["place"]["row"] for one in about] == [0, 30, 60, 90] * 2
    assert [one["place"]["step"] for one in about] == [0, 4, 8, 12, 14, 18, 22, 26]
    assert [one["next"] for one in about[:3]] == [one["place"] for one in about[1:4]]
    assert len({one["digest"] for one in about}) == 8  # another order in every epoch
    chunks = chunks_of(recipe, tmp_path / "run", range(1, 29))
    assert len({id(chunk) for chunk in chunks}) == 8
    for epoch in (0, 1):
        seen = [row for chunk in chunks if chunk.position.epoch == epoch for row in chunk.examples.ids.tolist()]
        assert set(seen) == set(range(ROWS))
    for first in (1, 5, 13):
        chunk = chunks[first - 1]
        steps = [step for step in range(1, 29) if chunks[step - 1] is chunk]
        taken = np.concatenate([chunk.plan.at(step) for step in steps])
        assert sorted(taken) == list(range(len(chunk.examples)))
        assert {chunk.plan.epoch_of(step) for step in steps} == {chunk.position.number}


@pytest.mark.slow
def test_a_chunk_is_made_again_from_its_position(recipe, tmp_path):
    whole = made(recipe, tmp_path / "whole", 7)
    for number in (1, 3, 4, 6):
        assert (
            made(recipe, tmp_path / f"from-{number}", 2, StreamPosition(**whole[number]["place"]))[0] == whole[number]
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "counts"),
    [({"label": "pos"}, [50]), ({"text": "great"}, None)],
)
def test_rows_that_are_dropped(recipe, tmp_path, where, counts):
    streamed = changed(recipe, where=where)
    if counts is None:  # of no row in a whole epoch: an end instead of a endless search
        with pytest.raises(UserError, match=r"data\.where\.text: no row of train is left"):
            made(streamed, tmp_path / "run", 1)
        return
    about = made(streamed, tmp_path / "run/stream", 4)
    chunks = chunks_of(streamed, tmp_path / "run", range(1, about[-1]["next"]["step"] + 1))
    assert sum(len(chunk.examples) for chunk in {id(chunk): chunk for chunk in chunks}.values()) == counts[0]


@pytest.mark.slow
def test_chunks_without_any_row_are_passed_over(recipe, tmp_path):
    rare = [f"n{number} rare,pos" if number in (3, 70) else f"n{number} text," for number in range(ROWS)]
    (tmp_path / "train.csv").write_text("text,label\n" + "\n".join(rare) + "\n")
    small = changed(recipe, streaming=recipe.data.streaming.model_copy(update={"buffer": 5}))
    about = made(small, tmp_path / "run", 4)
    assert [one["place"]["epoch"] for one in about] == [0, 0, 1, 1]
    assert [one["place"]["step"] for one in about] == [0, 1, 2, 3]
    again = made(small, tmp_path / "again", 1, StreamPosition(**about[0]["next"]))
    assert (again[0]["digest"], again[0]["place"]) == (about[1]["digest"], about[1]["place"])


def test_an_empty_stream_is_a_mistake(recipe, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n")
    with pytest.raises(UserError, match=r"data\.source"):
        made(recipe, tmp_path / "run", 1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("one,pos,1,9", r"data\.source\.train: could not be read: .*train\.csv, line 97: expected 3 fields, found 4"),
        (
            "one,maybe,1",
            r"data\.labels: train row \d+: not one of data\.labels(.|\n)*found: maybe(.|\n)*shuffles them in epoch 0",
        ),
    ],
)
def test_a_fault_far_into_the_stream_has_its_place(recipe, tmp_path, line, said):
    lines = (tmp_path / "train.csv").read_text().splitlines()
    lines[96] = line
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError) as caught:
        made(recipe, tmp_path / "run", 4)
    assert re.search(said, str(caught.value)), str(caught.value)


@pytest.mark.slow
def test_the_owner_deletes_what_is_behind_and_others_do_not(recipe, tmp_path):
    folder = tmp_path / "run/stream"
    made(recipe, folder, 5)
    other = Stream(RunFolder(tmp_path / "run"), recipe, StreamPosition(), None)
    other.at(18)
    assert len(list(folder.glob("chunk-*"))) == 5

    class Reader:  # a process that lives
        def poll(self) -> None:
            return None

    owner = Stream(RunFolder(tmp_path / "run"), recipe, StreamPosition(), Reader())
    owner.at(1)
    owner.at(13)  # the fourth chunk
    assert [path.name for path in sorted(folder.glob("chunk-*"))] == ["chunk-000002", "chunk-000003", "chunk-000004"]
    assert len(list(folder.glob("chunk-*"))) == ON_DISK


def test_the_end_of_the_reader_is_reported(recipe, tmp_path):
    folder = tmp_path / "run/stream"
    folder.mkdir(parents=True)

    class Dead:
        def poll(self) -> int:
            return -9

        def kill(self) -> None: ...

        def wait(self) -> None: ...

    with pytest.raises(RuntimeError, match="exit code -9"):
        Stream(RunFolder(tmp_path / "run"), recipe, StreamPosition(), Dead()).at(1)
    with pytest.raises(RuntimeError, match="exit code -9"):  # and on the other ranks
        Stream(RunFolder(tmp_path / "run"), recipe, StreamPosition(), None).at(1)
    for is_users, error in ((True, UserError), (False, RuntimeError)):
        (folder / "error.json").write_text(json.dumps({"error": "data.source: broken", "is_users": is_users}))
        for reader in (Dead(), None):
            with pytest.raises(error, match="broken"):
                Stream(RunFolder(tmp_path / "run"), recipe, StreamPosition(), reader).at(1)


def test_a_position_is_plain_json():
    assert StreamPosition(**json.loads(json.dumps(asdict(StreamPosition(1, 2, 3, 4))))) == StreamPosition(1, 2, 3, 4)


# ── the data check ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_the_data_check_reads_the_beginning(recipe, tmp_path):
    lines = (tmp_path / "validation.csv").read_text().splitlines()
    (tmp_path / "validation.csv").write_text("\n".join([*lines, "new words here,,0"]) + "\n")
    report, subject = check(recipe)
    assert report.rows == {"train": 30, "validation": 10}
    assert [(one.kind, one.rows) for one in report.errors] == [("empty-label", (("validation", 10),))]
    assert "only its beginning was checked, of which 30 rows" in report.notes[0]
    assert (report.estimate.steps, report.estimate.steps_per_epoch) == (40, None)
    assert subject is not None
    (tmp_path / "train.csv").write_text("text,label\n")
    with pytest.raises(UserError, match=r"data\.source: the stream has no rows"):
        check(recipe)


@pytest.mark.parametrize("streaming", [None, {"buffer": 30}])
def test_the_data_check_says_that_cleaning_leaves_nothing(recipe, streaming):
    clean = recipe.data.clean.model_copy(update={"max_chars": 3})
    settings = recipe.data.streaming if streaming else None
    report, _ = check(changed(recipe, clean=clean, streaming=settings))
    (one,) = report.errors
    assert one.kind == "not-prepared"
    assert "no row of" in one.message
    assert "too long" in one.message
