"""Pictures and sound: can each be read, and is there anything in it? Boxes and masks: do they fit their picture?

Every file is decoded once; what is kept of it are a few numbers, with which duplicates are found and labels judged, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_dist.data.media import MediaError, load_audio, load_image, load_mask, open_media
from sft_dist.quality.duplicates import digest
from sft_dist.quality.findings import Finding, Places, found, rows_text

TINY = 16  # pixels of the shorter side
EDGE = 1.0  # pixels a box may reach over its picture's edge: rounding
QUIET = 1e-3  # peak of a silent clip (-60 dBFS)
PEAK = 0.999  # a sample at full scale
CLIPPED = 0.001  # share of samples at full scale

_GRID = 8  # pixels of the thumbnail that is a picture's features
_BANDS = 24  # frequency bands of a clip's features


@dataclass(frozen=True)
class Picture:
    width: int
    height: int
    blank: bool
    digest: int  # of the pixels, so that copies in other formats are equal
    features: np.ndarray  # (3 * 8 * 8 + 3,) float32


@dataclass(frozen=True)
class Clip:
    rate: int
    seconds: float
    peak: float
    clipped: float  # share of samples at full scale
    digest: int
    features: np.ndarray  # (2 * bands + 1,) float32


def facts(
    values: Sequence[Callable[[], Any]], read: Callable[[Any], Any], step: Callable[[int], None] | None = None
) -> list[Any]:
    """`read` of each value, or the MediaError, by as many threads as there are cores: decoding frees the interpreter."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    def one(value: Callable[[], Any]) -> Any:
        try:
            return read(value())
        except MediaError as error:
            return error

    results: list[Any] = []
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for result in pool.map(one, values):
            results.append(result)
            if step is not None:
                step(len(results))
    return results


def picture(value: Mapping[str, Any]) -> Picture:
    image = load_image(value)
    pixels = np.asarray(image)
    small = np.asarray(image.resize((_GRID, _GRID)), dtype=np.float32) / 255
    features = np.r_[small.ravel(), pixels.reshape(-1, 3).std(axis=0) / 255].astype(np.float32)
    blank = bool((pixels == pixels[0, 0]).all())
    return Picture(image.width, image.height, blank, digest(pixels.tobytes() + str(pixels.shape).encode()), features)


def clip(value: Mapping[str, Any]) -> Clip:
    rate = _rate(value)
    sound = load_audio(value, rate)
    loud = np.abs(sound)
    return Clip(
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
            return int(soundfile.info(file).samplerate)
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


def look_at_pictures(places: Places, pictures: Sequence[Picture | MediaError]) -> list[Finding]:
    broken = _broken("unreadable-image", places, pictures)
    good = [(index, one) for index, one in enumerate(pictures) if isinstance(one, Picture)]
    tiny = [index for index, one in good if min(one.width, one.height) < TINY]
    blank = [index for index, one in good if one.blank]
    return [
        *broken,
        *_some("tiny-image", f"under {TINY} pixels wide or high", places, tiny),
        *_some("blank-image", "one colour all over", places, blank),
    ]


def look_at_clips(places: Places, clips: Sequence[Clip | MediaError], max_seconds: float | None) -> list[Finding]:
    good = [(index, one) for index, one in enumerate(clips) if isinstance(one, Clip)]
    findings = _broken("unreadable-audio", places, clips)
    rates = Counter(one.rate for _, one in good)
    if len(rates) > 1:
        usual = rates.most_common(1)[0][0]
        other = [index for index, one in good if one.rate != usual]
        said = ", ".join(f"{rate} Hz ({count})" for rate, count in rates.most_common()[1:5])
        findings.append(found("sampling-rate", f"{said} where the others have {usual} Hz", places.named(other)))
    silent = [index for index, one in good if one.peak < QUIET]
    clipped = [index for index, one in good if one.clipped > CLIPPED]
    findings += _some("silent-audio", "silent", places, silent)
    findings += _some("clipped-audio", f"more than {CLIPPED:.1%} of the samples at full scale", places, clipped)
    if max_seconds is not None:
        long = [index for index, one in good if one.seconds > max_seconds]
        findings += _some("too-long-audio", f"longer than {max_seconds:g} s", places, long)
    return findings


def look_at_boxes(
    places: Places,
    objects: Sequence[Mapping[str, Any]],  # {"bbox": [[x, y, width, height]], "category": [name]}
    pictures: Sequence[Picture | MediaError],
    most: int | None,  # boxes the model can find in a picture
) -> list[Finding]:
    outside, none, many = [], [], []
    for index, (found_in, image) in enumerate(zip(objects, pictures, strict=True)):
        boxes = np.asarray(found_in["bbox"], dtype=np.float64).reshape(-1, 4)
        if not len(boxes):
            none.append(index)
            continue
        if most is not None and len(boxes) > most:
            many.append(index)
        corners = np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]
        if isinstance(image, Picture):
            limits = np.array([image.width, image.height] * 2) + EDGE
            if not ((corners >= -EDGE) & (corners <= limits)).all():
                outside.append(index)
    return [
        *_some("box-outside-image", "a box reaches outside the picture", places, outside),
        *_some("no-boxes", "no box", places, none),
        *_some("too-many-boxes", f"more than {most} boxes", places, many),
    ]


def look_at_masks(
    places: Places,
    masks: Sequence[np.ndarray | MediaError],  # (2,) height, width of each
    pictures: Sequence[Picture | MediaError],
) -> list[Finding]:
    sized = [
        index
        for index, (mask, image) in enumerate(zip(masks, pictures, strict=True))
        if isinstance(mask, np.ndarray) and isinstance(image, Picture) and (image.height, image.width) != tuple(mask)
    ]
    return _some("mask-size", "the mask has another size than its picture", places, sized)


def mask_facts(value: Mapping[str, Any]) -> np.ndarray:
    return np.array(load_mask(value).shape)


def standard(features: Iterable[np.ndarray]) -> np.ndarray:
    """(rows, features), each with mean 0 and spread 1."""
    table = np.stack(list(features)).astype(np.float64)
    return (table - table.mean(axis=0)) / np.maximum(table.std(axis=0), 1e-9)


def _broken(kind: str, places: Places, facts: Sequence[Any]) -> list[Finding]:
    bad = [index for index, one in enumerate(facts) if isinstance(one, MediaError)]
    if not bad:
        return []
    return [found(kind, f"{rows_text(len(bad))}, such as {facts[bad[0]]}", places.named(bad))]


def _some(kind: str, what: str, places: Places, indices: Sequence[int]) -> list[Finding]:
    return [found(kind, f"{what}: {rows_text(len(indices))}", places.named(indices))] if indices else []
