"""Boxes around objects: COCO annotations (one JSON file) and Pascal VOC (one XML file an image).

Columns `image`, `objects` = {"bbox": [[x, y, width, height] in pixels, ...], "category": [name, ...], "iscrowd": [0 or 1, ...]},
and `width` and `height`, the size of the image that the annotation states, or None. An image without objects has empty lists.
"""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset, List, Value

from sft_dist.data.formats.dialect import opened
from sft_dist.data.formats.faults import fault_in, no_rows, unreadable
from sft_dist.data.formats.layout import IMAGES, walked
from sft_dist.data.formats.media import UNDECODED_IMAGE, media_rows
from sft_dist.data.media import is_inside, posix_path

FEATURES = {
    "image": UNDECODED_IMAGE,
    "objects": {
        "bbox": List(List(Value("float64"))),
        "category": List(Value("string")),
        "iscrowd": List(Value("int64")),
    },
    "width": Value("float64"),
    "height": Value("float64"),
}


class Annotation(NamedTuple):
    """One image and what is in it."""

    image: Path
    objects: dict[str, list[Any]]
    size: tuple[float | None, float | None]  # width, height


def _rows(annotations: list[Annotation], streaming: bool) -> Dataset | IterableDataset:
    columns: dict[str, list[Any]] = {
        "image": [annotation.image for annotation in annotations],
        "objects": [annotation.objects for annotation in annotations],
        "width": [annotation.size[0] for annotation in annotations],
        "height": [annotation.size[1] for annotation in annotations],
    }
    return media_rows(columns, FEATURES, streaming)


def _positive(value: Any) -> float | None:
    """A stated width or height; tools write 0 or nothing where they do not know it."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


# ── COCO ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def read_coco(files: list[str], streaming: bool) -> Dataset | IterableDataset:
    """Crowds (`iscrowd`: one box around many) are never trained on; the metric ignores what is predicted inside them."""
    annotations = [annotation for file in files for annotation in _coco(Path(file))]
    if not annotations:
        raise no_rows(files)
    return _rows(annotations, streaming)


def _coco(file: Path) -> list[Annotation]:
    try:
        with opened(str(file)) as stream:
            content = json.load(stream)
    except ValueError as error:
        raise unreadable(fault_in("json", [str(file)]) or f"{file}: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise unreadable(f"{file}: COCO annotations have a list {key!r}, which is missing here")
    try:
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        by_id: dict[Any, dict[str, list[Any]]] = {
            entry["id"]: {"bbox": [], "category": [], "iscrowd": []} for entry in content["images"]
        }
        titles = [str(entry["file_name"]) for entry in content["images"]]
        sizes = [(_positive(entry.get("width")), _positive(entry.get("height"))) for entry in content["images"]]
    except (KeyError, TypeError) as error:
        raise unreadable(f"{file}: an image or a category lacks {error}") from None
    if len(by_id) < len(titles):
        raise unreadable(f"{file}: two images have the same id")
    for number, entry in enumerate(content["annotations"]):
        location = f"{file}, annotation {entry.get('id', number) if isinstance(entry, dict) else number}"
        try:
            image, category, box, crowd = (
                entry["image_id"],
                entry["category_id"],
                entry["bbox"],
                entry.get("iscrowd", 0),
            )
        except (KeyError, TypeError) as error:
            raise unreadable(f"{location}: lacks {error}") from None
        if image not in by_id:
            raise unreadable(f"{location}: there is no image with this id", str(image))
        if category not in names:
            raise unreadable(f"{location}: there is no category with this id", str(category), tuple(map(str, names)))
        by_id[image]["bbox"].append(_box(box, location))
        by_id[image]["category"].append(names[category])
        by_id[image]["iscrowd"].append(int(bool(crowd)))
    images = [_image(file, title) for title in titles]
    return list(map(Annotation, images, by_id.values(), sizes))


def _box(box: Any, location: str) -> list[float]:
    numbers = box if isinstance(box, list) else []
    if len(numbers) != 4 or not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        raise unreadable(f"{location}: a box is [x, y, width, height] in pixels", str(box))
    return [float(number) for number in numbers]


def _image(file: Path, title: str) -> Path:
    """Beside the annotations or in `images/`; also where these lie one folder up, or in the split's own folder there
    (`annotations/instances_val2017.json` and `val2017/`)."""
    home, split = file.parent, file.stem.rpartition("_")[2]
    title = posix_path(title, home)
    if not is_inside(str(home / title), str(home)):
        raise unreadable(f"{file}: the name of the image {title} leaves the folder of the annotations")
    folders = (home, home / "images", home.parent, home.parent / "images", home.parent / split)
    for folder in folders:
        if (folder / title).is_file():
            return folder / title
    searched = ", ".join(str(folder) for folder in folders[:2])
    raise unreadable(f"{file}: the image {title} is not there", hint=f"looked for it in {searched} and beside them")


# ── VOC ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def read_voc(folders: list[str], streaming: bool) -> Dataset | IterableDataset:
    """One XML file an image, beside it or in a folder of their own (`Annotations/` and `JPEGImages/`, or `images/`).

    Corners become [xmin, ymin, xmax - xmin, ymax - ymin], as they are written: whether a file counts pixels from 0 or
    from 1 cannot be seen in it.
    """
    folder = Path(folders[0])
    files = [Path(name) for name in walked(folder) if name.lower().endswith(".xml")]
    images = {Path(name).stem: Path(name) for name in walked(folder) if name.lower().endswith(IMAGES)}
    if not files:
        raise no_rows(folders)
    return _rows([_voc(file, images) for file in files], streaming)


def _voc(file: Path, images: dict[str, Path]) -> Annotation:
    try:
        with opened(str(file)) as stream:
            root = ElementTree.parse(stream).getroot()
    except (ElementTree.ParseError, ValueError) as error:
        line = getattr(error, "position", (0, 0))[0]
        raise unreadable(f"{file}, line {line}: not XML ({error})") from None
    if root.tag != "annotation":
        raise unreadable(f"{file}: VOC annotations are in <annotation>", f"<{root.tag}>")
    boxes, names = [], []
    for number, element in enumerate(root.iter("object"), start=1):
        location = f"{file}, object {number}"
        name = (element.findtext("name") or "").strip()
        if not name:
            raise unreadable(f"{location}: it has no <name>")
        corners = [element.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
        try:
            xmin, ymin, xmax, ymax = (float(text or "") for text in corners)
        except ValueError:
            raise unreadable(f"{location}: <bndbox> has the numbers xmin, ymin, xmax, ymax", str(corners)) from None
        boxes.append(_box([xmin, ymin, xmax - xmin, ymax - ymin], location))
        names.append(name)
    objects: dict[str, list[Any]] = {"bbox": boxes, "category": names, "iscrowd": [0] * len(boxes)}
    size = (_positive(root.findtext("size/width")), _positive(root.findtext("size/height")))
    return Annotation(_image_of(file, root, images), objects, size)


def _image_of(file: Path, root: ElementTree.Element, images: dict[str, Path]) -> Path:
    """By the name in the annotation, else by the annotation's own: many tools write a name that was changed later."""
    title = Path((root.findtext("filename") or "").strip().replace("\\", "/")).name
    for home in (file.parent, file.parent.parent / "JPEGImages", file.parent.parent / "images"):
        if title and (home / title).is_file():
            return home / title
    for stem in (Path(title).stem, file.stem):
        if stem in images:
            return images[stem]
    raise unreadable(f"{file}: the image {title or file.stem} is not there", hint="it may lie beside the XML file")
