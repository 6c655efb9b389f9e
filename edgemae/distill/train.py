"""The one training loop: deterministic, resumable to the exact step, and honest about waiting for data.

Everything random in a step derives from (seed, step): the order of images and their views in `edgemae.data.loader`, and
torch's generator here. So a run that was killed and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgemae.data.loader import Batch, Loader
from edgemae.distill.schedule import rate_at
from edgemae.model.weights import write_atomic
from edgemae.spec.errors import DataError, InputError
from edgemae.spec.progress import progress

CHECKPOINT_EVERY_S = 60.0
Curve = list[dict[str, float]]


@dataclass(frozen=True)
class Job:
    """State one training run. `loss(batch, generator)` returns named, weighted terms whose sum is minimised."""

    name: str
    module: nn.Module
    groups: list[dict[str, Any]]  # AdamW groups, each with a `scale` of the rate
    loss: Callable[[Batch, torch.Generator], dict[str, Tensor]]
    loader: Loader
    epochs: int
    lr: float  # per 256 images
    warmup_fraction: float
    seed: int
    bf16: bool = True
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 3.0
    checkpoint: Path | None = None
    validate: Callable[[], float] | None = field(default=None)


def fit(job: Job) -> Curve:
    """Train `job.module` in place and return one row of mean losses an epoch.

    Resumes from `job.checkpoint` when that exists and writes it at every epoch and at least once a minute. Raises
    InputError on a loss that is not finite, naming the step, the images of the batch and the last good checkpoint.
    """
    if len(job.loader.images) < job.loader.batch:
        raise DataError(
            f"{len(job.loader.images)} images are fewer than one batch of {job.loader.batch}",
            expected="at least one full batch",
            fix="add images or lower the batch size in the plan",
        )
    optimizer = torch.optim.AdamW(job.groups, lr=0.0, betas=job.betas)
    done, curve, sums = _resume(job, optimizer)
    steps = job.loader.steps * job.epochs
    peak = job.lr * job.loader.batch / 256
    job.module.train()
    waited, saved, started = 0.0, time.monotonic(), time.monotonic()
    with progress(job.name, steps, done) as shown:
        for epoch in range(done // job.loader.steps, job.epochs):
            batches = iter(job.loader.epoch(epoch, done % job.loader.steps))
            for _ in range(done % job.loader.steps, job.loader.steps):
                before = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - before
                _set_rate(optimizer, rate_at(done, steps, peak, job.warmup_fraction))
                terms = _step(job, optimizer, batch, done)
                done += 1
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value
                shown.advance(
                    loss=terms["loss"], images_s=shown.rate * job.loader.batch,
                    data_wait_pct=100 * waited / (time.monotonic() - started),
                )  # fmt: skip
                if time.monotonic() - saved > CHECKPOINT_EVERY_S and done % job.loader.steps:
                    _save(job, optimizer, done, curve, sums)
                    saved = time.monotonic()
            row = {"epoch": float(epoch + 1)} | {k: v / job.loader.steps for k, v in sums.items()}
            if job.validate is not None and (epoch + 1 == job.epochs or (epoch + 1) % max(1, job.epochs // 10) == 0):
                row["validation"] = job.validate()
                job.module.train()
            curve.append(row)
            sums = {}
            _save(job, optimizer, done, curve, sums)
            saved = time.monotonic()
    job.module.eval()
    return curve


def bf16_is_fast() -> bool:
    """Tell whether this CPU multiplies bf16 natively; on plain AVX2 autocast is 5 to 8 times slower than fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _step(job: Job, optimizer: torch.optim.Optimizer, batch: Batch, step: int) -> dict[str, float]:
    """Take one optimiser step and return the value of every term and of their sum."""
    torch.manual_seed(job.seed * 1_000_003 + step)  # stochastic depth draws from the global generator
    generator = torch.Generator().manual_seed(job.seed * 1_000_003 + step)
    with torch.autocast("cpu", torch.bfloat16, enabled=job.bf16 and bf16_is_fast()):
        terms = job.loss(batch, generator)
    total = torch.stack([t.float() for t in terms.values()]).sum()
    values = {name: float(t.detach()) for name, t in terms.items()} | {"loss": float(total.detach())}
    if not math.isfinite(values["loss"]):
        files = [job.loader.images.paths[i] for i in batch.indices[:4].tolist()]
        raise InputError(
            f"{job.name}: the loss became {values['loss']} at step {step} (terms {values}; batch begins with {files})",
            expected="a finite loss",
            fix=f"lower the learning rate; the last good checkpoint is kept at {job.checkpoint}",
        )
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], job.clip)
    optimizer.step()
    return values


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def _save(job: Job, optimizer: torch.optim.Optimizer, done: int, curve: Curve, sums: dict[str, float]) -> None:
    if job.checkpoint is None:
        return
    buffer = io.BytesIO()
    state = {
        "module": job.module.state_dict(), "optimizer": optimizer.state_dict(), "done": done, "curve": curve, "sums": sums,
    }  # fmt: skip
    torch.save(state, buffer)
    write_atomic(job.checkpoint, buffer.getvalue())


def _resume(job: Job, optimizer: torch.optim.Optimizer) -> tuple[int, Curve, dict[str, float]]:
    """Return (steps done, curve, running sums), after loading the checkpoint when there is one."""
    if job.checkpoint is None or not job.checkpoint.exists():
        return 0, [], {}
    state = torch.load(job.checkpoint, weights_only=True)
    job.module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return state["done"], state["curve"], state["sums"]
