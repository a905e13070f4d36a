"""Readers of what packages hold, the tiling of photographs, and how rows are divided."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np

from samples.images import REGIONS, Box, boxes_within, cuts, read_voc, tiles
from samples.prompts import SENTENCES, words
from samples.rows import divided
from samples.sounds import read_sphinx
from samples.summaries import pairs_of
from samples.texts import as_messages, read_conll
from samples.translations import read_po
from samples.whisper_tiny import read_ctranslate2


def test_conll_sentences_end_at_lines_without_a_token() -> None:
    text = "Empire\tB-facility\nState\tI-facility\n\t\nin\tO\n\n\n\nParis\tB-geo-loc"
    assert read_conll(text) == [
        (["Empire", "State"], ["B-facility", "I-facility"]),
        (["in"], ["O"]),
        (["Paris"], ["B-geo-loc"]),
    ]


def test_po_entries_that_are_no_plain_translation_are_left_out() -> None:
    text = """msgid ""
msgstr "Language: fr\\n"

msgid "Added {name} “{object}”."
msgstr "Ajout de {name} « {object} »."

#, python-format
msgid ""
"first half "
"\\"second\\" half"
msgstr ""
"première "
"moitié"

#, fuzzy
msgid "a guess"
msgstr "au hasard"

msgid "not yet"
msgstr ""

msgid "%d day"
msgid_plural "%d days"
msgstr[0] "%d jour"
msgstr[1] "%d jours"

#~ msgid "gone"
#~ msgstr "parti"
"""
    assert list(read_po(text)) == [
        ("Added {name} “{object}”.", "Ajout de {name} « {object} »."),
        ('first half "second" half', "première moitié"),
    ]


def test_boxes_are_clipped_to_their_tile_exactly() -> None:
    window = Box(400, 0, 800, 400)
    inside, half, sliver, outside = (
        Box(410, 10, 430, 40),
        Box(390, 100, 410, 120),  # half of it
        Box(380, 100, 402, 120),  # a tenth
        Box(100, 100, 120, 120),
    )
    found = boxes_within([inside, half, sliver, outside], window, min_visible=0.4)
    assert found == [Box(10, 10, 30, 40), Box(0, 100, 10, 120)]
    assert found[1].area == 200


def test_tiles_cover_the_region_once() -> None:
    region = Box(0, 30, 1249, 1035)
    covered = np.zeros((1035, 1249), int)
    for tile in tiles(region, 400):
        covered[int(tile.top) : int(tile.bottom), int(tile.left) : int(tile.right)] += 1
    assert (covered[30:] == 1).all()
    assert not covered[:30].any()
    assert cuts(0, 1000, 400) == [(0, 500), (500, 1000)]
    assert cuts(0, 90, 400) == [(0, 90)]


def test_regions_of_a_photograph_are_apart() -> None:
    by_name: dict[str, list[tuple[float, float]]] = {}
    for regions in REGIONS.values():
        for name, first, end in regions:
            by_name.setdefault(name, []).append((first, float("inf") if end is None else end))
    for spans in by_name.values():
        spans.sort()
        assert all(later[0] - earlier[1] >= 36 for earlier, later in pairwise(spans))


def test_voc_boxes() -> None:
    text = """<annotation><object><name>Tree</name><bndbox><xmin>203</xmin><ymin>67</ymin><xmax>227</xmax><ymax>90</ymax>
    </bndbox></object></annotation>"""
    assert read_voc(text) == [Box(203, 67, 227, 90)]


def test_sphinx_transcripts() -> None:
    assert read_sphinx("<s> ten of clubs  </s> (001)\n\n") == [("001", "ten of clubs")]


def test_prompts_are_plain_lower_case() -> None:
    known = [*words(), *SENTENCES.items()]
    assert dict(known)["digits/h-20"] == "twentieth"
    assert dict(known)["digits/h-90"] == "ninetieth"
    assert dict(known)["digits/mon-11"] == "december"
    assert len({name for name, _ in known}) == len(known)
    assert all(set(text) <= set("abcdefghijklmnopqrstuvwxyz '-") for _, text in known)


def test_a_summary_needs_a_description_of_prose() -> None:
    prose = "word " * 30
    source = f'''
def good():
    """Do one thing to another.

    {prose}

    {prose}

    Parameters
    ----------
    x : int
    """


def none():
    """Do one thing to another.

    Parameters
    ----------
    x : int
    """
'''
    assert list(pairs_of(source)) == [(" ".join(["word"] * 60), "Do one thing to another.")]


def test_splits_are_whole_apart_and_the_same_every_time() -> None:
    splits = divided(range(100))
    assert sorted(item for items in splits.values() for item in items) == list(range(100))
    assert {split: len(items) for split, items in splits.items()} == {"train": 80, "validation": 10, "test": 10}
    assert divided(range(100)) == splits


def test_alpaca_as_messages() -> None:
    row = {"instruction": "Add.", "input": "1 + 1", "output": "2"}
    assert as_messages(row) == [{"role": "user", "content": "Add.\n\n1 + 1"}, {"role": "assistant", "content": "2"}]


def test_a_ctranslate2_file_is_read(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    values = np.array([[1.5, -2.0], [0.25, 4.0]], np.float16)
    header = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, 1)
    variable = text("a/weight") + struct.pack("<BIIBI", 2, 2, 2, 4, values.nbytes) + values.tobytes()
    (tmp_path / "model.bin").write_bytes(header + variable)
    assert (read_ctranslate2(tmp_path / "model.bin")["a/weight"] == values).all()
