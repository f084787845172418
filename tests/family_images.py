"""Families of vision models of transformers: patches, windows, hierarchies and convolutions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from family_case import Family, family, pretrained
from family_losses import hidden, one_class
from torch import nn
from zoo_case import floats, integers

VIT: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 11,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 5,
}
SWIN: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 4,
    "depths": [2, 1],
    "num_heads": [2, 2],
    "window_size": 4,
    "num_labels": 5,
}
PYRAMID: dict[str, Any] = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [4, 6],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "num_labels": 5,
}
STAGES: dict[str, Any] = {"num_stages": 2, "hidden_sizes": [4, 6], "depths": [1, 1], "patch_size": 2, "num_labels": 5}
BATCH_NORM = "norm"
LEVIT: dict[str, Any] = {
    "image_size": 64,
    "hidden_sizes": [16, 24, 32],
    "num_attention_heads": [2, 3, 4],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
    "attention_ratio": [2, 2, 2],
    "num_labels": 5,
}


def images(
    name: str, model: str, config: str, options: dict[str, Any], side: int = 8, kind: str = "vision", **more: Any
) -> Family:
    """A classifier of images 3 x side x side."""
    return family(name, kind, model, config, options, one_class, floats(3, side, side), integers(5), **more)


def fixed_statistics(model: nn.Module) -> nn.Module:
    """The model with batch normalisation in eval mode whatever mode the rest is in."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train = partial(evaluated, module.eval())  # type: ignore[method-assign, assignment]
    return model


def evaluated(module: nn.Module, mode: bool = True) -> nn.Module:
    """A module that stays in eval mode."""
    return nn.Module.train(module, False)


def like_vit(name: str, prefix: str, **options: Any) -> Family:
    """A classifier with the options of ViT and some of its own."""
    return images(name, f"{prefix}ForImageClassification", f"{prefix}Config", VIT | options)


VISION = (
    like_vit("ViT", "ViT"),
    like_vit("DeiT", "DeiT"),
    like_vit("BEiT", "Beit", use_relative_position_bias=True),
    like_vit("DINOv2", "Dinov2", mlp_ratio=2, use_swiglu_ffn=True),
    images("Swin", "SwinForImageClassification", "SwinConfig", SWIN, 16),
    images("Swin v2", "Swinv2ForImageClassification", "Swinv2Config", SWIN, 16),
    images("ConvNeXt", "ConvNextForImageClassification", "ConvNextConfig", STAGES | {"layer_scale_init_value": 0.5}),
    images("ConvNeXt v2", "ConvNextV2ForImageClassification", "ConvNextV2Config", STAGES),
    family("SegFormer", "vision", "SegformerForImageClassification", "SegformerConfig", PYRAMID | {"sr_ratios": [2, 1]},
           one_class, floats(3, 8, 8), integers(5)),
    images("PVT", "PvtForImageClassification", "PvtConfig",
           PYRAMID | {"image_size": 16, "patch_sizes": [4, 2], "strides": [4, 2], "sequence_reduction_ratios": [2, 1]}, 16),
    images("PVT v2", "PvtV2ForImageClassification", "PvtV2Config", PYRAMID | {"image_size": 8, "sr_ratios": [2, 1]}),
    images("PoolFormer", "PoolFormerForImageClassification", "PoolFormerConfig",
           {"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [4, 6], "patch_sizes": [3, 3], "strides": [2, 2],
            "padding": [1, 1], "num_labels": 5}),
    images("FocalNet", "FocalNetForImageClassification", "FocalNetConfig",
           {"image_size": 8, "patch_size": 2, "embed_dim": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "focal_levels": [2, 2],
            "focal_windows": [3, 3], "num_labels": 5}),
    images("Hiera", "HieraForImageClassification", "HieraConfig",
           {"image_size": [16, 16], "patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1], "embed_dim": 4,
            "depths": [1, 1], "num_heads": [1, 2], "num_query_pool": 1, "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False], "num_labels": 5}, 16),
    images("BiT", "BitForImageClassification", "BitConfig",
           {"embedding_size": 4, "hidden_sizes": [8, 8], "depths": [1, 1], "num_groups": 2, "num_labels": 5}, 16),
    family("VideoMAE", "vision", "VideoMAEForVideoClassification", "VideoMAEConfig",
           VIT | {"num_frames": 2, "tubelet_size": 1, "image_size": 8}, one_class, floats(2, 3, 8, 8), integers(5)),
    family("TimeSformer", "vision", "TimesformerForVideoClassification", "TimesformerConfig",
           VIT | {"num_frames": 2}, one_class, floats(2, 3, 8, 8), integers(5), refused="picked by their place"),
    family("YOLOS", "vision", "YolosModel", "YolosConfig", VIT | {"image_size": [8, 8], "num_detection_tokens": 3}, hidden,
           floats(3, 8, 8)),
)  # fmt: skip

RESNET: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1], "layer_type": "basic", "num_labels": 5}

NORMALISED = (
    images("ResNet with BatchNorm", "ResNetForImageClassification", "ResNetConfig", RESNET, 16, refused=BATCH_NORM),
    images("ResNet with BatchNorm, eval mode", "ResNetForImageClassification", "ResNetConfig", RESNET, 16, evaluated=True),
    images("MobileNet v2 with BatchNorm, eval mode", "MobileNetV2ForImageClassification", "MobileNetV2Config",
           {"image_size": 16, "depth_multiplier": 0.1, "depth_divisible_by": 2, "min_depth": 2, "num_labels": 5}, 16,
           evaluated=True),
    images("MobileViT with BatchNorm, eval mode", "MobileViTForImageClassification", "MobileViTConfig",
           {"image_size": 32, "hidden_sizes": [4, 6, 8], "neck_hidden_sizes": [2, 4, 4, 6, 6, 8, 8], "num_attention_heads": 2,
            "expand_ratio": 2.0, "num_labels": 5}, 32, evaluated=True),
    images("LeViT, eval mode", "LevitForImageClassification", "LevitConfig", LEVIT, 64, evaluated=True,
           refused="attention_bias_cache( and more)? for its next call"),
    replace(images("LeViT, BatchNorm in eval mode", "LevitForImageClassification", "LevitConfig", LEVIT, 64),
            make=lambda: fixed_statistics(pretrained("LevitForImageClassification", "LevitConfig", LEVIT)())),
)  # fmt: skip

IMAGES = VISION + NORMALISED
