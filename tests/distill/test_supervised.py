"""Supervised training: labels, the teacher's logits, and what both see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import edgemae.distill.supervised as classify
from edgemae.data.image_set import ImageSet
from edgemae.distill.frozen_teacher import FrozenTeacher
from edgemae.distill.supervised import Run, top1, train_classifier
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import FinetunePlan, Plan

PIXEL = PixelContract(image_px=32)
MakePlan, MakeTeacher, MakeViT = Callable[..., Plan], Callable[..., Teacher], Callable[..., ViT]


@pytest.fixture
def settings(plan_with: MakePlan) -> Callable[..., FinetunePlan]:
    return lambda **changes: plan_with(**{f"finetune__{k}": v for k, v in changes.items()}).finetune


def test_colours_are_learnt(tiny_vit: MakeViT, settings: Callable[..., FinetunePlan], pictures: ImageSet) -> None:
    vit, run = tiny_vit(classes=2), Run(pictures, PIXEL, evaluation=pictures)
    curve = train_classifier(vit, settings(epochs=6, lr=0.03), run, None, "finetune")
    assert top1(vit, run) == 1.0
    assert curve[-1]["validation"] == 1.0
    assert curve[-1]["label"] < 0.5 * curve[0]["label"]
    assert not vit.training


def test_top1_counts_what_is_right(tiny_vit: MakeViT, pictures: ImageSet) -> None:
    vit = tiny_vit(classes=2)
    assert vit.head is not None
    torch.nn.init.zeros_(vit.head.weight)
    vit.head.bias.data = torch.tensor([1.0, 0.0])  # always "blue"
    assert top1(vit, Run(pictures, PIXEL, evaluation=pictures.pick([*range(9), *range(12, 15)]))) == 9 / 12


def test_half_of_the_loss_is_the_teachers(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, settings: Callable[..., FinetunePlan], pictures: ImageSet
) -> None:
    view = FrozenTeacher(teacher_with(labels=pictures.classes), PIXEL)
    alone = train_classifier(tiny_vit(classes=2), settings(epochs=1, lr=0.0), Run(pictures, PIXEL), None, "a")
    both = train_classifier(
        tiny_vit(classes=2), settings(epochs=1, lr=0.0, teacher_weight=0.25), Run(pictures, PIXEL), view, "b"
    )
    assert set(alone[0]) == {"epoch", "label", "loss"}
    assert set(both[0]) == {"epoch", "label", "teacher", "loss"}
    assert both[0]["label"] == pytest.approx(0.75 * alone[0]["label"])
    assert both[0]["loss"] == pytest.approx(both[0]["label"] + both[0]["teacher"])


def test_the_teacher_sees_the_mixed_pixels(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, settings: Callable[..., FinetunePlan], pictures: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    vit, view = tiny_vit(classes=2), FrozenTeacher(teacher_with(labels=pictures.classes), PIXEL)
    mine: list[Tensor] = []
    theirs: list[Tensor] = []
    plain: list[Tensor] = []
    vit.register_forward_pre_hook(lambda _, args: mine.append(args[0]))
    view.vit.register_forward_pre_hook(lambda _, args: theirs.append(args[0]))
    mix = classify.mix
    monkeypatch.setattr(classify, "mix", lambda pixels, *rest: (plain.append(pixels), mix(pixels, *rest))[1])
    train_classifier(vit, settings(epochs=1, mixup=0.8), Run(pictures, PIXEL), view, "x")
    assert len(mine) == len(theirs) == len(plain) == 3
    for student_sees, teacher_sees, before in zip(mine, theirs, plain, strict=True):
        assert torch.equal(student_sees, teacher_sees)
        assert not torch.equal(student_sees, before)


def test_every_second_step_may_see_fewer_patches(
    tiny_vit: MakeViT, settings: Callable[..., FinetunePlan], pictures: ImageSet
) -> None:
    vit = tiny_vit(classes=2)
    patches: list[int] = []
    vit.blocks[0].register_forward_pre_hook(lambda _, args: patches.append(args[0].shape[1]))
    train_classifier(vit, settings(epochs=6, token_keep=0.5), Run(pictures, PIXEL), None, "x")
    assert len(patches) == 18
    assert set(patches) == {8, 16}
    assert 4 <= patches.count(8) <= 14


def test_stochastic_depth_changes_the_training_and_not_the_model(
    tiny_vit: MakeViT, settings: Callable[..., FinetunePlan], pictures: ImageSet
) -> None:
    rates: list[Tensor] = []
    vit = tiny_vit(depth=3, classes=2)
    vit.register_forward_pre_hook(lambda _, args: rates.append(args[2]))
    curve: Any = train_classifier(vit, settings(epochs=1, drop_path=0.2), Run(pictures, PIXEL), None, "x")
    other = train_classifier(tiny_vit(depth=3, classes=2), settings(epochs=1), Run(pictures, PIXEL), None, "x")
    assert curve[0]["label"] != other[0]["label"]
    assert all(drop.shape == (8, 3, 2) for drop in rates)
    assert all(torch.equal(drop[:, 0], torch.ones(8, 2)) for drop in rates)  # the first block is never left out


def test_lower_layers_move_less(tiny_vit: MakeViT, settings: Callable[..., FinetunePlan], pictures: ImageSet) -> None:
    vit, before = tiny_vit(classes=2), dict(tiny_vit(classes=2).named_parameters())
    train_classifier(vit, settings(epochs=1, layer_decay=0.1), Run(pictures, PIXEL), None, "x")
    moved = {n: (p - before[n]).abs().max().item() for n, p in vit.named_parameters()}
    assert moved["patch_embed.weight"] < 0.1 * moved["blocks.1.attn.qkv.weight"]
    assert moved["blocks.0.attn.qkv.weight"] < 0.3 * moved["blocks.1.attn.qkv.weight"]
