"""What a frozen teacher sees of a student's batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
import torch

from edgemae.distill.frozen_teacher import FrozenTeacher, TeacherConfig, received, teacher_block
from edgemae.model.teacher import Teacher
from edgemae.model.vit import sincos_position
from edgemae.spec.errors import PlanError
from edgemae.spec.graph import PixelContract

PIXEL = PixelContract(image_px=32)
Make = Callable[..., Teacher]


def test_the_same_pixels_pass_untouched(teacher_with: Make) -> None:
    teacher = teacher_with(labels=("a", "b"))
    view, pixels = FrozenTeacher(teacher, PIXEL), torch.randn(3, 3, 32, 32)
    assert view.pixels(pixels) is pixels
    torch.testing.assert_close(view.logits(pixels), teacher.vit(pixels)[0], rtol=0, atol=0)


def test_the_teacher_gets_its_own_normalisation(teacher_with: Make) -> None:
    own = PixelContract(image_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))
    view = FrozenTeacher(teacher_with(pixel=own), PIXEL)
    raw = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PIXEL.mean, PIXEL.std))
    own_mean, own_std = (torch.tensor(v).view(3, 1, 1) for v in (own.mean, own.std))
    torch.testing.assert_close(view.pixels((raw - mean) / std), (raw - own_mean) / own_std, rtol=1e-5, atol=1e-5)


def test_the_teacher_gets_its_own_resolution(teacher_with: Make) -> None:
    teacher = teacher_with(pixel=PixelContract(image_px=64), labels=("a", "b"))
    view = FrozenTeacher(teacher, PIXEL)
    flat = torch.full((1, 3, 32, 32), 0.25)
    torch.testing.assert_close(view.pixels(flat), torch.full((1, 3, 64, 64), 0.25))
    assert view.logits(torch.randn(2, 3, 32, 32)).shape == (2, 2)


@pytest.mark.parametrize("learned_pos", [False, True])
@pytest.mark.parametrize("cls_token", [False, True])
def test_another_patch_is_brought_to_the_students_grid(teacher_with: Make, cls_token: bool, learned_pos: bool) -> None:
    teacher = teacher_with(
        pixel=PixelContract(image_px=64), patch_px=16, cls_token=cls_token, learned_pos=learned_pos, heads=4, head_dim=8
    )
    view = FrozenTeacher(teacher, PIXEL, TeacherConfig(grid=8))  # a student of 32 px with patch 4
    assert view.vit.shape.image_px == 128
    if not learned_pos:  # recomputed, not stretched
        torch.testing.assert_close(view.vit.pos, sincos_position(32, 8, cls_token), rtol=0, atol=0)
    keep = torch.arange(16).repeat(2, 1)
    assert view.relations(torch.randn(2, 3, 32, 32), keep).shape == (2, 4, 16, 16)


def test_relations_are_the_attention_logits_of_that_block(teacher_with: Make) -> None:
    teacher = teacher_with(depth=3, cls_token=True)
    pixels, keep = torch.randn(2, 3, 32, 32), torch.tensor([[0, 3, 7, 12], [1, 2, 3, 15]])
    seen = []
    hook = teacher.vit.blocks[1].attn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    teacher.vit.encode(pixels, keep)
    hook.remove()
    q, k, _ = teacher.vit.blocks[1].attn.split(seen[0])
    expected = (q @ k.transpose(-2, -1) / 4.0)[:, :, 1:, 1:]  # head_dim 16; without the cls token
    found = FrozenTeacher(teacher, PIXEL, TeacherConfig(grid=4, blocks=2)).relations(pixels, keep)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_it_runs_no_deeper_than_it_must(teacher_with: Make, block: int) -> None:
    view = FrozenTeacher(teacher_with(depth=3), PIXEL, TeacherConfig(blocks=block))
    ran: list[int] = []
    for i, part in enumerate(view.vit.blocks):
        part.register_forward_hook(lambda *_, i=i: ran.append(i))
    view.relations(torch.randn(1, 3, 32, 32), torch.arange(4)[None])
    assert len(view.vit.blocks) == block  # the others take no memory
    assert ran == list(range(block - 1))


def test_it_is_frozen_and_a_copy(teacher_with: Make) -> None:
    teacher = teacher_with(labels=("a", "b"))
    view = FrozenTeacher(teacher, PIXEL, TeacherConfig(grid=4))
    assert not view.vit.training
    assert not any(p.requires_grad for p in view.vit.parameters())
    assert teacher.vit.patch_embed.weight.requires_grad
    mine = {p.data_ptr() for p in view.vit.parameters()}
    assert not mine & {p.data_ptr() for p in teacher.vit.parameters()}
    pixels = torch.randn(1, 3, 32, 32, requires_grad=True)
    assert not view.logits(pixels).requires_grad
    assert not view.relations(pixels, torch.arange(4)[None]).requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 1, "color": "GRAY"}, r"reads 1 channels \(GRAY\), the student 3 \(RGB\)"),
        ({"color": "BGR"}, r"reads 3 channels \(BGR\), the student 3 \(RGB\)"),
    ],
)
def test_other_channels_are_refused(teacher_with: Make, changes: dict[str, object], message: str) -> None:
    teacher = teacher_with()
    teacher = replace(teacher, pixel=msgspec.structs.replace(PIXEL, **changes))
    with pytest.raises(PlanError, match=message):
        FrozenTeacher(teacher, PIXEL)


@pytest.mark.parametrize(
    ("teacher_depth", "student_depth", "asked", "block"),
    [(2, 2, 0, 2), (2, 3, 0, 2), (4, 2, 0, 3), (8, 4, 0, 6), (12, 6, 0, 9), (8, 4, 8, 8), (4, 2, 1, 1)],
)
def test_the_block_to_learn_from(teacher_depth: int, student_depth: int, asked: int, block: int) -> None:
    assert teacher_block(asked, teacher_depth, student_depth) == block


@pytest.mark.parametrize("cls_token", [False, True])
def test_attention_that_patches_receive(teacher_with: Make, cls_token: bool) -> None:
    vit = teacher_with(cls_token=cls_token).vit
    pixels = torch.randn(3, 3, 32, 32)
    x = vit.encode(pixels, blocks=1)
    found = received(vit, x)
    assert found.shape == (3, 16)
    torch.testing.assert_close(found.mean(1), torch.ones(3))
    q, k, _ = vit.blocks[1].attn.split(vit.blocks[1].norm1(x))
    softmax = (q @ k.transpose(-2, -1) / 4).softmax(-1)
    rows = softmax[:, :, 0, 1:] if cls_token else softmax.mean(2)
    expected = rows.mean(1)
    torch.testing.assert_close(found, expected / expected.mean(1, keepdim=True))


@pytest.mark.parametrize("fast", [False, True])
def test_a_teacher_is_bf16_where_that_is_fast(teacher_with: Make, monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr("edgemae.distill.frozen_teacher.bf16_is_fast", lambda _: fast)
    teacher, pixels = teacher_with(labels=("a", "b")), torch.randn(2, 3, 32, 32)
    view = FrozenTeacher(teacher, PIXEL, TeacherConfig(bf16=True))
    logits = view.logits(pixels)
    assert view.vit.patch_embed.weight.dtype == (torch.bfloat16 if fast else torch.float32)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, teacher.vit(pixels)[0], rtol=0, atol=0.02 if fast else 0.0)
