from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemae.model.vit import ViTShape, count_macs
from edgemae.prune.budget import Keep, Scores, check_budget, choose
from edgemae.spec.errors import PlanError


def shape_of(heads: tuple[int, ...], mlp: tuple[int, ...], width: int = 32, head_dim: int = 8) -> ViTShape:
    return ViTShape(image_px=32, patch_px=8, width=width, heads=heads, head_dim=head_dim, mlp=mlp, classes=5)


def random_scores(shape: ViTShape, seed: int) -> Scores:
    g = torch.Generator().manual_seed(seed)
    return Scores(
        tuple(torch.rand(n, generator=g) for n in shape.heads), tuple(torch.rand(n, generator=g) for n in shape.mlp)
    )


def chunk_macs(shape: ViTShape, multiple: int) -> int:
    return shape.tokens * shape.width * 2 * multiple


def head_macs(shape: ViTShape) -> int:
    return shape.head_dim * (4 * shape.tokens * shape.width + 2 * shape.tokens**2)


SHAPES = [
    pytest.param(shape_of((4, 4, 4), (64, 64, 64)), 8, id="uniform"),
    pytest.param(shape_of((4, 4, 4), (64, 64, 64)), 16, id="wide multiple"),
    pytest.param(shape_of((1, 4, 4), (8, 96, 80)), 8, id="pruned before"),
    pytest.param(shape_of((3,) * 4, (768,) * 4, width=192, head_dim=64), 32, id="heads wider than units"),
]


@pytest.mark.parametrize(("shape", "multiple"), SHAPES)
@pytest.mark.parametrize("keep_macs", [0.99, 0.9, 0.85, 0.7, 0.5])
def test_goal_is_met_within_one_multiple(shape: ViTShape, multiple: int, keep_macs: float) -> None:
    goal = round(keep_macs * count_macs(shape))
    for seed in range(3):
        keep = choose(random_scores(shape, seed), shape, keep_macs, multiple)
        macs = count_macs(keep.shape(shape))
        assert macs <= goal
        units_went = keep.shape(shape).mlp != shape.mlp
        assert goal - macs < (chunk_macs(shape, multiple) if units_went else head_macs(shape))


@pytest.mark.parametrize(("shape", "multiple"), SHAPES)
@pytest.mark.parametrize("keep_macs", [0.9, 0.7, 0.5, 0.45])
def test_never_below_the_minimum_and_always_a_multiple(shape: ViTShape, multiple: int, keep_macs: float) -> None:
    for seed in range(3):
        new = choose(random_scores(shape, seed), shape, keep_macs, multiple).shape(shape)
        assert min(new.heads) >= 1
        assert all(n >= multiple and n % multiple == 0 for n in new.mlp)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), low=st.floats(0.45, 1.0), high=st.floats(0.45, 1.0))
def test_less_asked_for_never_leaves_more(seed: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    shape = shape_of((4, 3, 2), (64, 48, 40))
    scores = random_scores(shape, seed)
    macs = [count_macs(choose(scores, shape, keep, 8).shape(shape)) for keep in (low, high)]
    assert macs[0] <= macs[1]


def test_the_lowest_scores_go_and_ties_are_stable() -> None:
    shape = shape_of((4, 4), (32, 32))
    heads = (torch.tensor([9.0, 0.1, 9, 9]), torch.tensor([9.0, 9, 9, 9]))
    units = (torch.full((32,), 9.0), torch.cat([torch.full((8,), 0.2), torch.full((24,), 9.0)]))
    one_head_and_8_units = 1 - (chunk_macs(shape, 8) + head_macs(shape)) / count_macs(shape)
    keep = choose(Scores(heads, units), shape, one_head_and_8_units, 8)
    assert keep == Keep(((0, 2, 3), (0, 1, 2, 3)), (tuple(range(32)), tuple(range(8, 32))))
    flat = Scores((torch.ones(4), torch.ones(4)), (torch.ones(32), torch.ones(32)))
    assert choose(flat, shape, 0.6, 8) == choose(flat, shape, 0.6, 8)


def test_units_come_back_when_a_head_was_a_big_bite() -> None:
    shape = shape_of((3, 3), (64, 64), width=32, head_dim=32)
    heads = (torch.tensor([0.5, 9, 9]), torch.tensor([9.0, 9, 9]))
    units = (torch.cat([torch.full((8,), 0.1), torch.full((56,), 9.0)]), torch.full((64,), 9.0))
    goal = count_macs(shape) - chunk_macs(shape, 8) - 1  # units alone miss it by one, the head alone meets it
    keep = choose(Scores(heads, units), shape, goal / count_macs(shape), 8)
    assert keep.shape(shape).heads == (2, 3)
    assert keep.shape(shape).mlp == (64, 64)


def test_odd_widths_are_rounded_down_and_small_ones_left_alone() -> None:
    shape = shape_of((4, 4, 4), (100, 24, 64))
    new = choose(random_scores(shape, 0), shape, 0.9, 32).shape(shape)
    assert new.mlp[0] in (32, 64, 96)
    assert new.mlp[1] == 24
    assert new.mlp[2] in (32, 64)


def test_everything_stays_when_nothing_is_asked_for() -> None:
    shape = shape_of((4, 2), (100, 24))
    assert choose(random_scores(shape, 0), shape, 1.0, 32).shape(shape) == shape


@pytest.mark.parametrize(("shape", "multiple"), SHAPES)
def test_floor_is_named_and_reachable(shape: ViTShape, multiple: int) -> None:
    with pytest.raises(PlanError) as caught:
        choose(random_scores(shape, 0), shape, 0.01, multiple)
    message = str(caught.value)
    assert "0.01" in message
    assert f"one head and {multiple} MLP units in each of {shape.depth} blocks" in message
    least = float(re.search(r"keep_macs=([0-9.]+)", message)[1])  # type: ignore[index]
    new = choose(random_scores(shape, 0), shape, least, multiple).shape(shape)
    assert count_macs(new) <= round(least * count_macs(shape))
    with pytest.raises(PlanError):
        check_budget(shape, least - 0.002, multiple)


def test_a_width_multiple_of_zero_is_refused() -> None:
    with pytest.raises(PlanError, match="width multiple is 0"):
        check_budget(shape_of((4,), (64,)), 0.9, 0)
