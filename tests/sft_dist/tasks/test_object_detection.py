from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from sft_dist.data.media import load_image
from sft_dist.losses.detection import capture
from sft_dist.recipe.errors import UserError
from sft_dist.tasks.object_detection import ObjectDetection, predicted_boxes
from tests.sft_dist.tasks.tiny_vision import (
    as_png,
    detr,
    examples_of,
    predictions_of,
    recipe_of,
    rows_of,
    rt_detr,
    save,
    step_loss,
    train,
    tuned_and_back,
    yolos,
)

TASK = {"type": "object-detection"}
SIZE = {"size": {"shortest_edge": 64, "longest_edge": 96}}
FIXED = {"size": {"height": 64, "width": 64}}
COLOURS = {"disc": (230, 60, 40), "square": (40, 90, 230)}


def conditional(**settings):
    return transformers.ConditionalDetrConfig(**{**detr().to_dict(), "model_type": "conditional_detr", "backbone_config": detr().backbone_config, **settings})  # fmt: skip


ARCHITECTURES = {
    "detr": (transformers.DetrForObjectDetection, detr, transformers.DetrImageProcessor, SIZE),
    "detr-auxiliary": (transformers.DetrForObjectDetection, lambda **s: detr(auxiliary_loss=True, **s), transformers.DetrImageProcessor, SIZE),
    "yolos": (transformers.YolosForObjectDetection, yolos, transformers.YolosImageProcessor, {"size": {"shortest_edge": 32, "longest_edge": 48}}),
    "conditional_detr": (transformers.ConditionalDetrForObjectDetection, lambda **s: conditional(auxiliary_loss=True, **s), transformers.ConditionalDetrImageProcessor, SIZE),
    "rt_detr": (transformers.RTDetrForObjectDetection, rt_detr, transformers.RTDetrImageProcessor, FIXED),
}  # fmt: skip


def scene(seed: int, objects: int, width: int = 60, height: int = 48) -> dict:
    """Coloured rectangles, their boxes and names."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 140, (height, width, 3)).astype(np.uint8)
    boxes, names = [], []
    for _ in range(objects):
        name = str(rng.choice(list(COLOURS)))
        w, h = (int(x) for x in rng.integers(10, 22, 2))
        x, y = int(rng.integers(width - w)), int(rng.integers(height - h))
        pixels[y : y + h, x : x + w] = COLOURS[name]
        boxes.append([x, y, w, h])
        names.append(name)
    return {"image": as_png(pixels), "objects": {"bbox": boxes, "category": names}}


def ready(folder, rows, **more):
    task = ObjectDetection(recipe_of(TASK, folder, data={"labels": list(COLOURS)}, **more))
    rows = rows_of(task, rows)
    task.learn_labels(rows)
    processor = task.load_processor(str(folder))
    model = task.build_model(str(folder), None, {}, processor)
    examples = examples_of(task, rows, processor)
    return task, model, examples, processor, task.build_loss(examples)


def made(name, folder):
    model_class, config, processor, settings = ARCHITECTURES[name]
    return save(folder / name, model_class, config(num_labels=5), processor, **settings)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors")
    return {name: made(name, folder) for name in ARCHITECTURES}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loss_of_one_batch_is_the_models_own(folders, name):
    task, model, examples, processor, loss = ready(folders[name], [scene(i, i % 3 + 1) for i in range(5)])
    model.eval()  # without RT-DETR's random denoising queries
    inputs, _ = task.collate(examples.at(range(5)), processor, None)
    own = copy.deepcopy(model)
    del own._loss_function
    expected = task.forward(own, inputs).loss
    torch.testing.assert_close(step_loss(task, model, loss, examples, processor, 1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_denoising_loss_of_one_batch_is_the_models_own(folders):
    task, model, examples, processor, loss = ready(folders["rt_detr"], [scene(i, i % 3 + 1) for i in range(5)])
    inputs, targets = task.collate(examples.at(range(5)), processor, None)
    own = copy.deepcopy(model).train()
    del own._loss_function
    torch.manual_seed(0)
    expected = task.forward(own, inputs).loss
    torch.manual_seed(0)
    outputs = task.forward(model.train(), inputs)
    assert outputs.loss_dict["denoising_meta_values"] is not None
    total = loss.total(outputs, targets) / task.weights(loss, examples).sum()
    torch.testing.assert_close(total.sum().float(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loss_of_a_global_batch_does_not_depend_on_micro_batches(folders, name):
    """With pictures without boxes among them. All of one size: what padding does is the model's own affair."""
    rows = [scene(i, i % 4) for i in range(8)]
    task, model, examples, processor, loss = ready(folders[name], rows)
    model.eval()
    whole, parts = (step_loss(task, model, loss, examples, processor, n) for n in (1, 4))
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["detr-auxiliary", "conditional_detr", "rt_detr"])
def test_losses_of_single_images_add_up_to_the_total(folders, name):
    """With an image without boxes among them. Of each family: where the images are in the outputs of its layers differs."""
    task, model, examples, processor, loss = ready(folders[name], [scene(i, i % 3) for i in range(4)])
    inputs, targets = task.collate(examples.at(range(4)), processor, None)
    with torch.no_grad():
        outputs = task.forward(model.eval(), inputs)
        losses, total = loss.of_each(outputs, targets), loss.total(outputs, targets)
    assert losses.shape == (4, len(total))
    torch.testing.assert_close(losses.sum(dim=0), total, rtol=1e-5, atol=1e-5)
    assert len(losses.unique(dim=0)) == 4


def test_detr_does_not_see_padding(folders):
    rows = [scene(i, 2, *size) for i, size in enumerate([(60, 48), (48, 60), (50, 50), (40, 70)])]
    task, model, examples, processor, loss = ready(folders["detr"], rows)
    model.eval()
    whole, parts = (step_loss(task, model, loss, examples, processor, n) for n in (1, 4))
    torch.testing.assert_close(whole, parts, rtol=0.05, atol=0)  # convolutions see the edge of the padding


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_a_batch_without_any_object_has_a_loss_and_gradients(folders, name):
    task, model, examples, processor, loss = ready(folders[name], [scene(i, 0) for i in range(2)])
    value = step_loss(task, model.train(), loss, examples, processor, 1)
    value.backward()
    assert torch.isfinite(value)
    assert value > 0
    own = copy.deepcopy(model).eval()
    inputs, _ = task.collate(examples.at(range(2)), processor, None)
    del own._loss_function
    expected = task.forward(own, inputs).loss
    torch.testing.assert_close(
        step_loss(task, model.eval(), loss, examples, processor, 2), expected, rtol=1e-5, atol=1e-5
    )


def test_boxes_are_what_the_image_processor_makes_of_them(folders):
    task, _, examples, processor, _ = ready(folders["detr"], [scene(3, 3)])
    inputs, targets = task.collate(examples.at([0]), processor, None)
    row = examples.at([0])[0]
    annotations = [
        {"bbox": box, "category_id": number, "area": box[2] * box[3], "iscrowd": 0}
        for box, number in zip(row["boxes"], row["classes"], strict=True)
    ]
    picture = load_image(row["image"])
    made = processor(images=[picture], annotations=[{"image_id": 0, "annotations": annotations}], return_tensors="pt")
    torch.testing.assert_close(targets[0]["boxes"], made["labels"][0]["boxes"])
    torch.testing.assert_close(targets[0]["class_labels"], made["labels"][0]["class_labels"])
    torch.testing.assert_close(inputs["pixel_values"], made["pixel_values"])


@pytest.mark.parametrize("softmax", [True, False])
def test_boxes_are_found_as_the_image_processors_find_them(softmax):
    torch.manual_seed(0)
    outputs = transformers.models.detr.modeling_detr.DetrObjectDetectionOutput(
        logits=torch.randn(2, 7, 4), pred_boxes=torch.rand(2, 7, 4) * 0.2 + 0.3
    )
    processor = transformers.DetrImageProcessor() if softmax else transformers.RTDetrImageProcessor()
    sizes = torch.tensor([[60, 40], [31, 77]])
    expected = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes.flip(1))
    found = predicted_boxes(outputs.logits, outputs.pred_boxes, sizes, softmax)
    for one, other in zip(found, expected, strict=True):
        order = other["scores"].argsort(descending=True)
        corners = np.concatenate([one["boxes"][:, :2], one["boxes"][:, :2] + one["boxes"][:, 2:]], axis=1)
        keep = len(one["scores"])
        np.testing.assert_allclose(one["scores"], other["scores"][order][:keep], rtol=1e-5)
        np.testing.assert_array_equal(one["labels"], other["labels"][order][:keep])
        np.testing.assert_allclose(corners, other["boxes"][order][:keep], rtol=1e-4, atol=1e-3)


def test_augmented_boxes_still_hold_their_objects(folders):
    data = {"augment": {"image": {"flip": 0.5, "crop": 0.5}}, "labels": list(COLOURS)}
    task = ObjectDetection(recipe_of(TASK, data=data))
    processor = transformers.RTDetrImageProcessor(size={"height": 96, "width": 120}, do_normalize=False)
    examples = examples_of(task, rows_of(task, [scene(i, 1) for i in range(12)]), processor)
    chosen = examples.at(range(12))
    inputs, targets = task.collate(chosen, processor, [np.random.default_rng(i) for i in range(12)])
    plain, _ = task.collate(chosen, processor, None)
    assert not torch.equal(inputs["pixel_values"], plain["pixel_values"])
    held = 0
    for pixels, target in zip(inputs["pixel_values"], targets, strict=True):
        for (x, y, w, h), number in zip(target["boxes"].tolist(), target["class_labels"].tolist(), strict=True):
            colour = torch.tensor(COLOURS[task.labels[number]])[:, None, None] / 255
            near = ((pixels - colour).abs().amax(dim=0) < 0.2).float()
            inside = near[int((y - h / 2) * 96 + 1.5) : int((y + h / 2) * 96 - 0.5), int((x - w / 2) * 120 + 1.5) : int((x + w / 2) * 120 - 0.5)]  # fmt: skip
            assert inside.mean() > 0.95
            assert inside.sum() > 0.8 * near.sum()
            held += 1
    assert held >= 8
    assert task.weights(type("L", (), {"weights": staticmethod(lambda n: n)}), examples).tolist() == [1] * 12


@pytest.mark.slow
@pytest.mark.long
def test_it_learns_where_coloured_shapes_are(folders):
    """On the pictures it is trained on: from nothing to most of them in 150 steps."""
    task, model, examples, processor, loss = ready(folders["rt_detr"], [scene(i, 1) for i in range(16)])
    untrained = task.score(predictions_of(task, model, examples, processor), examples, processor)
    losses = train(task, model, loss, examples, processor, 150, lr=2e-3)
    predictions = predictions_of(task, model, examples, processor)
    scores = task.score(predictions, examples, processor)
    assert losses[-1] < 0.7 * losses[0]
    assert untrained["map50"] < 0.05
    assert scores["map50"] > 0.3
    assert set(scores["map_per_class"]) == set(COLOURS)
    shown = [one for each in task.describe(predictions, processor) for one in each["objects"]]
    assert shown
    assert all(one["score"] >= 0.5 and one["label"] in COLOURS for one in shown)


@pytest.mark.parametrize("name", ["detr", "yolos", "conditional_detr"])
@pytest.mark.slow
def test_the_loss_falls(folders, name):
    task, model, examples, processor, loss = ready(folders[name], [scene(i, 1) for i in range(8)])
    losses = train(task, model, loss, examples, processor, 25, lr=2e-3)
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


def test_a_prediction_has_no_targets(folders):
    task, model, _, processor, _ = ready(folders["detr"], [scene(0, 1)])
    inputs, targets = task.collate([{"image": scene(1, 1)["image"]}], processor, None)
    assert targets is None
    found = task.predict(model, inputs, task.forward(model.eval(), inputs), processor)
    assert found[0]["boxes"].shape == (12, 4)
    assert (found[0]["boxes"] >= 0).all()


def test_a_loss_that_is_no_number_is_handed_on(folders):
    task, model, examples, processor, loss = ready(folders["detr"], [scene(i, 1) for i in range(2)])
    inputs, targets = task.collate(examples.at(range(2)), processor, None)
    outputs = task.forward(model, inputs)
    outputs.loss_dict["pred_boxes"] = outputs.loss_dict["pred_boxes"] * torch.nan
    assert torch.isnan(loss.total(outputs, targets)).all()


def test_what_is_no_box_is_named_and_boxes_without_area_are_left_out():
    task = ObjectDetection(recipe_of(TASK))
    picture = scene(0, 1)["image"]
    for bad in ([1, 2, 3], [1, 2, float("nan"), 4], [1, 2, -3, 4]):
        with pytest.raises(UserError, match="row 17"):
            task.read({"image": picture, "objects": {"bbox": [bad], "category": ["a"]}}, 17)
    with pytest.raises(UserError, match="2 boxes, 1 categories"):
        task.read({"image": picture, "objects": {"bbox": [[1, 2, 3, 4]] * 2, "category": ["a"]}}, 17)
    read = task.read(
        {"image": picture, "objects": [{"bbox": [1, 2, 0, 4], "category": "a"}, {"bbox": [1, 2, 3, 4], "category": 7}]},
        0,
    )
    assert read["objects"] == {"bbox": [[1, 2, 3, 4]], "category": ["7"], "iscrowd": [0]}
    assert task.read({"image": picture, "objects": None}, 0) == "no label"


def test_boxes_as_shares_of_the_image_are_refused():
    objects = {"bbox": [[0.1, 0.2, 0.5, 0.25], [0, 0, 1, 1]], "category": ["a", "a"]}
    with pytest.raises(UserError, match="row 3: every box lies within 0 to 1"):
        ObjectDetection(recipe_of(TASK)).read({"image": scene(0, 1)["image"], "objects": objects}, 3)


def camera_row(orientation: int, width: int | None, height: int | None, size: tuple[int, int] = (30, 20)) -> dict:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "JPEG", exif=exif)
    objects = {"bbox": [[5, 3, 2, 6]], "category": ["a"]}
    return {"image": {"path": "a.jpg", "bytes": file.getvalue()}, "objects": objects, "width": width, "height": height}


@pytest.mark.parametrize(
    ("row", "box"),
    [
        (camera_row(6, 30, 20), [11, 5, 6, 2]),
        (camera_row(6, 20, 30), [5, 3, 2, 6]),
        (camera_row(1, 30, 20), [5, 3, 2, 6]),
        (camera_row(1, None, None), [5, 3, 2, 6]),
    ],
    ids=["stored", "upright", "plain", "no size"],
)
def test_boxes_of_the_stored_image_turn_with_it(row, box):
    assert ObjectDetection(recipe_of(TASK)).read(row, 0)["objects"]["bbox"] == [box]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (camera_row(1, 60, 40), r"another size than a.jpg \(30 x 20\)"),
        (camera_row(1, 20, 30), r"another size than a.jpg \(30 x 20\)"),
        (camera_row(6, 60, 40), r"another size than a.jpg \(30 x 20 or 20 x 30\)"),
        (camera_row(6, None, None), "has no width and height"),
        (camera_row(3, 30, 20), "the same either way"),
        (camera_row(8, 30, 30, (30, 30)), "the same either way"),
    ],
)
def test_annotations_that_fit_no_orientation_are_named(row, message):
    with pytest.raises(UserError, match=rf"(?s)row 4: .*{message}"):
        ObjectDetection(recipe_of(TASK)).read(row, 4)


def test_crowds_are_scored_and_never_trained_on():
    task = ObjectDetection(recipe_of(TASK))
    crowd = {"bbox": [[1, 2, 30, 40], [3, 4, 9, 9]], "category": ["a", "a"], "iscrowd": [1, 0]}
    rows = rows_of(task, [{"image": scene(0, 1)["image"], "objects": crowd}])
    task.learn_labels(rows)
    examples = examples_of(task, rows, None)
    assert examples.numbers("num_boxes").tolist() == [1]
    _, (target,) = task.collate(examples.at([0]), transformers.DetrImageProcessor(**SIZE), None)
    assert target["boxes"].tolist() == [pytest.approx([7.5 / 60, 8.5 / 48, 9 / 60, 9 / 48])]
    boxes = np.array([[3, 4, 9, 9], [12, 12, 9, 9]], dtype=float)
    prediction = {"boxes": boxes, "labels": np.zeros(2, int), "scores": np.array([0.5, 0.9])}
    assert task.score([prediction], examples, None)["map"] == pytest.approx(1.0)


def test_a_hundred_boxes_of_each_class_are_kept():
    logits = torch.full((1, 300, 3), -9.0)
    logits[0, :150, 0], logits[0, 150:225, 1], logits[0, 225:, 2] = 5.0, 4.0, 3.0
    (prediction,) = predicted_boxes(logits, torch.full((1, 300, 4), 0.5), torch.tensor([[60, 48]]), softmax=False)
    assert np.bincount(prediction["labels"]).tolist() == [100, 75, 75]
    assert (np.diff(prediction["scores"]) <= 0).all()


def test_a_model_whose_loss_is_not_a_sum_is_refused():
    class Model:
        config = transformers.DFineConfig()

    with pytest.raises(UserError, match="sum over images"):
        capture(Model())


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("detr", "class_labels_classifier"),
        ("yolos", "class_labels_classifier"),
        ("rt_detr", "model.decoder.class_embed"),
    ],
)
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.slow
def test_what_is_tuned_comes_back_with_its_head(folders, name, head, method, tmp_path):
    task, _, examples, processor, _ = ready(folders[name], [scene(i, 1) for i in range(4)])
    trained = tuned_and_back(task, folders[name], method, examples, processor, tmp_path)
    assert any(one.startswith(head) for one in trained)
