"""What is known besides weights: heads by name, pixels, labels, licence; and how sure that is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgemae.model.import_teacher import load_teacher
from edgemae.model.known_models import KNOWN_HEADS, KNOWN_LICENCES, known_heads, labels_of, licence_of, pixel_of
from edgemae.model.vit import ViTShape
from edgemae.model.weight_files import WeightFile
from edgemae.spec.errors import CheckpointError
from edgemae.spec.graph import IMAGENET_MEAN, IMAGENET_STD, PixelContract

BASE = ViTShape.uniform(image_px=224, patch_px=16, width=768, depth=12, heads=12, cls_token=True)
SMALL = ViTShape.uniform(image_px=32, patch_px=8, width=32, depth=2, heads=4)


def weight_file(**facts) -> WeightFile:
    return WeightFile({}, (), **facts)


@pytest.mark.parametrize(
    ("facts", "width", "expected"),
    [
        ({"args": {"model": "mae_vit_base_patch16"}}, 768, (12, 16)),
        ({"args": {"model": "mae_vit_huge_patch14_dec512d8b"}}, 1280, (16, 16)),
        ({"args": {"model": "vit_large_patch16"}}, 1024, (16, 0)),
        ({"config": {"architecture": "vit_tiny_patch16_224"}}, 192, (3, 0)),
        ({"config": {"architecture": "timm/deit_small_patch16_224"}}, 384, (6, 0)),
        ({"args": {"model": "vit_tiny_patch16"}}, 192, (0, 0)),  # 3 in DeiT, 12 in MAE-Lite
        ({"args": {"model": "mae_vit_base_patch16"}}, 384, (0, 0)),  # the name of another size
        ({"args": {"model": None}}, 768, (0, 0)),
        ({}, 768, (0, 0)),
    ],
)
def test_heads_by_name(facts: dict, width: int, expected: tuple) -> None:
    assert known_heads(weight_file(**facts), width)[:2] == expected


def test_known_heads_divide_their_width_into_64() -> None:
    for name, (width, heads, _) in KNOWN_HEADS.items():
        assert width // heads in ((48,) if "_gap_" in name else (64, 80))
        assert width % heads == 0


def test_a_meta_file_with_its_options_needs_no_flags(hf, tmp_path, monkeypatch) -> None:
    import argparse

    monkeypatch.setitem(KNOWN_HEADS, "mae_vit_toy_patch", (32, 4, 2))
    args = argparse.Namespace(model="mae_vit_toy_patch8", norm_pix_loss=False)
    torch.save({"model": hf.meta(hf.mae()), "optimizer": {}, "args": args}, tmp_path / "m.pth")
    teacher = load_teacher(tmp_path / "m.pth")
    assert (teacher.vit.shape.heads, teacher.mae.decoder.shape.heads, teacher.mae.loss_kind) == ((4, 4), 2, "pixel")
    assert teacher.history[-1].plan["heads"] == "model name 'mae_vit_toy_patch8'"


@pytest.mark.parametrize(
    ("facts", "shape", "expected"),
    [
        ({}, SMALL, "unknown"),
        ({"card_licence": "mit"}, SMALL, "mit (model card)"),
        (
            {"config": {"_name_or_path": "facebook/vit-mae-base"}},
            BASE,
            "CC-BY-NC-4.0 (known for facebook/vit-mae-base)",
        ),
        (
            {"config": {"_name_or_path": "facebook/vit-mae-base"}, "card_licence": "apache-2.0"},
            BASE,
            "CC-BY-NC-4.0 (known for facebook/vit-mae-base; the model card says apache-2.0)",
        ),
        (
            {"config": {"architecture": "vit_base_patch16_224", "pretrained_cfg": {"tag": "mae"}}},
            BASE,
            "CC-BY-NC-4.0 (known for vit_base_patch16_224.mae)",
        ),
        ({}, BASE, "CC-BY-NC-4.0 (assumed: sizes and positions of Meta's MAE weights)"),
        ({"card_licence": "cc-by-nc-4.0"}, BASE, "cc-by-nc-4.0 (model card)"),
    ],
)
def test_licences_say_how_they_are_known(facts: dict, shape: ViTShape, expected: str) -> None:
    assert licence_of(weight_file(**facts), shape) == expected


def test_learned_positions_are_not_metas() -> None:
    learned = ViTShape(**(BASE.as_dict() | {"learned_pos": True}))
    assert licence_of(weight_file(), learned) == "unknown"
    assert all(v for v in KNOWN_LICENCES.values())


PROCESSOR = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.mark.parametrize(
    ("processor", "resize", "crop_fraction"),
    [
        ({"size": {"height": 32, "width": 32}}, "stretch", 1.0),
        ({"size": 32}, "stretch", 1.0),
        ({"size": 32, "rescale_factor": 0.00392156862745098, "resample": 3}, "stretch", 1.0),
        (
            {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
            "short-side",
            0.8,
        ),
        ({"size": 40, "do_center_crop": True, "crop_size": 32}, "short-side", 0.8),
    ],
)
def test_preprocessor_config(processor: dict, resize: str, crop_fraction: float) -> None:
    pixel = pixel_of(weight_file(processor=PROCESSOR | processor), SMALL, None, Path("x"), assumed := [])
    assert (pixel.mean, pixel.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (pixel.resize, pixel.crop_fraction, pixel.image_px, assumed) == (resize, crop_fraction, 32, [])


def test_no_normalisation_is_mean_zero_std_one() -> None:
    pixel = pixel_of(weight_file(processor=PROCESSOR | {"do_normalize": False}), SMALL, None, Path("x"), [])
    assert (pixel.mean, pixel.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 64},
        {"size": {"height": 32, "width": 64}},
        {"size": [32]},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": [0.5]},
        {"image_std": [0, 1, 1]},
        {"image_mean": "imagenet"},
    ],
)
def test_a_preprocessor_that_does_not_fit(wrong: dict) -> None:
    with pytest.raises(CheckpointError):
        pixel_of(weight_file(processor=PROCESSOR | wrong), SMALL, None, Path("x"), [])


def test_timm_config(hf, tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in hf.meta(hf.classifier()).items()}, tmp_path / "model.safetensors")
    cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "tag": "augreg"}
    config = {"architecture": "vit_toy", "num_classes": 3, "global_pool": "token", "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))
    teacher = load_teacher(tmp_path, heads=4)
    assert (teacher.pixel.mean, teacher.pixel.crop_fraction, teacher.vit.shape.pool) == ((0.5,) * 3, 0.9, "cls")
    assert teacher.source == "timm vit_toy"
    (tmp_path / "config.json").write_text(json.dumps(config | {"global_pool": "avg"}))
    assert load_teacher(tmp_path, heads=4).vit.shape.pool == "mean"


def test_usual_pixels_are_said_to_be_assumed() -> None:
    def usual(shape: ViTShape, **config) -> tuple[PixelContract, str]:
        pixel = pixel_of(weight_file(config=config), shape, None, Path("x"), assumed := [])
        return pixel, assumed[0]

    pixel, text = usual(BASE)
    assert (pixel.mean, pixel.std, pixel.crop_fraction) == (IMAGENET_MEAN, IMAGENET_STD, 0.875)
    assert "ImageNet" in text
    assert usual(SMALL)[0].crop_fraction == 1.0
    assert usual(SMALL, model_type="vit")[0].mean == (0.5,) * 3
    assert usual(SMALL, model_type="vit_mae")[0].mean == IMAGENET_MEAN


def test_a_given_contract_must_fit() -> None:
    given = PixelContract(image_px=32, mean=(0, 0, 0), std=(1, 1, 1))
    assert pixel_of(weight_file(processor=PROCESSOR), SMALL, given, Path("x"), []) is given
    with pytest.raises(CheckpointError, match="takes 224 px"):
        pixel_of(weight_file(), BASE, given, Path("x"), [])


def test_labels_keep_their_numbers() -> None:
    shape = ViTShape(**(SMALL.as_dict() | {"classes": 11}))
    names = {str(i): f"n{i}" for i in reversed(range(11))}
    assert labels_of(weight_file(config={"id2label": names}), shape, Path("x"), []) == [f"n{i}" for i in range(11)]
    assert labels_of(weight_file(config={"id2label": names}), SMALL, Path("x"), []) == []
    assert labels_of(weight_file(), shape, Path("x"), assumed := []) == [str(i) for i in range(11)]
    assert "labels" in assumed[0]
    with pytest.raises(CheckpointError, match="names 11 classes"):
        labels_of(weight_file(config={"id2label": {str(i + 1): "x" for i in range(11)}}), shape, Path("x"), [])
