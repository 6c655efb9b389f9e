"""What is known of a teacher besides its weights: heads by name, pixels, labels and licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgemae.model.vit import ViTShape
from edgemae.model.weight_files import WeightFile
from edgemae.spec.errors import CheckpointError
from edgemae.spec.graph import IMAGENET_MEAN, IMAGENET_STD, PixelContract

# Beginning of a model's name -> (width, heads, heads of the decoder). A name counts only with the width it stands for.
# Tiny and small ones need the long timm name: plain `vit_tiny_patch16` has 12 heads in MAE-Lite and 3 elsewhere.
KNOWN_HEADS = {
    "mae_vit_base_patch": (768, 12, 16),
    "mae_vit_large_patch": (1024, 16, 16),
    "mae_vit_huge_patch": (1280, 16, 16),
    "vit_base_patch16_gap_": (768, 16, 0),
    "vit_tiny_patch16_": (192, 3, 0),
    "vit_small_patch16_": (384, 6, 0),
    "vit_base_patch": (768, 12, 0),
    "vit_large_patch": (1024, 16, 0),
    "vit_huge_patch": (1280, 16, 0),
    "deit_tiny_patch16_": (192, 3, 0),
    "deit_small_patch16_": (384, 6, 0),
    "deit_base_patch16_": (768, 12, 0),
}
# What a file says of its origin -> licence of the weights. Names as in config.json; timm's are architecture.tag.
KNOWN_LICENCES = {
    "facebook/vit-mae-": "CC-BY-NC-4.0",
    "vit_base_patch16_224.mae": "CC-BY-NC-4.0",
    "vit_large_patch16_224.mae": "CC-BY-NC-4.0",
    "vit_huge_patch14_224.mae": "CC-BY-NC-4.0",
    "google/vit-": "Apache-2.0",
}
# (width, depth, patch_px) of the weights that Meta released, all for 224 px.
META_SIZES = ((768, 12, 16), (1024, 24, 16), (1280, 32, 14))


def known_heads(file: WeightFile, width: int) -> tuple[int, int, str]:
    """Return (heads, heads of the decoder, name) when the file names a known model of this width, else (0, 0, "")."""
    name = str(file.args.get("model") or file.config.get("architecture") or "").removeprefix("timm/")
    for start, (of_width, heads, decoder_heads) in KNOWN_HEADS.items():
        if name.startswith(start) and of_width == width:
            return heads, decoder_heads, name
    return 0, 0, ""


def source_of(file: WeightFile) -> str:
    """Return in words what kind of file this is."""
    if "model_type" in file.config:
        return f"huggingface {file.config['model_type']}"
    return (
        f"timm {file.config['architecture']}" if "architecture" in file.config else "weights in Meta's or timm's naming"
    )


def check_config(file: WeightFile, path: Path) -> None:
    """Refuse a config.json of another network."""
    config = file.config
    if config.get("model_type", "vit") not in ("vit", "vit_mae"):
        raise CheckpointError(
            f"'{path}' is a '{config['model_type']}'",
            expected="model_type vit or vit_mae",
            fix="use a ViT or ViTMAE folder",
        )


def licence_of(file: WeightFile, shape: ViTShape) -> str:
    """Return what is known of the weights' licence and how it is known, or "unknown".

    Meta's release is non-commercial whoever copied it, so it outranks a model card that says otherwise. Its layout is
    known by sizes and fixed positions; fine-tuned weights that started from it have both too.
    """
    config = file.config
    tag = config.get("pretrained_cfg", {}).get("tag") if isinstance(config.get("pretrained_cfg"), dict) else None
    names = [str(config.get("_name_or_path", "")), f"{config.get('architecture', '')}.{tag}".removeprefix("timm/")]
    card = f"the model card says {file.card_licence}" if file.card_licence else ""
    for start, licence in KNOWN_LICENCES.items():
        name = next((n for n in names if n.startswith(start)), None)
        if name is not None and licence.lower() != file.card_licence.lower():
            return f"{licence} (known for {name}{'; ' + card if card else ''})"
    sizes = (shape.width, shape.depth, shape.patch_px)
    is_meta = sizes in META_SIZES and shape.image_px == 224 and shape.cls_token and not shape.learned_pos
    if is_meta and file.card_licence.lower() != "cc-by-nc-4.0":
        return f"CC-BY-NC-4.0 (assumed: sizes and positions of Meta's MAE weights{'; ' + card if card else ''})"
    return f"{file.card_licence} (model card)" if card else "unknown"


def labels_of(file: WeightFile, shape: ViTShape, path: Path, assumed: list[str]) -> list[str]:
    """Return the class names in order; numbers, listed as assumed, where the file has none."""
    names = file.config.get("id2label") or file.config.get("label_names")
    if not shape.classes:
        return []
    if isinstance(names, dict):
        names = [names.get(str(i)) for i in range(len(names))]
    if not names:
        assumed.append("labels 0, 1, 2, ... (no class names in the file)")
        return [str(i) for i in range(shape.classes)]
    if len(names) != shape.classes or None in names:
        raise CheckpointError(
            f"'{path}' names {len(names)} classes, its head has {shape.classes}",
            expected="one name, numbered from 0, for every class",
            fix="correct id2label in config.json",
        )
    return [str(n) for n in names]


def pixel_of(
    file: WeightFile, shape: ViTShape, given: PixelContract | None, path: Path, assumed: list[str]
) -> PixelContract:
    """Return the pixel contract: given, or the file's, or the usual one, which is then listed as assumed."""
    if given is not None:
        if (given.image_px, given.channels) != (shape.image_px, shape.channels):
            raise CheckpointError(
                f"'{path}' takes {shape.image_px} px and {shape.channels} channels, the pixel contract has "
                f"{given.image_px} px and {given.channels}",
                expected="a contract of the model's own size",
                fix=f"use image_px={shape.image_px} and channels={shape.channels}",
            )
        return given
    if file.processor:
        return _contract(shape, path, **_from_processor(file.processor, shape, path))
    timm = file.config.get("pretrained_cfg") or {}
    timm = {**timm, **{key: file.args[key] for key in ("mean", "std", "crop_pct") if file.args.get(key) is not None}}
    usual: dict[str, Any] = {} if {"mean", "std"} <= set(timm) else _usual(file, shape, assumed)
    if {"mean", "std"} & set(timm):
        usual.pop("crop_fraction", None)
        usual["resize"] = "stretch" if timm.get("crop_mode") == "squash" else "short-side"
    usual |= {name: timm[name] for name in ("mean", "std") if name in timm}
    if timm.get("crop_pct"):
        usual["crop_fraction"] = timm["crop_pct"]
    return _contract(shape, path, **usual)


def _usual(file: WeightFile, shape: ViTShape, assumed: list[str]) -> dict[str, Any]:
    if shape.channels == 1:
        assumed.append("pixels: mean 0.5, std 0.5 (grayscale)")
        return {"mean": (0.5,), "std": (0.5,)}
    if file.config.get("model_type") == "vit":
        assumed.append(
            "pixels: mean 0.5, std 0.5 (no preprocessor_config.json; these are ViTImageProcessor's defaults)"
        )
        return {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize": "stretch"}
    crop = 0.875 if shape.image_px == 224 else 1.0  # 224 of 256: how MAE and DeiT evaluate
    assumed.append(f"pixels: ImageNet's mean and std, centre crop {crop}")
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop_fraction": crop}


def _from_processor(processor: dict[str, Any], shape: ViTShape, path: Path) -> dict[str, Any]:
    """Read a Hugging Face image processor. Its interpolation is not taken over: Pillow smooths when it shrinks a
    image whatever the kernel, and OpenCV does so only with INTER_AREA, which is our default."""
    size = processor.get("size", shape.image_px)
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    short = size.get("shortest_edge") if isinstance(size, dict) else size if crop else None
    first_hw = _sides(short or size)
    final_hw = first_hw if crop is None else _sides(crop)
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    fits = final_hw == [shape.image_px] * 2 and all(isinstance(s, int) and s >= shape.image_px for s in first_hw)
    if not fits or abs(factor * 255 - 1) > 1e-3:
        raise CheckpointError(
            f"'{path}' prepares images with size {size}, crop {crop} and factor {factor:.6f}",
            expected=f"{shape.image_px} px in the end, and values in 0..1 before the mean is subtracted",
            fix="correct preprocessor_config.json, or pass a pixel contract",
        )
    normalise = processor.get("do_normalize", True)
    return {
        "mean": processor.get("image_mean", [0.5] * shape.channels) if normalise else [0.0] * shape.channels,
        "std": processor.get("image_std", [0.5] * shape.channels) if normalise else [1.0] * shape.channels,
        "resize": "stretch" if short is None and crop is None else "short-side",
        "crop_fraction": shape.image_px / max(first_hw),
    }


def _sides(size: Any) -> list[Any]:
    return [size.get("height"), size.get("width")] if isinstance(size, dict) else [size, size]


def _contract(shape: ViTShape, path: Path, *, mean: Any, std: Any, **rest: Any) -> PixelContract:
    fine = all(
        isinstance(v, list | tuple) and len(v) == shape.channels and all(isinstance(x, int | float) for x in v)
        for v in (mean, std)
    )
    if not fine or min(std) <= 0:
        raise CheckpointError(
            f"'{path}' states mean {mean} and std {std}",
            expected=f"{shape.channels} numbers each, std above zero",
            fix="correct them in the model's folder, or pass a pixel contract",
        )
    return PixelContract(
        image_px=shape.image_px, channels=shape.channels, color="GRAY" if shape.channels == 1 else "RGB",
        mean=tuple(map(float, mean)), std=tuple(map(float, std)), **rest,
    )  # fmt: skip
