"""Loss terms against values worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from edgemae.train.losses import distillation, mix, smooth_targets, soft_cross_entropy
from edgemae.train.step_context import StepContext, whole


def context(batch: int, seed: int = 0) -> StepContext:
    return whole(batch, torch.Generator().manual_seed(seed))


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
    pixels, target = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 2), torch.eye(5)
    mixed, mixed_target = mix(pixels, target, 0.4, 0.0, context(5))
    share = mixed_target[0, 0].item()
    beside = torch.tensor([1, 0, 3, 2, 4])  # the last of an odd number is left as it is
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * pixels + (1 - share) * pixels[beside])
    torch.testing.assert_close(mixed_target, share * target + (1 - share) * target[beside])
    torch.testing.assert_close(mixed_target.sum(1), torch.ones(5))


def test_cutmix_pastes_one_box_and_weighs_targets_by_its_area() -> None:
    pixels, target = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16), torch.eye(4)
    mixed, mixed_target = mix(pixels, target, 0.0, 1.0, context(4))
    assert torch.equal(pixels, torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16))  # a copy was changed
    for row, beside in enumerate((1, 0, 3, 2)):
        pasted = mixed[row, 0] == beside
        assert torch.equal(mixed[row, 0] == row, ~pasted)
        assert mixed_target[row, beside].item() == pytest.approx(pasted.float().mean().item())
        lines, columns = pasted.any(1).nonzero(), pasted.any(0).nonzero()
        assert int(pasted.sum()) == len(lines) * len(columns)  # a box


def test_with_both_on_each_step_takes_one_of_them() -> None:
    pixels, target = torch.randn(2, 3, 8, 8), torch.eye(2)
    cut = [bool((mix(pixels, target, 0.8, 1.0, context(2, seed))[0] == pixels).any()) for seed in range(40)]
    assert 8 < sum(cut) < 32


def test_halves_of_a_step_are_mixed_as_the_whole() -> None:
    pixels, target = torch.randn(8, 3, 8, 8), torch.eye(8)
    for alphas in ((0.8, 0.0), (0.0, 1.0)):
        together = mix(pixels, target, *alphas, context(8))[0]
        for rows in (slice(0, 4), slice(4, 8)):
            part = mix(pixels[rows], target[rows], *alphas, replace(context(8), rows=rows))[0]
            assert torch.equal(part, together[rows])


def test_mix_off_changes_nothing() -> None:
    pixels, target = torch.randn(2, 3, 4, 4), torch.eye(2)
    mixed, mixed_target = mix(pixels, target, 0.0, 0.0, context(2))
    assert mixed is pixels
    assert mixed_target is target
