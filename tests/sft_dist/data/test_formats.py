"""Each format from files written here, and every fault of a file named with its place."""

from __future__ import annotations

import csv
import gzip
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Dataset
from PIL import Image

from sft_dist.data.formats import FORMATS, sql
from sft_dist.data.formats.layout import guessed, is_coco, split_named
from sft_dist.data.media import load_audio, load_image, load_mask
from sft_dist.data.sources import load_rows
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Data


def rows_of(source: Any, **settings: Any) -> Dataset:
    return load_rows(Data(source=str(source), **settings))["train"]


def mistake(source: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_rows(Data(source=source if isinstance(source, (list, dict)) else str(source), **settings))
    return str(caught.value)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def picture(path: Path, number: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if path.parent.name == "masks" else "RGB", size, number).save(path)
    return path


def sound(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(80, 0.25), 8_000)
    return path


# ── text and tables ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_lines_of_text_are_rows(tmp_path):
    rows = rows_of(write(tmp_path / "a.txt", "one\ntwo words\n\nthé end"))
    assert rows.column_names == ["text"]
    assert rows["text"][:] == ["one", "two words", "", "thé end"]


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.conll.gz"])
def test_packed_files_are_unpacked(tmp_path, name):
    content = {"a.csv.gz": "text\nhello\n", "a.jsonl.gz": '{"text": "hello"}\n', "a.conll.gz": "hello O\n"}[name]
    write(tmp_path / name, gzip.compress(content.encode()))
    assert rows_of(tmp_path / name)[0] in ({"text": "hello"}, {"tokens": ["hello"], "tags": ["O"]})


def test_the_format_can_be_named_for_a_file_that_is_called_otherwise(tmp_path):
    file = write(tmp_path / "reviews.dat", "text\tlabel\na\tb\n")
    assert "found: .dat" in mistake(file)
    assert "set data.format for files with other suffixes" in mistake(file)
    assert rows_of(file, format="tsv")[:] == {"text": ["a"], "label": ["b"]}


def test_a_name_with_brackets_is_no_pattern(tmp_path):
    assert rows_of(write(tmp_path / "x[1].csv", "text\na\n"))["text"][:] == ["a"]


def test_a_changed_file_is_read_again(tmp_path):
    for name, before, after in (("a.csv", "text\na\n", "text\nb\n"), ("a.conll", "a O\n", "b O\n")):
        first = rows_of(write(tmp_path / name, before))[0]
        assert rows_of(write(tmp_path / name, after))[0] != first


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"text,label\na,b\nc,d,e\n", "a.csv, line 3: expected 2 fields, found 3"),
        ("a.csv", b"text,label\na,b,x\nc,d,e\n", "a.csv, line 2: expected 2 fields, found 3"),
        ("a.csv", b'text,label\n"two\nlines",b\nc\nd,e\n', "a.csv, line 4: expected 2 fields, found 1"),
        ("a.csv", b'text,label\na,b\n"c,d\ne,f\n', "a.csv, line 3: unterminated quoted field"),
        ("a.tsv", b"text\tlabel\na\tb\nc\n", "a.tsv, line 3: expected 2 fields, found 1"),
        ("a.csv", "text,label\na,b\ncafé,d\n".encode("latin-1"), "a.csv, line 3, byte 18: 0xe9 is not UTF-8"),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), "a.csv, line 1, byte 0: UTF-16 instead of UTF-8"),
        ("a.txt", b"fine\nna\xefve\n", "a.txt, line 2, byte 7: 0xef is not UTF-8"),
        ("a.jsonl", b'{"t": 1}\n{"t": "na\xefve"}\n', "a.jsonl, line 2, byte 18: 0xef is not UTF-8"),
        ("a.jsonl", b'{"t": 1}\n{"t": }\n{"t": 3}\n', "a.jsonl, line 2: not JSON (Expecting value, column 7)"),
        ("a.jsonl", b'{"t": 1}\n{"t": 2', "a.jsonl, line 2: not JSON (Expecting ',' delimiter, column 8)"),
        (
            "a.jsonl",
            b'{"t": 1}\n[1, 2]\n',
            "a.jsonl, line 2: expected an object with the columns as keys, found [1, 2]",
        ),
        (
            "a.json",
            b'[\n {"t": 1},\n {"t": 2 "u": 3}\n]',
            "a.json, line 3: not JSON (Expecting ',' delimiter, column 10)",
        ),
        (
            "a.jsonl",
            b'{"t": 1,\n{"t": 2}\n',
            "a.jsonl, line 1: not JSON (Expecting property name enclosed in double quotes",
        ),
        ("a.jsonl", b'{"t": 1}\n{"t": ' + b"[" * 300 + b"]" * 300 + b"}", "a.jsonl, line 2: nested more than 200 deep"),
        ("a.jsonl", b'{"t": 1}\n{"t": ' + b"[" * 9000, "a.jsonl, line 2: nested more than 200 deep"),
        ("a.jsonl", b'{"a":' * 9000 + b"1", "a.jsonl: nested more than 200 deep"),
        ("a.json", b'[{"t": ' + b"[" * 300 + b"]" * 300 + b"}]", "a.json: nested more than 200 deep"),
        ("a.csv", b"PAR1 and more", "a.csv: a Parquet file, not csv"),
        ("a.csv", b"PK\x03\x04 and more", "a.csv: a zip archive or an Excel file, not csv"),
        ("a.jsonl", b"\x1f\x8b and more", "a.jsonl: packed by gzip, not json"),
        ("a.tsv", b"<!DOCTYPE html>\n<p>Not, found</p>\n", "a.tsv: a web page, not tsv"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", "a.csv: a pointer of Git LFS instead of the data"),
        ("a.csv", b"", "a.csv: the file is empty"),
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.parquet", b"text,label\n", "a.parquet: not a parquet file"),
        ("a.conll", b"John B-PER\nlives O\n\nBerlin\n", "a.conll, line 4: expected a token and its tag"),
        ("a.conll", b"John O\nM\xfcller B-PER\n", "a.conll, line 2, byte 8: 0xfc is not UTF-8"),
    ],
)
def test_a_fault_is_named_with_its_file_and_line(tmp_path, name, content, said):
    found = mistake(write(tmp_path / name, content))
    assert found.startswith("data.source: could not be read: ")
    assert f"{tmp_path}/{said}" in found


@pytest.mark.parametrize("depth", [20, 90])
def test_deeply_nested_values_that_nothing_reads_are_kept(tmp_path, depth):
    content = '{"t": 1, "extra": ' + "[" * depth + "]" * depth + "}\n"
    assert len(rows_of(write(tmp_path / "a.jsonl", content))) == 1


def test_a_parquet_file_without_rows_is_said_to_have_none(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert "the source has no rows" in mistake(tmp_path / "a.parquet")


def test_of_several_files_the_one_at_fault_is_named(tmp_path):
    write(tmp_path / "a.csv", "text,label\na,b\n")
    write(tmp_path / "b.csv", "text,label\na,b,c\n")
    assert "b.csv, line 2: expected 2 fields" in mistake(tmp_path / "*.csv")
    listed = mistake([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])
    assert listed.startswith("data.source.1: could not be read")
    assert mistake({"train": str(tmp_path / "b.csv")}).startswith("data.source.train: could not be read")


def test_an_empty_cell_at_the_end_of_a_line_is_no_fault(tmp_path):
    rows = rows_of(write(tmp_path / "a.csv", "text,label\na,\n\nb,c\n"))
    assert rows["label"][:] == [None, "c"]


def test_a_csv_whose_text_begins_with_a_mark_that_is_none_is_refused(tmp_path):
    """pandas takes the rows up to the next mark for one field."""
    texts = ["fine", '"Never again', "a film", 'a "mark" inside', "the end"]
    said = mistake(write(tmp_path / "a.csv", "text,label\n" + "".join(f"{text},x\n" for text in texts)))
    assert "a.csv, line 3: a quoted field does not end at its closing quotation mark" in said
    assert "put the whole field in marks" in said


def test_fields_in_quotation_marks_may_have_lines_and_marks(tmp_path):
    texts = ["two\nlines, and a comma", 'he said "no"', '"', "Hello, John\nBye", 'elddim" eht ni']
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(
                [["text", "label"], *([t, "x"] for t in texts)]
            )
        assert rows_of(tmp_path / name)["text"][:] == texts


@pytest.mark.parametrize(
    "texts", [['"Never again', 'a "b" c'], ['"Never', "a", 'size 5"'], ['"Good" was said'], ['"never']]
)
def test_marks_are_text_in_a_tsv_that_does_not_quote(tmp_path, texts):
    file = write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"{text}\tx\n" for text in texts))
    assert rows_of(file)["text"][:] == texts
    write(file, file.read_text() + "lone\n")
    assert f"a.tsv, line {len(texts) + 2}: expected 2 fields, found 1" in mistake(file)


def test_fields_longer_than_the_csv_module_takes_are_no_fault(tmp_path):
    rows = rows_of(write(tmp_path / "a.csv", "text,label\n" + "x" * 200_000 + ",\nb,c\n"))
    assert [len(text) for text in rows["text"][:]] == [200_000, 1]


@pytest.mark.parametrize("name", ["a.txt", "a.conll", "a.jsonl"])
def test_a_file_of_blanks_has_no_rows(tmp_path, name):
    found = mistake(write(tmp_path / name, "" if name == "a.txt" else "\n\n"))
    assert "the source has no rows" in found or "could not be read" in found
    assert name in found


# ── CoNLL ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_sentences_are_rows_of_tokens_and_tags(tmp_path):
    text = (
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\n-DOCSTART- -X- O O\n\nPeter NNP B-NP B-PER"
    )
    rows = rows_of(write(tmp_path / "a.conll", text))
    assert rows[:] == {"tokens": [["EU", "rejects"], ["Peter"]], "tags": [["B-ORG", "O"], ["B-PER"]]}


@pytest.mark.parametrize("name", ["a.bio", "a.iob", "a.iob2", "a.txt"])
def test_tabs_let_a_token_hold_blanks(tmp_path, name):
    file = write(tmp_path / name, "\ufeffNew York\tB-LOC\r\n\u00a0\tO\r\n \t\r\nend O\r\n")
    rows = rows_of(file, **({"format": "conll"} if name == "a.txt" else {}))
    assert rows["tokens"][:] == [["New York", "\u00a0"], ["end"]]
    assert rows["tags"][:] == [["B-LOC", "O"], ["O"]]


def test_a_folder_of_conll_files_is_divided_by_their_names(tmp_path):
    for name in ("train", "dev", "test"):
        write(tmp_path / "ner" / f"eng.{name}.conll", f"{name} O\n")
    found = load_rows(Data(source=str(tmp_path / "ner")))
    assert {split: rows[0]["tokens"] for split, rows in found.items()} == {
        "train": ["train"], "validation": ["dev"], "test": ["test"],
    }  # fmt: skip


# ── folders of pictures and recordings ──────────────────────────────────────────────────────────────────────────────
def labelled(rows: Dataset, column: str) -> dict[str, Any]:
    """File name -> label by name; shows too that the column holds {"path", "bytes"}."""
    feature = rows.features["label"]
    names = [feature.int2str(one) if hasattr(feature, "int2str") else one for one in rows["label"][:]]
    return {Path(value["path"]).name: name for value, name in zip(rows[column][:], names, strict=True)}


@pytest.mark.parametrize(("column", "suffix"), [("image", ".png"), ("audio", ".wav")])
def test_class_folders_give_labels(tmp_path, column, suffix):
    make = picture if column == "image" else sound
    for name in ("train", "plane"):  # a class may be called like a split
        make(tmp_path / "things" / name / f"{name}{suffix}")
    rows = rows_of(tmp_path / "things")
    assert set(rows.column_names) == {column, "label"}
    assert labelled(rows, column) == {f"train{suffix}": "train", f"plane{suffix}": "plane"}


@pytest.mark.parametrize(("column", "suffix"), [("image", ".png"), ("audio", ".wav")])
def test_split_folders_are_splits(tmp_path, column, suffix):
    make = picture if column == "image" else sound
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            make(tmp_path / "pets" / split / name / f"{split}-{name}{suffix}")
    found = load_rows(Data(source=str(tmp_path / "pets")))
    assert set(found) == {"train", "validation", "test"}
    assert labelled(found["validation"], column) == {f"val-cat{suffix}": "cat", f"val-dog{suffix}": "dog"}


@pytest.mark.parametrize(("column", "suffix"), [("image", ".png"), ("audio", ".wav")])
def test_a_metadata_table_gives_the_columns(tmp_path, column, suffix):
    make = picture if column == "image" else sound
    for name in ("a", "b"):
        make(tmp_path / "m" / f"{name}{suffix}")
    write(tmp_path / "m" / "metadata.csv", f"file_name,text,speaker\nb{suffix},hello,s1\na{suffix},bye,s2\n")
    rows = rows_of(tmp_path / "m")
    assert set(rows.column_names) == {column, "text", "speaker"}
    assert [Path(one["path"]).stem for one in rows[column][:]] == ["b", "a"]
    assert rows["text"][:] == ["hello", "bye"]


def test_pictures_and_sounds_of_rows_can_be_read(tmp_path):
    picture(tmp_path / "p" / "x" / "a.png", 7)
    picture(tmp_path / "p" / "y" / "b.png", 7)
    sound(tmp_path / "s" / "x" / "a.wav")
    assert load_image(rows_of(tmp_path / "p")[0]["image"]).size == (8, 6)
    assert load_audio(rows_of(tmp_path / "s")[0]["audio"], 8_000).shape == (80,)


def test_rows_with_sound_go_through_map_select_and_disk(tmp_path):
    """`datasets` wants torchcodec wherever it encodes sound; nothing here may make it do so."""
    for name in ("a", "b", "c"):
        sound(tmp_path / "s" / "x" / f"{name}.wav")
    rows = rows_of(tmp_path / "s").map(lambda row: {"length": len(row["label"])}).select([2, 0])
    rows.save_to_disk(str(tmp_path / "saved"))
    again = rows_of(tmp_path / "saved")
    assert [Path(one["path"]).stem for one in again["audio"][:]] == ["c", "a"]
    assert load_audio(again[0]["audio"], 8_000).shape == (80,)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a/x.wav": b"", "y.wav": b""}, "y.wav lies beside the folders of the classes"),
        ({"x.wav": b"", "metadata.csv": b"name,text\nx.wav,hi\n"}, "metadata.csv has no column file_name"),
        ({"x.wav": b"", "metadata.csv": b"file_name,text\nz.wav,hi\n"}, "metadata.csv, row 0: there is no file"),
        (
            {"x.wav": b"", "metadata.csv": b"file_name,text\n../x.wav,hi\n"},
            "is not in the folder of the table or below",
        ),
        ({"notes.xyz": b""}, "has a supported format"),
        ({}, "has a supported format"),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(tmp_path, files, said):
    (tmp_path / "f").mkdir()
    for name, content in files.items():
        write(tmp_path / "f" / name, content)
    assert said in mistake(tmp_path / "f")


# ── masks ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_images_and_masks_are_paired_by_name(tmp_path):
    for number, name in enumerate(("a", "in/b")):
        picture(tmp_path / "seg" / "images" / f"{name}.jpg")
        (tmp_path / "seg" / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 6), number + 5).save(tmp_path / "seg" / "masks" / f"{name}.png")
    rows = rows_of(tmp_path / "seg")
    assert rows.column_names == ["image", "mask"]
    assert [int(load_mask(one).max()) for one in rows["mask"][:]] == [5, 6]
    assert [Path(one["path"]).stem for one in rows["image"][:]] == ["a", "b"]


def test_splits_of_masks(tmp_path):
    for split in ("train", "validation"):
        for part in ("images", "masks"):
            picture(tmp_path / "seg" / split / part / "a.png")
    found = load_rows(Data(source=str(tmp_path / "seg")))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 1, "validation": 1}


def test_a_picture_without_a_mask_is_named(tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / "seg" / "images" / f"{name}.png")
    picture(tmp_path / "seg" / "masks" / "a.png")
    said = mistake(tmp_path / "seg")
    assert "images/b.png has no counterpart" in said
    assert "masks/b.* (nor have 1 others)" in said
    (tmp_path / "other" / "images").mkdir(parents=True)
    assert "there is no folder" in mistake(tmp_path / "other", format="mask-folder")


def test_splits_inside_the_folder_of_images_are_not_trained_on_unseen(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / "images" / split / "a.png")
        picture(tmp_path / "masks" / split / "a.png")
    assert "the splits lie inside" in mistake(tmp_path)


# ── boxes ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def coco(**changes: Any) -> dict[str, Any]:
    whole = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 9, "bbox": [1, 2, 3.5, 4]},
            {"id": 2, "image_id": 1, "category_id": 7, "bbox": [0, 0, 8, 6], "iscrowd": 0},
            {"id": 3, "image_id": 1, "category_id": 7, "bbox": [0, 0, 8, 6], "iscrowd": 1},
        ],
    }
    return {**whole, **changes}


@pytest.mark.parametrize("place", ["", "images", "../images"])
def test_coco_annotations_become_boxes_with_names(tmp_path, place):
    file = write(tmp_path / "set" / "boxes.json", json.dumps(coco()))
    for name in ("a.png", "b.png"):
        picture(file.parent / place / name)
    rows = rows_of(file)
    assert rows.column_names == ["image", "objects", "width", "height"]
    box = [0.0, 0.0, 8.0, 6.0]
    assert rows["objects"][:] == [
        {"bbox": [[1.0, 2.0, 3.5, 4.0], box, box], "category": ["dog", "cat", "cat"], "iscrowd": [0, 0, 1]},
        {"bbox": [], "category": [], "iscrowd": []},
    ]
    assert rows["width"][:] == rows["height"][:] == [None, None]
    assert load_image(rows[1]["image"]).size == (8, 6)


def test_annotations_hand_on_the_size_they_are_for(tmp_path):
    picture(tmp_path / "a.png")
    entries = [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}]
    (row,) = rows_of(write(tmp_path / "boxes.json", json.dumps(coco(images=entries, annotations=[]))))
    assert (row["width"], row["height"]) == (8.0, 6.0)
    size = "<size><width>{}</width><height>6</height></size>"
    for name, stated, width in (("one", "8", 8.0), ("two", "0", None)):
        folder = tmp_path / name
        picture(folder / "a.png")
        write(folder / "a.xml", f"<annotation>{size.format(stated)}</annotation>")
        assert [rows_of(folder)[0][side] for side in ("width", "height")] == [width, 6.0]


@pytest.mark.parametrize("name", ["pics\\a.png", ".\\pics\\a.png", "C:\\data\\a.png", "\\\\server\\share\\a.png"])
def test_paths_that_windows_wrote_are_resolved_in_coco(tmp_path, name):
    picture(tmp_path / ("pics" if "pics" in name else "images") / "a.png")
    entries = [{"id": 1, "file_name": name}]
    (row,) = rows_of(write(tmp_path / "boxes.json", json.dumps(coco(images=entries, annotations=[]))), format="coco")
    assert load_image(row["image"]).size == (8, 6)


def test_the_layout_of_the_coco_download_is_found(tmp_path):
    file = write(tmp_path / "annotations" / "instances_val2017.json", json.dumps(coco()))
    for name in ("a.png", "b.png"):
        picture(tmp_path / "val2017" / name)
    assert [Path(one["path"]).parent.name for one in rows_of(file)["image"][:]] == ["val2017", "val2017"]


def test_a_folder_with_coco_annotations_is_known(tmp_path):
    write(tmp_path / "train" / "_annotations.coco.json", json.dumps(coco()))
    write(tmp_path / "valid" / "_annotations.coco.json", json.dumps(coco()))
    for split in ("train", "valid"):
        for name in ("a.png", "b.png"):
            picture(tmp_path / split / name)
    found = load_rows(Data(source=str(tmp_path)))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 2, "validation": 2}
    assert "train/a.png" in found["train"][0]["image"]["path"]


def test_other_json_files_beside_coco_annotations_are_passed_over(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "annotations" / f"instances_{split}.json", json.dumps(coco()))
        write(tmp_path / "annotations" / f"captions_{split}.json", json.dumps({"images": [], "annotations": []}))
        for name in ("a.png", "b.png"):
            picture(tmp_path / split / name)
    found = load_rows(Data(source=str(tmp_path)))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 2, "validation": 2}
    assert f"{tmp_path}/val/a.png" == found["validation"][0]["image"]["path"]


def test_json_rows_are_not_taken_for_coco(tmp_path):
    assert not is_coco(write(tmp_path / "a.json", '{"images": ["x.png"], "text": "annotations", "categories": [1]}\n'))
    assert not is_coco(write(tmp_path / "b.json", json.dumps([coco()])))
    assert not is_coco(write(tmp_path / "c.json", ""))
    assert is_coco(write(tmp_path / "d.json", json.dumps(coco(annotations=[]), indent=1)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (coco(annotations=[{"id": 5, "image_id": 3, "category_id": 7, "bbox": [0, 0, 1, 1]}]), "annotation 5: there is no image with this id"),
        (coco(annotations=[{"id": 5, "image_id": 1, "category_id": 8, "bbox": [0, 0, 1, 1]}]), "annotation 5: there is no category with this id"),
        (coco(annotations=[{"id": 5, "image_id": 1, "category_id": 7, "bbox": [0, 0, 1]}]), "annotation 5: a box is [x, y, width, height]"),
        (coco(annotations=[{"id": 5, "image_id": 1, "bbox": [0, 0, 1, 1]}]), "annotation 5: lacks 'category_id'"),
        (coco(images=[{"id": 1}]), "an image or a category lacks 'file_name'"),
        (coco(images=[{"id": 1, "file_name": "a.png"}] * 2), "two images have the same id"),
        (coco(images=[{"id": 1, "file_name": "gone.png"}]), "the image gone.png is not there"),
        (coco(images=[{"id": 1, "file_name": "../a.png"}]), "the image ../a.png leaves the folder"),
        (coco(images=[{"id": 1, "file_name": "/etc/passwd"}]), "the image /etc/passwd leaves the folder"),
        ({"images": []}, "COCO annotations have a list 'annotations'"),
    ],
)  # fmt: skip
def test_a_fault_in_coco_annotations_is_named(tmp_path, content, said):
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    found = mistake(write(tmp_path / "boxes.json", json.dumps(content)), format="coco")
    assert f"data.source: could not be read: {tmp_path}/boxes.json" in found
    assert said in found


def voc(filename: str = "a.png", name: str = "tree", box: str = "", tag: str = "annotation") -> str:
    corners = box or "<xmin>1</xmin><ymin>2</ymin><xmax>5.5</xmax><ymax>6</ymax>"
    return (
        f"<{tag}><filename>{filename}</filename><object><name>{name}</name><bndbox>{corners}</bndbox></object></{tag}>"
    )


def test_voc_annotations_beside_their_pictures(tmp_path):
    picture(tmp_path / "d" / "a.png")
    picture(tmp_path / "d" / "b.jpg")
    picture(tmp_path / "d" / "unmarked.png")
    write(tmp_path / "d" / "a.xml", voc())
    write(tmp_path / "d" / "b.xml", "<annotation><filename>b.tif</filename></annotation>")  # renamed since
    rows = rows_of(tmp_path / "d")
    assert rows["objects"][:] == [
        {"bbox": [[1.0, 2.0, 4.5, 4.0]], "category": ["tree"], "iscrowd": [0]},
        {"bbox": [], "category": [], "iscrowd": []},
    ]
    assert [Path(one["path"]).name for one in rows["image"][:]] == ["a.png", "b.jpg"]


def test_voc_folders_of_their_own(tmp_path):
    picture(tmp_path / "JPEGImages" / "a.png")
    picture(tmp_path / "SegmentationClass" / "a.png")
    write(tmp_path / "Annotations" / "a.xml", voc())
    (row,) = rows_of(tmp_path)
    assert Path(row["image"]["path"]).parent.name == "JPEGImages"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<annotation>\n<object>\n</annotation>", "a.xml, line 3: not XML (mismatched tag"),
        (voc(tag="labels"), "a.xml: VOC annotations are in <annotation>"),
        (voc(name=" "), "a.xml, object 1: it has no <name>"),
        (voc(box="<xmin>1</xmin><ymin>2</ymin><xmax>x</xmax><ymax>6</ymax>"), "a.xml, object 1: <bndbox> has the numbers"),
        (voc(box="<xmin>1</xmin>"), "a.xml, object 1: <bndbox> has the numbers"),
        (voc(filename="gone.png"), "a.xml: the image gone.png is not there"),
    ],
)  # fmt: skip
def test_a_fault_in_voc_annotations_is_named(tmp_path, content, said):
    picture(tmp_path / ("b.png" if "gone" in content else "a.png"))
    write(tmp_path / "a.xml", content)
    assert f"could not be read: {tmp_path}/{said}" in mistake(tmp_path)


# ── databases ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def database(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "rows.db") as connection:
        connection.execute('create table "my reviews" (text text, label text)')
        connection.execute("create table reviews (text text, label text, stars int)")
        connection.executemany("insert into reviews values (?, ?, ?)", [(f"t{n}", "np"[n % 2], n) for n in range(6)])
    return tmp_path / "rows.db"


@pytest.mark.slow
def test_a_table_of_a_database(database):
    rows = rows_of(f"sqlite:///{database}#reviews")
    assert rows.column_names == ["text", "label", "stars"]
    assert rows["text"][:] == [f"t{n}" for n in range(6)]


def test_a_query_of_a_database(database):
    rows = rows_of(f"sqlite:///{database}#SELECT text, label FROM reviews WHERE stars > 3 ORDER BY stars DESC")
    assert rows[:] == {"text": ["t5", "t4"], "label": ["p", "n"]}


def test_a_database_that_changed_is_read_again(database):
    assert len(rows_of(f"sqlite:///{database}#reviews")) == 6
    with sqlite3.connect(database) as connection:
        connection.execute("delete from reviews where stars > 1")
    assert len(rows_of(f"sqlite:///{database}#reviews")) == 2


def test_what_a_database_cannot_give_is_said(database):
    said = mistake(f"sqlite:///{database}#review")
    assert "data.source: there is no such table" in said
    assert "valid: my reviews, reviews" in said
    assert "did you mean `reviews`?" in said
    assert "which table? Its name, or a query, follows a `#`" in mistake(f"sqlite:///{database}")
    assert "no such column: nope" in mistake(f"sqlite:///{database}#select nope from reviews")
    assert "the source has no rows" in mistake(f"sqlite:///{database}#select * from reviews where stars > 99")
    assert "no such database file" in mistake(f"sqlite:///{database.parent}/gone.db#reviews")
    assert not (database.parent / "gone.db").exists()
    assert "the driver of this database is not installed" in mistake("postgresql+psycopg2://u:secret@host/db#t")
    assert "secret" not in mistake("postgresql+psycopg2://u:secret@host/db#t")


@pytest.mark.parametrize(
    "query",
    [
        "drop table reviews",
        "create table t (a int)",
        "insert into reviews values ('a', 'n', 1) returning *",
        "update reviews set stars = 0 returning *",
        "delete from reviews returning *",
        "replace into reviews values ('a', 'n', 1)",
        "vacuum into '{folder}/copy.db'",
        "attach '{folder}/other.db' as other",
        "pragma user_version = 7",
        "select 1; drop table reviews",
        "select 1 /* ; */ ; delete from reviews",
        "with t as (select 1) insert into reviews select 'a', 'n', 1",
        "with t as (delete from reviews returning *) select * from t",
        "select * into copy from reviews",
        "explain select * from reviews",
    ],
)
def test_a_query_that_is_not_one_select_is_refused(database, query):
    before = {file.name: file.read_bytes() for file in database.parent.iterdir()}
    assert "a query is one SELECT" in mistake(f"sqlite:///{database}#{query.format(folder=database.parent)}")
    assert {file.name: file.read_bytes() for file in database.parent.iterdir()} == before


def test_a_connection_to_a_database_cannot_write(database, monkeypatch):
    monkeypatch.setattr(sql, "_require_one_select", lambda query, redacted: None)
    before = {file.name: file.read_bytes() for file in database.parent.iterdir()}
    for query in (
        "drop table reviews",
        f"vacuum into '{database.parent}/copy.db'",
        f"attach '{database.parent}/b' as b",
    ):
        mistake(f"sqlite:///{database}#{query}")
    assert {file.name: file.read_bytes() for file in database.parent.iterdir()} == before


@pytest.mark.parametrize(
    "query",
    [
        "select text, label from reviews;",
        "select 'a; drop table reviews' as text -- ; delete\nfrom reviews",
        "with t as (select * from reviews) select text from t",
        "SELECT replace(text, 't', 'u') AS text FROM reviews",
        'select text as "update" from reviews',
    ],
)
def test_one_select_is_read(database, query):
    assert len(rows_of(f"sqlite:///{database}#{query}")) == 6


@pytest.mark.slow
def test_an_endless_query_is_ended(database, monkeypatch):
    numbers = "with recursive n(a) as (select 1 union all select a + 1 from n)"
    monkeypatch.setattr(sql, "MAX_ROWS", 20_000)
    assert "more than 20,000 rows" in mistake(f"sqlite:///{database}#{numbers} select a from n")
    monkeypatch.setattr(sql, "MAX_WAIT_S", 0.2)
    assert "interrupted" in mistake(f"sqlite:///{database}#{numbers} select count(*) from n")


# ── what a folder is ────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_format_of_the_schema_has_a_reader():
    from typing import get_args

    assert {*FORMATS, "auto", "sql"} == set(get_args(Data.model_fields["format"].annotation))


@pytest.mark.parametrize(
    ("name", "split"),
    [("train.csv", "train"), ("dev", "validation"), ("eng.test.conll", "test"), ("trains.csv", None), ("a", None)],
)
def test_names_of_splits(name, split):
    assert split_named(name) == split


def test_a_format_that_does_not_fit_the_source_is_said(tmp_path):
    file = write(tmp_path / "d" / "a.csv", "text\na\n")
    assert "data.format: voc is not a file format" in mistake(file, format="voc")
    assert "data.format: sql is not a folder format" in mistake(file.parent, format="sql")
    assert "no file in" in mistake(file.parent, format="parquet")
    write(file.parent / "LICENSE.txt", "free")
    assert guessed(file.parent) == "csv"


def test_a_data_set_as_it_is_on_the_hub_is_read_by_its_card(tmp_path):
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: one.csv\n---\n"
    write(tmp_path / "README.md", card)
    write(tmp_path / "one.csv", "text\na\n")
    write(tmp_path / "two.csv", "text\nb\n")
    assert rows_of(tmp_path)["text"][:] == ["a"]


def test_files_that_say_no_split_beside_files_that_do_are_never_mixed_up(tmp_path):
    for name in ("train", "test", "more"):
        write(tmp_path / "t" / f"{name}.csv", "text\na\n")
        picture(tmp_path / "p" / name / "cat" / "a.png")
    said = mistake(tmp_path / "t")
    assert "cannot tell which split more.csv belongs to" in said
    assert "data.source: {train: ..., validation: ..., test: ...}" in said
    assert "cannot tell which split more belongs to" in mistake(tmp_path / "p")
    write(tmp_path / "only" / "test.csv", "text\na\n")
    assert "data.source: has no training split" in mistake(tmp_path / "only")
