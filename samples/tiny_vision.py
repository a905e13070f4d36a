"""Vision models of the true architectures with few, random weights, each with its image processor: they load and train in
seconds, and know nothing. And masks, made of the boxes of the trees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CLASSES = ("a", "b")  # of heads that are replaced
STAGES: dict[str, Any] = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}


def tiny_vit(into: Path, have: dict[str, Path]) -> None:
    """ViTForImageClassification with random weights (seed 0) for images of 28 x 28."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=28, patch_size=4, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **_names(),
    )  # fmt: skip
    save(ViTForImageClassification, config, "vit.image_processing_pil_vit:ViTImageProcessorPil", into, size=_square(28))


def tiny_resnet(into: Path, have: dict[str, Path]) -> None:
    """ResNetForImageClassification with random weights (seed 0) for images of 28 x 28."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic", downsample_in_first_stage=False,
        **_names(),
    )  # fmt: skip
    save(
        ResNetForImageClassification,
        config,
        "vit.image_processing_pil_vit:ViTImageProcessorPil",
        into,
        size=_square(28),
    )


def tiny_rt_detr(into: Path, have: dict[str, Path]) -> None:
    """RTDetrForObjectDetection with random weights (seed 0) for images of 160 x 160."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        embedding_size=16, layer_type="basic", out_features=["stage2", "stage3", "stage4"], **STAGES
    )
    config = RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[32, 48, 64], encoder_hidden_dim=64, encoder_ffn_dim=128,
        encoder_attention_heads=4, d_model=64, decoder_in_channels=[64, 64, 64], decoder_layers=2, decoder_ffn_dim=128,
        decoder_attention_heads=4, num_queries=60, num_denoising=40, dropout=0.0, anchor_image_size=None, **_names(),
    )  # fmt: skip
    processor = "rt_detr.image_processing_pil_rt_detr:RTDetrImageProcessorPil"
    save(RTDetrForObjectDetection, config, processor, into, size=_square(160))


def tiny_yolos(into: Path, have: dict[str, Path]) -> None:
    """YolosForObjectDetection with random weights (seed 0) for images of about 160 x 160."""
    from transformers import YolosConfig, YolosForObjectDetection

    config = YolosConfig(
        image_size=[160, 160], patch_size=16, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=128, num_detection_tokens=60, hidden_dropout_prob=0.0, use_mid_position_embeddings=False,
        **_names(),
    )  # fmt: skip
    processor = "yolos.image_processing_pil_yolos:YolosImageProcessorPil"
    save(YolosForObjectDetection, config, processor, into, size={"shortest_edge": 160, "longest_edge": 192})


def tiny_segformer(into: Path, have: dict[str, Path]) -> None:
    """SegformerForSemanticSegmentation with random weights (seed 0) for images of 128 x 128."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=32, classifier_dropout_prob=0.0, drop_path_rate=0.0,
        **STAGES, **_names(),
    )  # fmt: skip
    processor = "segformer.image_processing_pil_segformer:SegformerImageProcessorPil"
    save(SegformerForSemanticSegmentation, config, processor, into, size=_square(128))


def tiny_convnext(into: Path, have: dict[str, Path]) -> None:
    """ConvNextModel with random weights (seed 0) for images of 28 x 28."""
    from transformers import ConvNextConfig, ConvNextModel

    config = ConvNextConfig(patch_size=2, image_size=28, **STAGES)
    save(ConvNextModel, config, "vit.image_processing_pil_vit:ViTImageProcessorPil", into, size=_square(28))


def tiny_detr(into: Path, have: dict[str, Path]) -> None:
    """DetrForObjectDetection with random weights (seed 0), a small ResNet as its backbone, for images of about 160 x 160."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(embedding_size=16, layer_type="basic", out_features=["stage4"], **STAGES)
    config = DetrConfig(
        backbone_config=backbone, d_model=64, encoder_layers=2, encoder_ffn_dim=128, encoder_attention_heads=4,
        decoder_layers=2, decoder_ffn_dim=128, decoder_attention_heads=4, num_queries=60, dropout=0.0, **_names(),
    )  # fmt: skip
    processor = "detr.image_processing_pil_detr:DetrImageProcessorPil"
    save(DetrForObjectDetection, config, processor, into, size={"shortest_edge": 160, "longest_edge": 192})


def tiny_upernet(into: Path, have: dict[str, Path]) -> None:
    """UperNetForSemanticSegmentation with random weights (seed 0), a small ConvNeXt as its backbone, for images of
    128 x 128."""
    from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

    backbone = ConvNextConfig(patch_size=2, out_features=["stage1", "stage2", "stage3", "stage4"], **STAGES)
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=32, auxiliary_in_channels=STAGES["hidden_sizes"][2],
        auxiliary_channels=16, **_names(),
    )  # fmt: skip
    processor = "segformer.image_processing_pil_segformer:SegformerImageProcessorPil"
    save(UperNetForSemanticSegmentation, config, processor, into, size=_square(128))


def tiny_mask2former(into: Path, have: dict[str, Path]) -> None:
    """Mask2FormerForUniversalSegmentation with random weights (seed 0), a small Swin as its backbone, for images of
    128 x 128."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        image_size=128, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=64,
        encoder_layers=2, decoder_layers=3, num_attention_heads=4, dim_feedforward=64, num_queries=20,
        train_num_points=256, dropout=0.0, **_names(),
    )  # fmt: skip
    processor = "mask2former.image_processing_pil_mask2former:Mask2FormerImageProcessorPil"
    save(Mask2FormerForUniversalSegmentation, config, processor, into, size=_square(128), ignore_index=255)


def tree_masks(into: Path, have: dict[str, Path]) -> None:
    """The sample trees, in train, validation and test each with images and masks; in a mask 1 is the ellipse
    inside the box of a tree, and 0 everything else."""
    from PIL import Image, ImageDraw

    for split in ("train", "validation", "test"):
        content = json.loads((have["trees"] / f"{split}.json").read_text(encoding="utf-8"))
        for folder in ("images", "masks"):
            (into / split / folder).mkdir(parents=True)
        for one in content["images"]:
            name = Path(one["file_name"])
            mask = Image.new("L", (one["width"], one["height"]), 0)
            for annotation in content["annotations"]:
                if annotation["image_id"] == one["id"]:
                    x, y, width, height = annotation["bbox"]
                    ImageDraw.Draw(mask).ellipse((x, y, x + width - 1, y + height - 1), fill=1)
            (into / split / "images" / name.name).write_bytes((have["trees"] / name).read_bytes())
            mask.save(into / split / "masks" / f"{name.stem}.png")


def save(model_class: Any, config: Any, processor: str, into: Path, **settings: Any) -> None:
    from importlib import import_module

    import torch

    torch.manual_seed(0)
    model_class(config).save_pretrained(into)
    module, name = processor.split(":")
    getattr(import_module(f"transformers.models.{module}"), name)(**settings).save_pretrained(into)


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _names() -> dict[str, Any]:
    return {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
