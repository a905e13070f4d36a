"""Pictures and sound are read alike from files and bytes, and a file that cannot be used is named with the reason."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
from PIL import Image

from sft_dist.data.media import MediaError, load_audio, load_image, load_mask

RATE = 16_000


def at(path: Path) -> dict[str, Any]:
    return {"path": str(path), "bytes": None}


def picture(path: Path, size: tuple[int, int] = (6, 4), **options: Any) -> Path:
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    Image.fromarray(pixels).save(path, **options)
    return path


def tone(path: Path, rate: int = RATE, seconds: float = 0.5, channels: int = 1, hertz: float = 440.0) -> Path:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate)
    return path


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(MediaError) as caught:
        call(*arguments)
    return str(caught.value)


# ── pictures ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_file_and_its_bytes_are_the_same_picture(tmp_path):
    file = picture(tmp_path / "a.png")
    from_file, from_bytes = load_image(at(file)), load_image({"path": None, "bytes": file.read_bytes()})
    assert from_file.mode == from_bytes.mode == "RGB"
    assert from_file.size == (6, 4)
    assert np.array_equal(from_file, from_bytes)
    assert np.asarray(from_file)[0, 1].tolist() == [3, 4, 5]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode).save(tmp_path / name)
    found = np.asarray(load_image(at(tmp_path / name)))
    assert found.shape == (3, 5, 3)
    assert found.min() >= 254


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path):
    Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(load_image(at(tmp_path / "deep.png")))[0, :, 0].tolist() == [0, 128, 255]


def test_the_orientation_a_camera_noted_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    file = picture(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(np.arange(72, dtype=np.uint8).reshape(4, 6, 3), k=-1)
    assert np.array_equal(np.asarray(load_image(at(file))), upright)


def test_a_url_is_read_through_fsspec(tmp_path):
    with fsspec.open("memory://media-test/a.png", "wb") as file:
        file.write(picture(tmp_path / "a.png").read_bytes())
    assert load_image({"path": "memory://media-test/a.png", "bytes": None}).size == (6, 4)
    assert "memory://media-test/b.png: cannot be read" in refused(load_image, {"path": "memory://media-test/b.png"})


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.webp", "cut.gif", "cut.bmp"])
def test_a_picture_cut_short_is_damaged(tmp_path, name):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    said = refused(load_image, at(tmp_path / name))
    assert said.startswith(f"{tmp_path / name}: ")
    assert "damaged picture" in said or "not a picture" in said


def test_what_is_no_picture_is_named_with_the_reason(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "words.png").write_text("hello, I am a text")
    assert refused(load_image, at(tmp_path / "empty.png")) == f"{tmp_path}/empty.png: the file is empty"
    assert refused(load_image, at(tmp_path / "words.png")) == f"{tmp_path}/words.png: not a picture of a known format"
    assert "none.png: cannot be read (No such file" in refused(load_image, at(tmp_path / "none.png"))
    assert "(no file name, 3 bytes): not a picture" in refused(load_image, {"path": None, "bytes": b"abc"})
    assert refused(load_image, {"path": None, "bytes": None}) == "neither a file nor bytes are given"


def test_the_mistake_survives_the_way_from_a_worker_process():
    error = MediaError("a.png: the file is empty")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# ── masks ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_palette_mask_gives_its_numbers_not_its_colours(tmp_path):
    ids = np.array([[0, 1, 2], [255, 7, 0]], dtype=np.uint8)
    mask = Image.fromarray(ids).convert("P")
    mask.putdata(ids.flatten().tolist())
    mask.putpalette([(number * 37) % 256 for number in range(768)])
    mask.save(tmp_path / "mask.png")
    found = load_mask(at(tmp_path / "mask.png"))
    assert found.dtype == np.int64
    assert np.array_equal(found, ids)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, bool])
def test_a_grey_mask_gives_its_values(tmp_path, kind):
    ids = np.array([[0, 1], [300 if kind is np.uint16 else 1, 0]], dtype=kind)
    Image.fromarray(ids).save(tmp_path / "mask.png")
    assert np.array_equal(load_mask(at(tmp_path / "mask.png")), ids.astype(np.int64))


def test_a_mask_in_colours_is_refused(tmp_path):
    said = refused(load_mask, at(picture(tmp_path / "mask.png")))
    assert said.startswith(f"{tmp_path}/mask.png: a mask holds one class number a pixel")
    assert "(RGB)" in said


# ── sound ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_sound_comes_at_the_rate_asked_for(tmp_path, name):
    sound = load_audio(at(tone(tmp_path / name, rate=8_000)), RATE)
    assert sound.dtype == np.float32
    assert sound.ndim == 1
    assert len(sound) == pytest.approx(RATE * 0.5, rel=0.01 if name != "a.mp3" else 0.3)
    middle = sound[len(sound) // 4 : -len(sound) // 4]
    strongest = np.abs(np.fft.rfft(middle)).argmax() * RATE / len(middle)
    assert strongest == pytest.approx(440, abs=10)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.05)


def test_a_sound_at_its_own_rate_is_left_as_it_is(tmp_path):
    file = tone(tmp_path / "a.wav")
    kept, _ = soundfile.read(file, dtype="float32")
    assert np.array_equal(load_audio(at(file), RATE), kept)
    assert np.array_equal(load_audio({"path": None, "bytes": file.read_bytes()}, RATE), kept)


def test_channels_are_averaged(tmp_path):
    left, right = np.full(100, 0.5), np.full(100, -0.25)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    assert np.allclose(load_audio(at(tmp_path / "a.wav"), RATE), 0.125)


def test_a_sound_that_cannot_be_used_is_named_with_the_reason(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "words.wav").write_text("hello, I am a text")
    (tmp_path / "header.wav").write_bytes(tone(tmp_path / "a.wav").read_bytes()[:20])
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan], dtype=np.float32), RATE, subtype="FLOAT")
    assert refused(load_audio, at(tmp_path / "empty.wav"), RATE) == f"{tmp_path}/empty.wav: the file is empty"
    assert "words.wav: not a sound that can be read (" in refused(load_audio, at(tmp_path / "words.wav"), RATE)
    assert "header.wav: " in refused(load_audio, at(tmp_path / "header.wav"), RATE)
    assert "silent.wav: there is no sound in it (0 samples)" in refused(load_audio, at(tmp_path / "silent.wav"), RATE)
    assert "nan.wav: some of its samples are not finite" in refused(load_audio, at(tmp_path / "nan.wav"), RATE)
    assert "none.wav: cannot be read" in refused(load_audio, at(tmp_path / "none.wav"), RATE)


def test_a_header_that_promises_nothing_sensible_is_refused():
    junk = (
        b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 0, 0, 0, 0, 0) + b"data\0\0\0\0"
    )
    assert "not a sound that can be read" in refused(load_audio, {"path": "junk.wav", "bytes": junk}, RATE)


def test_an_image_and_a_sound_are_not_taken_for_each_other(tmp_path):
    buffer = io.BytesIO(picture(tmp_path / "a.png").read_bytes())
    assert "a.wav: not a sound" in refused(load_audio, {"path": "a.wav", "bytes": buffer.getvalue()}, RATE)
    sound = tone(tmp_path / "a.wav").read_bytes()
    assert "a.png: not a picture" in refused(load_image, {"path": "a.png", "bytes": sound})
