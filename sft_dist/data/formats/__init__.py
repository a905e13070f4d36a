"""How each format of data is read. A table of formats, each with what reads the files or the folder of one split.

Tables are read by the readers of `datasets`. The others end in a `datasets.Dataset` too, and images and sound are never
decoded: such a column holds {"path", "bytes"} (see `sft_dist.data.media`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from datasets import Dataset, IterableDataset

from sft_dist.data.formats.boxes import read_coco, read_voc
from sft_dist.data.formats.conll import read_conll
from sft_dist.data.formats.media import read_images, read_masks, read_sounds
from sft_dist.data.formats.tables import TABLES, read_table
from sft_dist.recipe.references import SUFFIXES


@dataclass(frozen=True)
class Format:
    read: Callable[[list[str], bool], Dataset | IterableDataset]  # (files or one folder, streaming) -> rows
    suffixes: tuple[str, ...] = ()  # of its files; a format without any is a folder


def _ending(name: str) -> tuple[str, ...]:
    return tuple(suffix for suffix, format_name in SUFFIXES.items() if format_name == name)


# data.format -> how it is read. (`sql` is an address, not a file: `sft_dist.data.formats.sql`.)
FORMATS = {
    **{name: Format(partial(read_table, name), _ending(name)) for name in TABLES},
    "conll": Format(read_conll, _ending("conll")),
    "coco": Format(read_coco, (".json",)),
    "voc": Format(read_voc),
    "image-folder": Format(read_images),
    "mask-folder": Format(read_masks),
    "audio-folder": Format(read_sounds),
}
