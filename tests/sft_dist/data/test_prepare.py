"""From files to cleaned, divided rows: every format reads alike, every dropped row is counted, every mistake is named."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sft_dist.data.prepare import Prepared, naming_of, prepare
from sft_dist.data.sources import load_rows, stream_rows
from sft_dist.data.splits import draw, hold_out, keep_splits
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Data, Recipe, SplitSources, Streaming
from sft_dist.tasks import task_of

ROWS = [{"text": f"text {n}", "label": ["neg", "pos"][n % 2], "lang": ["en", "de", "fr"][n % 3]} for n in range(30)]


def recipe_of(source: Any, problem: str = "single-label", seed: int = 0, **data: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "rows",
            "task": {"type": "text-classification", "problem": problem},
            "model": {"path": "/nowhere"},
            "data": {"source": source, **data},
            "tuning": "full",
            "train": {"lr": 1e-3, "seed": seed},
        }
    )


def prepared(source: Any, **settings: Any) -> Prepared:
    recipe = recipe_of(str(source) if isinstance(source, Path) else source, **settings)
    return prepare(recipe, task_of(recipe))


def mistake(source: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        prepared(source, **settings)
    return str(caught.value)


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    Dataset.from_list(rows).save_to_disk(str(path.parent / "aside"))
    (shard,) = (path.parent / "aside").glob("*.arrow")
    shard.rename(path)
    return path


WRITERS = {
    "rows.csv": write_csv,
    "rows.CSV": write_csv,
    "rows.tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "rows.json": lambda path, rows: path.write_text(json.dumps(rows)) and path,
    "rows.jsonl": write_jsonl,
    "rows.parquet": lambda path, rows: Dataset.from_list(rows).to_parquet(str(path)) and path,
    "rows.arrow": write_arrow,
    "saved": lambda path, rows: Dataset.from_list(rows).save_to_disk(str(path)) or path,
}


def all_texts(found: Prepared) -> list[str]:
    return sorted(text for rows in found.splits.values() for text in rows.column("text"))


# ── sources ─────────────────────────────────────────────────────────────────────────────────────────────────────────
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


def test_empty_cells_are_missing(tmp_path):
    rows = [*ROWS, {"text": "", "label": "pos"}, {"text": "  ", "label": "pos"}, {"text": "no label", "label": ""}]
    found = prepared(write_csv(tmp_path / "rows.csv", [{"lang": "", **row} for row in rows]))
    assert all_texts(found) == sorted(row["text"] for row in ROWS)
    assert found.dropped["empty text"] == 2
    assert found.dropped["no label"] == 1


def test_numbers_as_labels_stay_whole_beside_an_empty_cell(tmp_path):
    rows = [{"text": f"t{n}", "label": n % 2} for n in range(20)] + [{"text": "unlabelled", "label": ""}]
    found = prepared(write_csv(tmp_path / "rows.csv", rows))
    assert set(found.splits["train"].column("label")) == {"0", "1"}
    assert found.dropped["no label"] == 1


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


def test_only_the_missing_split_is_held_out(tmp_path):
    saved = DatasetDict({"train": Dataset.from_list(ROWS[:20]), "test": Dataset.from_list(ROWS[20:])})
    saved.save_to_disk(str(tmp_path / "saved"))
    found = prepared(tmp_path / "saved", split={"validation": 0.2})
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 16, "validation": 4, "test": 10}
    assert found.splits["test"].column("text") == [row["text"] for row in ROWS[20:]]


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


def test_class_numbers_of_a_data_set_become_their_names(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = [{"text": f"t{n}", "label": n % 2} for n in range(10)] + [{"text": "unknown", "label": -1}]
    Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    found = load_rows(Data(source=str(tmp_path / "saved")))["train"]
    assert [*map(naming_of(found.features["label"]), found["label"])] == ["neg", "pos"] * 5 + [None]


def test_lists_of_class_numbers_become_lists_of_names(tmp_path):
    from datasets import List

    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["fun", "sad", "long"]))})
    rows = [{"text": "a", "label": [0, 2]}, {"text": "b", "label": []}, {"text": "c", "label": None}]
    Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    found = load_rows(Data(source=str(tmp_path / "saved")))["train"]
    assert [*map(naming_of(found.features["label"]), found["label"])] == [["fun", "long"], [], None]


def test_columns_are_found_by_their_role(tmp_path):
    rows = [{"review": f"r{n}", "reply": f"a{n}", "stars": n % 2} for n in range(20)]
    found = prepared(
        write_csv(tmp_path / "rows.csv", rows), columns={"text": "review", "text_pair": "reply", "label": "stars"}
    )
    train = found.splits["train"]
    assert [text.replace("r", "a") for text in train.column("text")] == train.column("text_pair")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_pictures_that_a_table_names_lie_beside_it_else_where_the_program_was_called(tmp_path, monkeypatch, name):
    """Training runs in the run's folder, and must find what the data check found."""
    beside, here, run = tmp_path / "data", tmp_path / "here", tmp_path / "run"
    for folder, names in ((beside, ("pictures/a.png", "both.png")), (here, ("b.png", "both.png")), (run, ())):
        for number, one in enumerate(names):
            (folder / one).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, len(folder.name), 0)).save(folder / one)
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
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "0.png")
        write_csv(tmp_path / folder / "rows.csv", [{"image": "0.png", "label": folder}])
    found = load_rows(Data(source=str(tmp_path / "*" / "rows.csv")))["train"]
    assert found["image"][:] == [str(tmp_path / folder / "0.png") for folder in ("a", "b")]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_class_names_keep_their_leading_zeros(tmp_path, name):
    labels = ["007", "7", "010"]
    rows = [{"text": f"text {n}", "agent": labels[n % 3], "number": n} for n in range(30)]
    file = write_csv(tmp_path / name, rows, "," if name.endswith("csv") else "\t")
    found = prepared(file, columns={"label": "agent"}, labels=labels, split={"validation": 0.2, "test": 0.2})
    assert found.task.labels == labels
    assert set(found.splits["train"].column("label")) == set(labels)
    assert load_rows(Data(source=str(file)))["train"]["number"][:3] == ["0", "1", "2"]


def test_where_compares_numbers_with_the_texts_of_a_csv(tmp_path):
    file = write_csv(tmp_path / "rows.csv", [{"text": f"text {n}", "label": n % 3 + 0.0} for n in range(30)])
    assert prepared(file, where={"label": [0, 1]}).task.labels == ["0.0", "1.0"]
    assert prepared(file, where={"label": ["0.0", "2.0"]}).task.labels == ["0.0", "2.0"]
    with pytest.raises(UserError, match="no row of train is left"):
        prepared(file, where={"label": "0"})


# ── cleaning ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_dropped_row_is_counted_by_its_reason(tmp_path):
    rows = [
        *ROWS,
        {"text": "text 1", "label": "pos", "lang": "en"},  # seen before
        {"text": " text 2 ", "label": "neg", "lang": "en"},  # seen before once stripped
        {"text": "", "label": "neg", "lang": "en"},
        {"text": "unlabelled", "label": None, "lang": "en"},
        {"text": "x" * 50, "label": "neg", "lang": "en"},
        {"text": "elsewhere", "label": "neg", "lang": "xx"},
    ]
    found = prepared(
        write_jsonl(tmp_path / "rows.jsonl", rows),
        where={"lang": ["en", "de", "fr"]},
        limit=20,
        clean={"max_chars": 40},
    )
    assert found.dropped == {
        "where": 1, "duplicate": 2, "empty text": 1, "no label": 1, "too long": 1, "limit": 10,
    }  # fmt: skip
    assert sum(map(len, found.splits.values())) + sum(found.dropped.values()) == len(rows)


def test_where_keeps_equal_values_and_members_of_a_list(tmp_path):
    rows = [{"text": f"t{n}", "label": n % 2, "year": 2000 + n % 4, "kept": n % 3 == 0} for n in range(40)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    both = {"year": [2000, 2001], "kept": True}
    found = prepared(file, where=both, split={"test": 0.0, "validation": 0.0})
    wanted = [n for n, row in enumerate(rows) if row["year"] < 2002 and row["kept"]]
    assert found.splits["train"].ids.tolist() == wanted
    assert found.dropped["where"] == 40 - len(wanted)


def prepared_for(task: str, rows: list[dict[str, Any]], file: Path, **clean: Any) -> Prepared:
    """All of it in the training split."""
    recipe = Recipe.model_validate(
        {
            "name": "rows",
            "task": task,
            "model": {"path": "/nowhere"},
            "data": {"source": str(write_jsonl(file, rows)), "split": {"test": 0, "validation": 0}, "clean": clean},
            "tuning": "full",
            "train": {"lr": 1e-3},
        }
    )
    return prepare(recipe, task_of(recipe))


def test_conversations_and_sentences_are_cleaned_as_texts_are(tmp_path):
    def chat(question: str, answer: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    chats = [chat("hi", "ho"), chat(" hi", "ho\n"), chat("hi", "h" * 50), chat("hi", " "), chat(" ", "ho")]
    found = prepared_for("instruction-tuning", chats, tmp_path / "chats.jsonl", max_chars=40)
    assert found.dropped == {"where": 0, "duplicate": 1, "too long": 1, "empty answer": 1, "empty text": 1}
    with pytest.raises(UserError, match="row 3 of train: empty answer"):
        prepared_for("instruction-tuning", chats, tmp_path / "chats.jsonl", drop_empty=False)

    sentences = [{"tokens": words, "tags": ["O", "B-x"]} for words in (["a", "b"], ["a ", "b"], ["a", "b" * 50])]
    found = prepared_for("token-classification", sentences, tmp_path / "sentences.jsonl", max_chars=40)
    assert found.dropped == {"where": 0, "duplicate": 1, "too long": 1}


def test_data_without_columns_of_conversations_are_refused(tmp_path):
    with pytest.raises(UserError, match="no column has conversations, or questions and answers"):
        prepared_for("instruction-tuning", [{"text": "### Human: hi"}], tmp_path / "rows.jsonl")
    dolly = [{"instruction": "say 0", "context": "", "response": "0", "category": "qa"}]
    assert (
        '"content": "0"'
        in prepared_for("instruction-tuning", dolly, tmp_path / "rows.jsonl").splits["train"].column("chat")[0]
    )


@pytest.mark.parametrize("task", ["text-classification", "translation", "token-classification", "instruction-tuning"])
def test_of_rows_nearly_alike_the_first_stays(task, tmp_path):
    long = "the committee met in the old town hall on Tuesday and talked about the bridge until midnight"
    texts = [
        long,
        f"{long}!",
        "nobody came to the second meeting, so the bridge stays closed",
        long.replace("old", "new"),
    ]
    made: dict[str, Callable[[str], dict[str, Any]]] = {
        "text-classification": lambda text: {"text": text, "label": str(len(text))},
        "translation": lambda text: {"source": text, "target": "-"},
        "token-classification": lambda text: {"tokens": text.split(), "tags": ["B-x", *"O" * text.count(" ")]},
        # A system message that is longer than all the rest makes no two rows alike.
        "instruction-tuning": lambda text: {
            "system": " ".join(map(str, range(500))),
            "prompt": "?",
            "completion": text,
        },
    }
    found = prepared_for(task, list(map(made[task], texts)), tmp_path / "rows.jsonl", near_duplicates=0.8)
    assert found.splits["train"].ids.tolist() == [0, 2]
    assert found.dropped["near duplicate"] == 2


def test_pictures_are_not_nearly_alike(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{"image": str(tmp_path / "a.png"), "label": "x"}]
    with pytest.raises(UserError, match="works on texts, and this task has none"):
        prepared_for("image-classification", rows, tmp_path / "rows.jsonl", near_duplicates=0.8)


def test_cleaning_can_be_switched_off(tmp_path):
    rows = [{"text": " same ", "label": n % 2} for n in range(20)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = prepared(file, clean={"strip": False, "drop_duplicates": False})
    assert all_texts(found) == [" same "] * 20


def test_unicode_forms_make_equal_texts_equal(tmp_path):
    rows = [
        {"text": text, "label": "cf"[n // 2]} for n, text in enumerate(["caf\u00e9", "cafe\u0301", "\ufb01lm", "film"])
    ]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    nothing_held_out = {"validation": 0.0, "test": 0.0}
    assert len(prepared(file, split=nothing_held_out).splits["train"]) == 4
    assert len(prepared(file, split=nothing_held_out, clean={"unicode": "NFC"}).splits["train"]) == 3
    assert len(prepared(file, split=nothing_held_out, clean={"unicode": "NFKC"}).splits["train"]) == 2


def test_of_equal_inputs_only_those_with_equal_targets_are_duplicates(tmp_path):
    pairs = [("hello", "hallo"), ("hello", "guten Tag"), ("hello ", "hallo"), ("bye", "hallo")]
    found = prepared_for("translation", [{"source": a, "target": b} for a, b in pairs], tmp_path / "pairs.jsonl")
    assert found.splits["train"].ids.tolist() == [0, 1, 3]
    assert found.dropped["duplicate"] == 1
    rows = [{"text": "same", "label": label} for label in ("a", "b", "a")]
    found = prepared_for("text-classification", rows, tmp_path / "rows.jsonl")
    assert found.splits["train"].ids.tolist() == [0, 1]


@pytest.mark.parametrize("stratify", [True, False])
def test_rows_with_the_same_input_are_never_divided(tmp_path, stratify):
    rows = [{"text": f"text {n % 60}", "label": ["neg", "pos", "neither"][n // 60]} for n in range(180)]
    found = prepared(write_jsonl(tmp_path / "rows.jsonl", rows), split={"stratify": stratify})
    texts = {split: set(some.column("text")) for split, some in found.splits.items()}
    assert sum(map(len, texts.values())) == 60
    assert {split: len(some) for split, some in found.splits.items()} == {"train": 144, "test": 18, "validation": 18}


def test_pairs_are_duplicates_only_when_both_texts_are(tmp_path):
    rows = [{"text": "same", "text_pair": f"p{n % 15}", "label": n % 15 % 2} for n in range(20)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = prepared(file, columns={"text_pair": "text_pair"}, split={"stratify": False})
    assert sum(map(len, found.splits.values())) == 15
    assert found.dropped["duplicate"] == 5


# ── splits ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def skewed(tmp_path):
    """300 rows, one in ten of class `rare`."""
    rows = [{"text": f"text {n}", "label": "rare" if n % 10 == 0 else "usual"} for n in range(300)]
    return write_csv(tmp_path / "skewed.csv", rows)


def ids_of(found: Prepared) -> dict[str, list[int]]:
    return {split: rows.ids.tolist() for split, rows in found.splits.items()}


def test_the_division_depends_on_the_split_seed_alone(skewed):
    first = ids_of(prepared(skewed))
    assert ids_of(prepared(skewed)) == first
    assert ids_of(prepared(skewed, seed=7)) == first
    other = ids_of(prepared(skewed, split={"seed": 1}))
    assert other["test"] != first["test"]


def test_the_splits_share_no_row_and_lose_none(skewed):
    parts = ids_of(prepared(skewed, split={"validation": 0.2, "test": 0.1}))
    assert {split: len(ids) for split, ids in parts.items()} == {"train": 210, "validation": 60, "test": 30}
    assert sorted(sum(parts.values(), [])) == list(range(300))


@pytest.mark.slow
def test_class_shares_are_kept_in_every_part(skewed):
    found = prepared(skewed, split={"validation": 0.2, "test": 0.1})
    for split, rare in {"train": 21, "validation": 6, "test": 3}.items():
        assert Counter(found.splits[split].column("label"))["rare"] == rare
    free = [
        prepared(skewed, split={"seed": seed, "stratify": False}).splits["test"].column("label") for seed in range(5)
    ]
    assert {Counter(targets)["rare"] for targets in free} != {3}


def test_a_share_of_zero_makes_no_split(skewed):
    assert set(prepared(skewed, split={"validation": 0.1, "test": 0.0}).splits) == {"train", "validation"}


def test_a_limit_draws_the_same_rows_again(skewed):
    first, second = (prepared(skewed, limit=100) for _ in range(2))
    assert ids_of(first) == ids_of(second)
    assert sum(map(len, first.splits.values())) == 100
    assert first.dropped["limit"] == 200


@given(
    num_rows=st.integers(10, 400),
    validation=st.floats(0, 0.45),
    test=st.floats(0, 0.45),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_holding_out_divides_rows_or_says_why_not(num_rows, validation, test, seed):
    try:
        parts = hold_out(num_rows, {"test": test, "validation": validation}, seed, None)
    except UserError as error:
        assert "leaves a split empty" in str(error)
        assert min(round(share * num_rows) for share in (validation, test) if share) == 0
        return
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(num_rows))
    assert set(parts) == {"train"} | {name for name, share in (("test", test), ("validation", validation)) if share}
    for name, share in (("test", test), ("validation", validation)):
        assert len(parts.get(name, ())) == (round(share * num_rows) if share else 0)


@pytest.mark.slow
@given(
    sizes=st.lists(st.integers(1, 300), min_size=3, max_size=40),
    validation=st.sampled_from([0.0, 0.05, 0.1, 0.3]),
    test=st.sampled_from([0.05, 0.1, 0.3]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_groups_stay_whole_the_largest_is_trained_on_and_no_share_is_exceeded(sizes, validation, test, seed):
    groups = [number for number, size in enumerate(sizes) for _ in range(size)]
    shares = {split: share for split, share in (("test", test), ("validation", validation)) if share}
    try:
        parts = hold_out(len(groups), shares, seed, None, groups)
    except UserError as error:
        assert "groups are too few" in str(error)
        assert len(sizes) < 5 or max(sizes) > 0.3 * sum(sizes)
        return
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(groups)))
    held = {split: {groups[row] for row in rows} for split, rows in parts.items()}
    assert sum(map(len, held.values())) == len(sizes), "a group is in two splits"
    assert max(sizes[group] for group in held["train"]) == max(sizes)
    for split, share in shares.items():
        assert len(parts[split]) <= round(share * len(groups)) or len(held[split]) == 1


@pytest.mark.parametrize("seed", range(5))
def test_of_skewed_groups_the_smallest_are_held_out(seed):
    sizes = [500, 250, 120, *[5] * 40]
    groups = [number for number, size in enumerate(sizes) for _ in range(size)]
    parts = hold_out(len(groups), {"test": 0.05, "validation": 0.05}, seed, None, groups)
    assert {name: {groups[row] for row in rows} & {0, 1, 2} for name, rows in parts.items()} == {
        "train": {0, 1, 2}, "test": set(), "validation": set()
    }  # fmt: skip
    assert [len(parts[split]) for split in ("test", "validation")] == [50, 50]


def test_groups_that_given_splits_share_are_named(tmp_path):
    rows = [{"text": f"text {n}", "label": "ab"[n % 2], "speaker": f"s{n % 4}"} for n in range(24)]
    train = write_jsonl(tmp_path / "train.jsonl", rows[:20])
    split = {"group": "speaker", "test": 0.0}
    other = [{**row, "speaker": "s9"} for row in rows[20:]]
    apart = write_jsonl(tmp_path / "apart.jsonl", other)
    given = write_jsonl(tmp_path / "validation.jsonl", [*other, *({**row, "text": "more"} for row in rows[21:23])])
    assert len(prepared({"train": str(train), "validation": str(apart)}, split=split).splits["validation"]) == 4
    said = mistake({"train": str(train), "validation": str(given)}, split=split)
    assert "data.split.group: groups in both train and validation: s1, s2" in said
    assert "move each group into one of the splits" in said


@given(num_rows=st.integers(1, 300), limit=st.integers(1, 400), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_draw_is_sorted_without_repeats_and_of_the_size_asked_for(num_rows, limit, seed):
    drawn = draw(num_rows, limit, seed).tolist()
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(limit, num_rows)
    assert set(drawn) <= set(range(num_rows))


def noted(file: Path, found: Prepared) -> None:
    keep_splits(file, {split: rows.ids for split, rows in found.splits.items()}, found.contents)


@pytest.mark.slow
def test_a_run_keeps_its_rows_though_their_numbers_stay_the_same(tmp_path):
    """Shuffled, a source file has as many rows as before, but others of them are tested on."""
    file, kept = tmp_path / "rows.jsonl", tmp_path / "splits.json"
    begun = prepared(write_jsonl(file, ROWS))
    noted(kept, begun)
    noted(kept, prepared(file))
    shuffled = prepared(write_jsonl(file, [*ROWS[6:], *ROWS[:6]]))  # classes alternate: the same numbers are held out
    assert ids_of(shuffled) == ids_of(begun)
    with pytest.raises(UserError, match="the train split is not the one this run began with.*hold something else"):
        noted(kept, shuffled)
    relabelled = [{**row, "label": "pos" if n in (3, 8) else row["label"]} for n, row in enumerate(ROWS)]
    noted(tmp_path / "other.json", named := prepared(write_jsonl(file, ROWS), split={"stratify": False}))
    changed = prepared(write_jsonl(file, relabelled), split={"stratify": False})
    assert ids_of(changed) == ids_of(named)
    with pytest.raises(UserError, match="is not the one this run began with"):
        noted(tmp_path / "other.json", changed)


def test_a_run_that_noted_numbers_alone_goes_on_with_them(tmp_path):
    kept = tmp_path / "splits.json"
    noted(kept, found := prepared(write_jsonl(tmp_path / "rows.jsonl", ROWS)))
    before = json.loads(kept.read_text())
    kept.write_text(
        json.dumps({split: {k: v for k, v in one.items() if k != "contents"} for split, one in before.items()})
    )
    noted(kept, found)
    with pytest.raises(
        UserError, match=r"the train split is not the one this run began with: it had 24 rows, and has 23"
    ):
        noted(kept, prepared(write_jsonl(tmp_path / "fewer.jsonl", ROWS[:-1])))


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def rows_file(tmp_path):
    return write_csv(tmp_path / "rows.csv", ROWS)


def test_a_missing_column_is_named_with_those_there_are(rows_file):
    said = mistake(rows_file, columns={"text": "review"})
    assert "data.columns.text: the data has no column 'review'" in said
    assert "valid: text, label, lang" in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text:label\na:b\n", "its fields are divided by ':'"),
        ("a.csv", "text^label\na^b\n", "its fields are divided by '^'"),
        ("a.csv", "text label\na b\n", "its fields are divided by ' '"),
        ("a.tsv", "text,label\na,b\n", "its fields are divided by ','"),
        ("a.tsv", "text    label\na    b\n", "its fields are divided by '    '"),
        ("a.csv", '{"text": "a", "label": "b"}\n{"text": "c", "label": "d"}\n', "it holds JSON"),
    ],
)
def test_a_separator_is_blamed_and_not_a_column(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    message = mistake(tmp_path / name)
    assert message.startswith(f"data.source: could not be read: {said}")


@pytest.mark.parametrize("role", ["text", "label"])
def test_bytes_of_a_parquet_file_that_are_no_text_are_named_by_row(tmp_path, role):
    values = pa.array([b"fine"] * 1005 + [b"caf\xe9"] + [b"fine"] * 20, pa.binary())
    broken = pa.Array.from_buffers(pa.string(), len(values), values.buffers())
    columns = {"text": pa.array(["a"] * len(values)), "label": pa.array(["b"] * len(values))}
    pq.write_table(pa.table({**columns, role: broken}), tmp_path / "rows.parquet")
    assert f"train row 1005: the column '{role}' holds bytes that are not UTF-8" in mistake(tmp_path / "rows.parquet")


def test_a_filter_on_a_missing_column_is_named(rows_file):
    assert "where.language" in mistake(rows_file, where={"language": "en"})


def test_a_filter_that_leaves_nothing_shows_the_values_there_are(rows_file):
    said = mistake(rows_file, where={"lang": "EN"})
    assert "data.where.lang: no row of train is left" in said
    assert "valid: 'en', 'de', 'fr'" in said


def test_a_filter_on_a_column_of_lists_is_a_readable_mistake(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{**row, "tags": ["a"]} for row in ROWS])
    assert "data.where.tags: no row of train is left" in mistake(file, where={"tags": "a"})


def test_rows_that_are_all_dropped_are_a_mistake(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "", "label": "a"}, {"text": " ", "label": "b"}])
    said = mistake(file)
    assert "no row of train is left after cleaning" in said
    assert "'empty text': 2" in said


def test_an_empty_text_stops_when_none_may_be_dropped(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [*ROWS, {"text": " ", "label": "pos", "lang": "en"}])
    assert "row 30 of train: empty text" in mistake(file, clean={"drop_empty": False})


def test_a_class_too_rare_to_be_divided_is_named(tmp_path):
    file = write_csv(tmp_path / "rows.csv", [*ROWS, {"text": "odd", "label": "once", "lang": "en"}])
    said = mistake(file)
    assert "equal shares: 'once' (1)" in said
    assert "data.split.stratify=false" in said


def test_too_few_rows_for_a_split_are_a_mistake(tmp_path):
    file = write_csv(tmp_path / "rows.csv", ROWS[:4])
    assert "data.split.test: 0.1 of 4 rows leaves a split empty" in mistake(file)


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


def test_labels_that_are_not_listed_are_named_with_their_row(rows_file):
    said = mistake(rows_file, labels=["negs", "pos"])
    assert "row 0: not one of data.labels" in said
    assert "found: neg" in said
    assert "did you mean `negs`?" in said
