"""What one training run is, before it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor, nn

from edgemae.data.loader import Batch, Loader
from edgemae.model.vit import Block, ViT
from edgemae.spec.plan_schema import ScalePlan
from edgemae.train.step_context import StepContext

Curve = list[dict[str, float]]


@dataclass(frozen=True)
class Job:
    """State one training run. `loss(batch, context)` returns named, weighted terms whose sum is minimised."""

    name: str
    module: nn.Module
    groups: list[dict[str, Any]]  # AdamW groups, each with a `scale` of the rate
    loss: Callable[[Batch, StepContext], dict[str, Tensor]]
    loader: Loader
    epochs: int
    lr: float  # per 256 images
    warmup_fraction: float
    seed: int
    bf16: bool = True
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 3.0
    ema: float = 0.0  # decay of the running mean of the weights that is returned; 0: the last weights
    checkpoint: Path | None = None
    validate: Callable[[], float] | None = None
    scale: ScalePlan = ScalePlan()
    all_used: bool = True  # False: a step leaves some of the module's parameters without a gradient
    off: tuple[str, ...] = ()  # first words of terms that may be small: weight 0, of sub-networks, or of agreement
    checkpoint_identity: dict[str, Any] = field(default_factory=dict)  # what else a checkpoint must have been made with

    @property
    def steps(self) -> int:
        return self.loader.steps * self.epochs

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to go on from."""
        images = self.loader.images
        shapes = [part.shape.as_dict() for part in self.module.modules() if isinstance(part, ViT)]
        return self.checkpoint_identity | {
            "name": self.name, "epochs": self.epochs, "batch": self.loader.batch, "seed": self.seed, "lr": self.lr,
            "ema": self.ema, "values": sum(p.numel() for p in self.module.parameters()),
            "images": images.fingerprint, "order of images": images.sequence,
            **{f"{name} of the model": value for shape in shapes for name, value in shape.items()},
            **{f"{name} of pixels": value for name, value in msgspec.to_builtins(self.loader.pixel).items()},
        }  # fmt: skip

    def switch(self, *, train: bool) -> None:
        """Switch the module to training or out of it; blocks are compiled only while it trains, where that is asked."""
        self.module.train(train)
        for block in self.module.modules() if self.scale.compile else ():
            if isinstance(block, Block):
                block.compile() if train else setattr(block, "_compiled_call_impl", None)
