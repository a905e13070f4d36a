"""Faults put into clean sets, one after another: each is named, with exactly its rows, and nothing else is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from sft_dist.check import check
from sft_dist.quality import checks
from sft_dist.quality.report import Report
from sft_dist.recipe.findings import KINDS
from tests.integration.clean_sets import (
    CleanSet,
    chats,
    pictures,
    reviews,
    sounds,
    tagged,
    tone,
    topics,
    translated,
)

pytestmark = pytest.mark.slow

Named = dict[str, set[tuple[str, int]]]  # kind -> rows


def named(report: Report) -> Named:
    rows_by_kind: Named = {}
    for one in report.findings:
        rows_by_kind.setdefault(one.kind, set()).update(one.rows)
        assert one.count >= len(one.rows)
    return rows_by_kind


@dataclass
class Workspace:
    """Folders and models a set is made from."""

    folder: Path
    models: dict[str, Path]
    patch: pytest.MonkeyPatch
    data: dict[str, Any] = field(default_factory=dict)  # more of the recipe's `data`


@pytest.fixture
def workspace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Path,
    chat_model: Path,
    vision_model: Path,
    detector: Path,
    sound_model: Path,
) -> Workspace:
    models = {
        "text": tiny_model,
        "chat": chat_model,
        "vision": vision_model,
        "detector": detector,
        "sound": sound_model,
    }
    return Workspace(tmp_path, models, monkeypatch)


SETS: dict[str, Callable[[Workspace], CleanSet]] = {
    "reviews": lambda p: reviews(p.models["text"]),
    "topics": lambda p: topics(p.models["text"]),
    "tagged": lambda p: tagged(p.models["text"]),
    "translated": lambda p: translated(p.models["text"]),
    "chats": lambda p: chats(p.models["chat"]),
    "images": lambda p: pictures(p.models["vision"], p.folder / "files", "image-classification"),
    "boxes": lambda p: pictures(p.models["detector"], p.folder / "files", "object-detection"),
    "masks": lambda p: pictures(p.models["vision"], p.folder / "files", "semantic-segmentation"),
    "sounds": lambda p: sounds(p.models["sound"], p.folder / "files"),
    "speech": lambda p: sounds(p.models["sound"], p.folder / "files", "speech-recognition"),
}


@pytest.mark.parametrize("name", SETS)
def test_a_clean_set_passes_with_nothing(name: str, workspace: Workspace) -> None:
    report, _ = check(SETS[name](workspace).recipe(workspace.folder))
    assert report.findings == ()
    assert sum(report.rows.values()) == sum(map(len, SETS[name](workspace).rows.values()))


# ── faults: each changes a clean set and says which rows are to be named ────────────────────────────────────────────
Fault = Callable[[CleanSet, Workspace], Named]


def missing_column(made: CleanSet, workspace: Workspace) -> Named:
    for row in made.rows["test"]:
        row["body"] = row.pop("text")
    return {"missing-column": set()}


def bad_utf8(made: CleanSet, workspace: Workspace) -> Named:
    workspace.data["source"] = str(workspace.folder / "latin.csv")
    lines = ["text,label", *(f'"{row["text"].replace(chr(34), "")}",{row["label"]}' for row in made.rows["train"])]
    content = [line.encode() for line in lines]
    for row in (7, 31):
        content[row + 1] = '"un caf\xe9 tr\xe8s r\xe9ussi",positive'.encode("latin-1")
    workspace.folder.mkdir(exist_ok=True)
    (workspace.folder / "latin.csv").write_bytes(b"\n".join(content) + b"\n")
    return {"bad-utf-8": {("train", 7), ("train", 31)}}


def crash(made: CleanSet, workspace: Workspace) -> Named:
    def check_texts(subject: Any, say: Any) -> list[Any]:
        raise ZeroDivisionError("no data should lead here")

    workspace.patch.setattr(checks, "check_texts", check_texts)
    return {"crashed-check": set()}


def replacement_characters(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["test"][3]["text"] += " caf\ufffd"
    return {"replacement-characters": {("test", 3)}}


def empty_label(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][5]["label"] = None
    made.rows["validation"][2]["label"] = ""
    return {"empty-label": {("train", 5), ("validation", 2)}}


def empty_text(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][9]["text"] = "   "
    return {"empty-text": {("train", 9)}}


def unknown_label(made: CleanSet, workspace: Workspace) -> Named:
    workspace.data["labels"] = ["negative", "positive"]
    made.rows["train"][11]["label"] = "postive"
    return {"unknown-label": {("train", 11)}}


def label_only_in_test(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["test"][4]["label"] = made.rows["test"][6]["label"] = "mixed"
    return {"label-not-in-training": {("test", 4), ("test", 6)}}


def label_missing_in_validation(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["validation"] = [row for row in made.rows["validation"] if row["label"] == "positive"]
    return {"label-missing-in-split": set()}


def label_order(made: CleanSet, workspace: Workspace) -> Named:
    from transformers import AutoConfig, AutoTokenizer

    made.model = workspace.folder / "headed"
    AutoTokenizer.from_pretrained(workspace.models["text"]).save_pretrained(made.model)
    AutoConfig.from_pretrained(
        workspace.models["text"], id2label={0: "Positive", 1: "Negative"}, label2id={"Positive": 0, "Negative": 1}
    ).save_pretrained(made.model)
    return {"label-order": set()}


def class_without_rows(made: CleanSet, workspace: Workspace) -> Named:
    workspace.data["labels"] = ["negative", "positive", "mixed"]
    return {"label-without-rows": set()}


def class_in_two_spellings(made: CleanSet, workspace: Workspace) -> Named:
    for rows in made.rows.values():
        for row in [row for row in rows if row["label"] == "positive"][::2]:
            row["label"] = "Positive"
    return {"label-spelling": set()}


def imbalance(made: CleanSet, workspace: Workspace) -> Named:
    negative = [row for row in made.rows["train"] if row["label"] == "negative"][:12]
    made.rows["train"] = [row for row in made.rows["train"] if row["label"] == "positive"] + negative
    return {"class-imbalance": set()}


def rare_class(made: CleanSet, workspace: Workspace) -> Named:
    rows = [20, 40, 60]
    for row in rows:
        made.rows["train"][row]["label"] = "mixed"
    for split in ("validation", "test"):
        made.rows[split][0]["label"] = "mixed"
    return {"rare-class": {("train", row) for row in rows}, "class-imbalance": set()}


def duplicates(made: CleanSet, workspace: Workspace) -> Named:
    train = made.rows["train"]
    train[50], train[51] = dict(train[10]), dict(train[10])
    train[52] = {**train[20], "text": f"  {train[20]['text']} "}  # equal after cleaning
    return {"duplicate": {("train", 50), ("train", 51), ("train", 52)}}


def near_duplicates(made: CleanSet, workspace: Workspace) -> Named:
    train = made.rows["train"]
    long = next(n for n, row in enumerate(train[:60]) if len(row["text"]) > 100)
    train[70] = {**train[long], "text": train[long]["text"].replace(",", ";") + " indeed"}
    return {"near-duplicate": {("train", 70)}}


def leak(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["test"][8] = dict(made.rows["train"][33])
    made.rows["validation"][9] = dict(made.rows["train"][34])
    return {"leak": {("test", 8), ("train", 33), ("validation", 9), ("train", 34)}}


def near_leak(made: CleanSet, workspace: Workspace) -> Named:
    train = made.rows["train"]
    long = next(n for n, row in enumerate(train) if len(row["text"]) > 120)
    made.rows["test"][8] = {**train[long], "text": train[long]["text"].upper() + " !"}
    return {"near-leak": {("test", 8), ("train", long)}}


def conflict(made: CleanSet, workspace: Workspace) -> Named:
    train = made.rows["train"]
    other = {"negative": "positive", "positive": "negative"}
    train[80] = {"text": train[30]["text"], "label": other[train[30]["label"]]}
    return {"conflicting-labels": {("train", 30), ("train", 80)}}


def truncation(made: CleanSet, workspace: Workspace) -> Named:
    workspace.data["max_length"] = 48
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(workspace.models["text"])
    rows: set[tuple[str, int]] = set()
    for split, rows_of_split in made.rows.items():
        lengths = [len(tokenizer(row["text"])["input_ids"]) for row in rows_of_split]
        long = {(split, n) for n, length in enumerate(lengths) if length > 48}
        rows |= long if len(long) > 0.05 * len(rows_of_split) else set()
    assert rows
    return {"truncation": rows}


def added_tokens(made: CleanSet, workspace: Workspace) -> Named:
    """A tokenizer with a token more than the model has embeddings."""
    from transformers import AutoConfig, AutoTokenizer

    made.model = workspace.folder / "more-tokens"
    tokenizer = AutoTokenizer.from_pretrained(workspace.models["text"])
    config = AutoConfig.from_pretrained(workspace.models["text"])
    tokenizer.add_tokens([f"<city {number}>" for number in range(config.vocab_size - len(tokenizer) + 1)])
    for part in (config, tokenizer):
        part.save_pretrained(made.model)
    made.rows["train"][4]["text"] += f" {tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)}"
    return {"token-without-embedding": {("train", 4)}}


def few_positions(made: CleanSet, workspace: Workspace) -> Named:
    """A RoBERTa, which needs two positions more than a text has tokens."""
    from transformers import AutoTokenizer, RobertaConfig

    made.model = workspace.folder / "few-positions"
    tokenizer = AutoTokenizer.from_pretrained(workspace.models["text"])
    tokenizer.save_pretrained(made.model)
    token_counts = {
        (split, n): len(tokenizer(row["text"])["input_ids"])
        for split, rows in made.rows.items()
        for n, row in enumerate(rows)
    }
    longest = max(token_counts.values())
    RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=longest + 1, pad_token_id=1).save_pretrained(
        made.model
    )
    return {"too-long-for-model": {row for row, count in token_counts.items() if count == longest}}


def outlier(made: CleanSet, workspace: Workspace) -> Named:
    workspace.data["max_length"] = 128
    others = [row["text"] for row in reviews(workspace.models["text"]).rows["train"]]
    made.rows["train"] = made.rows["train"][:100]
    made.rows["train"][42]["text"] = " ".join(others[150:200])
    return {"outlier-length": {("train", 42)}}


def constant(made: CleanSet, workspace: Workspace) -> Named:
    workspace.data["columns"] = {"text_pair": "language"}
    for rows in made.rows.values():
        for row in rows:
            row["language"] = "English"
    return {"constant-column": set()}


def flipped_labels(made: CleanSet, workspace: Workspace) -> Named:
    rows = random.Random(5).sample(range(200), 6)
    other = {"cooking": "football", "football": "cooking"}
    for row in rows:
        made.rows["train"][row]["label"] = other[made.rows["train"][row]["label"]]
    return {"suspicious-label": {("train", row) for row in rows}}


def broken_tags(made: CleanSet, workspace: Workspace) -> Named:
    for row in (4, 12):
        tags = made.rows["train"][row]["tags"]
        tags[tags.index("B-PER")] = "O"  # I-PER stays
    made.rows["test"][3]["tags"][-2] = "I-LOC"
    return {"broken-tags": {("train", 4), ("train", 12), ("test", 3)}}


def tags_short_of_tokens(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][6]["tags"].pop()
    return {"unreadable-row": {("train", 6)}}


def no_tags(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][8]["tags"] = []
    return {"empty-label": {("train", 8)}}


def empty_target(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][14]["target"] = ""
    made.rows["test"][1]["target"] = " "
    return {"empty-target": {("train", 14), ("test", 1)}}


def echo(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][17]["target"] = made.rows["train"][17]["source"]
    return {"source-equals-target": {("train", 17)}}


def nothing_left_to_learn(made: CleanSet, workspace: Workspace) -> Named:
    turns = made.rows["train"][21]["messages"]
    turns[0]["content"] += " and then, which is why it is so long, again and again," * 20
    return {"zero-label": {("train", 21)}}


def unknown_speaker(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][22]["messages"][0]["role"] = "narrator"
    return {"unreadable-row": {("train", 22)}}


def unread_key(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][24]["messages"][0]["mood"] = "curious"
    return {"unread-key": {("train", 24)}}


def unanswered(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][23]["messages"].pop()
    return {"empty-target": {("train", 23)}}


def damaged_image(made: CleanSet, workspace: Workspace) -> Named:
    first, second = (Path(made.rows["train"][row]["image"]) for row in (3, 13))
    first.write_bytes(first.read_bytes()[:200])
    second.write_text("this is no picture")
    Path(made.rows["test"][5]["image"]).unlink()
    return {"unreadable-image": {("train", 3), ("train", 13), ("test", 5)}}


def tiny_image(made: CleanSet, workspace: Workspace) -> Named:
    file = Path(made.rows["train"][6]["image"])
    Image.open(file).resize((9, 9)).save(file)
    return {"tiny-image": {("train", 6)}}


def blank_image(made: CleanSet, workspace: Workspace) -> Named:
    Image.new("RGB", (48, 48), (180, 180, 180)).save(made.rows["train"][8]["image"])
    return {"blank-image": {("train", 8)}}


def same_image_in_two_splits(made: CleanSet, workspace: Workspace) -> Named:
    file = Path(made.rows["test"][2]["image"])
    file.write_bytes(Path(made.rows["train"][2]["image"]).read_bytes())
    return {"leak": {("train", 2), ("test", 2)}}


def mislabelled_image(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][10]["label"] = "dark"
    return {"suspicious-label": {("train", 10)}}


def box_outside(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][4]["objects"]["bbox"][0] = [30.0, 30.0, 40.0, 10.0]
    made.rows["test"][4]["objects"]["bbox"][0] = [-8.0, 3.0, 20.0, 10.0]
    return {"box-outside-image": {("train", 4), ("test", 4)}}


def flat_box(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][5]["objects"]["bbox"][1] = [10.0, 10.0, 0.0, 12.0]
    return {"box-without-area": {("train", 5)}}


def boxes_without_category(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][7]["objects"]["category"].pop()
    return {"unreadable-boxes": {("train", 7)}}


def no_boxes(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][9]["objects"] = {"bbox": [], "category": []}
    return {"no-boxes": {("train", 9)}}


def too_many_boxes(made: CleanSet, workspace: Workspace) -> Named:
    boxes = [[2.0 * n, 2.0, 5.0, 5.0] for n in range(5)]
    made.rows["train"][11]["objects"] = {"bbox": boxes, "category": ["red"] * 5}
    return {"too-many-boxes": {("train", 11)}}


def strange_mask_value(made: CleanSet, workspace: Workspace) -> Named:
    file = made.rows["train"][12]["mask"]
    mask = np.array(Image.open(file))
    mask[0, :4] = 9
    Image.fromarray(mask).save(file)
    return {"mask-value": {("train", 12)}}


def mask_of_another_size(made: CleanSet, workspace: Workspace) -> Named:
    file = made.rows["train"][15]["mask"]
    Image.open(file).resize((40, 48), Image.Resampling.NEAREST).save(file)
    return {"mask-size": {("train", 15)}}


def ignored_mask(made: CleanSet, workspace: Workspace) -> Named:
    Image.new("L", (48, 48), 255).save(made.rows["train"][16]["mask"])
    return {"zero-label": {("train", 16)}}


def damaged_sound(made: CleanSet, workspace: Workspace) -> Named:
    Path(made.rows["train"][2]["audio"]).write_bytes(b"RIFF and nothing else")
    soundfile.write(made.rows["test"][3]["audio"], np.zeros(0), 16000)
    return {"unreadable-audio": {("train", 2), ("test", 3)}}


def other_rate(made: CleanSet, workspace: Workspace) -> Named:
    tone(Path(made.rows["train"][4]["audio"]), 230, rate=8000)
    return {"sampling-rate": {("train", 4)}}


def silence(made: CleanSet, workspace: Workspace) -> Named:
    soundfile.write(made.rows["train"][7]["audio"], np.zeros(8000), 16000)
    return {"silent-audio": {("train", 7)}}


def clipped(made: CleanSet, workspace: Workspace) -> Named:
    file = made.rows["train"][8]["audio"]
    sound, rate = soundfile.read(file)
    soundfile.write(file, np.clip(sound * 6, -1, 1), rate)
    return {"clipped-audio": {("train", 8)}}


def too_long(made: CleanSet, workspace: Workspace) -> Named:
    tone(Path(made.rows["train"][9]["audio"]), 1630, seconds=2.5)
    return {"too-long-audio": {("train", 9)}}


def too_much_said(made: CleanSet, workspace: Workspace) -> Named:
    """CTC cannot write more letters than the recording has frames."""
    made.rows["train"][6]["text"] *= 5
    return {"not-prepared": {("train", 6)}}


def no_transcript(made: CleanSet, workspace: Workspace) -> Named:
    made.rows["train"][5]["text"] = ""
    return {"empty-target": {("train", 5)}}


FAULTS: list[tuple[str, Fault]] = [
    *(("reviews", fault) for fault in (
        missing_column, bad_utf8, crash, replacement_characters, empty_label, empty_text, unknown_label, label_only_in_test,
        label_missing_in_validation, label_order, class_without_rows, class_in_two_spellings, imbalance, rare_class, duplicates, near_duplicates, leak, near_leak,
        conflict, truncation, added_tokens, few_positions, outlier, constant)),
    ("topics", flipped_labels),
    *(("tagged", fault) for fault in (broken_tags, tags_short_of_tokens, no_tags)),
    *(("translated", fault) for fault in (empty_target, echo)),
    *(("chats", fault) for fault in (nothing_left_to_learn, unknown_speaker, unread_key, unanswered)),
    *(("images", fault) for fault in (
        damaged_image, tiny_image, blank_image, same_image_in_two_splits, mislabelled_image)),
    *(("boxes", fault) for fault in (box_outside, flat_box, boxes_without_category, no_boxes, too_many_boxes)),
    *(("masks", fault) for fault in (strange_mask_value, mask_of_another_size, ignored_mask)),
    *(("sounds", fault) for fault in (damaged_sound, other_rate, silence, clipped, too_long)),
    *(("speech", fault) for fault in (no_transcript, too_much_said)),
]  # fmt: skip

# Rows that follow from a fault and are named beside it: (fault, kind) -> not compared.
CONSEQUENCES = {("silence", "suspicious-label"), ("blank_image", "suspicious-label")}


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=[f"{name}-{fault.__name__}" for name, fault in FAULTS])
def test_every_fault_is_named_with_exactly_its_rows(name: str, fault: Fault, workspace: Workspace) -> None:
    made = SETS[name](workspace)
    expected = fault(made, workspace)
    report, _ = check(made.recipe(workspace.folder, **workspace.data))
    rows_by_kind = {kind: rows for kind, rows in named(report).items() if (fault.__name__, kind) not in CONSEQUENCES}
    assert rows_by_kind == expected, [one.to_json() for one in report.findings]
    blocking = {kind for kind in expected if KINDS[kind].severity == "error"}
    assert {one.kind for one in report.errors} == blocking


def test_every_kind_of_the_table_is_seeded(workspace: Workspace) -> None:
    seeded = set()
    for name, fault in FAULTS:
        one = Workspace(workspace.folder / fault.__name__, workspace.models, workspace.patch)
        one.folder.mkdir()
        seeded |= set(fault(SETS[name](one), one))
    assert seeded == set(KINDS)
    assert len(seeded) >= 15


def test_the_files_that_a_source_names_are_known(workspace: Workspace) -> None:
    from sft_dist.quality.source import named_files

    made = SETS["masks"](workspace)
    recipe = made.recipe(workspace.folder)
    _, subject = check(recipe)
    assert subject is not None
    assert named_files(subject.source, recipe) == sorted(
        str(row[role]) for rows in made.rows.values() for row in rows for role in ("image", "mask")
    )
    texts = SETS["reviews"](workspace).recipe(workspace.folder)
    assert named_files(check(texts)[1].source, texts) == []  # type: ignore[union-attr]


def test_groups_in_two_given_splits_are_named(workspace: Workspace) -> None:
    made = SETS["reviews"](workspace)
    for split, rows in made.rows.items():
        for number, row in enumerate(rows):
            row["film"] = f"{split} {number % 7}" if (split, number) != ("test", 5) else "train 3"
    report, _ = check(made.recipe(workspace.folder, split={"group": "film"}))
    (finding,) = report.errors
    assert finding.kind == "not-prepared"
    assert "groups in both train and test: train 3" in finding.message


def test_without_the_extra_packages_the_other_checks_are_made(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    gone = ("cleanlab", "datasketch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in gone else find(name, *more))
    made = SETS["topics"](workspace)
    leak(made, workspace)
    report, _ = check(made.recipe(workspace.folder))
    assert {one.kind for one in report.findings} == {"leak"}
    assert [note.split(":")[0] for note in report.notes] == [
        "near-duplicates were not checked",
        "suspicious labels were not checked",
    ]


def test_the_page_shows_examples_of_every_task_before_and_after(workspace: Workspace) -> None:
    from sft_dist.quality.page import to_html
    from sft_dist.quality.preview import examples

    picture = {"augment": {"image": {"flip": 1.0, "crop": 0.7, "color": 0.3}}}
    sound = {"augment": {"audio": {"probability": 1.0, "noise_snr": [5.0, 10.0], "time_masks": 1}}}
    text = {"augment": {"text": {"probability": 1.0, "delete": 0.3}}}
    for name, data, sides in (
        ("reviews", text, 2), ("tagged", {}, 2), ("translated", {}, 2), ("chats", {}, 1), ("images", picture, 2),
        ("boxes", picture, 2), ("masks", picture, 2), ("sounds", sound, 2), ("speech", sound, 2),
    ):  # fmt: skip
        one = Workspace(workspace.folder / name, workspace.models, workspace.patch)
        report, subject = check(SETS[name](one).recipe(one.folder, **data))
        assert subject is not None
        shown = examples(subject, 3)
        assert [len(example.panels[0]) for example in shown] == [sides] * 3, name
        assert not any(panel.fault for example in shown for panels in example.panels for panel in panels)
        if data:  # what is shown after is not what was before, and the same on every look
            changed = [example.panels[0][0] != example.panels[0][1] for example in shown]
            assert all(changed), name
            assert examples(subject, 3) == shown
        page = to_html(report, shown, bool(data))
        assert page.count('<section class="example">') == 3
        assert page.count("data:image/") == (6 if data not in ({}, text) else 0), name
        assert page.count("data:audio/wav") == (6 if data == sound else 0)
