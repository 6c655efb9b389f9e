"""Randomness of a step: the same images get the same draws however the step is divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgemae.train.step_context import StepContext, whole


def context(rows: slice = slice(0, 8)) -> StepContext:
    return replace(whole(8, torch.Generator().manual_seed(3)), rows=rows)


@pytest.mark.parametrize(
    "draw",
    [
        lambda m: m.rand(2, 3),
        lambda m: m.keep(4, 0.75, "random"),
        lambda m: m.keep(4, 0.75, "block"),
        lambda m: m.keep(4, 0.75, "grid"),
        lambda m: m.drop_path(3, 0.5),
    ],
    ids=["noise", "random", "block", "grid", "drop-path"],
)
def test_parts_of_a_step_draw_what_the_whole_draws(draw: Callable[[StepContext], Tensor]) -> None:
    together = draw(context())
    assert len(together) == 8
    parts = [draw(context(slice(first, first + 2))) for first in range(0, 8, 2)]
    assert torch.equal(torch.cat(parts), together)


def test_one_draw_for_all_rows_is_the_same_in_every_part() -> None:
    assert context(slice(0, 4)).flip() == context(slice(4, 8)).flip()


def test_the_share_that_is_done_runs_from_0_to_1() -> None:
    assert [replace(context(), step=i, steps=5).done for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert replace(context(), step=0, steps=1).done == 0


def test_stochastic_depth_keeps_the_mean_and_grows_with_depth() -> None:
    drop = whole(4000, torch.Generator().manual_seed(0)).drop_path(3, 0.4)
    assert drop is not None
    torch.testing.assert_close(drop.mean(dim=(0, 2)), torch.ones(3), atol=0.03, rtol=0)
    torch.testing.assert_close((drop == 0).float().mean(dim=(0, 2)), torch.tensor([0, 0.2, 0.4]), atol=0.02, rtol=0)
    assert whole(4, torch.Generator()).drop_path(3, 0.0) is None
