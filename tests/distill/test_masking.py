"""Which patches are hidden, and how that changes over a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgemae.distill.masking import hide_attended, masking
from edgemae.spec.errors import PlanError
from edgemae.spec.plan_schema import Plan
from edgemae.train.step_context import StepContext, whole

PIXELS = torch.zeros(4, 3, 32, 32)


def context(step: int = 0, steps: int = 101, rows: int = 4) -> StepContext:
    return replace(whole(rows, torch.Generator().manual_seed(1)), step=step, steps=steps)


def never(_: Tensor) -> Tensor:
    pytest.fail("the teacher was asked for its attention")


def test_the_ratio_moves_in_a_straight_line(plan_with: Callable[..., Plan]) -> None:
    hidden = masking(plan_with(pretrain__mask_ratio=0.5, pretrain__mask_ratio_end=0.9).pretrain, "pretrain")
    counts = [hidden.keep(PIXELS, 10, context(step), never).shape[1] for step in (0, 25, 50, 75, 100)]
    assert counts == [50, 40, 30, 20, 10] or counts == [50, 40, 30, 19, 9]  # int() of 100 x (1 - ratio)


def test_without_an_end_it_stays(plan_with: Callable[..., Plan]) -> None:
    hidden = masking(plan_with(distill__mask_ratio=0.75).distill, "distill")
    assert {hidden.keep(PIXELS, 4, context(step), never).shape for step in (0, 50, 100)} == {(4, 4)}


def test_patterns_take_equal_parts(plan_with: Callable[..., Plan]) -> None:
    hidden = masking(plan_with(distill__mask="grid > random").distill, "distill")

    def is_lattice(step: int) -> bool:
        keep = hidden.keep(PIXELS, 8, context(step), never)
        rows, columns = keep // 8, keep % 8
        return bool(((rows % 2 == rows[:, :1] % 2) & (columns % 2 == columns[:, :1] % 2)).all())

    assert [is_lattice(step) for step in (0, 30, 49, 50, 80, 100)] == [True, True, True, False, False, False]


def test_attended_patches_are_hidden_in_proportion() -> None:
    """A patch with four times the attention of the fifteen others is hardly ever visible, and sometimes is."""
    attention = torch.ones(4000, 16)
    attention[:, 5] = 4.0
    keep = hide_attended(attention, 4, context(rows=4000))
    seen = torch.zeros(16).scatter_add(0, keep.flatten(), torch.ones(keep.numel())) / 4000
    assert torch.equal(keep, keep.sort(dim=1).values)
    assert 0.002 < seen[5] < 0.03
    others = seen[torch.arange(16) != 5]
    assert (others - others.mean()).abs().max() < 0.04
    assert seen.sum().item() == pytest.approx(4)


def test_the_pattern_attention_asks_its_guide(plan_with: Callable[..., Plan]) -> None:
    hidden = masking(plan_with(pretrain__mask="random>attention").pretrain, "pretrain")
    asked: list[Tensor] = []

    def guide(pixels: Tensor) -> Tensor:
        asked.append(pixels)
        return torch.ones(4, 16)

    hidden.keep(PIXELS, 4, context(0), guide)
    assert not asked
    assert hidden.keep(PIXELS, 4, context(100), guide).shape == (4, 4)
    assert asked[0] is PIXELS


@pytest.mark.parametrize(
    ("changes", "patches", "said", "fix"),
    [
        ({}, 1, "hides no patch of 1", "student.patch_px"),
        ({"distill__mask_ratio": 0.99}, 16, "leaves 1 of 16 patches visible", "mask_ratio=0.75"),
        ({"distill__mask_ratio_end": 0.99}, 16, "leaves 1 of 16 patches visible", "mask_ratio=0.75"),
        ({}, 4, "leaves 1 of 4 patches visible", "student.patch_px"),
    ],
)
def test_a_ratio_that_leaves_nothing_to_learn_is_refused(
    plan_with: Callable[..., Plan], changes: dict[str, object], patches: int, said: str, fix: str
) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        masking(plan_with(**changes).distill, "distill", patches, least=2)
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill__mask": "grids"}, r"distill.mask is 'grids'. Did you mean 'grid'"),
        ({"distill__mask": "random>"}, r"distill.mask is 'random>'"),
        ({"distill__mask_ratio_end": 1.5}, r"distill.mask_ratio_end is 1.5"),
    ],
)
def test_what_cannot_work_is_refused(plan_with: Callable[..., Plan], changes: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        masking(plan_with(**changes).distill, "distill")
