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
from sft_dist.recipe.schema import Data, SplitSources, Streaming
from tests.sft_dist.data.row_files import ROWS, WRITERS, all_texts, prepared, write_csv, write_jsonl


def write(path: Path, texts: list[str], label: str = "a") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text in texts))
    return str(path)


def texts_of(source: Any, of: str = "train", **settings: Any) -> list[str]:
    return load_rows(Data(source=source, **settings))[of]["text"][:]


def mistake(source: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_rows(Data(source=str(source) if isinstance(source, Path) else source, **settings))
    return str(caught.value)


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    found = prepared(WRITERS[name](tmp_path / name, ROWS))
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 24, "validation": 3, "test": 3}
    assert all_texts(found) == sorted(row["text"] for row in ROWS)
    by_text = {row["text"]: row["label"] for row in ROWS}
    for rows in found.splits.values():
        assert rows.column("label") == [by_text[text] for text in rows.column("text")]
        assert [f"text {number}" for number in rows.ids] == rows.column("text")


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl"])
def test_words_that_some_readers_take_for_nothing_are_texts(tmp_path, name):
    words = ["NA", "null", "None", "nan", "N/A", "n/a", "NULL", "#N/A", "-", "?"]
    rows = [{"text": word, "label": ["NA", "none"][n % 2]} for n, word in enumerate(words)]
    found = prepared(WRITERS[name](tmp_path / name, rows), split={"validation": 0.0, "test": 0.2})
    assert all_texts(found) == sorted(words)
    assert set(found.splits["train"].column("label")) == {"NA", "none"}
    assert not any(found.dropped.values())


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_class_names_keep_their_leading_zeros(tmp_path, name):
    labels = ["007", "7", "010"]
    rows = [{"text": f"text {n}", "agent": labels[n % 3], "number": n} for n in range(30)]
    file = write_csv(tmp_path / name, rows, "," if name.endswith("csv") else "\t")
    found = prepared(file, columns={"label": "agent"}, labels=labels, split={"validation": 0.2, "test": 0.2})
    assert found.task.labels == labels
    assert set(found.splits["train"].column("label")) == set(labels)
    assert load_rows(Data(source=str(file)))["train"]["number"][:3] == ["0", "1", "2"]


def test_a_glob_and_a_list_join_their_files(tmp_path):
    for part in range(3):
        write_csv(tmp_path / f"part-{part}.csv", ROWS[part * 10 : part * 10 + 10])
    assert all_texts(prepared(str(tmp_path / "part-*.csv"))) == sorted(row["text"] for row in ROWS)
    listed = prepared([str(tmp_path / "part-0.csv"), str(tmp_path / "part-2.csv")])
    assert all_texts(listed) == sorted(row["text"] for row in [*ROWS[:10], *ROWS[20:]])


def test_named_splits_of_a_saved_data_set_are_kept(tmp_path):
    parts = {"train": ROWS[:20], "dev": ROWS[20:26], "test": ROWS[26:]}
    saved = DatasetDict({name: Dataset.from_list(rows) for name, rows in parts.items()})
    saved.save_to_disk(str(tmp_path / "saved"))
    found = prepared(tmp_path / "saved")
    for split, name in {"train": "train", "validation": "dev", "test": "test"}.items():
        assert found.splits[split].column("text") == [row["text"] for row in parts[name]]


def test_a_folder_of_split_files_reads_texts_like_a_single_file(tmp_path):
    rows = [*ROWS[:20], {"text": "NA", "label": "pos", "lang": "en"}]
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "test.csv", ROWS[20:])
    found = prepared(tmp_path, split={"validation": 0.0})
    assert found.splits["train"].column("text") == [row["text"] for row in rows]
    assert found.splits["test"].column("text") == [row["text"] for row in ROWS[20:]]


def test_one_source_a_split(tmp_path):
    files = {
        "train": [str(write_csv(tmp_path / "a.csv", ROWS[:10])), str(write_csv(tmp_path / "b.csv", ROWS[10:20]))],
        "test": str(write_jsonl(tmp_path / "c.jsonl", ROWS[20:])),
    }
    found = prepared(files, split={"validation": 0.1})
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 18, "validation": 2, "test": 10}
    assert found.splits["test"].column("text") == [row["text"] for row in ROWS[20:]]


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_pictures_that_a_table_names_lie_beside_it_else_where_the_program_was_called(tmp_path, monkeypatch, name):
    """Training runs in the run's folder, and must find what the data check found."""
    beside, here, run = tmp_path / "data", tmp_path / "here", tmp_path / "run"
    for folder, names in ((beside, ("pictures/a.png", "both.png")), (here, ("b.png", "both.png")), (run, ())):
        for number, one in enumerate(names):
            (folder / one).parent.mkdir(parents=True, exist_ok=True)
            Pictures.new("RGB", (8, 8), (number, len(folder.name), 0)).save(folder / one)
        folder.mkdir(exist_ok=True)
    images = ["pictures/a.png", "both.png", "b.png", str(here / "both.png"), "https://x.org/c.png", "gone.png"]
    rows = [{"picture": image, "mask": images[0], "label": "xy"[n % 2]} for n, image in enumerate(images)]
    if name.endswith("csv"):
        write_csv(beside / name, rows)
    elif name.endswith("jsonl"):
        write_jsonl(beside / name, rows)
    else:
        Dataset.from_list(rows).to_parquet(beside / name)
    monkeypatch.chdir(here)
    wanted = [str(beside / images[0]), str(beside / images[1]), str(here / "b.png"), *images[3:]]
    data = Data(source=str(beside / name), columns={"image": "picture"}, allow_urls=True)
    found = load_rows(data)["train"]
    assert found["picture"][:] == wanted
    assert found.column_names == ["picture", "mask", "label"]
    assert found["mask"][:] == [wanted[0]] * len(rows)
    streamed = data.model_copy(
        update={"source": SplitSources(train=str(beside / name)), "streaming": Streaming(buffer=2)}
    )
    assert sorted(row["picture"] for row in stream_rows(streamed)) == sorted(wanted)
    monkeypatch.chdir(run)
    assert load_rows(data)["train"]["picture"][:2] == wanted[:2]


def test_each_table_of_several_folders_has_its_own_pictures(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Pictures.new("RGB", (8, 8)).save(tmp_path / folder / "0.png")
        write_csv(tmp_path / folder / "rows.csv", [{"image": "0.png", "label": folder}])
    found = load_rows(Data(source=str(tmp_path / "*" / "rows.csv")))["train"]
    assert found["image"][:] == [str(tmp_path / folder / "0.png") for folder in ("a", "b")]


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


def test_each_source_says_itself_what_is_a_number(tmp_path):
    values = {"a": [1, 2], "b": [1.5, 2.5], "c": [1, 2.5]}
    for name, column in values.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"label": value}) + "\n" for value in column))
    sources = [str(tmp_path / f"{name}.jsonl") for name in values]
    labels = load_rows(Data(source=sources))["train"]["label"][:]
    assert labels == [value for column in values.values() for value in column]
    assert list(map(type, labels)) == [type(value) for column in values.values() for value in column]


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_file_that_is_not_what_its_name_says_is_named_with_the_reason(tmp_path):
    for name in ("rows.parquet", "rows.json", "rows.jsonl", "rows.arrow"):
        (tmp_path / name).write_bytes(b"\x00\x01 this is no data {")
        said = mistake(tmp_path / name)
        assert "data.source: could not be read" in said
        assert name in said


def test_an_empty_file_is_a_mistake(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    assert "data.source: could not be read" in mistake(tmp_path / "empty.csv")


def test_a_header_without_rows_is_a_mistake(tmp_path):
    (tmp_path / "header.csv").write_text("text,label\n")
    said = mistake(tmp_path / "header.csv")
    assert "data.source: the source has no rows" in said
    assert "header.csv" in said


def test_an_unknown_suffix_lists_the_known_ones(tmp_path):
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    said = mistake(tmp_path / "rows.xlsx")
    assert "found: .xlsx" in said
    assert ".parquet" in said


def test_files_of_two_formats_in_one_glob_are_a_mistake(tmp_path):
    write_csv(tmp_path / "part.csv", ROWS)
    write_jsonl(tmp_path / "part.jsonl", ROWS)
    assert "found: .csv, .jsonl" in mistake(str(tmp_path / "part.*"))


def test_files_with_different_columns_in_one_list_are_a_mistake(tmp_path):
    first = write_csv(tmp_path / "a.csv", [{"text": "a", "label": 1}])
    second = write_csv(tmp_path / "b.csv", [{"text": "b", "class": "x"}])
    assert "data.source" in mistake([str(first), str(second)])


def test_a_missing_file_and_an_empty_glob_are_mistakes(tmp_path, rows_file):
    said = mistake(tmp_path / "row.csv")
    assert "no such file or folder" in said
    assert "rows.csv" in said
    assert "no file matches" in mistake(str(tmp_path / "*.parquet"))


def test_a_data_set_without_training_rows_names_its_splits(tmp_path):
    for names in (["test"], ["first", "second"]):
        saved = DatasetDict({name: Dataset.from_list(ROWS) for name in names})
        saved.save_to_disk(str(tmp_path / names[0]))
        said = mistake(tmp_path / names[0])
        assert "data.source: has no training split" in said
        assert f"splits {', '.join(names)}" in said


def test_a_split_that_its_source_does_not_have_is_a_mistake_and_never_the_training_rows(tmp_path):
    saved = DatasetDict({"train": Dataset.from_list(ROWS[:20]), "test": Dataset.from_list(ROWS[20:])})
    saved.save_to_disk(str(tmp_path / "saved"))
    source = str(tmp_path / "saved")
    assert "data.source.validation: has no validation split" in mistake({"train": source, "validation": source})


def test_a_list_cannot_hold_data_sets_with_splits(tmp_path, rows_file):
    DatasetDict({name: Dataset.from_list(ROWS) for name in ("train", "test")}).save_to_disk(str(tmp_path / "saved"))
    assert "a list of sources cannot hold" in mistake([str(tmp_path / "saved"), str(rows_file)])


def test_a_folder_without_data_is_a_mistake(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "readme.xyz").write_text("nothing here")
    assert "data.source: could not be read" in mistake(tmp_path / "folder")
