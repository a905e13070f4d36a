from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from sft_dist.evaluation.inference import normalizers_of
from sft_dist.losses.classification import CrossEntropy, Focal
from sft_dist.losses.segmentation import PixelLoss, PixelTargets, dice, iou
from sft_dist.recipe.errors import UserError
from sft_dist.tasks.semantic_segmentation import SemanticSegmentation, resize_without_cropping
from tests.sft_dist.tasks.tiny_vision import (
    as_png,
    examples_of,
    predictions_of,
    recipe_of,
    rows_of,
    save,
    segformer,
    step_loss,
    train,
    tuned_and_back,
    upernet,
)

TASK = {"type": "semantic-segmentation"}
LABELS = ["ground", "disc", "square"]
COLOURS = [(110, 120, 100), (230, 60, 40), (40, 90, 230)]


def mask2former(**settings):
    backbone = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return transformers.Mask2FormerConfig(
        **{"backbone_config": backbone, "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32,
        "encoder_feedforward_dim": 16, "encoder_layers": 1, "decoder_layers": 3, "num_attention_heads": 2,
        "dim_feedforward": 16, "num_queries": 8, "train_num_points": 64, "dropout": 0.0, **settings}
    )  # fmt: skip


SIZE = {"size": {"height": 64, "width": 64}}
ARCHITECTURES = {
    "segformer": (transformers.SegformerForSemanticSegmentation, segformer, transformers.SegformerImageProcessor),
    "upernet": (transformers.UperNetForSemanticSegmentation, upernet, transformers.SegformerImageProcessor),
    "mask2former": (transformers.Mask2FormerForUniversalSegmentation, mask2former, transformers.Mask2FormerImageProcessor),
}  # fmt: skip


def scene(seed: int, width: int = 56, height: int = 44, unlabelled: int = 0) -> dict:
    """A disc and a rectangle, and the class of every pixel; the first rows have none when so asked."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=np.uint8)
    ys, xs = np.mgrid[:height, :width]
    y, x, radius = rng.integers(10, height - 10), rng.integers(10, width - 10), rng.integers(7, 12)
    mask[(ys - y) ** 2 + (xs - x) ** 2 < radius**2] = 1
    top, left, side = rng.integers(0, height - 16), rng.integers(0, width - 16), rng.integers(10, 16)
    mask[top : top + side, left : left + side] = 2
    pixels = np.array(COLOURS)[mask] + rng.integers(-15, 15, (height, width, 3))
    mask[:unlabelled] = 255
    return {"image": as_png(np.clip(pixels, 0, 255).astype(np.uint8)), "mask": as_png(mask)}


def ready(folder, rows, **more):
    task = SemanticSegmentation(recipe_of(TASK, folder, **{"data": {"labels": LABELS}, **more}))
    rows = rows_of(task, rows)
    task.learn_labels(rows)
    processor = task.load_processor(str(folder))
    model = task.build_model(str(folder), None, {}, processor)
    examples = examples_of(task, rows, processor)
    return task, model, examples, processor, task.build_loss(examples)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmenters")
    return {
        name: save(folder / name, model, config(num_labels=5), processor, **SIZE)
        for name, (model, config, processor) in ARCHITECTURES.items()
    }


@pytest.mark.slow
def test_segformer_learns_shapes(folders):
    """Pictures it has not seen. All ground would be a mean IoU of about 0.25."""
    task, model, examples, processor, loss = ready(folders["segformer"], [scene(i) for i in range(24)])
    assert model.config.id2label == dict(enumerate(LABELS))
    unseen = examples_of(task, rows_of(task, [scene(100 + i, 40, 60) for i in range(8)]), processor)
    untrained = task.score(predictions_of(task, model, unseen, processor), unseen, processor)
    train(task, model, loss, examples, processor, 60, lr=5e-3)
    scores = task.score(predictions_of(task, model, unseen, processor), unseen, processor)
    assert untrained["mean_iou"] < 0.35
    assert scores["mean_iou"] > 0.6
    assert scores["pixel_accuracy"] > 0.85
    assert np.sum(scores["confusion_matrix"]) == 8 * 40 * 60  # scored at the size of the masks
    inputs, targets = task.collate([{"image": scene(200)["image"]}], processor, None)
    assert targets is None
    (said,) = task.describe(task.predict(model, inputs, task.forward(model, inputs), processor), processor)
    from pycocotools import mask as coco

    assert sum(said["shares"].values()) == pytest.approx(1)
    assert next(iter(said["shares"])) == "ground"
    assert {name: coco.decode(one).mean() for name, one in said["masks"].items()} == pytest.approx(said["shares"])


@pytest.mark.parametrize("name", ["upernet", "mask2former"])
@pytest.mark.slow
def test_others_learn_too(folders, name):
    task, model, examples, processor, loss = ready(folders[name], [scene(i) for i in range(8)])
    losses = train(task, model, loss, examples, processor, 40, lr=3e-3)
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    assert 0 < task.score(predictions_of(task, model, examples, processor), examples, processor)["mean_iou"] <= 1
    assert not [
        name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None
    ]  # what processes would wait for in vain


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "loss", [None, {"name": "dice"}, {"name": "iou"}, {"name": "focal", "class_weights": "balanced"}], ids=str
)
def test_the_loss_of_a_global_batch_does_not_depend_on_micro_batches(folders, name, loss):
    """Though pictures have different numbers of labelled pixels."""
    if name == "mask2former" and loss:
        pytest.skip("it has a loss of its own")
    rows = [scene(i, unlabelled=5 * i) for i in range(8)]
    task, model, examples, processor, loss = ready(folders[name], rows, train={"loss": loss} if loss else {})
    model.eval()
    if name == "mask2former":  # points drawn at random, so that only their number makes the sums alike
        model.config.train_num_points = 4000
    with torch.no_grad():
        whole, parts = (step_loss(task, model, loss, examples, processor, n) for n in (1, 4))
    close = {"rtol": 0.01, "atol": 0.0} if name == "mask2former" else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(whole, parts, **close)


def test_cross_entropy_is_transformers_own_however_many_pixels_are_labelled(folders):
    task, model, examples, processor, loss = ready(
        folders["segformer"], [scene(i, unlabelled=12 * i) for i in range(4)]
    )
    model.eval()
    inputs, targets = task.collate(examples.at(range(4)), processor, None)
    own = model(pixel_values=inputs["pixel_values"], labels=targets.masks).loss
    torch.testing.assert_close(step_loss(task, model, loss, examples, processor, 2), own, rtol=1e-5, atol=1e-6)


def test_mask2formers_loss_of_one_batch_is_its_own(folders):
    task, model, examples, processor, loss = ready(folders["mask2former"], [scene(i) for i in range(3)])
    model.eval()
    inputs, targets = task.collate(examples.at(range(3)), processor, None)
    classes = [mask.unique() for mask in targets.masks]
    masks = [(mask[None] == values[:, None, None]).float() for mask, values in zip(targets.masks, classes, strict=True)]
    with torch.no_grad():
        torch.manual_seed(0)
        own = model(pixel_values=inputs["pixel_values"], mask_labels=masks, class_labels=classes).loss
        found = step_loss(task, model, loss, examples, processor, 1)
    torch.testing.assert_close(found, own.reshape(()), rtol=1e-5, atol=1e-5)


def pixel_loss(loss, logits, masks, before=None):
    """The loss of a global batch; `before`: the masks before augmentation."""
    masks_before = masks if before is None else before
    pixels = torch.stack([torch.bincount(mask[mask != 255], minlength=logits.shape[1]) for mask in masks_before])
    sums = loss.total(SimpleNamespace(logits=logits), PixelTargets(masks, pixels))
    return (sums / torch.from_numpy(normalizers_of(loss.weights(pixels.numpy()))).float()).sum()


def pixel_batch():
    """Three images, of which the first has few labelled pixels and the last none."""
    torch.manual_seed(0)
    logits, masks = torch.randn(3, 4, 6, 6), torch.randint(0, 4, (3, 6, 6))
    masks[0, :5], masks[2] = 255, 255
    return logits, masks


CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0])


@pytest.mark.parametrize("terms", [CrossEntropy(), CrossEntropy(CLASS_WEIGHTS, 0.1)])
def test_cross_entropy_is_the_mean_over_all_labelled_pixels(terms):
    logits, masks = pixel_batch()
    expected = F.cross_entropy(
        logits, masks, terms.class_weights, ignore_index=255, label_smoothing=terms.label_smoothing
    )
    torch.testing.assert_close(pixel_loss(PixelLoss(terms, 255), logits, masks), expected)


def test_focal_loss_is_the_mean_over_all_labelled_pixels():
    logits, masks = pixel_batch()
    losses = F.cross_entropy(logits, masks, ignore_index=255, reduction="none")[masks != 255]
    expected = ((1 - (-losses).exp()) ** 2 * losses).mean()
    torch.testing.assert_close(pixel_loss(PixelLoss(Focal(2.0), 255), logits, masks), expected)


def test_losses_of_single_images_add_up_to_the_total():
    torch.manual_seed(0)
    masks, outputs = torch.randint(0, 3, (3, 4, 4)), SimpleNamespace(logits=torch.randn(3, 3, 4, 4))
    masks[1] = 255
    pixels = torch.stack([(masks == number).sum(dim=(1, 2)) for number in range(3)], dim=1)
    loss, targets = PixelLoss(CrossEntropy(), 255, 0.5), PixelTargets(masks, pixels)
    losses = loss.of_each(outputs, targets)
    assert losses[1].tolist() == [0, 0]
    torch.testing.assert_close(losses.sum(dim=0), loss.total(outputs, targets))


def test_augmentation_that_covers_pixels_does_not_lower_the_loss():
    """An image's mean is over the pixels that are left; its weight is the number before."""
    logits, before = pixel_batch()
    masks = before.clone()
    masks[1, :, :3] = 255
    first, second = (F.cross_entropy(logits[i : i + 1], masks[i : i + 1], ignore_index=255) for i in (0, 1))
    expected = (6 * first + 36 * second) / 42
    torch.testing.assert_close(pixel_loss(PixelLoss(CrossEntropy(), 255), logits, masks, before), expected)


def test_overlap_is_a_mean_over_images_beside_the_mean_over_pixels():
    logits, masks = pixel_batch()
    overlaps = [dice(logits[i].flatten(1).T[masks[i].flatten() != 255], masks[i][masks[i] != 255]) for i in (0, 1)]
    expected = 0.3 * F.cross_entropy(logits, masks, ignore_index=255) + 0.7 * (2 - sum(overlaps)) / 3
    torch.testing.assert_close(pixel_loss(PixelLoss(CrossEntropy(), 255, 0.7), logits, masks), expected)


def test_a_class_without_pixels_weighs_nothing_when_balanced(folders):
    task, _, examples, _, _ = ready(folders["segformer"], [scene(i) for i in range(2)])
    seen = np.sum([np.pad(one, (0, 3 - len(one))) for one in examples.column("pixels")], axis=0)
    task.labels = [*task.labels, "absent"]
    expected = [seen.sum() / (np.count_nonzero(seen) * one) if one else 0 for one in seen]
    assert task._balanced(examples) == pytest.approx([*expected, 0])


def test_a_picture_of_classes_that_weigh_nothing_adds_nothing():
    logits, targets = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    targets[1] = 2
    loss = PixelLoss(CrossEntropy(torch.tensor([1.0, 1.0, 0.0]), 0.1), 255)
    both, first = pixel_loss(loss, logits, targets), pixel_loss(loss, logits[:1], targets[:1])
    torch.testing.assert_close(both, first)


def test_dice_by_hand():
    """Two pixels, two classes: 2 sum(p g) / (sum(p^2) + sum(g^2))."""
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    targets = torch.tensor([0, 1])
    first, second = 2 * 0.9 / (0.81 + 0.16 + 1), 2 * 0.6 / (0.01 + 0.36 + 1)
    assert dice(probabilities.log(), targets).item() == pytest.approx((first + second) / 2, abs=1e-6)
    only = 2 * 1.3 / (0.81 + 0.16 + 2)  # a class that does not occur does not count
    assert dice(probabilities.log(), torch.tensor([0, 0])).item() == pytest.approx(only, abs=1e-6)
    perfect = torch.tensor([[50.0, -50.0], [-50.0, 50.0]])
    assert dice(perfect, targets).item() == pytest.approx(1.0)
    logits = probabilities.log().T.reshape(1, 2, 1, 2)
    cross_entropy = F.cross_entropy(probabilities.log(), targets)
    for share in (0.3, 1.0):
        mixed = pixel_loss(PixelLoss(CrossEntropy(), 255, share), logits, targets.reshape(1, 1, 2))
        torch.testing.assert_close(
            mixed, (1 - share) * cross_entropy + share * (1 - dice(probabilities.log(), targets))
        )


def test_iou_by_hand():
    """Two pixels, two classes: sum(p g) / (sum(p) + sum(g) - sum(p g))."""
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    targets = torch.tensor([0, 1])
    first, second = 0.9 / (1.3 + 1 - 0.9), 0.6 / (0.7 + 1 - 0.6)
    assert iou(probabilities.log(), targets).item() == pytest.approx((first + second) / 2, abs=1e-6)
    only = 1.3 / (1.3 + 2 - 1.3)  # a class that does not occur does not count
    assert iou(probabilities.log(), torch.tensor([0, 0])).item() == pytest.approx(only, abs=1e-6)
    perfect = torch.tensor([[50.0, -50.0], [-50.0, 50.0]])
    assert iou(perfect, targets).item() == pytest.approx(1.0)


def test_a_recipe_chooses_the_overlap_and_its_share(folders):
    *_, loss = ready(folders["segformer"], [scene(0)], train={"loss": {"name": "iou", "cross_entropy": 0.2}})
    assert (loss.overlap, loss.share) == (iou, pytest.approx(0.8))
    logits, targets = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    flat, wanted = logits[0].flatten(1).T, targets.flatten()
    expected = 0.2 * F.cross_entropy(flat, wanted) + 0.8 * (1 - iou(flat, wanted))
    torch.testing.assert_close(pixel_loss(loss, logits, targets), expected)


def test_a_batch_without_labelled_pixels_has_a_gradient_of_nothing():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    total = pixel_loss(PixelLoss(CrossEntropy(), 255), logits, torch.full((1, 4, 4), 255))
    total.backward()
    assert total.item() == 0
    assert not logits.grad.any()


@pytest.mark.slow
def test_augmented_masks_still_cover_their_shapes(folders):
    data = {"labels": LABELS, "augment": {"image": {"flip": 0.5, "crop": 0.5, "rotate": 30.0}}}
    task, _, examples, processor, _ = ready(folders["segformer"], [scene(i) for i in range(10)], data=data)
    chosen = examples.at(range(10))
    inputs, targets = task.collate(chosen, processor, [np.random.default_rng(i) for i in range(10)])
    assert "masks" not in inputs
    mean, std = (torch.tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std))
    colours = torch.tensor(COLOURS) / 255
    right = []
    for pixels, target in zip(inputs["pixel_values"], targets.masks, strict=True):
        picture = pixels * std + mean
        nearest = (picture[None] - colours[:, :, None, None]).square().sum(dim=1).argmin(dim=0)
        labelled = target != 255
        right.append((nearest[labelled] == target[labelled]).float().mean().item())
    assert min(right) > 0.93  # edges are interpolated in the picture
    assert (targets.masks == 255).any()  # what the rotation has brought in


def test_images_are_resized_without_cropping():
    processor = transformers.BeitImageProcessor(
        size={"height": 40, "width": 40}, do_center_crop=True, crop_size={"height": 32, "width": 32}
    )
    resize_without_cropping(processor)
    task = SemanticSegmentation(recipe_of(TASK, data={"labels": LABELS}))
    examples = examples_of(task, rows_of(task, [scene(1, 70, 40)]), processor)
    inputs, targets = task.collate(examples.at([0]), processor, None)
    assert inputs["pixel_values"].shape[-2:] == (32, 32) == targets.masks.shape[-2:]
    assert targets.pixels.sum() == 32 * 32
    shortest = transformers.MaskFormerImageProcessor(size={"shortest_edge": 48, "longest_edge": 100})
    resize_without_cropping(shortest)
    assert dict(shortest.size)["height"] == dict(shortest.size)["width"] == 48


def test_classes_without_names_are_called_by_their_numbers():
    task = SemanticSegmentation(recipe_of(TASK))
    task.learn_labels(rows_of(task, [scene(1)]))
    assert task.labels == ["0", "1", "2"]


def black_and_white(*values: int) -> dict:
    return {"image": scene(1)["image"], "mask": as_png(np.resize(np.array(values, np.uint8), (44, 56)))}


def refusal(values: list[tuple[int, ...]], labels: list[str] | None = None, **task_settings) -> str:
    task = SemanticSegmentation(recipe_of({**TASK, **task_settings}, data={"labels": labels} if labels else {}))
    with pytest.raises(UserError) as caught:
        task.learn_labels(rows_of(task, [black_and_white(*one) for one in values]))
    return str(caught.value)


@pytest.mark.parametrize("labels", [LABELS[:2], None])
def test_255_is_not_ignored_where_it_may_be_the_second_class(labels):
    message = refusal([(0, 255), (0,)], labels)
    assert "task.ignore_index" in message
    assert "set task.ignore_index: 254: 0 and 255 are then the two classes" in message


def test_the_advice_for_masks_of_0_and_255_reads_them_as_two_classes():
    task = SemanticSegmentation(recipe_of({**TASK, "ignore_index": 254}, data={"labels": LABELS[:2]}))
    rows = rows_of(task, [black_and_white(0, 255), black_and_white(255), black_and_white(0, 1)])
    task.learn_labels(rows)
    assert rows.column("pixels") == [[1232, 1232], [0, 2464], [1232, 1232]]
    processor = transformers.SegformerImageProcessor(size={"height": 44, "width": 56})
    _, targets = task.collate(examples_of(task, rows, processor).at(range(3)), processor, None)
    assert [mask.unique().tolist() for mask in targets.masks] == [[0, 1], [1], [0, 1]]
    assert targets.pixels.tolist() == [[1232, 1232], [0, 2464], [1232, 1232]]
    with pytest.raises(UserError, match="a value that no class has"):
        task.read(black_and_white(0, 1, 255), 0)


def test_an_ignored_value_that_covers_a_named_class_is_refused():
    assert "0 is the number of a class" in refusal([(0, 1, 2)], LABELS, ignore_index=0)
    assert "(square)" in refusal([(0, 1, 255)], LABELS)
    assert "0 is the number of a class" in refusal([(0, 1)], LABELS[:2], ignore_index=0)


def test_ignored_borders_and_absent_classes_are_valid():
    task = SemanticSegmentation(recipe_of(TASK, data={"labels": LABELS}))
    task.learn_labels(rows_of(task, [black_and_white(0, 1, 2, 255)]))
    task.learn_labels(rows_of(task, [black_and_white(0, 2, 255), black_and_white(0, 1)]))
    task.learn_labels(rows_of(task, [black_and_white(0, 1)]))


def test_masks_of_one_value_and_masks_with_gaps_are_named():
    assert "every mask has the one value 0" in refusal([(0,), (0,)], LABELS)
    assert "every mask has the one value 3" in refusal([(3,)])
    assert "the masks hold 3 values between 0 and 200" in refusal([(0, 100, 200)])
    assert "the masks hold 2 values between 0 and 255" in refusal([(0, 255)], ignore_index=254)


def test_values_beyond_any_class_are_named_whatever_their_size():
    task = SemanticSegmentation(recipe_of(TASK))
    for value in (-1, 300, 2**31 - 1):
        with pytest.raises(UserError, match=rf"(?s)row 5: the mask has a value.*{value}"):
            task.read({"image": scene(1)["image"], "mask": as_tiff(np.full((4, 4), value, np.int32))}, 5)


def as_tiff(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TIFF")
    return {"path": None, "bytes": file.getvalue()}


def test_masks_that_do_not_fit_are_named():
    task = SemanticSegmentation(recipe_of(TASK, data={"labels": LABELS[:2]}))
    with pytest.raises(UserError, match=r"row 5: the mask has a value"):
        task.read(scene(1), 5)
    with pytest.raises(UserError, match=r"row 5: .*colours"):
        task.read({"image": scene(1)["image"], "mask": scene(1)["image"]}, 5)
    assert task.read({**scene(1), "mask": as_png(np.full((4, 4), 255, np.uint8))}, 5) == "no labelled pixel"
    task = SemanticSegmentation(recipe_of(TASK, data={"labels": LABELS}))
    row = {"image": scene(1)["image"], "mask": scene(1, 30, 30)["mask"]}
    with pytest.raises(ValueError, match="another size than its image: 30 x 30, the image 56 x 44"):
        task.collate([row], transformers.SegformerImageProcessor(), None)


def test_models_whose_loss_is_not_known_are_refused(tmp_path):
    transformers.MaskFormerConfig().save_pretrained(tmp_path)
    task = SemanticSegmentation(recipe_of(TASK, data={"labels": LABELS}))
    with pytest.raises(UserError, match="sum over images"):
        task.build_model(str(tmp_path), None, {}, None)


@pytest.mark.parametrize("name", ["segformer", "mask2former"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.slow
def test_what_is_tuned_comes_back_with_its_head(folders, name, method, tmp_path):
    task, _, examples, processor, _ = ready(folders[name], [scene(i) for i in range(4)])
    trained = tuned_and_back(task, folders[name], method, examples, processor, tmp_path)
    head = {"segformer": "decode_head.classifier", "mask2former": "class_predictor"}[name]
    assert {f"{head}.weight", f"{head}.bias"} <= trained
    assert len(trained) < 5 or method == "full"
