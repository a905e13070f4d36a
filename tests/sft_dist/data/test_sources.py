"""Where rows come from: URLs, samples, several sources, mixes; and streams whose order is always the same."""

from __future__ import annotations

import json
import sys
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pictures

from sft_dist.data.sources import load_rows, stream_rows
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import cache_root
from sft_dist.recipe.schema import Data


def write(path: Path, texts: list[str], label: str = "a") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text in texts))
    return str(path)


def texts_of(source: Any, of: str = "train", **settings: Any) -> list[str]:
    return load_rows(Data(source=source, **settings))[of]["text"][:]


def mistake(source: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_rows(Data(source=source, **settings))
    return str(caught.value)


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


# ── URLs and samples ────────────────────────────────────────────────────────────────────────────────────────────────
def put(url: str, content: str | bytes) -> str:
    with fsspec.open(url, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return url


def test_a_url_of_a_file_is_read_and_read_again_when_it_changed():
    url = put("memory://sources/a.csv", "text,label\none,a\n")
    assert texts_of(url) == ["one"]
    put(url, "text,label\ntwo,a\n")
    assert texts_of(url) == ["two"]


def test_a_pattern_in_a_url_gives_its_files_in_order():
    for name in ("b", "a"):
        put(f"memory://many/{name}.jsonl", json.dumps({"text": name}))
    assert texts_of("memory://many/*.jsonl") == ["a", "b"]


def test_a_folder_behind_a_url(tmp_path):
    Pictures.new("RGB", (3, 3)).save(tmp_path / "a.png")
    for name in ("cat", "dog"):
        put(f"memory://pets/{name}/1.png", (tmp_path / "a.png").read_bytes())
    rows = load_rows(Data(source="memory://pets/"))["train"]
    assert rows.num_rows == 2
    assert all(Path(one["path"]).is_file() for one in rows["image"][:])


def test_a_file_url_is_read_where_it_lies(tmp_path):
    before = set((cache_root() / "urls").glob("*"))
    assert texts_of("file://" + write(tmp_path / "a.jsonl", ["one"])) == ["one"]
    assert set((cache_root() / "urls").glob("*")) == before


def test_a_conll_file_behind_a_url():
    assert load_rows(Data(source=put("memory://tags/a.conll", "x O\n")))["train"][0] == {"tokens": ["x"], "tags": ["O"]}


def test_what_is_not_behind_a_url_is_said(monkeypatch):
    assert "data.source: there is no such file, or it cannot be reached\n    found: memory://nowhere/a.csv" in mistake(
        "memory://nowhere/a.csv"
    )
    assert "found: no suffix" in mistake("memory://nowhere/a")
    assert "data is not read by this protocol\n    found: nosuch://bucket/a.csv" in mistake("nosuch://bucket/a.csv")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    said = mistake("s3://bucket/a.csv")
    assert "data.source: could not be read: " in said
    assert "s3fs" in said
    assert "found: s3://bucket/a.csv" in said


@pytest.mark.slow
def test_a_file_on_a_web_server(tmp_path):
    pytest.importorskip("aiohttp")
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name},x\n{'c,d,e' if name == 'b' else ''}")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert texts_of(f"{address}/a.csv") == texts_of(f"{address}/a.csv?version=2") == ["a"]
        assert [row["text"] for row in stream_rows(Data(source=f"{address}/a.csv"))] == ["a"]
        said = mistake(f"{address}/b.csv")
        assert "b.csv, line 3: expected 2 fields, found 3" in said
        assert f"found: {address}/b.csv" in said
        assert "there is no such file, or it cannot be reached" in mistake(f"{address}/gone.csv")
        (tmp_path / "a.csv").write_text("text,label\nanother,x\n")
        assert texts_of(f"{address}/a.csv") == ["another"]
        server.shutdown()


def test_a_sample_is_read_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_DIST_CACHE", str(tmp_path))
    write(tmp_path / "samples" / "toy" / "train.jsonl", ["one"])
    write(tmp_path / "samples" / "toy" / "test.jsonl", ["two"])
    assert texts_of("sample:toy/train.jsonl") == ["one"]
    assert texts_of("sample:toy", "test") == ["two"]
    assert "run `make fetch-samples`" in mistake("sample:other/train.jsonl")


def test_a_hub_data_set_without_a_network_is_a_readable_mistake():
    said = mistake("no-such-org/no-such-data")
    assert said.startswith("data.source: could not be read: ")
    assert "found: no-such-org/no-such-data" in said


# ── several sources ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_files_with_other_columns_are_told_from_each_other(tmp_path):
    write(tmp_path / "d" / "a.jsonl", ["x"])
    (tmp_path / "d" / "b.jsonl").write_text('{"prompt": "x"}\n')
    said = mistake(str(tmp_path / "d" / "*.jsonl"))
    assert f"{tmp_path}/d/b.jsonl has the columns prompt, but {tmp_path}/d/a.jsonl has text, label" in said
    assert f"{tmp_path}/d/b.jsonl has the columns prompt" in mistake(str(tmp_path / "d"))


def test_a_mix_has_the_shares_asked_for(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", numbered(name, 2_000)) for name in ("a", "b")]
    mixed = texts_of(files, weights=[3.0, 1.0])
    shares = Counter(text[0] for text in mixed)
    assert shares["a"] == 2_000 or shares["b"] == 2_000  # until one is used up
    assert shares["a"] / len(mixed) == pytest.approx(0.75, abs=0.03)
    assert len(set(mixed)) == len(mixed)  # no row twice


def test_a_mix_is_the_same_again_and_another_with_another_seed(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", numbered(name, 300)) for name in ("a", "b")]
    first, again = (texts_of(files, weights=[1.0, 1.0]) for _ in range(2))
    assert first == again
    assert first != texts_of(files, weights=[1.0, 1.0], split={"seed": 5})


def test_what_a_mix_leaves_over_is_no_part_of_its_own(tmp_path):
    """A file sorted by class must not lose its last class."""
    small = write(tmp_path / "small.jsonl", numbered("s", 100))
    large = write(tmp_path / "large.jsonl", numbered("first", 500) + numbered("last", 500))
    mixed = Counter(text.rstrip("0123456789") for text in texts_of([small, large], weights=[0.5, 0.5]))
    assert mixed["first"] > 25
    assert mixed["last"] > 25


def test_only_the_training_sources_are_mixed(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", numbered(name, 50)) for name in ("a", "b")]
    found = load_rows(Data(source={"train": files, "test": files}, weights=[0.9, 0.1]))
    assert len(found["train"]) < 100
    assert found["test"]["text"][:] == numbered("a", 50) + numbered("b", 50)


def test_a_mix_of_different_columns_is_a_mistake(tmp_path):
    first = write(tmp_path / "a.jsonl", ["x"])
    (tmp_path / "b.jsonl").write_text('{"text": 1}\n')
    assert "data.source: the sources cannot be joined" in mistake(
        [first, str(tmp_path / "b.jsonl")], weights=[1.0, 1.0]
    )
    assert "expected one weight for each of the 2 sources" in mistake([first, first], weights=[1.0, 1.0, 1.0])


# ── pictures and sound in tables ────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.slow
def test_media_in_parquet_are_never_decoded(tmp_path, streaming):
    Pictures.new("RGB", (3, 3)).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", np.zeros(8), 8_000)
    stored = {"bytes": Value("binary"), "path": Value("string")}
    data = {name: [{"bytes": (tmp_path / f"a.{end}").read_bytes(), "path": f"a.{end}"}]
            for name, end in (("image", "png"), ("audio", "wav"))}  # fmt: skip
    rows = Dataset.from_dict(data, features=Features({"image": stored, "audio": stored}))
    rows.cast_column("image", Image()).cast_column("audio", Audio()).to_parquet(str(tmp_path / "a.parquet"))
    source = Data(source=str(tmp_path / "a.parquet"))
    found = next(iter(stream_rows(source) if streaming else load_rows(source)["train"]))
    assert found == {name: values[0] for name, values in data.items()}


# ── streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return [write(tmp_path / f"{name}.jsonl", numbered(name, 40)) for name in ("a", "b", "c")]


def small(**settings: Any) -> Data:
    return Data(streaming={"buffer": 16}, **settings)


def streamed(data: Data, split: str = "train", **options: Any) -> list[str]:
    return [row["text"] for row in stream_rows(data, split, **options)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["list", "glob", "mix", "folder", "saved", "url", "sql"])
def test_the_order_is_the_same_again_and_after_going_on(tmp_path, shards, kind):
    data = data_of(kind, tmp_path, shards)
    whole = streamed(data)
    assert streamed(data) == whole
    for taken in (0, 1, 15, 16, 17, 50, len(whole) - 1, len(whole)):
        assert streamed(data, skip=taken) == whole[taken:]
    # What a run stopped after `taken` rows has seen, and what one that goes on sees, is together the whole.
    assert [row["text"] for row in islice(stream_rows(data), 37)] + streamed(data, skip=37) == whole


def data_of(kind: str, tmp_path: Path, shards: list[str]) -> Data:
    if kind == "mix":
        return small(source=shards, weights=[2.0, 1.0, 1.0])
    if kind == "glob":
        return small(source=str(tmp_path / "*.jsonl"))
    if kind == "folder":
        return small(source=str(tmp_path))
    if kind == "saved":
        Dataset.from_list([{"text": text} for text in numbered("x", 100)]).save_to_disk(str(tmp_path / "saved"))
        return small(source=str(tmp_path / "saved"))
    if kind == "url":
        return small(source=put("memory://stream/a.csv", "text\n" + "\n".join(numbered("u", 100))))
    if kind == "sql":
        import sqlite3

        with sqlite3.connect(tmp_path / "a.db") as connection:
            connection.execute("create table t (text text)")
            connection.executemany("insert into t values (?)", [(text,) for text in numbered("q", 100)])
        return small(source=f"sqlite:///{tmp_path}/a.db#t")
    return small(source=shards)


def test_training_rows_are_shuffled_anew_in_every_epoch_and_none_is_lost(shards):
    data = small(source=shards)
    in_order = [text for name in "abc" for text in numbered(name, 40)]
    first, second = streamed(data), streamed(data, epoch=1)
    assert sorted(first) == sorted(second) == sorted(in_order)
    assert len({tuple(in_order), tuple(first), tuple(second)}) == 3
    assert streamed(data, epoch=1, skip=60) == second[60:]
    assert streamed(small(source=shards, split={"seed": 3})) != first


def test_other_splits_come_in_their_own_order(tmp_path, shards):
    data = Data(source={"train": shards[0], "test": shards[1]})
    assert streamed(data, "test") == numbered("b", 40)
    DatasetDict(
        {"train": Dataset.from_dict({"text": ["x"]}), "dev": Dataset.from_dict({"text": ["y", "z"]})}
    ).save_to_disk(str(tmp_path / "saved"))
    assert streamed(Data(source=str(tmp_path / "saved")), "validation") == ["y", "z"]


def test_a_split_that_a_stream_does_not_have_is_a_mistake(shards):
    for source in ({"train": shards[0]}, shards[0]):
        with pytest.raises(UserError, match="validation"):
            stream_rows(Data(source=source), "validation")


def test_a_stream_of_sentences_pictures_and_sounds(tmp_path):
    (tmp_path / "a.conll").write_text("a O\n\nb O\n")
    for name in ("x", "y"):
        (tmp_path / "p" / name).mkdir(parents=True)
        (tmp_path / "s" / name).mkdir(parents=True)
        Pictures.new("RGB", (3, 3)).save(tmp_path / "p" / name / "1.png")
        soundfile.write(tmp_path / "s" / name / "1.wav", np.zeros(8), 8_000)
    for source, column, count in (("a.conll", "tokens", 2), ("p", "image", 2), ("s", "audio", 2)):
        rows = list(stream_rows(Data(source=str(tmp_path / source))))
        assert len(rows) == count
        assert all(column in row for row in rows)
    assert sorted(row["audio"]["path"] for row in rows) == [str(tmp_path / "s" / name / "1.wav") for name in "xy"]


def test_a_stream_reads_no_more_than_it_must(tmp_path):
    """The fault in the last line is far away from the first rows."""
    file = tmp_path / "a.conll"
    file.write_text("word O\n\n" * 3_000 + "fault\n")
    assert len(list(islice(stream_rows(Data(source={"train": str(file), "test": str(file)}), "test"), 5))) == 5
    with pytest.raises(UserError, match="line 6001: expected a token and its tag"):
        list(stream_rows(Data(source={"train": str(file), "test": str(file)}), "test"))
