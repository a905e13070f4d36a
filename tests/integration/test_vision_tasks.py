"""Each vision task as a user runs it: its recipe, trained, evaluated and asked to predict, on real pictures, with less of them.

The scores asked for are far from good: the models are small and random, and see the pictures for seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samples.fetch import need
from tests.integration.harness import losses, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def command(*words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def trained(recipe: str, runs: Path, *overrides: str) -> tuple[Path, dict[str, Any]]:
    """Run folder and leaderboard of a recipe of the repository."""
    command("sft_dist.train", f"recipes/{recipe}.yaml", *overrides, "--runs", str(runs))
    (folder,) = (path.parent for path in runs.glob("*/*/recipe.json"))
    command("sft_dist.evaluate", str(folder))
    return folder, json.loads((folder / "leaderboard.json").read_text())


def said_of(folder: Path, *pictures: Path) -> list[dict[str, Any]]:
    plain = command("sft_dist.predict", str(folder), *map(str, pictures)).splitlines()
    assert len(plain) == len(pictures)
    return [
        json.loads(line)
        for line in command("sft_dist.predict", "--json", str(folder), *map(str, pictures)).splitlines()
    ]


@pytest.mark.long
def test_clothes_are_told_apart(tmp_path):
    """Ten balanced classes, so chance is an accuracy of 0.1."""
    import pandas

    for name in ("fashion-mnist", "tiny-resnet"):
        need(name)
    settings = ("data.limit=2500", "train.epochs=3", "train.global_batch=16", "train.save_every=3 epochs")
    folder, board = trained("image-classification/resnet-mixup", tmp_path / "runs", *settings)
    assert board["winner"]["test"]["accuracy"] > 0.5
    assert board["winner"]["test"]["top5_accuracy"] > 0.85
    assert board["winner"]["test"]["examples"] == 2000
    rows = pandas.read_parquet(need("fashion-mnist") / "test.parquet")
    pictures = [tmp_path / f"{number}.png" for number in range(20)]
    for picture, row in zip(pictures, rows["image"], strict=False):
        picture.write_bytes(row["bytes"])
    said = said_of(folder, *pictures)
    right = sum(one["label"] == label for one, label in zip(said, rows["label"], strict=False))
    assert right >= 8
    assert set(said[0]["probabilities"]) == set(board["labels"])


@pytest.mark.long
def test_trees_are_found(tmp_path):
    """32 photographs; the untrained model finds nothing (a map50 below 0.01)."""
    for name in ("trees", "tiny-rt-detr"):
        need(name)
    folder, board = trained("object-detection/quickstart", tmp_path / "runs", "task.threshold=0.05")
    course = losses(folder)
    assert min(course.values()) < 0.8 * course[1]
    assert board["winner"]["validation"]["map50"] > 0.03
    assert set(board["winner"]["test"]["map_per_class"]) == {"tree"}
    picture = min((need("trees") / "images").iterdir())
    (said,) = said_of(folder, picture)
    with Image.open(picture) as opened:
        width, height = opened.size
    assert said["objects"]
    for one in said["objects"]:
        x, y, w, h = one["box"]
        assert one["label"] == "tree"
        assert 0 <= x <= x + w <= width + 0.2
        assert 0 <= y <= y + h <= height + 0.2


@pytest.mark.long
def test_tree_tops_are_outlined(tmp_path):
    """Calling everything ground has a mean IoU below 0.45, since a tenth or more of the pixels are trees."""
    for name in ("tree-masks", "tiny-segformer"):
        need(name)
    settings = ("train.save_every=15 epochs",)
    folder, board = trained("semantic-segmentation/quickstart", tmp_path / "runs", *settings)
    matrix = np.array(board["winner"]["test"]["confusion_matrix"])
    all_ground = matrix[0].sum() / matrix.sum() / 2
    assert board["winner"]["test"]["mean_iou"] > all_ground + 0.05
    assert board["winner"]["test"]["iou_per_class"]["tree"] > 0.15
    picture = min((need("tree-masks") / "test" / "images").iterdir())
    (said,) = said_of(folder, picture)
    assert sum(said["shares"].values()) == pytest.approx(1)
    with Image.open(picture) as opened:
        assert all(one["size"] == [opened.height, opened.width] for one in said["masks"].values())


def shapes(folder: Path, count: int) -> Path:
    """Pictures with up to three rectangles each, in COCO's form."""
    rng = np.random.default_rng(0)
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "box"}]}
    for number in range(count):
        pixels = rng.integers(0, 60, (64, 64, 3)).astype(np.uint8)
        for _ in range(number % 4):
            x, y, w, h = (int(one) for one in (*rng.integers(0, 40, 2), *rng.integers(10, 24, 2)))
            pixels[y : y + h, x : x + w] = 255
            box = {"id": len(content["annotations"]), "image_id": number, "category_id": 7, "bbox": [x, y, w, h]}
            content["annotations"].append({**box, "area": w * h, "iscrowd": 0})
        name = f"{number}.png"
        Image.fromarray(pixels).save(folder / name)
        content["images"].append({"id": number, "file_name": name, "width": 64, "height": 64})
    (folder / "train.json").write_text(json.dumps(content))
    return folder / "train.json"


def test_the_loss_of_a_detector_is_the_same_on_two_processes(tmp_path):
    """With pictures of no object and of three, in one micro-batch of one process or four of two."""
    source = shapes(tmp_path, 24)
    recipe = {
        "task": "object-detection",
        "model": {"path": str(need("tiny-yolos"))},
        "data": {"source": {"train": str(source), "validation": str(source)}, "clean": {"drop_duplicates": False}},
        "tuning": "full",
        "train": {"steps": 4, "global_batch": 8, "micro_batch": 8, "lr": 1e-3, "log_every": 1},
    }
    courses = []
    for world_size, micro_batch in ((1, 8), (2, 2)):
        recipe["train"]["micro_batch"] = micro_batch  # type: ignore[index]
        file = tmp_path / f"{world_size}.yaml"
        file.write_text(json.dumps(recipe))
        courses.append(losses(run(file, tmp_path / f"runs-{world_size}", world_size)))
    assert list(courses[0]) == [1, 2, 3, 4]
    for step, loss in courses[0].items():
        assert courses[1][step] == pytest.approx(loss, rel=1e-3), step
