"""Loss terms against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from edgemae.distill.losses import distillation, mix, smooth_targets, soft_cross_entropy


def test_soft_cross_entropy() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])  # probabilities 1/4 3/4 and 1/2 1/2
    target = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    expected = (-math.log(3 / 4) - math.log(1 / 2)) / 2
    assert soft_cross_entropy(logits, target).item() == pytest.approx(expected, rel=1e-6)


def test_smooth_targets() -> None:
    assert smooth_targets(torch.tensor([2, 0]), 4, 0.0).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    rows = smooth_targets(torch.tensor([2]), 4, 0.2)
    torch.testing.assert_close(rows, torch.tensor([[0.05, 0.05, 0.85, 0.05]]))


def test_distillation_is_a_divergence_from_the_teacher() -> None:
    student = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])
    teacher = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    first = 1 / 4 * math.log((1 / 4) / (1 / 2)) + 3 / 4 * math.log((3 / 4) / (1 / 2))
    assert distillation(student, teacher, 1.0).item() == pytest.approx(first / 2, rel=1e-5)
    assert distillation(teacher, teacher, 1.0).item() == pytest.approx(0, abs=1e-7)


def test_temperature_softens_and_is_scaled_back() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2 * math.log(3.0)]])
    soft = 1 / 4 * math.log((1 / 4) / (1 / 2)) + 3 / 4 * math.log((3 / 4) / (1 / 2))  # logits halved
    assert distillation(student, teacher, 2.0).item() == pytest.approx(4 * soft, rel=1e-5)


def test_the_gradient_pulls_towards_the_teacher() -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    distillation(student, torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), 1.0).backward()
    assert student.grad is not None
    assert student.grad[0, 0] < 0 < student.grad[0, 1]  # towards the class that the teacher prefers


def test_mix_uses_one_share_for_pixels_and_targets() -> None:
    torch.manual_seed(0)
    pixels, target = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2), torch.eye(4)
    mixed, mixed_target = mix(pixels, target, 0.4, torch.Generator())
    share = mixed_target[0, 0].item()
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * pixels + (1 - share) * pixels.flip(0))
    torch.testing.assert_close(mixed_target, share * target + (1 - share) * target.flip(0))
    torch.testing.assert_close(mixed_target.sum(1), torch.ones(4))


def test_mix_off_changes_nothing() -> None:
    pixels, target = torch.randn(2, 3, 4, 4), torch.eye(2)
    mixed, mixed_target = mix(pixels, target, 0.0, torch.Generator())
    assert mixed is pixels
    assert mixed_target is target
