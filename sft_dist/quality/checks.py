"""Which checks are made of which data: decided by what a task says of the columns that it stores, so that a new task needs no
line here.

stored_texts                 empty texts, copies, outliers
stored_classes               balance, names, order; single labels are also reviewed by a simple classifier
unique_targets               conflicts between equal inputs
media                        images, masks and recordings are decoded once each
"""

from __future__ import annotations

import importlib.util
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import CONFIG_MAPPING

from sft_dist.data.rows import ROW
from sft_dist.quality import duplicates, labels, lengths, media
from sft_dist.quality.findings import Finding, RowIndex, make_finding, rows_text
from sft_dist.quality.source import raw_boxes
from sft_dist.quality.subject import (
    Say,
    Subject,
    count_classes,
    max_tokens,
    model_config,
    model_labels,
)
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.tasks.base import MediaKind
from sft_dist.recipe.tunings import virtual_tokens
from sft_dist.tasks.loading import largest_tokens, positions_of

READERS: dict[MediaKind, Callable[[Any], Any]] = {
    "image": media.read_image_facts,
    "audio": media.read_audio_facts,
    "mask": media.read_mask_size,
}
QUERIES = ("num_queries", "num_detection_tokens")  # settings of detectors: the most boxes they can find


def run_checks(subject: Subject, say: Say) -> list[Finding]:
    findings = list(subject.findings)
    checks = (
        check_media,
        check_texts,
        check_copies,
        check_label_quality,
        check_tags,
        check_boxes,
        check_masks,
        check_examples,
    )
    for check in checks if len(subject.row_index) else ():
        findings += without_crash(check, subject, say)
    if subject.failure:
        if any(finding.severity == "error" for finding in (*findings, *subject.source.findings)):
            subject.notes.append("the splits for training and the lengths are unknown until the errors are fixed")
        else:
            findings.append(make_finding("not-prepared", subject.failure))
    return findings


def without_crash(check: Callable[[Subject, Say], list[Finding]], subject: Subject, say: Say) -> list[Finding]:
    """Returns the findings of a check; where it crashes, that finding alone, so that the other checks are made."""
    try:
        return check(subject, say)
    except UserError:
        raise
    except Exception as error:
        traceback.print_exc()
        return [crashed(check.__name__.replace("_", " "), error)]


def crashed(name: str, error: Exception) -> Finding:
    text = " ".join(str(error).split())[:200]
    return make_finding("crashed-check", f"`{name}` crashed: {type(error).__name__}: {text}")


def check_media(subject: Subject, say: Say) -> list[Finding]:
    findings: list[Finding] = []
    row_index = subject.row_index
    for role, kind in subject.recipe.task.media.items():
        if not subject.has(role):
            continue
        say(f"decoding {role} of {len(row_index):,} rows")
        values = _handles(subject, role)
        facts = media.read_all(values, READERS[kind], _progress_reporter(say, f"{role}s decoded", len(values)))
        subject.media[role] = facts
        if kind == "image":
            findings += media.check_images(row_index, facts)
        elif kind == "audio":
            findings += media.check_audio(row_index, facts, subject.recipe.task.max_audio_s)
    return findings


def _handles(subject: Subject, role: str) -> list[Callable[[], Any]]:
    """Returns a function for each row that reads its value: undecoded values can be large, and are not all held at once."""

    def handle(table: Dataset, index: int) -> Callable[[], Any]:
        return lambda: table[index][role]

    return [
        handle(table, index)
        for rows in subject.rows.values()
        for table in [rows.table.select_columns([role])]
        for index in range(len(rows))
    ]


def check_texts(subject: Subject, say: Say) -> list[Finding]:
    findings: list[Finding] = []
    row_index = subject.row_index
    task = subject.task
    roles = [role for role in task.stored_texts if subject.has(role)]
    for role in roles:
        facts = lengths.text_facts(subject.texts(role))
        if subject.recipe.task.columns.get(role) != "if mapped":  # such a text may be missing
            findings += lengths.check_texts(row_index, role, facts, role in subject.target_texts)
        findings += lengths.check_outliers(row_index, role, facts.lengths)
        findings += lengths.check_constants({role: (facts.first, facts.num_equal)}, len(row_index))
    sources = [role for role in roles if role in task.input_roles]
    for target in subject.target_texts if len(sources) == 1 else ():
        findings += lengths.check_target_copies(row_index, subject.texts(sources[0]), subject.texts(target))
    for role in subject.label_roles if not task.labels else ():  # numbers
        numbers = list(subject.values(role))
        findings += lengths.check_constants({role: (numbers[0], numbers.count(numbers[0]))}, len(numbers))
    return findings


def check_copies(subject: Subject, say: Say) -> list[Finding]:
    """Checks duplicates and conflicts as the source has them, leaks as training would see them."""
    source = subject.source
    inputs, targets = (np.concatenate([*digests.values()]) for digests in (source.inputs, source.targets))
    findings = duplicates.check_repeats(source.row_index(), inputs, targets, bool(subject.task.unique_targets))
    trained = subject.row_index
    input_digests = np.concatenate([_digests_of(subject, split, rows.ids) for split, rows in subject.rows.items()])
    findings += duplicates.check_leaks(trained, input_digests)
    if not subject.reads_texts or _lacks(subject, "datasketch", "near-duplicates were not checked"):
        return findings
    compared = min(len(trained), duplicates.MAX_NEAR_TEXTS)
    say(f"comparing {compared:,} texts for near-duplicates")
    if len(trained) > compared:
        subject.notes.append(f"near-duplicates were checked among {compared:,} rows only")
    step = _progress_reporter(say, "texts compared", compared)
    return findings + duplicates.check_near_copies(trained, subject.input_texts, step)


def _lacks(subject: Subject, package: str, consequence: str) -> bool:
    """Whether a package of the `check` extra is missing, which is then noted."""
    if importlib.util.find_spec(package) is not None:
        return False
    subject.notes.append(f"{consequence}: {package} is not installed (pip install 'sft-dist[check]')")
    return True


def _digests_of(subject: Subject, split: str, ids: np.ndarray) -> np.ndarray:
    """Returns the digests of the inputs of these rows; rows that were held out come from the source's train."""
    source = split if split in subject.source.tables else "train"
    row_numbers = np.asarray(subject.source.tables[source].with_format("numpy")[ROW][:])  # ascending
    return subject.source.inputs[source][np.searchsorted(row_numbers, ids)]


def check_label_quality(subject: Subject, say: Say) -> list[Finding]:
    counts, first, unit = count_classes(subject)
    findings = (
        labels.check_classes(
            counts,
            first,
            unit,
            subject.task.labels,
            subject.task.recipe.data.labels or (),
            {*counts} - {*subject.source.tables},
        )
        if counts
        else []
    )
    findings += labels.check_spellings({name for classes in counts.values() for name in classes})
    findings += labels.check_label_order(subject.task.labels, model_labels(subject.recipe)) if counts else []
    role = subject.classes_of("rows")
    if role is None:
        return findings
    values = list(subject.values(role))
    if any(isinstance(value, list) for value in values) or _lacks(
        subject, "cleanlab", "suspicious labels were not checked"
    ):
        return findings
    sample = duplicates.sample_by_split(subject.row_index, labels.MAX_REVIEWED)
    usable, features = _features(subject, sample)
    if features is None:
        subject.notes.append("suspicious labels were not checked: no two rows have anything in common")
        return findings
    say(f"reviewing {len(usable):,} labels with a simple classifier")
    review = labels.review_labels(features, [values[i] for i in usable])
    if review is None:
        subject.notes.append("suspicious labels were not checked: too few rows")
        return findings
    if review.accuracy < labels.NEEDED_ACCURACY:
        subject.notes.append(
            f"suspicious labels were not checked: a simple classifier is right for only {review.accuracy:.0%} of the rows"
        )
    return findings + labels.check_labels(subject.row_index, review.at(usable))


def _features(subject: Subject, sample: np.ndarray) -> tuple[np.ndarray, Any]:
    """Returns those rows of the sample that have cheap features, and the features, (rows, features)."""
    for role, kind in subject.recipe.task.media.items():
        if kind != "mask" and role in subject.media:
            facts = subject.media[role]
            usable = np.array([i for i in sample if not isinstance(facts[i], Exception)], dtype=np.int64)
            return usable, media.standardize(facts[i].features for i in usable) if len(usable) else None
    texts = subject.input_texts(sample)
    return sample, labels.text_features(texts) if texts else None


def check_tags(subject: Subject, say: Say) -> list[Finding]:
    role = subject.classes_of("words")
    return labels.check_tags(subject.row_index, list(subject.values(role))) if role else []


def check_boxes(subject: Subject, say: Say) -> list[Finding]:
    role, image = subject.classes_of("boxes"), subject.media_role("image")
    if role is None or image is None:
        return []
    config = model_config(subject.recipe)
    max_boxes = next((config[name] for name in QUERIES if isinstance(config.get(name), int)), None)
    flat = [
        (split, row) for split, row, boxes in raw_boxes(subject.source, subject.recipe, role) if _has_flat_box(boxes)
    ]
    findings = media.check_boxes(subject.row_index, list(subject.values(role)), subject.media[image], max_boxes)
    if flat:
        findings.append(
            make_finding("box-without-area", f"a box without width or height: {rows_text(len(flat))}", flat)
        )
    return findings


def _has_flat_box(boxes: Sequence[Sequence[float]]) -> bool:
    return any(len(box) == 4 and (box[2] == 0 or box[3] == 0) for box in boxes)


def check_masks(subject: Subject, say: Say) -> list[Finding]:
    mask, image = subject.media_role("mask"), subject.media_role("image")
    if mask is None or image is None:
        return []
    return media.check_masks(subject.row_index, subject.media[mask], subject.media[image])


def check_examples(subject: Subject, say: Say) -> list[Finding]:
    """Checks how many examples are truncated, and whether each has an unmasked label."""
    examples = subject.examples
    if not examples:
        return []
    findings: list[Finding] = []
    row_index = RowIndex.from_ids({split: encoded.ids for split, encoded in examples.items()})
    if all("truncated" in encoded.table.column_names for encoded in examples.values()):
        cut = np.concatenate([encoded.numbers("truncated") for encoded in examples.values()]).astype(bool)
        findings += lengths.check_truncation(row_index, cut, max_tokens(subject), subject.recipe.data.max_length)
    findings += _check_model_limits(subject, row_index)
    try:
        loss = subject.task.build_loss(examples["train"])
        weights = [np.asarray(subject.task.weights(loss, encoded)) for encoded in examples.values()]
    except RuntimeError:  # the model computes its own loss: such tasks have no labels that could be masked
        return findings
    return findings + lengths.check_masked_labels(row_index, np.concatenate(weights))


def _check_model_limits(subject: Subject, row_index: RowIndex) -> list[Finding]:
    """Checks texts against the model's tables of positions and embeddings: beyond their ends training would stop."""
    settings = {**model_config(subject.recipe), **subject.recipe.model.config}
    if not subject.task.counts_tokens or settings.get("model_type") not in CONFIG_MAPPING:
        return []
    config = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    findings: list[Finding] = []
    splits = subject.examples.values()
    if (positions := positions_of(config)) is not None:
        token_counts = np.concatenate([encoded.lengths for encoded in splits])
        findings += lengths.check_positions(row_index, token_counts, positions, virtual_tokens(subject.recipe.tuning))
    num_embeddings = getattr(config.get_text_config(), "vocab_size", None)
    if num_embeddings is not None and len(subject.processor) > num_embeddings:
        largest = np.concatenate([largest_tokens(encoded) for encoded in splits])
        findings += lengths.check_token_ids(row_index, largest, num_embeddings)
    return findings


def _progress_reporter(say: Say, noun: str, total: int) -> Callable[[int], None]:
    """Returns a function that reports progress every ten seconds."""
    last = time.monotonic()

    def step(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(f"{done:,} of {total:,} {noun}")

    return step
