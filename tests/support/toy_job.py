"""A training of one linear layer: a job, its weights, and its interruption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgemae.data.image_set import ImageSet
from edgemae.data.loader import Batch, Loader
from edgemae.spec.graph import PixelContract
from edgemae.train.job import Job
from edgemae.train.loop import fit
from edgemae.train.step_context import StepContext

PIXEL = PixelContract(image_px=8)


class Toy(nn.Module):
    """A linear map of the mean colour: fast, and different after every step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(pixels.mean(dim=(2, 3)))


@pytest.fixture
def job_with(pictures: ImageSet) -> Callable[..., Job]:
    """Return a maker of jobs of 3 steps an epoch."""

    def make(**changes: Any) -> Job:
        toy = changes.pop("module", None) or Toy()

        def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
            out = toy(batch.pixels)
            return {"near": out.square().mean(), "noise": 0.1 * context.flip() + 0 * out.sum()}

        settings: dict[str, Any] = {
            "name": "toy", "module": toy, "groups": [{"params": list(toy.parameters()), "scale": 1.0}], "loss": loss,
            "loader": Loader(pictures, PIXEL, 8), "epochs": 4, "lr": 3.2, "warmup_fraction": 0.25, "seed": 0,
            "bf16": False,
        }  # fmt: skip
        return Job(**(settings | changes))

    return make


def weights(job: Job) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in job.module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupted(job: Job, after: int) -> None:
    """Run a job that is stopped after some steps."""
    steps: list[int] = []

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        if len(steps) == after:
            raise KeyboardInterrupt
        steps.append(1)
        return job.loss(batch, context)

    with pytest.raises(KeyboardInterrupt):
        fit(replace(job, loss=loss))
