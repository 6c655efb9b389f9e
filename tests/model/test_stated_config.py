"""What a file says of its network is used, contradictions are refused, and what had to be assumed is listed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgemae.model.import_teacher import load_teacher
from edgemae.model.teacher import Teacher, import_notes
from edgemae.spec.errors import CheckpointError

PRETRAINED = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9}
CONFIG = {"architecture": "vit_toy", "num_classes": 3, "global_pool": "token", "pretrained_cfg": PRETRAINED}


@pytest.fixture
def weights(hf: SimpleNamespace) -> dict[str, Tensor]:
    """Return a ViT in timm's naming: 32 px, patches of 8, width 32, 2 blocks, a head of 3 classes."""
    return {key: value.contiguous() for key, value in hf.meta(hf.classifier()).items()}


@pytest.fixture
def folder(weights: dict[str, Tensor], tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of timm's folder, as save_for_hf writes it."""

    def write(config: dict[str, Any], **model_args: Any) -> Path:
        save_file(weights, tmp_path / "model.safetensors")
        more = {"model_args": model_args} if model_args else {}
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | config | more))
        return tmp_path

    return write


@pytest.fixture
def trained(weights: dict[str, Tensor], tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of timm's training checkpoint: arch, args as a Namespace, state_dict."""

    def write(**args: Any) -> Path:
        content = {"arch": "vit_toy", "state_dict": weights, "args": argparse.Namespace(model="vit_toy", **args)}
        torch.save(content, tmp_path / "last.pth.tar")
        return tmp_path / "last.pth.tar"

    return write


def heads(teacher: Teacher) -> tuple[int, int]:
    return teacher.vit.shape.heads[0], teacher.vit.shape.head_dim


def test_heads_of_model_args_win_over_the_name(folder: Callable[..., Path], weights: dict[str, Tensor]) -> None:
    assert heads(load_teacher(folder({}, num_heads=2))) == (2, 16)
    assert heads(load_teacher(folder({}, num_heads=8), heads=8)) == (8, 4)
    with pytest.raises(CheckpointError, match="8 heads, not 4"):
        load_teacher(folder({}, num_heads=8), heads=4)
    four, two = (load_teacher(folder({}, num_heads=n)).vit(torch.ones(1, 3, 32, 32))[0] for n in (4, 2))
    assert not torch.allclose(four, two, atol=1e-3), "the tensors do not tell, the outputs do"


def test_a_known_name_does_not_win_over_model_args(tmp_path: Path) -> None:
    from edgemae.model.known_models import known_heads
    from edgemae.model.stated_config import stated_config
    from edgemae.model.weight_files import WeightFile

    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 12}}
    file = WeightFile({}, (), config=config)
    assert known_heads(file, 192)[0] == 3
    assert stated_config(file, tmp_path)("heads") == 12


@pytest.mark.parametrize(("said", "pool"), [("token", "cls"), ("avg", "mean"), ("", "cls")])
def test_the_pool_that_is_said_is_used(folder: Callable[..., Path], said: str, pool: str) -> None:
    assert load_teacher(folder({"global_pool": said}, num_heads=4)).vit.shape.pool == pool
    assert load_teacher(folder({"global_pool": said}, num_heads=4, global_pool=said)).vit.shape.pool == pool


def test_an_embedding_without_a_head_is_as_said(folder: Callable[..., Path], weights: dict[str, Tensor]) -> None:
    for key in ("head.weight", "head.bias"):
        del weights[key]
    said = load_teacher(folder({"num_classes": 0, "global_pool": "token"}, num_heads=4))
    assert said.vit.shape.pool == "cls"
    silent = load_teacher(folder({"num_classes": 0, "global_pool": ""}, num_heads=4))
    assert silent.vit.shape.pool == "mean"
    assert any("embedding: the mean" in note for note in import_notes(silent)["assumed"])


# Siblings: each option of timm's VisionTransformer whose value is no plain ViT, each size, pools, kinds of values.
REFUSED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"act_layer": "relu"}), ({}, {"act_layer": "quick_gelu"}), ({}, {"act_layer": "gelu_tanh"}),
    ({"global_pool": "max"}, {}), ({}, {"global_pool": "avgmax"}), ({"global_pool": "avg"}, {"global_pool": "token"}),
    ({}, {"img_size": 64}), ({}, {"patch_size": 16}), ({}, {"embed_dim": 64}), ({}, {"depth": 3}),
    ({}, {"mlp_ratio": 4.0}), ({}, {"in_chans": 1}), ({}, {"num_classes": 5}), ({"num_classes": 0}, {}),
    ({}, {"class_token": False}), ({}, {"norm_layer": "rmsnorm"}), ({}, {"qk_norm": True}), ({}, {"pre_norm": True}),
    ({}, {"reg_tokens": 4}), ({}, {"pool_include_prefix": True}), ({}, {"block_fn": "ResPostBlock"}),
    ({}, {"something_new": 1}), ({}, {"num_heads": "many"}), ({}, {"num_heads": 5}), ({}, {"num_heads": True}),
    ({"pretrained_cfg": PRETRAINED | {"input_size": [3, 64, 64]}}, {}),
    ({"pretrained_cfg": PRETRAINED | {"input_size": [3, 16, 64]}}, {}),
    ({"pretrained_cfg": PRETRAINED | {"input_size": "big"}}, {}), ({}, {"img_size": [16, 64]}),
    ({"architecture": "vit_base_patch16_rpn_224"}, {}), ({"architecture": "vit_so400m_patch16_siglip_gap_256"}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("config", "model_args"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_said_and_cannot_be_so_is_refused(
    folder: Callable[..., Path], config: dict[str, Any], model_args: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError) as error:
        load_teacher(folder(config, **({"num_heads": 4} | model_args)))
    assert error.value.fix


def test_model_args_of_another_kind_are_refused(folder: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="model_args"):
        load_teacher(folder({"model_args": [1]}))


def test_an_image_size_of_model_args_replaces_that_of_the_pretraining(folder: Callable[..., Path]) -> None:
    config = {"pretrained_cfg": PRETRAINED | {"input_size": [3, 16, 16]}}
    teacher = load_teacher(folder(config, num_heads=4, img_size=32, drop_path_rate=0.1, act_layer="gelu"))
    assert teacher.vit.shape.image_px == 32


def test_options_of_a_training_are_used(trained: Callable[..., Path]) -> None:
    said = {"model_kwargs": {"num_heads": 2}, "mean": [0.4] * 3, "std": [0.2] * 3, "crop_pct": 0.9, "gp": "avg"}
    teacher = load_teacher(trained(**said, input_size=[3, 32, 32], img_size=None, num_classes=3))
    assert heads(teacher) == (2, 16)
    assert (teacher.vit.shape.pool, teacher.pixel.mean[0], teacher.pixel.std[0]) == ("mean", 0.4, 0.2)
    assert teacher.pixel.crop_fraction == 0.9


@pytest.mark.parametrize(
    "args",
    [
        {"model_kwargs": {"num_heads": 2, "act_layer": "relu"}}, {"model_kwargs": "num_heads=2"},
        {"model_kwargs": {"num_heads": 4}, "input_size": [3, 64, 64]}, {"model_kwargs": {"num_heads": 4}, "gp": "max"},
        {"model_kwargs": {"num_heads": 4}, "img_size": 64}, {"model_kwargs": {"num_heads": 4}, "num_classes": 7},
        {"model_kwargs": {"num_heads": 4, "img_size": 32}, "img_size": 64},
    ],
    ids=range(7),
)  # fmt: skip
def test_options_of_a_training_that_cannot_be_so(trained: Callable[..., Path], args: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        load_teacher(trained(**args))


def test_a_square_grid_that_nobody_states_is_listed(hf: SimpleNamespace, load_meta: Callable[..., Teacher]) -> None:
    state = hf.meta(hf.classifier())
    bare = import_notes(load_meta(state))["assumed"]
    assert any("4 x 4 patches" in note for note in bare)
    assert any("embedding: the class token" in note for note in bare)
    stated = {"model": state, "args": {"input_size": 32, "global_pool": False}}
    assert not [note for note in import_notes(load_meta(stated))["assumed"] if "patches" in note or "embed" in note]
    with pytest.raises(CheckpointError, match="image_px"):
        load_meta({"model": state, "args": {"input_size": [16, 64]}})


def test_sine_cosine_positions_prove_the_grid(hf: SimpleNamespace, load_meta: Callable[..., Teacher]) -> None:
    teacher = load_meta({"model": hf.meta(hf.mae())})
    assert not any("4 x 4" in note for note in import_notes(teacher)["assumed"])


def test_the_file_in_a_folder_says_what_the_folder_says(folder: Callable[..., Path]) -> None:
    place = folder({}, num_heads=2)
    assert heads(load_teacher(place / "model.safetensors")) == heads(load_teacher(place)) == (2, 16)
    with pytest.raises(CheckpointError, match="relu"):
        load_teacher(folder({}, act_layer="relu") / "model.safetensors", heads=4)
