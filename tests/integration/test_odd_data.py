"""Odd data for every task: the data check ends in findings or in a user error, and where it reports no error, the data that
training prepares gives a batch.

SFT_DIST_ODD_SETS: how many sets of every task the first test tries. The second, one of the long ones, tries 2,000 in all.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from sft_dist.check import check
from sft_dist.data.encode import collate
from sft_dist.data.prepare import prepare
from sft_dist.quality import subject
from sft_dist.quality.page import to_html
from sft_dist.quality.report import Report, to_json, to_text
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of
from tests.sft_dist.tasks.tiny_speech import TEXTS as WORDS

pytestmark = pytest.mark.slow

Row = dict[str, Any]
Odd = tuple[str, dict[str, bytes], dict[str, Any], bool]
SETS = int(os.environ.get("SFT_DIST_ODD_SETS", "8"))  # of each task
NUM_MANY = 2000  # sets of all tasks

ODD_TEXTS = [
    "", " ", "\n", "a", "0", "007", "1e5", "-1", "nan", "None", "null", "true", "[]", "{}", "[1, 2]", "['a', 'b']", '{"a": 1}',
    "😀", "👩‍👩‍👧", "e\u0301", "\u202eabc", "\u200b", "\ufeff", "\ufffd", "\x00", "\x07\x1b[31m", "\ud83d", "日本語", "a" * 20_000,
    "a,b;c\td|e", '"', "'", "\\", '\\"', "$x^2$", "$", "\\frac", "%s {0} {{x}}", "<script>", "\r", "a\rb\nc", "[CLS] [SEP] [PAD]",
    "O", "B-", "I-X", "B-PER", "-DOCSTART-", "../x.png", "http://x/y.png", "/dev/zero", "file.png",
]  # fmt: skip
LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(ODD_TEXTS),
    st.text(max_size=12),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from([None, True, False, 1e308, -0.0, 5e-324]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "role", "text", "bbox"]), inner, max_size=3), max_leaves=5
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A task, and what its clean rows are like."""

    task: Any
    model: str
    row: Callable[[int, Path], Row]
    data: tuple[tuple[str, Any], ...] = ()
    formats: tuple[str, ...] = ("jsonl", "json", "csv")


def _review(number: int, files: Path) -> Row:
    word = ["good", "bad"][number % 2]
    return {"text": f"{word} film number {number} {'very ' * (number % 5)}", "label": word}


def _topics(number: int, files: Path) -> Row:
    return {"text": f"text number {number}", "label": ["a,b", "b", "a", "c,a"][number % 4]}


def _scored(number: int, files: Path) -> Row:
    return {"text": f"text number {number}", "label": number / 4}


def _tagged(number: int, files: Path) -> Row:
    return {"tokens": ["Anna", "Berg", "met", f"no{number}"], "tags": ["B-PER", "I-PER", "O", "O"]}


def _translated(number: int, files: Path) -> Row:
    return {"source": f"sentence number {number}", "target": f"{number} is the number"}


def _chat(number: int, files: Path) -> Row:
    return {"messages": [{"role": "user", "content": f"Count to {number}."}, {"role": "assistant", "content": f"{number}!"}]}  # fmt: skip


def _instruction(number: int, files: Path) -> Row:
    return {"instruction": f"Count to {number}.", "input": "", "output": f"{number}!"}


def _picture(files: Path, number: int) -> str:
    file = files / f"{number}.png"
    if not file.exists():
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (24, 20, 3), dtype=np.uint8)).save(file)
    return str(file)


def _labelled_picture(number: int, files: Path) -> Row:
    return {"image": _picture(files, number), "label": ["day", "night"][number % 2]}


def _boxed_picture(number: int, files: Path) -> Row:
    boxes = [[1.0, 2.0, 8.0, 9.0], [3.0, 3.0, 4.0, 5.0]][: 1 + number % 2]
    return {"image": _picture(files, number), "objects": {"bbox": boxes, "category": ["red", "blue"][: len(boxes)]}}


def _masked_picture(number: int, files: Path) -> Row:
    mask = files / f"{number}-mask.png"
    if not mask.exists():
        Image.fromarray(np.random.default_rng(number).integers(0, 3, (24, 20), dtype=np.uint8)).save(mask)
    return {"image": _picture(files, number), "mask": str(mask)}


def _sound(files: Path, number: int) -> str:
    file = files / f"{number}.wav"
    if not file.exists():
        soundfile.write(file, np.random.default_rng(number).uniform(-0.4, 0.4, 6000), 16_000)
    return str(file)


def _labelled_sound(number: int, files: Path) -> Row:
    return {"audio": _sound(files, number), "label": ["low", "high"][number % 2]}


def _spoken(number: int, files: Path) -> Row:
    return {"audio": _sound(files, number), "text": WORDS[number % len(WORDS)]}


KINDS = {
    "classes": Kind("text-classification", "tiny_model", _review),
    "several-classes": Kind({"type": "text-classification", "problem": "multi-label"}, "tiny_model", _topics),
    "numbers": Kind({"type": "text-classification", "problem": "regression"}, "tiny_model", _scored),
    "tags": Kind("token-classification", "tiny_model", _tagged, formats=("jsonl", "json")),
    "translation": Kind("translation", "tiny_model", _translated),
    "chats": Kind("instruction-tuning", "chat_model", _chat, formats=("jsonl", "json")),
    "instructions": Kind("instruction-tuning", "chat_model", _instruction),
    "pictures": Kind("image-classification", "vision_model", _labelled_picture),
    "boxes": Kind("object-detection", "detector", _boxed_picture, formats=("jsonl", "json")),
    "masks": Kind("semantic-segmentation", "vision_model", _masked_picture, (("labels", ["a", "b", "c"]),)),
    "sounds": Kind({"type": "audio-classification", "max_seconds": 1.0}, "sound_model", _labelled_sound),
    "speech": Kind({"type": "speech-recognition", "max_seconds": 1.0}, "sound_model", _spoken),
}


# ── odd rows ────────────────────────────────────────────────────────────────────────────────────────────────────────
@st.composite
def odd_rows(draw: Callable[..., Any], kind: Kind, files: Path) -> list[Row]:
    """Clean rows of which some, or one column of all, have been made odd."""
    size = draw(st.sampled_from([0, 1, 2, 5, 12, 12, 30, 30, 30, 30]))
    rows = [kind.row(number, files) for number in range(size)]
    for change in draw(st.lists(st.sampled_from(CHANGES), max_size=3)) if rows else ():
        change(draw, rows)
    return rows


def _other_cell(draw: Callable[..., Any], rows: list[Row]) -> None:
    row = draw(st.sampled_from(rows))
    row[draw(st.sampled_from(sorted(row) or ["text"]))] = draw(VALUES)


def _inner_value(draw: Callable[..., Any], rows: list[Row]) -> None:
    """Changes a value inside a list or an object."""
    row = json.loads(json.dumps(draw(st.sampled_from(rows))))
    places = [
        (holder, key)
        for holder in _holders(row)
        for key in (holder if isinstance(holder, dict) else range(len(holder)))
    ]
    if places:
        holder, key = draw(st.sampled_from(places))
        if draw(st.booleans()):
            holder[key] = draw(VALUES)
        else:
            del holder[key]
        rows.append(row)


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)


def _equal_column(draw: Callable[..., Any], rows: list[Row]) -> None:
    value, name = draw(VALUES), draw(st.sampled_from(sorted(rows[0]) or ["text"]))
    for row in rows:
        row[name] = value


def _drawn_column(draw: Callable[..., Any], rows: list[Row]) -> None:
    """All values of a column are of one odd kind."""
    kind, name = draw(st.sampled_from([LEAVES, VALUES, st.sampled_from(ODD_TEXTS)])), draw(st.sampled_from(sorted(rows[0]) or ["text"]))  # fmt: skip
    for row in rows:
        row[name] = draw(kind)


def _no_cell(draw: Callable[..., Any], rows: list[Row]) -> None:
    row = draw(st.sampled_from(rows))
    row.pop(draw(st.sampled_from(sorted(row) or ["text"])), None)


def _no_column(draw: Callable[..., Any], rows: list[Row]) -> None:
    name = draw(st.sampled_from(sorted(rows[0]) or ["text"]))
    for row in rows:
        row.pop(name, None)


def _extra_column(draw: Callable[..., Any], rows: list[Row]) -> None:
    name = draw(
        st.sampled_from(["", " ", "row", "group", "text_pair", "label", "dropped for", "a.b", "😀", "system", "weight"])
    )
    for row in rows:
        row[name] = draw(LEAVES)


def _copies(draw: Callable[..., Any], rows: list[Row]) -> None:
    rows += [dict(draw(st.sampled_from(rows))) for _ in range(draw(st.integers(1, 12)))]


def _lone_member(draw: Callable[..., Any], rows: list[Row]) -> None:
    """A value of its own in one row."""
    row = draw(st.sampled_from(rows))
    name = draw(st.sampled_from(sorted(row) or ["text"]))
    row[name] = "lone"


CHANGES = [
    _other_cell,
    _inner_value,
    _equal_column,
    _drawn_column,
    _no_cell,
    _no_column,
    _extra_column,
    _copies,
    _lone_member,
]


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@st.composite
def odd_bytes(draw: Callable[..., Any], format: str, rows: list[Row]) -> bytes:
    """A file of the rows, now and then with a few wrong bytes in it."""
    content = WRITERS[format](rows).encode("utf-8", draw(st.sampled_from(["replace", "surrogatepass"])))
    if draw(st.integers(0, 4)) == 0:
        place = draw(st.integers(0, len(content)))
        wrong = draw(st.sampled_from([b"", b"\xff", b"\x00", b'"', b"\n", b"{", b",,,,", b"\xef\xbb\xbf", b"\r\n\r\n"]))
        content = content[:place] + wrong + content[place + draw(st.sampled_from([0, 1, 1000])) :]
    return content


def _csv_of(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list({name: None for row in rows for name in row}), restval="")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return text.getvalue()


WRITERS: dict[str, Callable[[list[Row]], str]] = {
    "jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "json": lambda rows: json.dumps(rows, ensure_ascii=False),
    "csv": _csv_of,
}


@st.composite
def odd_sets(draw: Callable[..., Any], kind: Kind, files: Path) -> Odd:
    """(format, split -> content of its file, settings of `data`, whether the page is drawn)"""
    format = draw(st.sampled_from(kind.formats))
    splits = ["train", *(["validation", "test"] if draw(st.integers(0, 3)) == 0 else [])]
    contents = {split: draw(odd_bytes(format, draw(odd_rows(kind, files)))) for split in splits}
    clean = {
        "drop_empty": draw(st.booleans()), "drop_duplicates": draw(st.booleans()),
        "unicode": draw(st.sampled_from(["none", "NFC", "NFKC"])),
    }  # fmt: skip
    data: dict[str, Any] = {"max_length": draw(st.sampled_from([8, 32, 128])), "clean": clean, **dict(kind.data)}
    data["split"] = {
        "validation": draw(st.sampled_from([0.0, 0.2])), "test": draw(st.sampled_from([0.0, 0.2])),
        "stratify": draw(st.booleans()),
    }  # fmt: skip
    return format, contents, data, draw(st.integers(0, 3)) == 0  # drawing takes half of the time


# ── the gate ────────────────────────────────────────────────────────────────────────────────────────────────────────
def run_gate(
    task: Any, model: Path, files: Path, contents: dict[str, bytes], format: str, data: dict[str, Any], page: bool
) -> str:
    """Returns how it ended. The tables are written beside the `files` that they name. Raises what is neither a user error nor a finding, and AssertionError where the data check reports no
    error and the data do not make a batch."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setenv("SFT_DIST_CACHE", str(folder / "cache"))
        source = {}
        for split, content in contents.items():
            (files / f"{split}.{format}").write_bytes(content)
            source[split] = str(files / f"{split}.{format}")
        recipe = Recipe.model_validate(
            {
                "name": "odd", "task": task, "model": {"path": str(model)}, "tuning": "full",
                "data": {"source": source if len(source) > 1 else source["train"], **data},
                "train": {"lr": 1e-4, "global_batch": 4, "epochs": 1.0},
            }
        )  # fmt: skip
        try:
            report, _ = check(recipe)
        except UserError:
            return "user error"
        crashes = [finding.message for finding in report.findings if finding.kind == "crashed-check"]
        assert not crashes, crashes
        json.dumps(to_json(report), ensure_ascii=False).encode("utf-8", "surrogatepass")
        to_text(report)
        if page:
            to_html(report)
        if report.errors:
            return "errors"
        _require_batch(recipe, report)
        return "trains"


def _require_batch(recipe: Recipe, report: Report) -> None:
    task = task_of(recipe)
    try:
        processor = _processor(recipe, task)
        prepared = prepare(recipe, task, processor)
        for examples in prepared.examples.values():
            collate(task, examples, np.arange(min(4, len(examples))), processor)
        loss = task.build_loss(prepared.examples["train"])
        assert np.isfinite(np.asarray(task.weights(loss, prepared.examples["train"]), dtype=float)).all()
    except Exception as error:
        findings = [f"{finding.kind}: {finding.message}" for finding in report.findings]
        raise AssertionError(f"the data check reported no error, only {findings}") from error


_load = subject.load_processor
_PROCESSORS: dict[str, Any] = {}


def _processor(recipe: Recipe, task: Any) -> Any:
    """The processor of a model, loaded once."""
    key = f"{recipe.model.path} {recipe.task}"
    if key not in _PROCESSORS:
        _PROCESSORS[key] = _load(recipe, task)
    return _PROCESSORS[key]


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest) -> Iterator[dict[str, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "load_processor", _processor)
        yield {name: request.getfixturevalue(name) for name in {kind.model for kind in KINDS.values()}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def try_sets(name: str, model: Path, files: Path, number: int) -> dict[str, int]:
    """Tries so many sets of a task. Returns ending -> how many."""
    kind, endings = KINDS[name], dict[str, int]()

    @settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # to find a smaller set with the same fault would take minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(odd_sets(kind, files))
    def try_set(drawn: Odd) -> None:
        format, contents, data, page = drawn
        ending = run_gate(kind.task, model, files, contents, format, data, page)
        endings[ending] = endings.get(ending, 0) + 1

    try_set()
    return endings


@pytest.mark.parametrize("name", KINDS)
def test_odd_data_end_in_findings_or_in_a_user_error(name: str, models: dict[str, Path], files: Path) -> None:
    endings = try_sets(name, models[KINDS[name].model], files, SETS)
    assert sum(endings.values()) >= SETS


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_many_odd_data_end_in_findings_or_in_a_user_error(name: str, models: dict[str, Path], files: Path) -> None:
    endings = try_sets(name, models[KINDS[name].model], files, 1 + NUM_MANY // len(KINDS))
    assert set(endings) == {"user error", "errors", "trains"}, endings  # or the kind would not be tried to its end
