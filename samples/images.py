"""Images with labels and with boxes."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# In the order of the labels 0 to 9.
CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
TAKEN = {"train": ("train", 12_000), "test": ("t10k", 2_000)}


def fashion_mnist(into: Path, have: dict[str, Path]) -> None:
    """The first 12,000 training and 2,000 test images (28 x 28, grey) as train.parquet and test.parquet: `image` holds
    {bytes: a PNG file, path: its name}, `label` the name of the class."""
    import numpy as np
    from PIL import Image

    source = have["dataset-fashion-mnist"] / "usr" / "share" / "datasets" / "fashion-mnist"
    for split, (prefix, num_rows) in TAKEN.items():
        pixels = gzip.decompress((source / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:]  # 16 bytes of header
        labels = gzip.decompress((source / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:]
        arrays = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)[:num_rows]
        encoded = []
        for number, array in enumerate(arrays):
            file = io.BytesIO()
            Image.fromarray(array).save(file, "PNG")
            encoded.append({"bytes": file.getvalue(), "path": f"{split}-{number:05d}.png"})
        write_images(into / f"{split}.parquet", encoded, [CLOTHES[label] for label in labels[:num_rows]])


def write_images(path: Path, images: list[dict[str, Any]], labels: list[str]) -> None:
    """A parquet file that `datasets` reads with an Image and a string column."""
    from datasets import Dataset, Features, Image, Value
    from pyarrow import parquet

    features = Features({"image": Image(decode=False), "label": Value("string")})
    dataset = Dataset.from_dict({"image": images, "label": labels}, features=features)
    parquet.write_table(dataset.data.table, path)  # its schema says which column is an image


# ── boxes ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Box:
    """Pixels, from the upper left corner of the image; the right and lower edge are not part of the box."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)

    def within(self, window: Box) -> Box:
        """The part of this box that lies in the window, in the window's own coordinates."""
        return Box(
            max(self.left, window.left) - window.left,
            max(self.top, window.top) - window.top,
            min(self.right, window.right) - window.left,
            min(self.bottom, window.bottom) - window.top,
        )


TILE = 400  # pixels, about
MIN_VISIBLE = 0.4  # of a box's area, for it to count in a tile
GAP = 36  # pixels between the regions of the splits, as high as most trees: no tree is in two splits
# Where each split's tiles are cut: source image, first row, end row (pixels; None: its last).
REGIONS: dict[str, list[tuple[str, int, int | None]]] = {
    "train": [
        ("2019_YELL_2_528000_4978000_image_crop2", 0, 1600),
        ("2019_YELL_2_541000_4977000_image_crop", 0, None),
        ("OSBS_029", 0, None),
    ],
    "validation": [("2019_YELL_2_528000_4978000_image_crop2", 1600 + GAP, 2000 + GAP)],
    "test": [("2019_YELL_2_528000_4978000_image_crop2", 2000 + 2 * GAP, None)],
}


def trees(into: Path, have: dict[str, Path]) -> None:
    """Three of the package's aerial photographs (10 cm a pixel) with a box around every tree, cut into tiles of about
    400 x 400 pixels, JPEG. Boxes are clipped to their tile and dropped where less than 40 % of one is left; tiles without a box are
    excluded. train, validation and test are different regions of the photographs with 36 pixels between them. COCO:
    {train,validation,test}.json, file names relative to the file they stand in, one category, `tree`."""
    from PIL import Image

    source = have["deepforest"] / "deepforest" / "data"
    (into / "images").mkdir()
    for split, regions in REGIONS.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for name, first, end in regions:
            boxes = read_voc((source / f"{name}.xml").read_text(encoding="utf-8"))
            with Image.open(source / f"{name}.png") as photograph:
                image = photograph.convert("RGB")
            for window in tiles(Box(0, first, image.width, end or image.height), TILE):
                inside = boxes_within(boxes, window, MIN_VISIBLE)
                if not inside:
                    continue
                file_name = f"images/{name}-{int(window.top)}-{int(window.left)}.jpg"
                tile = image.crop((int(window.left), int(window.top), int(window.right), int(window.bottom)))
                tile.save(into / file_name, quality=92)
                images.append({"id": len(images), "file_name": file_name, "width": tile.width, "height": tile.height})
                annotations += (
                    _annotation(len(annotations) + at, images[-1]["id"], box) for at, box in enumerate(inside)
                )
        coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "tree"}]}
        (into / f"{split}.json").write_text(json.dumps(coco, indent=1), encoding="utf-8")


def read_voc(text: str) -> list[Box]:
    """The boxes of a Pascal VOC file, whatever their names."""
    boxes = []
    for found in ElementTree.fromstring(text).iter("bndbox"):
        boxes.append(Box(*(float(found.findtext(edge, "")) for edge in ("xmin", "ymin", "xmax", "ymax"))))
    return boxes


def tiles(region: Box, about: int) -> Iterator[Box]:
    """The region cut into a grid without overlap whose cells are about `about` pixels high and wide."""
    for top, bottom in cuts(int(region.top), int(region.bottom), about):
        for left, right in cuts(int(region.left), int(region.right), about):
            yield Box(left, top, right, bottom)


def cuts(start: int, end: int, about: int) -> list[tuple[int, int]]:
    """[start, end) in pieces of nearly equal length, as near to `about` as that allows."""
    num_pieces = max(1, round((end - start) / about))
    marks = [start + (end - start) * piece // num_pieces for piece in range(num_pieces + 1)]
    return list(itertools.pairwise(marks))


def boxes_within(boxes: list[Box], window: Box, min_visible: float) -> list[Box]:
    """The boxes clipped to the window, in its coordinates, of which at least that share of their area is left."""
    clipped = [(box, box.within(window)) for box in boxes]
    return [inside for box, inside in clipped if inside.area > 0 and inside.area >= min_visible * box.area]


def _annotation(number: int, image: int, box: Box) -> dict[str, Any]:
    bbox = [box.left, box.top, box.right - box.left, box.bottom - box.top]
    return {"id": number, "image_id": image, "category_id": 1, "bbox": bbox, "area": box.area, "iscrowd": 0}
