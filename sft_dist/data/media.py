"""Pictures, masks and sound from files or bytes, the same way wherever a task, the gate or `predict` needs them.

A value is what an undecoded `datasets.Image` or `datasets.Audio` column holds: {"path": str | None, "bytes": bytes | None};
the bytes win. Each function raises MediaError, which names the file and says what is wrong with it.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_WIDE_MODES = ("I;16", "I;16B", "I;16L", "I;16N")  # one channel of 16 bits, which `convert` would cut off at 255
_ID_MODES = ("1", "L", "P", "I", *_WIDE_MODES)  # what holds one whole number a pixel


class MediaError(ValueError):
    """A picture or sound that cannot be used."""


def load_image(value: Mapping[str, Any]) -> Image:
    """The picture in RGB, turned as its EXIF orientation says."""
    picture = _opened(value)
    if picture.mode in _WIDE_MODES:
        from PIL import Image

        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    # Transparent palettes warn on the direct way to RGB.
    return picture.convert("RGBA").convert("RGB") if "transparency" in picture.info else picture.convert("RGB")


def load_mask(value: Mapping[str, Any]) -> np.ndarray:  # (height, width) int64
    """The class number of each pixel: the palette's index, or the grey value."""
    picture = _opened(value)
    if picture.mode not in _ID_MODES:
        raise MediaError(
            f"{name_of(value)}: a mask holds one class number a pixel, as a palette or grey picture; "
            f"this one is in colours ({picture.mode})"
        )
    return np.asarray(picture).astype(np.int64)


def load_audio(value: Mapping[str, Any], rate: int) -> np.ndarray:  # (samples,) float32
    """One channel (the mean of all) at `rate` samples a second; a file of several channels or another rate is converted."""
    import soundfile

    try:
        with io.BytesIO(_bytes_of(value)) as file:
            sound, own_rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: what has no header is taken for raw samples
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise MediaError(f"{name_of(value)}: not a sound that can be read ({reason})") from None
    if not len(sound):
        raise MediaError(f"{name_of(value)}: there is no sound in it (0 samples)")
    if not np.isfinite(sound).all():
        raise MediaError(f"{name_of(value)}: some of its samples are not finite numbers")
    mono = sound.mean(axis=1)
    if own_rate != rate:
        import soxr

        mono = soxr.resample(mono, own_rate, rate)
        if not len(mono):
            raise MediaError(f"{name_of(value)}: too short to be resampled ({len(sound)} samples at {own_rate} Hz)")
    return np.ascontiguousarray(mono, dtype=np.float32)


def name_of(value: Mapping[str, Any]) -> str:
    """What the picture or sound is called in a message."""
    return value.get("path") or f"(no file name, {len(value.get('bytes') or b'')} bytes)"


def _opened(value: Mapping[str, Any]) -> Image:
    """The whole picture in memory, so that a file cut short is noticed here, turned upright."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    data = _bytes_of(value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF blocks and large pictures; what matters is raised
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError:
        raise MediaError(f"{name_of(value)}: not a picture of a known format") from None
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name_of(value)}: too large a picture ({error})") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:  # each format has its own
        raise MediaError(f"{name_of(value)}: a damaged picture ({error})") from None


def _bytes_of(value: Mapping[str, Any]) -> bytes:
    data, path = value.get("bytes"), value.get("path")
    if data is None:
        if not path:
            raise MediaError("neither a file nor bytes are given")
        try:
            data = _read(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise MediaError(f"{path}: cannot be read ({reason})") from None
    if not data:
        raise MediaError(f"{name_of(value)}: the file is empty")
    return bytes(data)


def _read(path: str | os.PathLike[str]) -> bytes:
    if "://" in str(path):
        import fsspec

        with fsspec.open(str(path), "rb") as file:
            return file.read()
    with open(path, "rb") as file:
        return file.read()
