"""Training examples before and after augmentation, as the first epoch has them; of texts without augmentation, what is left of
them after encoding and which tokens are learned."""

from __future__ import annotations

import base64
import difflib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_dist.batches.plan import example_rng
from sft_dist.data.media import MediaError, load_audio, load_image, load_mask
from sft_dist.quality.subject import Subject
from sft_dist.recipe.augment import AudioAugment, ImageAugment, TextAugment

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SIDE = 480  # pixels of an image's longer side on the page
MAX_CHARS = 4000  # characters of a text
_PALETTE = (
    (230, 80, 60),
    (60, 130, 220),
    (70, 170, 90),
    (220, 160, 40),
    (150, 90, 200),
    (40, 180, 190),
    (210, 90, 150),
)


@dataclass(frozen=True)
class Panel:
    """One thing shown of an example: a text in pieces (how, text), or images and a sound as data URLs."""

    caption: str
    pieces: tuple[tuple[str, str], ...] = ()  # how: same, gone, new, learned
    image: str = ""
    legend: tuple[tuple[str, str], ...] = ()  # (colour, class)
    sound: str = ""
    spaced: bool = False  # the pieces are words
    fault: str = ""


@dataclass(frozen=True)
class Example:
    row: int
    about: str  # its label, and the like
    panels: tuple[tuple[Panel, ...], ...]  # side by side


def examples(subject: Subject, count: int) -> list[Example]:
    """So many of the training split, drawn by `train.seed`."""
    rows = subject.rows["train"]
    seed = subject.recipe.train.seed
    indices = np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])
    return [_example(subject, int(index), example_rng(seed, 0, int(index))) for index in indices]


def _example(subject: Subject, index: int, rng: np.random.Generator) -> Example:
    row = subject.rows["train"].table[index]
    try:
        panels = tuple(_panels(subject, row, index, rng))
    except MediaError as error:
        panels = ((Panel("", fault=str(error)),),)
    return Example(int(row["row"]), _about(subject, row), panels)


def _about(subject: Subject, row: Mapping[str, Any]) -> str:
    """Returns what is learned of a row: its labels, or the transcript of a recording."""
    if subject.media_role("audio") and (
        transcript := next((row[role] for role in subject.target_texts if row[role]), "")
    ):
        return str(transcript)
    values = [row[role] for role in subject.label_roles if row[role] is not None]
    return ", ".join(str(name) for value in values for name in (value if isinstance(value, list) else [value]))


def _panels(
    subject: Subject, row: Mapping[str, Any], index: int, rng: np.random.Generator
) -> Iterator[tuple[Panel, ...]]:
    augment = getattr(subject.task, "augment", None)
    texts = subject.task.stored_texts
    if image := subject.media_role("image"):
        yield _of_image(subject, row, image, augment if isinstance(augment, ImageAugment) else None, rng)
    elif audio := subject.media_role("audio"):
        yield _of_audio(subject, row[audio], augment if isinstance(augment, AudioAugment) else None, rng)
    elif tags := subject.classes_of("words"):
        tokens = next(iter(texts))
        yield (
            Panel("words and tags", tuple(_tagged(row[tokens], row[tags])), spaced=True),
            *_encoded(subject, index),
        )
    else:
        for number, (role, text_in) in enumerate(texts.items()):
            if row.get(role) is None:
                continue
            text = text_in(row[role])[:MAX_CHARS]
            if isinstance(augment, TextAugment) and role in subject.task.text_roles:
                # Imported late: needs the packages of an extra.
                from sft_dist.data.augment.text import augment_text

                before, after = _difference(text, augment_text(text, augment, rng))
                caption = "after augmentation" + (", by chance as before" if before == after else "")
                yield Panel(f"{role} before", before, spaced=True), Panel(caption, after, spaced=True)
            # A text that the task composed of several columns reads better as the model sees it.
            elif role not in subject.recipe.task.columns and (encoded := _encoded(subject, index)):
                yield tuple(encoded)
            elif number:
                yield (Panel(role, (("same", text),)),)
            else:
                yield (Panel(role, (("same", text),)), *_encoded(subject, index))


# ── texts ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def _difference(before: str, after: str) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Word by word: what is removed on the left, added on the right."""
    old, new = before.split(), after.split()
    old_pieces, new_pieces = [], []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        old_pieces.append(("same" if kind == "equal" else "gone", " ".join(old[a:b])))
        new_pieces.append(("same" if kind == "equal" else "new", " ".join(new[c:d])))
    return tuple(piece for piece in old_pieces if piece[1]), tuple(piece for piece in new_pieces if piece[1])


def _tagged(tokens: list[str], tags: list[str]) -> Iterator[tuple[str, str]]:
    for token, tag in zip(tokens, tags, strict=True):
        yield ("same", token) if tag == "O" else ("learned", f"{token}\u2009[{tag}]")


def _encoded(subject: Subject, index: int) -> list[Panel]:
    """What the model is given, if encoded and not packed; the tokens that are learned stand out."""
    encoded = subject.examples.get("train")
    if encoded is None or len(encoded) != len(subject.rows["train"]) or "input_ids" not in encoded.table.column_names:
        return []
    row = encoded.table[index]
    tokenizer = getattr(subject.processor, "tokenizer", subject.processor)
    answer = row.get("answer")
    if answer is None:
        return [
            Panel(
                f"as the model sees it, {len(row['input_ids'])} tokens",
                (("same", tokenizer.decode(row["input_ids"])[:MAX_CHARS]),),
            )
        ]
    pieces: list[tuple[str, str]] = []
    start = 0
    for end in range(1, len(answer) + 1):
        if end == len(answer) or answer[end] != answer[start]:
            pieces.append(("learned" if answer[start] else "same", tokenizer.decode(row["input_ids"][start:end])))
            start = end
    return [Panel(f"as the model sees it, {sum(answer)} of {len(answer)} tokens learned", tuple(pieces))]


# ── images ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _of_image(
    subject: Subject, row: Mapping[str, Any], role: str, settings: ImageAugment | None, rng: np.random.Generator
) -> tuple[Panel, ...]:
    image = load_image(row[role])
    mask_role, objects_role = subject.media_role("mask"), subject.classes_of("boxes")
    mask = load_mask(row[mask_role]) if mask_role and row[mask_role] else None
    boxes, names = None, []
    if objects_role and (objects := row[objects_role]):
        boxes = np.asarray(objects["bbox"], dtype=np.float64).reshape(-1, 4)
        names = list(objects["category"])
    classes = subject.task.labels
    size = f"{image.width} x {image.height}"
    present = {*names, *(classes[i] for i in np.unique(mask) if i < len(classes))} if mask is not None else set(names)
    legend = tuple((_hex(_colour(classes.index(name))), name) for name in sorted(present) if name in classes)
    panels = [_image_panel(f"before, {size}", draw_annotations(image, boxes, names, mask, classes), legend)]
    if settings is not None:
        from PIL import Image  # of the extra `vision`, as is what changes images

        from sft_dist.data.augment.image import augment_image

        changed = augment_image(image, settings, rng, boxes, mask)
        after = Image.fromarray(changed.image)
        remaining = [names[index] for index in changed.box_indices]
        canvas = draw_annotations(after, changed.boxes if boxes is not None else None, remaining, changed.mask, classes)
        panels.append(_image_panel(f"after augmentation, {after.width} x {after.height}", canvas, ()))
    return tuple(panels)


def draw_annotations(
    image: Image,
    boxes: np.ndarray | None,  # (boxes, 4) x, y, width, height in pixels
    names: list[str],
    mask: np.ndarray | None,  # (height, width)
    classes: list[str],
) -> Image:
    """Returns the image at the page's size with its boxes and mask on it."""
    from PIL import Image, ImageDraw, ImageFont

    scale = MAX_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC)
    if mask is not None:
        colours = np.array([_colour(number) for number in range(256)], dtype=np.uint8)
        overlay = Image.fromarray(colours[np.clip(mask, 0, 255)]).resize(size, Image.Resampling.NEAREST)
        opacity = np.select([mask == 255, mask == 0], [0, 30], 130).astype(np.uint8)  # class 0 is mostly the background
        cover = Image.fromarray(opacity).resize(size, Image.Resampling.NEAREST)
        canvas = Image.composite(overlay, canvas, cover)
    if boxes is not None:
        pen = ImageDraw.Draw(canvas)
        font = ImageFont.load_default(size=15)
        for (x, y, width, height), name in zip(boxes * scale, names, strict=True):
            colour = _colour(classes.index(name) if name in classes else 0)
            pen.rectangle([x, y, x + width, y + height], outline=(255, 255, 255), width=4)
            pen.rectangle([x, y, x + width, y + height], outline=colour, width=2)
            if len(boxes) <= 20:
                corner = (max(x, 0) + 3, max(y - 17, 0))
                pen.rectangle(pen.textbbox(corner, name, font=font), fill=colour)
                pen.text(corner, name, fill=(255, 255, 255), font=font)
    return canvas


def _colour(number: int) -> tuple[int, int, int]:
    return _PALETTE[number % len(_PALETTE)]


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _image_panel(caption: str, image: Image, legend: tuple[tuple[str, str], ...]) -> Panel:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=88)
    return Panel(caption, image=_data_url(file.getvalue(), "image/jpeg"), legend=legend)


# ── sound ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def _of_audio(
    subject: Subject, value: Any, settings: AudioAugment | None, rng: np.random.Generator
) -> tuple[Panel, ...]:
    extractor = getattr(subject.processor, "feature_extractor", subject.processor)
    rate = int(getattr(extractor, "sampling_rate", 16_000))
    sound = load_audio(value, rate)
    panels = [_sound("before", sound, rate, spectrum(sound, rate))]
    if settings is not None:
        # Imported late: needs the packages of an extra.
        from sft_dist.data.augment.audio import augment_sound, mask_spectrum

        changed = augment_sound(sound, rate, settings, rng)
        panels.append(
            _sound("after augmentation", changed, rate, mask_spectrum(spectrum(changed, rate), settings, rng))
        )
    return tuple(panels)


def spectrum(sound: np.ndarray, rate: int) -> np.ndarray:  # (frequencies, frames) decibels
    """Short-time power: windows of 25 ms every 10 ms."""
    size, hop = int(rate * 0.025), int(rate * 0.010)
    padded = np.pad(sound, (0, max(0, size - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    return 10 * np.log10(power.T + 1e-8)


def _sound(caption: str, sound: np.ndarray, rate: int, decibels: np.ndarray) -> Panel:
    """Waveform above spectrogram, and the sound itself to listen to."""
    import soundfile
    from matplotlib.figure import Figure

    seconds = len(sound) / rate
    figure = Figure(figsize=(4.6, 2.9), layout="constrained", dpi=110)
    wave, spectrogram = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    # A long sound has more samples than the image has pixels: the extremes of each column.
    columns = np.array_split(sound, min(1000, len(sound)))
    times = np.linspace(0, seconds, len(columns))
    wave.fill_between(
        times, [column.min() for column in columns], [column.max() for column in columns], color="#3b78c2", step="mid"
    )
    wave.set_ylim(-1, 1)
    wave.tick_params(labelsize=7)
    top = float(decibels.max())
    spectrogram.imshow(
        decibels,
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, rate / 2000),
        vmin=top - 80,
        vmax=top,
        cmap="magma",
    )
    spectrogram.set_ylabel("kHz", fontsize=8)
    spectrogram.set_xlabel("seconds", fontsize=8)
    spectrogram.tick_params(labelsize=7)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    wav = io.BytesIO()
    soundfile.write(wav, np.clip(sound, -1, 1), rate, format="WAV", subtype="PCM_16")
    return Panel(
        f"{caption}, {seconds:.2f} s",
        image=_data_url(file.getvalue(), "image/png"),
        sound=_data_url(wav.getvalue(), "audio/wav"),
    )


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
