"""Checks of images and audio: whether each can be read and holds anything; of boxes and masks: whether they fit their image.

Every file is decoded once; what is kept of it are a few numbers, by which duplicates are found and labels reviewed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_dist.data.media import MediaError, load_audio, load_image, load_mask, open_media, require_bounded
from sft_dist.quality.duplicates import digest
from sft_dist.quality.findings import Finding, RowIndex, make_finding, rows_text

TINY = 16  # pixels of the shorter side
EDGE = 1.0  # pixels a box may reach over its image's edge: rounding
QUIET = 1e-3  # peak of a silent clip (-60 dBFS)
PEAK = 0.999  # a sample at full scale
CLIPPED = 0.001  # share of samples at full scale

_GRID = 8  # pixels of the thumbnail that is an image's features
_BANDS = 24  # frequency bands of a clip's features


@dataclass(frozen=True)
class ImageFacts:
    width: int
    height: int
    blank: bool
    digest: int  # of the pixels, so that copies in other formats are equal
    features: np.ndarray  # (3 * 8 * 8 + 3,) float32


@dataclass(frozen=True)
class AudioFacts:
    rate: int
    seconds: float
    peak: float
    clipped: float  # share of samples at full scale
    digest: int
    features: np.ndarray  # (2 * bands + 1,) float32


def read_all(
    values: Sequence[Callable[[], Any]], read: Callable[[Any], Any], step: Callable[[int], None] | None = None
) -> list[Any]:
    """`read` of each value, or the MediaError, by as many threads as there are cores: decoding frees the interpreter."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    def read_one(value: Callable[[], Any]) -> Any:
        try:
            return read(value())
        except MediaError as error:
            return error

    results: list[Any] = []
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for result in pool.map(read_one, values):
            results.append(result)
            if step is not None:
                step(len(results))
    return results


def read_image_facts(value: Mapping[str, Any]) -> ImageFacts:
    image = load_image(value)
    pixels = np.asarray(image)
    small = np.asarray(image.resize((_GRID, _GRID)), dtype=np.float32) / 255
    features = np.r_[small.ravel(), pixels.reshape(-1, 3).std(axis=0) / 255].astype(np.float32)
    blank = bool((pixels == pixels[0, 0]).all())
    return ImageFacts(image.width, image.height, blank, digest(pixels.tobytes() + str(pixels.shape).encode()), features)


def read_audio_facts(value: Mapping[str, Any]) -> AudioFacts:
    rate = _rate(value)
    sound = load_audio(value, rate)
    loud = np.abs(sound)
    return AudioFacts(
        rate,
        len(sound) / rate,
        float(loud.max()),
        float((loud >= PEAK).mean()),
        digest(sound.tobytes()),
        _spectrum(sound, rate),
    )


def _rate(value: Mapping[str, Any]) -> int:
    import soundfile

    try:
        with open_media(value) as file:
            header = soundfile.info(file)
        require_bounded(header, value)
        return int(header.samplerate)
    except (soundfile.SoundFileError, TypeError, OSError, MediaError):
        return 16_000  # load_audio says what is wrong with it


def _spectrum(sound: np.ndarray, rate: int) -> np.ndarray:
    """Mean and spread over time of the energy in bands of equal width on a log scale, and the length."""
    size = max(64, rate // 40)
    frames = (
        sound[: len(sound) // size * size].reshape(-1, size)
        if len(sound) >= size
        else np.pad(sound, (0, size - len(sound)))[None]
    )
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)) ** 2  # (frames, frequencies)
    edges = np.unique(np.geomspace(1, power.shape[1], _BANDS + 1).astype(int))
    bands = np.log(np.add.reduceat(power, edges[:-1], axis=1) + 1e-10)
    bands = np.pad(bands, ((0, 0), (0, _BANDS - bands.shape[1])))
    return np.r_[bands.mean(axis=0), bands.std(axis=0), np.log1p(len(sound) / rate)].astype(np.float32)


def check_images(row_index: RowIndex, images: Sequence[ImageFacts | MediaError]) -> list[Finding]:
    broken = _unreadable("unreadable-image", row_index, images)
    good = [(index, facts) for index, facts in enumerate(images) if isinstance(facts, ImageFacts)]
    tiny = [index for index, facts in good if min(facts.width, facts.height) < TINY]
    blank = [index for index, facts in good if facts.blank]
    return [
        *broken,
        *_finding_of("tiny-image", f"under {TINY} pixels wide or high", row_index, tiny),
        *_finding_of("blank-image", "one colour all over", row_index, blank),
    ]


def check_audio(
    row_index: RowIndex, audio: Sequence[AudioFacts | MediaError], max_seconds: float | None
) -> list[Finding]:
    good = [(index, facts) for index, facts in enumerate(audio) if isinstance(facts, AudioFacts)]
    findings = _unreadable("unreadable-audio", row_index, audio)
    rates = Counter(facts.rate for _, facts in good)
    if len(rates) > 1:
        usual = rates.most_common(1)[0][0]
        unusual = [index for index, facts in good if facts.rate != usual]
        counts = ", ".join(f"{rate} Hz ({count})" for rate, count in rates.most_common()[1:5])
        findings.append(
            make_finding("sampling-rate", f"{counts} where the others have {usual} Hz", row_index.row_ids(unusual))
        )
    silent = [index for index, facts in good if facts.peak < QUIET]
    clipped = [index for index, facts in good if facts.clipped > CLIPPED]
    findings += _finding_of("silent-audio", "silent", row_index, silent)
    findings += _finding_of(
        "clipped-audio", f"more than {CLIPPED:.1%} of the samples at full scale", row_index, clipped
    )
    if max_seconds is not None:
        long = [index for index, facts in good if facts.seconds > max_seconds]
        findings += _finding_of("too-long-audio", f"longer than {max_seconds:g} s", row_index, long)
    return findings


def check_boxes(
    row_index: RowIndex,
    objects: Sequence[Mapping[str, Any]],  # {"bbox": [[x, y, width, height]], "category": [name]}
    images: Sequence[ImageFacts | MediaError],
    max_boxes: int | None,  # boxes the model can find in an image
) -> list[Finding]:
    outside, without_boxes, too_many = [], [], []
    are_corners = True  # of every box, as far as numbers tell
    for index, (boxes_of_image, image) in enumerate(zip(objects, images, strict=True)):
        boxes = np.asarray(boxes_of_image["bbox"], dtype=np.float64).reshape(-1, 4)
        if not len(boxes):
            without_boxes.append(index)
            continue
        if max_boxes is not None and len(boxes) - sum(boxes_of_image.get("iscrowd", ())) > max_boxes:
            too_many.append(index)
        are_corners = are_corners and bool((boxes[:, 2:] > boxes[:, :2]).all())
        corners = np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]
        if isinstance(image, ImageFacts):
            limits = np.array([image.width, image.height] * 2) + EDGE
            if not ((corners >= -EDGE) & (corners <= limits)).all():
                outside.append(index)
            are_corners = are_corners and bool((boxes <= limits).all())
    advice = " (they look like corners, xmin, ymin, xmax, ymax: subtract xmin and ymin)" if are_corners else ""
    return [
        *_finding_of("box-outside-image", f"a box reaches outside the image{advice}", row_index, outside),
        *_finding_of("no-boxes", "no box", row_index, without_boxes),
        *_finding_of("too-many-boxes", f"more than {max_boxes} boxes", row_index, too_many),
    ]


def check_masks(
    row_index: RowIndex,
    masks: Sequence[np.ndarray | MediaError],  # (2,) height, width of each
    images: Sequence[ImageFacts | MediaError],
) -> list[Finding]:
    mismatched = [
        index
        for index, (mask, image) in enumerate(zip(masks, images, strict=True))
        if isinstance(mask, np.ndarray) and isinstance(image, ImageFacts) and (image.height, image.width) != tuple(mask)
    ]
    return _finding_of("mask-size", "the mask has another size than its image", row_index, mismatched)


def read_mask_size(value: Mapping[str, Any]) -> np.ndarray:
    return np.array(load_mask(value).shape)


def standardize(features: Iterable[np.ndarray]) -> np.ndarray:
    """(rows, features), each with mean 0 and spread 1."""
    table = np.stack(list(features)).astype(np.float64)
    return (table - table.mean(axis=0)) / np.maximum(table.std(axis=0), 1e-9)


def _unreadable(kind: str, row_index: RowIndex, read_all: Sequence[Any]) -> list[Finding]:
    bad = [index for index, fact in enumerate(read_all) if isinstance(fact, MediaError)]
    if not bad:
        return []
    return [make_finding(kind, f"{rows_text(len(bad))}, such as {read_all[bad[0]]}", row_index.row_ids(bad))]


def _finding_of(kind: str, message: str, row_index: RowIndex, indices: Sequence[int]) -> list[Finding]:
    return [make_finding(kind, f"{message}: {rows_text(len(indices))}", row_index.row_ids(indices))] if indices else []
