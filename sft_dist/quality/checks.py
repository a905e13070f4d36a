"""Which looks are taken at which data: decided by the roles a task stores, so that a new task is looked at without a line here.

text, text_pair, source, target, tokens, chat   texts: empty, copies, outliers
label, tags, objects                            classes; labels of one class a row are judged, too
image, mask, audio                              decoded once each
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from sft_dist.data.prepare import Prepared, prepare
from sft_dist.data.rows import ROW, Examples, Rows
from sft_dist.quality import duplicates, labels, lengths, media
from sft_dist.quality.estimate import earlier_rate, estimate
from sft_dist.quality.findings import Finding, Places, RowId, found, rows_text
from sft_dist.quality.report import SHOWN_ROWS, Lengths, Report
from sft_dist.quality.source import Source, raw_boxes
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.references import model_source
from sft_dist.recipe.schema import Recipe
from sft_dist.run.failures import DataError
from sft_dist.tasks.base import Task
from sft_dist.tasks.models import load_processor

Say = Callable[[str], None]
EXCERPT = 300  # characters of a row shown
BATCH = 1000

# Roles that hold text -> the text in a stored value.
TEXTS: dict[str, Callable[[Any], str]] = {
    "text": lambda value: value or "",
    "text_pair": lambda value: value or "",
    "source": lambda value: value or "",
    "target": lambda value: value or "",
    "tokens": lambda value: " ".join(value or ()),
    "chat": lambda value: "\n".join(str(turn.get("content") or "") for turn in json.loads(value)),
}
# Roles that hold classes -> (class, how many) in a stored value, given the classes' names; and what is counted.
CLASSES: dict[str, tuple[Callable[[Any, Sequence[str]], Iterable[tuple[str, int]]], str]] = {
    "label": (lambda value, _: ((name, 1) for name in (value if isinstance(value, list) else [value])), "rows"),
    "tags": (lambda value, _: Counter(value).items(), "words"),
    "objects": (lambda value, _: Counter(value["category"]).items(), "boxes"),
    "pixels": (lambda value, names: ((_name(names, i), n) for i, n in enumerate(value) if n), "pixels"),
}
ONE_INPUT_ONE_LABEL = ("label", "tags")  # roles where the same input with another value is a conflict
# Settings of detectors that say how many boxes they can find.
QUERIES = ("num_queries", "num_detection_tokens")


@dataclass
class Subject:
    """What is looked at: rows by split, and where it worked, the encoded examples."""

    recipe: Recipe
    task: Task
    source: Source
    rows: Mapping[str, Rows]
    prepared: Prepared | None
    processor: Any
    examples: Mapping[str, Examples] = field(default_factory=dict)
    failure: str = ""  # why it could not be prepared; says something only where no look says it better
    findings: list[Finding] = field(default_factory=list)  # of encoding
    notes: list[str] = field(default_factory=list)
    media: dict[str, list[Any]] = field(default_factory=dict)  # role -> facts of all rows, in the order of places

    @property
    def places(self) -> Places:
        return Places.joined({split: rows.ids for split, rows in self.rows.items()})

    def has(self, role: str) -> bool:
        return all(role in rows.table.column_names for rows in self.rows.values())

    def values(self, role: str) -> Iterator[Any]:
        """Of all rows, split after split, read a batch at a time."""
        for rows in self.rows.values():
            for batch in rows.table.select_columns([role]).iter(batch_size=BATCH):
                yield from batch[role]

    def texts(self, role: str) -> Iterator[str]:
        return (TEXTS[role](value) for value in self.values(role))

    def input_texts(self, chosen: np.ndarray) -> list[str]:
        """Of these rows, sorted numbers in the order of places; [] where the inputs are no texts."""
        texts, first = list[str](), 0
        for rows in self.rows.values():
            some = chosen[(chosen >= first) & (chosen < first + len(rows))] - first
            texts += self.task.input_texts(Rows(rows.table.select(some))) if len(some) else []
            first += len(rows)
        return texts

    @property
    def reads_texts(self) -> bool:
        return bool(self.input_texts(np.arange(1)))


def subject_of(recipe: Recipe, task: Task, source: Source, say: Say) -> Subject:
    """Prepares as the first start does; if that fails, the rows as they are in the source are looked at."""
    processor, notes = None, list[str]()
    try:
        processor = load_processor(recipe, task)
    except OSError as error:
        notes.append(
            f"lengths are not looked at: the processor could not be loaded ({' '.join(str(error).split())[:200]})"
        )
    as_read = {split: Rows(table) for split, table in source.tables.items()}
    say("preparing")
    try:
        prepared = prepare(recipe, task, processor)
    except (UserError, DataError, OSError) as error:
        return Subject(
            recipe, task, source, as_read, None, processor, notes=notes, failure=" ".join(str(error).split())
        )
    subject = Subject(recipe, task, source, prepared.splits, prepared, processor, notes=notes)
    if processor is not None:
        say(f"encoding {sum(map(len, prepared.splits.values())):,} rows")
        try:
            subject.examples = prepared.examples
        except (UserError, DataError) as error:
            subject.findings += _not_encoded(subject, error)
    return subject


def _not_encoded(subject: Subject, error: Exception) -> list[Finding]:
    """Encodes row by row to name those that cannot be."""
    kinds: dict[str, list[RowId]] = {}
    said: dict[str, str] = {}
    for split, rows in subject.rows.items():
        for batch in rows.table.iter(batch_size=BATCH):
            if _why_not(subject, batch) is None:
                continue
            for index, row in enumerate(batch[ROW]):
                one = _why_not(subject, {name: [values[index]] for name, values in batch.items()})
                if one is None:
                    continue
                path = one.problems[0].path if isinstance(one, UserError) else ""
                if path == "data.labels":
                    continue  # the look at classes names them
                kind = "zero-label" if path in ("data.max_length", "task.chat_template") else "not-prepared"
                kinds.setdefault(kind, []).append((split, row))
                problem = one.problems[0] if isinstance(one, UserError) else None
                said.setdefault(kind, f"{problem.message}; {problem.hint}" if problem else str(one))
    if not kinds and not _unknown_classes(subject):
        return [found("not-prepared", " ".join(str(error).split()))]
    return [found(kind, f"{rows_text(len(rows))}, such as {said[kind]}", rows) for kind, rows in kinds.items()]


def _why_not(subject: Subject, batch: dict[str, list[Any]]) -> Exception | None:
    try:
        subject.task.encode(batch, subject.processor)
    except Exception as error:  # whatever it is, it is the row's
        return error
    return None


def _unknown_classes(subject: Subject) -> bool:
    counts = _counts(subject)[0]
    train = counts.get("train", {})
    return any(set(classes) - {*train, *subject.task.labels} for classes in counts.values())


# ── the looks ───────────────────────────────────────────────────────────────────────────────────────────────────────
def all_findings(subject: Subject, say: Say) -> list[Finding]:
    findings = list(subject.findings)
    looks = (_at_media, _at_texts, _at_copies, _at_labels, _at_tags, _at_boxes, _at_masks, _at_examples)
    for look in looks if len(subject.places) else ():
        findings += look(subject, say)
    if subject.failure:
        if any(one.severity == "error" for one in (*findings, *subject.source.findings)):
            subject.notes.append("the splits of training, and lengths, are not known before the errors are mended")
        else:
            findings.append(found("not-prepared", subject.failure))
    return findings


def _at_media(subject: Subject, say: Say) -> list[Finding]:
    findings: list[Finding] = []
    places = subject.places
    for role, read in (("image", media.picture), ("audio", media.clip), ("mask", media.mask_facts)):
        if not subject.has(role):
            continue
        say(f"decoding {role} of {len(places):,} rows")
        values = _handles(subject, role)
        subject.media[role] = media.facts(values, read, _counted(say, f"{role}s decoded", len(values)))
    if "image" in subject.media:
        findings += media.look_at_pictures(places, subject.media["image"])
    if "audio" in subject.media:
        findings += media.look_at_clips(
            places, subject.media["audio"], getattr(subject.recipe.task, "max_seconds", None)
        )
    return findings


def _handles(subject: Subject, role: str) -> list[Callable[[], Any]]:
    """One for each row, to get its value: undecoded values can be large, and are not all held at once."""

    def handle(table: Dataset, index: int) -> Callable[[], Any]:
        return lambda: table[index][role]

    return [
        handle(table, index)
        for rows in subject.rows.values()
        for table in [rows.table.select_columns([role])]
        for index in range(len(rows))
    ]


def _at_texts(subject: Subject, say: Say) -> list[Finding]:
    findings: list[Finding] = []
    places = subject.places
    roles = [role for role in TEXTS if subject.has(role)]
    for role in roles:
        facts = lengths.text_facts(subject.texts(role))
        is_target = role not in (*subject.task.input_roles, "chat")
        findings += lengths.look_at_texts(places, role, facts, is_target) if role != "text_pair" else []
        findings += lengths.look_for_outliers(places, role, facts.lengths)
        findings += lengths.look_for_constants({role: (facts.first, facts.same)}, len(places))
    if {"source", "target"} <= set(roles):
        findings += lengths.look_for_echoes(places, subject.texts("source"), subject.texts("target"))
    if subject.has("label") and not subject.task.labels:  # numbers
        numbers = list(subject.values("label"))
        findings += lengths.look_for_constants({"label": (numbers[0], numbers.count(numbers[0]))}, len(numbers))
    return findings


def _at_copies(subject: Subject, say: Say) -> list[Finding]:
    """Duplicates and conflicts as the source has them; leaks as training would see them."""
    source = subject.source
    inputs, targets = (np.concatenate([*some.values()]) for some in (source.inputs, source.targets))
    one_each = any(role in subject.task.row_features for role in ONE_INPUT_ONE_LABEL)
    findings = duplicates.look_for_repeats(source.places(), inputs, targets, one_each)
    trained = subject.places
    here = np.concatenate([_digests_of(subject, split, rows.ids) for split, rows in subject.rows.items()])
    findings += duplicates.look_for_leaks(trained, here)
    if not subject.reads_texts or _lacks(subject, "datasketch", "near-duplicates are not looked for"):
        return findings
    compared = min(len(trained), duplicates.MOST_NEAR)
    say(f"looking for near-duplicates among {compared:,} texts")
    if len(trained) > compared:
        subject.notes.append(f"near-duplicates were looked for in {compared:,} rows")
    step = _counted(say, "texts compared", compared)
    return findings + duplicates.look_for_near_copies(trained, subject.input_texts, step)


def _lacks(subject: Subject, package: str, so: str) -> bool:
    """A package of the `check` extra is not installed: said once."""
    if importlib.util.find_spec(package) is not None:
        return False
    subject.notes.append(f"{so}: {package} is not installed (pip install 'sft-dist[check]')")
    return True


def _digests_of(subject: Subject, split: str, ids: np.ndarray) -> np.ndarray:
    """Of the inputs of these rows; what was held out was part of the source's train."""
    source = split if split in subject.source.tables else "train"
    there = np.asarray(subject.source.tables[source].with_format("numpy")[ROW][:])  # ascending
    return subject.source.inputs[source][np.searchsorted(there, ids)]


def _counts(subject: Subject) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, list[RowId]]], str]:
    """Split -> class -> how many; split -> class -> its first rows; what is counted. Empty where there are no classes."""
    counts: dict[str, dict[str, int]] = {}
    first: dict[str, dict[str, list[RowId]]] = {}
    role = next((role for role in CLASSES if subject.has(role)), None)
    if role is None or (role == "label" and not _are_classes(subject)):
        return {}, {}, ""
    classes_of, unit = CLASSES[role]
    for split, rows in subject.rows.items():
        count, places = counts.setdefault(split, {}), first.setdefault(split, {})
        for number, value in zip(
            rows.ids, (v for b in rows.table.select_columns([role]).iter(BATCH) for v in b[role]), strict=True
        ):
            for name, number_of in classes_of(value, subject.task.labels):
                count[name] = count.get(name, 0) + number_of
                some = places.setdefault(name, [])
                if len(some) < BATCH and (not some or some[-1][1] != number):
                    some.append((split, int(number)))
    return counts, first, unit


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def _are_classes(subject: Subject) -> bool:
    return getattr(subject.recipe.task, "problem", "") != "regression"


def _at_labels(subject: Subject, say: Say) -> list[Finding]:
    counts, first, unit = _counts(subject)
    findings = labels.look_at_classes(counts, first, unit, subject.task.labels) if counts else []
    findings += labels.look_at_order(subject.task.labels, _model_labels(subject.recipe)) if counts else []
    if not subject.has("label") or not _are_classes(subject):
        return findings
    values = list(subject.values("label"))
    if any(isinstance(value, list) for value in values) or _lacks(subject, "cleanlab", "labels are not judged"):
        return findings
    chosen = duplicates.sample_by_split(subject.places, labels.MOST_JUDGED)
    usable, features = _features(subject, chosen)
    if features is None:
        return findings
    say(f"judging {len(usable):,} labels by a simple classifier")
    judged = labels.judge_labels(features, [values[i] for i in usable])
    if judged is None:
        subject.notes.append("too few rows to judge labels")
        return findings
    if judged.accuracy < labels.NEEDED_ACCURACY:
        subject.notes.append(f"labels were not judged: a simple classifier is right for {judged.accuracy:.0%} only")
    return findings + labels.look_at_judgement(subject.places, judged.at(usable))


def _features(subject: Subject, chosen: np.ndarray) -> tuple[np.ndarray, Any]:
    """Rows that have cheap features among those chosen, and the features, (rows, features)."""
    for role in ("image", "audio"):
        if role in subject.media:
            facts = subject.media[role]
            usable = np.array([i for i in chosen if not isinstance(facts[i], Exception)], dtype=np.int64)
            return usable, media.standard(facts[i].features for i in usable) if len(usable) else None
    texts = subject.input_texts(chosen)
    return chosen, labels.text_features(texts) if texts else None


def _at_tags(subject: Subject, say: Say) -> list[Finding]:
    return labels.look_at_tags(subject.places, list(subject.values("tags"))) if subject.has("tags") else []


def _at_boxes(subject: Subject, say: Say) -> list[Finding]:
    if not subject.has("objects"):
        return []
    config = _config(subject.recipe)
    most = next((config[name] for name in QUERIES if isinstance(config.get(name), int)), None)
    flat = [(split, row) for split, row, boxes in raw_boxes(subject.source, subject.recipe) if _some_flat(boxes)]
    findings = media.look_at_boxes(subject.places, list(subject.values("objects")), subject.media["image"], most)
    if flat:
        findings.append(found("box-without-area", f"a box without width or height: {rows_text(len(flat))}", flat))
    return findings


def _some_flat(boxes: Sequence[Sequence[float]]) -> bool:
    return any(len(box) == 4 and (box[2] == 0 or box[3] == 0) for box in boxes)


def _at_masks(subject: Subject, say: Say) -> list[Finding]:
    if not subject.has("mask"):
        return []
    return media.look_at_masks(subject.places, subject.media["mask"], subject.media["image"])


def _at_examples(subject: Subject, say: Say) -> list[Finding]:
    """Of encoded examples: how many are cut, whether something is left to learn from each."""
    examples = subject.examples
    if not examples:
        return []
    findings: list[Finding] = []
    places = Places.joined({split: some.ids for split, some in examples.items()})
    if all("truncated" in some.table.column_names for some in examples.values()):
        cut = np.concatenate([some.numbers("truncated") for some in examples.values()]).astype(bool)
        findings += lengths.look_at_truncation(places, cut, _cut_at(subject))
    try:
        loss = subject.task.build_loss(examples["train"])
        weights = [np.asarray(subject.task.weights(loss, some)) for some in examples.values()]
    except RuntimeError:  # a loss that is its model's: such tasks have no labels that could be masked
        return findings
    return findings + lengths.look_for_nothing_to_learn(places, np.concatenate(weights))


# ── the report ──────────────────────────────────────────────────────────────────────────────────────────────────────
def report(subject: Subject, findings: Sequence[Finding], runs: Path | None, timed: bool, say: Say) -> Report:
    counts, _, unit = _counts(subject)
    numbers, length_unit = _lengths(subject)
    train = subject.examples.get("train")
    found_steps = None
    if subject.prepared is not None:
        rate = None
        if timed and train is not None:
            from sft_dist.quality.probe import measured_rate

            say("timing a few steps")
            rate = measured_rate(subject.recipe, subject.task, subject.processor, train)
        if rate is None and runs is not None:
            rate = earlier_rate(subject.recipe, runs)
        tokens = train.lengths if train is not None and subject.task.counts_tokens else None
        rows = len(train) if train is not None else len(subject.rows["train"])
        found_steps = estimate(subject.recipe, tokens, rows, rate)
    return Report(
        name=subject.recipe.name,
        task=subject.recipe.task.type,
        rows={split: len(rows) for split, rows in subject.rows.items()},
        findings=tuple(findings),
        dropped=subject.prepared.dropped if subject.prepared else {},
        classes=counts,
        class_unit=unit,
        lengths=numbers,
        length_unit=length_unit,
        longest=_cut_at(subject) if length_unit == "tokens" else None,
        estimate=found_steps,
        notes=tuple(subject.notes),
        excerpts=_excerpts(subject, findings),
    )


def _lengths(subject: Subject) -> tuple[dict[str, Lengths], str]:
    """Tokens, seconds, or, where nothing could be encoded, characters."""
    if subject.examples and subject.task.counts_tokens:
        return {
            split: Lengths(some.lengths, some.num_truncated, lengths.statistics(some.lengths))
            for split, some in subject.examples.items()
        }, "tokens"
    if subject.has("seconds"):
        by_split = {split: rows.numbers("seconds") for split, rows in subject.rows.items()}
        return {split: Lengths(one, 0, lengths.statistics(one)) for split, one in by_split.items()}, "seconds"
    places = subject.places
    if not len(places) or not subject.reads_texts:
        return {}, ""
    parts = np.split(np.arange(len(places)), range(BATCH, len(places), BATCH))
    sizes = np.array([len(text) for part in parts for text in subject.input_texts(part)])
    by_split = {split: sizes[places.of(split)] for split in subject.rows}
    return {split: Lengths(one, 0, lengths.statistics(one)) for split, one in by_split.items()}, "characters"


def _cut_at(subject: Subject) -> int:
    longest = getattr(subject.processor, "model_max_length", None) or subject.recipe.data.max_length
    return int(min(subject.recipe.data.max_length, longest))


def _excerpts(subject: Subject, findings: Sequence[Finding]) -> dict[RowId, str]:
    """What the first rows of each finding say."""
    wanted = {row for one in findings for row in one.rows[: SHOWN_ROWS if one.kind != "suspicious-label" else 100]}
    known: dict[RowId, str] = {}
    tables = [(split, rows.table) for split, rows in subject.rows.items()]
    tables += [(split, table) for split, table in subject.source.tables.items()]
    for split, table in tables:
        ids = np.asarray(table.with_format("numpy")[ROW][:])
        rows = [row for of, row in wanted if of == split and (of, row) not in known]
        for index in np.flatnonzero(np.isin(ids, rows)):
            known[(split, int(ids[index]))] = _excerpt(table[int(index)])
    return known


def _excerpt(row: Mapping[str, Any]) -> str:
    parts = []
    for role, value in row.items():
        if role in TEXTS:
            parts.append(TEXTS[role](value))
        elif isinstance(value, dict) and "path" in value:
            parts.append(str(value["path"] or ""))
        elif role in ("label", "tags") and value is not None:
            parts.append(f"[{', '.join(value) if isinstance(value, list) else value}]")
    text = " | ".join(part for part in parts if part)
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"


def _config(recipe: Recipe) -> dict[str, Any]:
    """The model's own config; {} where it cannot be had."""
    from transformers import PretrainedConfig

    try:
        return PretrainedConfig.get_config_dict(model_source(recipe.model.path), revision=recipe.model.revision)[0]
    except (OSError, ValueError, UserError):
        return {}


def _model_labels(recipe: Recipe) -> dict[int, str] | None:
    names = _config(recipe).get("id2label")
    return {int(number): str(name) for number, name in names.items()} if names else None


def _counted(say: Say, what: str, total: int) -> Callable[[int], None]:
    """Says it every ten seconds."""
    import time

    last = time.monotonic()

    def step(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(f"{done:,} of {total:,} {what}")

    return step
