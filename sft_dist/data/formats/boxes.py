"""Boxes around objects: COCO annotations (one JSON file) and Pascal VOC (one XML file a picture).

Columns `image` and `objects` = {"bbox": [[x, y, width, height] in pixels, ...], "category": [name, ...]}; a picture without
objects has empty lists.
"""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, List, Value

from sft_dist.data.formats.faults import fault_in, no_rows, unreadable
from sft_dist.data.formats.layout import IMAGES, walked
from sft_dist.data.formats.media import PICTURE, media_rows
from sft_dist.data.media import is_inside

FEATURES = {
    "image": PICTURE,
    "objects": {"bbox": List(List(Value("float64"))), "category": List(Value("string"))},
}


def _rows(images: list[Path], objects: list[dict[str, list[Any]]], streaming: bool) -> Dataset | IterableDataset:
    return media_rows({"image": images, "objects": objects}, FEATURES, streaming)


# ── COCO ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def read_coco(files: list[str], streaming: bool) -> Dataset | IterableDataset:
    """Crowds (`iscrowd`: one box around many) are left out: they are no example of where one object is."""
    images: list[Path] = []
    objects: list[dict[str, list[Any]]] = []
    for file in files:
        found = _coco(Path(file))
        images += found[0]
        objects += found[1]
    if not images:
        raise no_rows(files)
    return _rows(images, objects, streaming)


def _coco(file: Path) -> tuple[list[Path], list[dict[str, list[Any]]]]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise unreadable(fault_in("json", [str(file)]) or f"{file}: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise unreadable(f"{file}: COCO annotations have a list {key!r}, which is missing here")
    try:
        names = {one["id"]: str(one["name"]) for one in content["categories"]}
        by_id: dict[Any, dict[str, list[Any]]] = {one["id"]: {"bbox": [], "category": []} for one in content["images"]}
        titles = [str(one["file_name"]) for one in content["images"]]
    except (KeyError, TypeError) as error:
        raise unreadable(f"{file}: an image or a category lacks {error}") from None
    if len(by_id) < len(titles):
        raise unreadable(f"{file}: two images have the same id")
    for number, one in enumerate(content["annotations"]):
        place = f"{file}, annotation {one.get('id', number) if isinstance(one, dict) else number}"
        try:
            image, category, box, crowd = one["image_id"], one["category_id"], one["bbox"], one.get("iscrowd", 0)
        except (KeyError, TypeError) as error:
            raise unreadable(f"{place}: lacks {error}") from None
        if image not in by_id:
            raise unreadable(f"{place}: there is no image with this id", str(image))
        if category not in names:
            raise unreadable(f"{place}: there is no category with this id", str(category), tuple(map(str, names)))
        if not crowd:
            by_id[image]["bbox"].append(_box(box, place))
            by_id[image]["category"].append(names[category])
    return [_picture(file, title) for title in titles], list(by_id.values())


def _box(box: Any, place: str) -> list[float]:
    numbers = box if isinstance(box, list) else []
    if len(numbers) != 4 or not all(isinstance(one, (int, float)) and math.isfinite(one) for one in numbers):
        raise unreadable(f"{place}: a box is [x, y, width, height] in pixels", str(box))
    return [float(one) for one in numbers]


def _picture(file: Path, title: str) -> Path:
    """Beside the annotations or in `images/`; also where these lie one folder up, or in the split's own folder there
    (`annotations/instances_val2017.json` and `val2017/`)."""
    home, split = file.parent, file.stem.rpartition("_")[2]
    if not is_inside(str(home / title), str(home)):
        raise unreadable(f"{file}: the name of the picture {title} leaves the folder of the annotations")
    places = (home, home / "images", home.parent, home.parent / "images", home.parent / split)
    for place in places:
        if (place / title).is_file():
            return place / title
    shown = ", ".join(str(place) for place in places[:2])
    raise unreadable(f"{file}: the picture {title} is not there", hint=f"looked for it in {shown} and beside them")


# ── VOC ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def read_voc(folders: list[str], streaming: bool) -> Dataset | IterableDataset:
    """One XML file a picture, beside it or in a folder of their own (`Annotations/` and `JPEGImages/`, or `images/`).

    Corners become [xmin, ymin, xmax - xmin, ymax - ymin], as they are written: whether a file counts pixels from 0 or
    from 1 cannot be seen in it.
    """
    folder = Path(folders[0])
    files = [Path(name) for name in walked(folder) if name.lower().endswith(".xml")]
    pictures = {Path(name).stem: Path(name) for name in walked(folder) if name.lower().endswith(IMAGES)}
    if not files:
        raise no_rows(folders)
    found = [_voc(file, pictures) for file in files]
    return _rows([image for image, _ in found], [objects for _, objects in found], streaming)


def _voc(file: Path, pictures: dict[str, Path]) -> tuple[Path, dict[str, list[Any]]]:
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError) as error:
        line = getattr(error, "position", (0, 0))[0]
        raise unreadable(f"{file}, line {line}: not XML ({error})") from None
    if root.tag != "annotation":
        raise unreadable(f"{file}: VOC annotations are in <annotation>", f"<{root.tag}>")
    boxes, names = [], []
    for number, one in enumerate(root.iter("object"), start=1):
        place = f"{file}, object {number}"
        name = (one.findtext("name") or "").strip()
        if not name:
            raise unreadable(f"{place}: it has no <name>")
        corners = [one.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
        try:
            left, top, right, bottom = (float(text or "") for text in corners)
        except ValueError:
            raise unreadable(f"{place}: <bndbox> has the numbers xmin, ymin, xmax, ymax", str(corners)) from None
        boxes.append(_box([left, top, right - left, bottom - top], place))
        names.append(name)
    return _picture_of(file, root, pictures), {"bbox": boxes, "category": names}


def _picture_of(file: Path, root: ElementTree.Element, pictures: dict[str, Path]) -> Path:
    """By the name in the annotation, else by the annotation's own: many tools write a name that was changed later."""
    title = Path((root.findtext("filename") or "").strip().replace("\\", "/")).name
    for place in (file.parent, file.parent.parent / "JPEGImages", file.parent.parent / "images"):
        if title and (place / title).is_file():
            return place / title
    for stem in (Path(title).stem, file.stem):
        if stem in pictures:
            return pictures[stem]
    raise unreadable(f"{file}: the picture {title or file.stem} is not there", hint="it may lie beside the XML file")
