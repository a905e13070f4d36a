"""Pictures and sound are read alike from files and bytes, and a file that cannot be used is named with the reason."""

from __future__ import annotations

import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from sft_dist.data import media
from sft_dist.data.images import content
from sft_dist.data.media import REFUSED, MediaError, accepted, load_audio, load_image, load_mask, open_media, read_size
from sft_dist.data.prepare import prepare
from sft_dist.data.sources import load_rows, stream_rows
from sft_dist.quality.media import read_audio_facts
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Data, Recipe
from sft_dist.tasks import task_of
from sft_dist.tasks.audio import content_of, seconds_of
from tests.sft_dist.data.web import Web

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


@pytest.mark.parametrize(
    ("pixels", "eight_bits"),
    [
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 0.6, 1]], np.float32), [0, 153, 255]),
        (np.array([[0, 128, 255]], np.float32), [0, 128, 255]),
    ],
)
def test_integers_of_32_bits_and_decimal_numbers_are_scaled_by_their_range(tmp_path, pixels, eight_bits):
    Image.fromarray(pixels).save(tmp_path / "deep.tiff")
    assert np.asarray(load_image(at(tmp_path / "deep.tiff")))[0].tolist() == [[value] * 3 for value in eight_bits]


def test_a_dark_image_of_16_bits_stays_dark(tmp_path):
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 1 65535\n\x00\xff\x00\x00")
    assert np.asarray(load_image(at(tmp_path / "dark.pgm")))[0, :, 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.array([[-1, 3]], np.int32), "pixels of -1 to 3; they must be integers in 0..255 or 0..65535"),
        (np.array([[0, 70_000]], np.int32), "pixels of 0 to 70000"),
        (np.array([[-0.5, 0.5]], np.float32), "pixels of -0.5 to 0.5; they must be decimal numbers in 0..1 or 0..255"),
        (np.array([[0, 3000]], np.float32), "pixels of 0 to 3000"),
        (np.array([[0, np.nan]], np.float32), "NaN or infinite"),
    ],
)
def test_pixels_of_any_other_range_are_refused(tmp_path, pixels, reason):
    Image.fromarray(pixels).save(tmp_path / "deep.tiff")
    assert reason in refused(load_image, at(tmp_path / "deep.tiff"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_turned_with_its_image(tmp_path, orientation):
    pixels = np.zeros((20, 30), np.uint8)
    pixels[3:9, 5:7] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    stored = read_size(at(tmp_path / "a.png"))
    upright = load_image(at(tmp_path / "a.png"))
    left, top, right, bottom = upright.getbbox()
    assert stored.upright == upright.size
    assert stored.turn([5, 3, 2, 6]) == [left, top, right - left, bottom - top]


@pytest.mark.parametrize("name", ["pics\\a.png", "D:\\sets\\a.png"])
def test_paths_that_windows_wrote_are_accepted_inside_their_folder(tmp_path, name):
    (tmp_path / "pics").mkdir()
    home = tmp_path if name.startswith("pics") else tmp_path / "pics"
    file = picture(tmp_path / "pics" / "a.png")
    assert accepted(name, [str(home)], allow_urls=False) == str(file)
    assert accepted("..\\..\\etc\\passwd", [str(home)], allow_urls=False).startswith(REFUSED)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.webp", "cut.gif", "cut.bmp"])
def test_a_picture_cut_short_is_damaged(tmp_path, name):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    said = refused(load_image, at(tmp_path / name))
    assert said.startswith(f"{tmp_path / name}: ")
    assert "damaged image" in said or "not an image" in said


def test_what_is_no_picture_is_named_with_the_reason(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "words.png").write_text("hello, I am a text")
    assert refused(load_image, at(tmp_path / "empty.png")) == f"{tmp_path}/empty.png: the file is empty"
    assert refused(load_image, at(tmp_path / "words.png")) == f"{tmp_path}/words.png: not an image of a known format"
    assert "none.png: cannot be read (No such file" in refused(load_image, at(tmp_path / "none.png"))
    assert "(no file name, 3 bytes): not an image" in refused(load_image, {"path": None, "bytes": b"abc"})
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


def test_a_mask_stored_as_jpeg_is_refused_and_names_png(tmp_path):
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "mask.jpg")
    message = refused(load_mask, at(tmp_path / "mask.jpg"))
    assert message.startswith(f"{tmp_path}/mask.jpg: a mask stored as JPEG")
    assert "PNG" in message


# ── sound ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_samples_of_every_width_have_one_scale(tmp_path, subtype):
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(1600) / RATE)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype=subtype)
    np.testing.assert_allclose(load_audio(at(tmp_path / "a.wav"), RATE), wave, atol=1 / 128)


def test_decimal_samples_in_the_range_of_integers_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.0, 12_000.0, -30_000.0]), RATE, subtype="FLOAT")
    assert "samples of up to 30,000 where decimal numbers lie between -1 and 1" in refused(
        load_audio, at(tmp_path / "a.wav"), RATE
    )


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
    assert "silent.wav: the recording is empty (0 samples)" in refused(load_audio, at(tmp_path / "silent.wav"), RATE)
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
    assert "a.png: not an image" in refused(load_image, {"path": "a.png", "bytes": sound})


# ── paths that data name ────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `data` for a table, a secret picture beside it, and a program that leaves `ran` behind."""
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    picture(tmp_path / "secret.png")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "folder").symlink_to(tmp_path)
    run = "{{ cycler.__init__.__globals__.os.system('touch RAN') }}".replace("RAN", str(tmp_path / "ran"))
    (tmp_path / "web").mkdir(exist_ok=True)
    (tmp_path / "web" / "spec.json").write_text(json.dumps({"version": 1, "refs": {"a.png": [run, 0, 1]}}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    return tmp_path


# Paths that no table may name. WEB and LOGIN are addresses of a server that is listening, HERE the folder around the table's.
CELLS = [
    "reference://a.png::WEB/spec.json",
    "reference://WEB/spec.json",
    "zip://a.png::WEB/a.zip",
    "simplecache::WEB/a.png",
    "python://HERE/evil.py",
    "github://org:repo@main/a.png",
    "hf://datasets/org/name/a.png",
    "s3://bucket/a.png",
    "ftp://127.0.0.1/a.png",
    "file://HERE/secret.png",
    "file:///etc/passwd",
    "LOGIN/a.png",
    "/etc/passwd",
    "HERE/secret.png",
    "../secret.png",
    "../../secret",
    "link.png",
    "folder/secret.png",
]


def made(cell: str, folder: Path, web: Web) -> str:
    login = web.address.replace("://", "://me:password@")
    return cell.replace("WEB", web.address).replace("LOGIN", login).replace("HERE", str(folder))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "struct", "typed", "saved", "streamed"])
def test_a_cell_opens_no_file_outside_its_folder_and_no_other_protocol(evil, web: Web, cell, form):
    value = read_cell(evil / "data", made(cell, evil, web), form)
    before = sorted(evil.rglob("*"))
    for read in (
        load_image,
        load_mask,
        lambda one: load_audio(one, RATE),
        seconds_of,
        content_of,
        read_audio_facts,
        open_media,
    ):
        said = refused(read, value)
        assert "cannot be read (" in said
        assert "me:password@" not in said
    content(value)  # by its name
    assert web.requests == []
    assert sorted(evil.rglob("*")) == before
    assert not (evil / "ran").exists()


def read_cell(folder: Path, cell: str, form: str, **settings: Any) -> dict[str, Any]:
    """The value of an image column that a source of this form holds, once it is read."""
    table = (
        folder
        / f"table.{'csv' if form == 'csv' else 'jsonl' if form in ('jsonl', 'struct', 'streamed') else 'parquet'}"
    )
    struct_of = {"path": cell, "bytes": None}
    if form == "csv":
        table.write_text(f'image,label\n"{cell}",x\n')
    elif table.suffix == ".jsonl":
        table.write_text(json.dumps({"image": struct_of if form == "struct" else cell, "label": "x"}) + "\n")
    else:
        stored: Any = Value("string")
        if form in ("typed", "saved"):
            stored = {"bytes": Value("binary"), "path": Value("string")}
        rows = Dataset.from_dict(
            {"image": [struct_of if form in ("typed", "saved") else cell], "label": ["x"]},
            features=Features({"image": stored, "label": Value("string")}),
        )
        if form == "saved":
            rows.save_to_disk(str(folder / "saved"))
            table = folder / "saved"
        elif form == "typed":
            # As a hostile file would have it; `to_parquet` would open the path to put its bytes in.
            import pyarrow.parquet as pq

            typed = Features({"image": ImageFeature(), "label": Value("string")})
            pq.write_table(rows.data.table.cast(typed.arrow_schema), table)
        else:
            rows.to_parquet(str(table))
    data = Data(source={"train": str(table)}, **settings)
    row = next(iter(stream_rows(data))) if form == "streamed" else load_rows(data)["train"][0]
    return row["image"] if isinstance(row["image"], dict) else {"path": row["image"], "bytes": None}


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "struct", "typed", "streamed"])
@pytest.mark.parametrize("cell", ["in/a.png", "./in/../in/a.png", "absolute", "inner-link.png"])
def test_a_cell_opens_files_in_the_folder_of_its_table(evil, form, cell):
    (evil / "data" / "in").mkdir()
    file = picture(evil / "data" / "in" / "a.png")
    (evil / "data" / "inner-link.png").symlink_to(file)
    assert load_image(read_cell(evil / "data", str(file) if cell == "absolute" else cell, form)).size == (6, 4)


@pytest.mark.parametrize("role", ["image", "audio"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_row_of_a_refused_cell_is_named_before_training(evil, web: Web, cell, role):
    good = picture(evil / "data" / "good.png") if role == "image" else tone(evil / "data" / "good.wav")
    rows = [{role: str(good), "label": "x"}, {role: made(cell, evil, web), "label": "y"}]
    table = evil / "data" / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate(
        {
            "name": "rows",
            "task": f"{role}-classification",
            "model": {"path": "/nowhere"},
            "data": {"source": str(table), "split": {"test": 0, "validation": 0}},
            "tuning": "full",
            "train": {"lr": 1e-3},
        }
    )
    with pytest.raises(UserError, match=rf"data\.columns\.{role}: train row 1: .*cannot be read \("):
        prepare(recipe, task_of(recipe))
    assert web.requests == []
    assert not (evil / "ran").exists()


def test_links_of_a_data_set_downloaded_from_the_hub_are_followed(evil, monkeypatch):
    monkeypatch.setattr("sft_dist.data.sources.HF_HUB_CACHE", str(evil / "hub"))
    blobs, snapshot = evil / "hub" / "blobs", evil / "hub" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (snapshot / "a.png").symlink_to(picture(blobs / "0.png"))
    assert load_image(read_cell(snapshot, "a.png", "csv")).size == (6, 4)


@pytest.mark.slow
def test_nested_pictures_are_not_decoded_by_datasets(evil, web: Web):
    import pyarrow.parquet as pq

    stored = Features({"text": List({"bytes": Value("binary"), "path": Value("string")})})
    typed = Features({"text": List(ImageFeature())})
    rows = Dataset.from_dict({"text": [[{"bytes": None, "path": f"{web.address}/a.png"}]]}, features=stored)
    pq.write_table(rows.data.table.cast(typed.arrow_schema), evil / "data" / "a.parquet")
    data = Data(source={"train": str(evil / "data" / "a.parquet")})
    for row in (load_rows(data)["train"][0], next(iter(stream_rows(data)))):
        assert row["text"] == [{"bytes": None, "path": f"{web.address}/a.png"}]
    assert web.requests == []


# ── URLs ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("form", ["csv", "struct", "typed", "streamed"])
def test_a_url_is_opened_only_where_the_recipe_allows_it_and_without_credentials(evil, web: Web, form):
    picture(web.folder / "a.png")
    said = refused(load_image, read_cell(evil / "data", f"{web.address}/a.png", form))
    assert said.startswith(f"{web.address}/a.png: cannot be read (")
    assert "data.allow_urls: true" in said
    assert web.requests == []
    assert load_image(read_cell(evil / "data", f"{web.address}/a.png", form, allow_urls=True)).size == (6, 4)
    (request,) = web.requests
    assert request.path == "/a.png"
    assert set(request.headers) == {"accept-encoding", "connection", "host", "user-agent"}
    assert "secret" not in str(request.headers)


def test_a_recording_behind_a_url_is_opened_as_a_picture_is(evil, web: Web):
    tone(web.folder / "a.wav")
    value = {"path": f"{web.address}/a.wav", "bytes": None}
    assert seconds_of(value) == pytest.approx(0.5)
    assert len(load_audio(value, RATE)) == RATE // 2
    assert content_of(value) == (web.folder / "a.wav").read_bytes()


def test_redirects_stay_on_the_web(evil, web: Web):
    picture(web.folder / "a.png")
    web.redirects = {
        "/there": "/a.png",
        "/file": f"file://{evil}/secret.png",
        "/ftp": "ftp://127.0.0.1/a.png",
        "/login": web.address.replace("://", "://me:password@") + "/a.png",
        "/round": "/round",
    }
    assert load_image({"path": f"{web.address}/there"}).size == (6, 4)
    for name in ("file", "ftp", "login", "round"):
        assert "cannot be read (" in refused(load_image, {"path": f"{web.address}/{name}"})
    assert all("authorization" not in request.headers for request in web.requests)


def test_what_a_url_does_not_give_is_said(evil, web: Web, monkeypatch):
    assert "404" in refused(load_image, {"path": f"{web.address}/gone.png"})
    assert "cannot be read (" in refused(load_image, {"path": "http://127.0.0.1:1/a.png"})
    (web.folder / "large.png").write_bytes(b"x" * 2_000)
    monkeypatch.setattr(media, "MAX_URL_BYTES", 1_000)
    assert "larger than 1,000 bytes" in refused(load_image, {"path": f"{web.address}/large.png"})
    monkeypatch.setattr(media, "MAX_URL_BYTES", 10_000)
    monkeypatch.setattr(media, "URL_DEADLINE_S", -1.0)
    assert "not complete after" in refused(load_image, {"path": f"{web.address}/large.png"})


def test_a_path_that_claims_to_be_refused_or_holds_a_nul_is_not_opened(evil):
    assert accepted(f"{REFUSED}a.png", [str(evil)], True).startswith(REFUSED)
    for path in (f"{REFUSED}a.png", "a\0.png", "/a\0.png"):
        refused(load_image, {"path": accepted(path, [str(evil)], True), "bytes": None})
    assert "cannot be read" in refused(load_image, {"path": "/a\0.png", "bytes": None})


def test_postscript_under_the_name_of_a_picture_starts_no_program(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **options: pytest.fail("started Ghostscript"))
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(MediaError, match="not an image of a known format"):
        load_image({"bytes": text.encode(), "path": "a.png"})


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_a_role_that_only_another_package_has_are_confined_too(evil, streaming):
    """The task of a plugin may name its roles as it likes."""
    picture(evil / "data" / "good.png")
    (evil / "data" / "rows.csv").write_text("scan,label\ngood.png,x\n/etc/passwd,y\n")
    data = Data(source={"train": str(evil / "data" / "rows.csv")}, split={"validation": 0, "test": 0})
    rows = stream_rows(data, media=["scan"]) if streaming else load_rows(data, ["scan"])["train"]
    cells = {row["label"]: row["scan"] for row in rows}
    assert cells["x"] == str(evil / "data" / "good.png")
    assert cells["y"].startswith(REFUSED)
