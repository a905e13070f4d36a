from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from sft_dist.recipe.errors import UserError
from sft_dist.tasks.image_classification import ImageClassification, top_accuracy
from tests.sft_dist.tasks.tiny_vision import (
    FIXED,
    as_png,
    convnext,
    examples_of,
    predictions_of,
    recipe_of,
    resnet,
    rows_of,
    save,
    step_loss,
    train,
    tuned_and_back,
    vit,
)

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
SINGLE = {"type": "image-classification"}
MULTI = {"type": "image-classification", "problem": "multi-label"}


def coloured(name: str, seed: int) -> dict:
    noise = np.random.default_rng(seed).integers(-30, 30, (24, 30, 3))
    return as_png(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8))


def pictures(count: int = 18) -> list[dict]:
    names = list(COLOURS)
    return [{"image": coloured(names[i % 3], i), "label": names[i % 3]} for i in range(count)]


ARCHITECTURES = {
    "vit": (transformers.ViTForImageClassification, vit, transformers.ViTImageProcessor, FIXED),
    "resnet": (transformers.ResNetForImageClassification, resnet, transformers.ConvNextImageProcessor, {"size": {"shortest_edge": 32}, "crop_pct": 1.0}),
    "convnext": (transformers.ConvNextForImageClassification, convnext, transformers.ConvNextImageProcessor, {"size": {"shortest_edge": 32}, "crop_pct": 1.0}),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny ViT whose head is of five other classes, as a pretrained model's is."""
    model_class, config, processor, settings = ARCHITECTURES["vit"]
    return save(tmp_path_factory.mktemp("vit"), model_class, config(num_labels=5), processor, **settings)


def ready(folder, settings=SINGLE, rows=None, **more):
    """Task, model, examples, processor and loss, made in the product's order."""
    task = ImageClassification(recipe_of(settings, folder, **more))
    rows = rows_of(task, rows or pictures())
    task.learn_labels(rows)
    processor = task.load_processor(str(folder))
    model = task.build_model(str(folder), None, {}, processor)
    examples = examples_of(task, rows, processor)
    return task, model, examples, processor, task.build_loss(examples)


def rngs(step, chosen):
    return [np.random.default_rng([step, one]) for one in chosen]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_learns_colours_from_a_new_head(name, tmp_path):
    model_class, config, processor_class, settings = ARCHITECTURES[name]
    folder = save(tmp_path / name, model_class, config(num_labels=5), processor_class, **settings)
    task, model, examples, processor, loss = ready(folder)
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    untrained = task.score(predictions_of(task, model, examples, processor), examples, processor)["accuracy"]
    train(task, model, loss, examples, processor, 30)
    scores = task.score(predictions_of(task, model, examples, processor), examples, processor)
    assert untrained < 0.8
    assert scores["accuracy"] > 0.9  # chance: 0.33
    assert scores["f1_macro"] > 0.9
    assert scores["top5_accuracy"] == 1.0


def test_the_new_head_is_logged(folder, caplog):
    with caplog.at_level(logging.INFO, "sft_dist"):
        ready(folder)
    assert "classifier.weight" in caplog.text


@pytest.mark.parametrize("settings", [SINGLE, MULTI])
@pytest.mark.parametrize("loss", [None, {"name": "focal"}, "weighted"])
def test_the_loss_of_a_global_batch_does_not_depend_on_micro_batches(folder, settings, loss):
    if loss == "weighted":
        name = "cross-entropy" if settings is SINGLE else "binary-cross-entropy"
        loss = {"name": name, "class_weights": {"red": 3.0, "green": 1.0, "blue": 0.5}}
    rows = [{**row, "label": row["label"] if settings is SINGLE else [row["label"], "red"]} for row in pictures(8)]
    task, model, examples, processor, loss = ready(folder, settings, rows, train={"loss": loss} if loss else {})
    model.eval()
    whole, parts = (step_loss(task, model, loss, examples, processor, n) for n in (1, 4))
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_models_own_on_one_batch(folder):
    task, model, examples, processor, loss = ready(folder)
    model.eval()
    inputs, targets = task.collate(examples.at(range(18)), processor, None)
    own = model(**inputs, labels=targets).loss
    torch.testing.assert_close(step_loss(task, model, loss, examples, processor, 3), own, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_several_labels(folder):
    names = list(COLOURS)
    rows = []
    for number in range(24):  # the left half has one colour, the right half another
        left, right = names[number % 3], names[number // 3 % 3]
        pixels = np.zeros((32, 32, 3), dtype=np.uint8)
        pixels[:, :16], pixels[:, 16:] = COLOURS[left], COLOURS[right]
        rows.append({"image": as_png(pixels), "label": f"{left},{right}"})
    task, model, examples, processor, loss = ready(folder, MULTI, rows)
    assert model.config.problem_type == "multi_label_classification"
    train(task, model, loss, examples, processor, 60)
    predictions = predictions_of(task, model, examples, processor)
    assert task.score(predictions, examples, processor)["f1_macro"] > 0.9
    assert set(task.describe(predictions[1:2], processor)[0]["labels"]) == set(rows[1]["label"].split(","))


def test_grey_and_transparent_pictures_are_as_good_as_any(folder):
    task, model, _, processor, _ = ready(folder)
    grey = Image.new("L", (20, 10), 128)
    for picture in (grey, grey.convert("LA"), grey.convert("RGBA"), grey.convert("P"), grey.convert("1")):
        inputs, targets = task.collate([{"image": as_png(np.asarray(picture))}], processor, None)
        assert inputs["pixel_values"].shape == (1, 3, 32, 32)
        assert targets is None
    found = task.predict(model, inputs, task.forward(model, inputs), processor)
    assert task.describe(found, processor)[0]["label"] in COLOURS


def test_augmentation_is_for_training_and_of_the_generators_alone(folder):
    data = {"augment": {"image": {"flip": 0.5, "crop": 0.5, "rotate": 20.0}}}
    task, _, examples, processor, _ = ready(folder, data=data)
    some = examples.at(range(6))
    plain, again = (task.collate(some, processor, None)[0]["pixel_values"] for _ in range(2))
    torch.testing.assert_close(plain, again, rtol=0, atol=0)
    first = task.collate(some, processor, rngs(0, range(6)))[0]["pixel_values"]
    other = task.collate(some, processor, rngs(1, range(6)))[0]["pixel_values"]
    back = task.collate(some, processor, rngs(0, range(6)))[0]["pixel_values"]
    torch.testing.assert_close(first, back, rtol=0, atol=0)
    assert not torch.equal(first, plain)
    assert not torch.equal(first, other)
    alone = task.collate(some[2:3], processor, rngs(0, [2]))[0]["pixel_values"]
    torch.testing.assert_close(alone[0], first[2], rtol=0, atol=0)  # whatever micro-batch it is in


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixed_pictures_have_mixed_targets_and_weigh_the_same(folder, mix):
    task, model, examples, processor, loss = ready(folder, {**SINGLE, mix: 0.8})
    inputs, targets = task.collate(examples.at(range(6)), processor, rngs(3, range(6)))
    assert targets.shape == (6, 3)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
    assert ((targets > 0) & (targets < 1)).any()
    logits = task.forward(model, inputs)
    expected = -(targets * logits.log_softmax(dim=-1)).sum()
    torch.testing.assert_close(loss.total(logits, targets), expected)
    assert task.weights(loss, examples).tolist() == [1] * 18
    assert task.collate(examples.at(range(6)), processor, None)[1].ndim == 1


@pytest.mark.parametrize("loss", [{"name": "focal"}, {"name": "cross-entropy", "class_weights": "balanced"}])
def test_mixed_labels_have_no_class_weight(loss):
    with pytest.raises(UserError, match=r"mixup"):
        ImageClassification(recipe_of({**SINGLE, "mixup": 0.4}, train={"loss": loss}))


def test_equal_files_are_duplicates_wherever_they_are(tmp_path):
    task = ImageClassification(recipe_of(SINGLE))
    one, other = coloured("red", 1), coloured("red", 2)
    (tmp_path / "a.png").write_bytes(one["bytes"])
    by_path = {"path": str(tmp_path / "a.png"), "bytes": None}
    assert task.identity({"image": one}) == task.identity({"image": by_path})
    assert task.identity({"image": one}) != task.identity({"image": other})


def test_top_accuracy_by_hand():
    logits = np.array([[3.0, 2, 1, 0], [3, 2, 1, 0], [0, 1, 2, 3]])
    assert top_accuracy(logits, np.array([1, 2, 3]), 2) == pytest.approx(2 / 3)
    assert top_accuracy(logits, np.array([1, 2, 3]), 5) == 1.0


def test_a_timm_model_without_timm_says_what_is_missing(tmp_path):
    if transformers.utils.is_timm_available() and transformers.utils.is_torchvision_available():
        pytest.skip("timm is here")
    (tmp_path / "config.json").write_text(
        '{"model_type": "timm_wrapper", "architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {}}'
    )
    with pytest.raises(UserError, match="timm"):
        ImageClassification(recipe_of(SINGLE)).load_processor(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_tuned_comes_back_with_its_head(folder, method, tmp_path):
    task, _, examples, processor, _ = ready(folder)
    trained = tuned_and_back(task, folder, method, examples, processor, tmp_path)
    assert (trained == {"classifier.weight", "classifier.bias"}) == (method == "lora")
