"""The one training loop: deterministic, resumable to the exact step, and honest about waiting for data.

Everything random in a step derives from (seed, step): the order of images and their views in `edgemae.data.loader`, and
torch's generator here. So a run that was killed and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import io
import logging
import math
import pickle
import time
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgemae.data.loader import Batch, Loader
from edgemae.distill.moment import Moment, whole
from edgemae.distill.schedule import rate_at
from edgemae.model.weights import write_atomic
from edgemae.spec.errors import CheckpointError, DataError, InputError
from edgemae.spec.progress import progress

log = logging.getLogger("edgemae")
CHECKPOINT_EVERY_S = 60.0
Curve = list[dict[str, float]]


@dataclass(frozen=True)
class Job:
    """State one training run. `loss(batch, moment)` returns named, weighted terms whose sum is minimised."""

    name: str
    module: nn.Module
    groups: list[dict[str, Any]]  # AdamW groups, each with a `scale` of the rate
    loss: Callable[[Batch, Moment], dict[str, Tensor]]
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
    InputError on a loss or gradient that is not finite, naming the step, the images of the batch and the last good
    checkpoint; DataError for an image that cannot be read any more; CheckpointError for another training's checkpoint.
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
    with progress(job.name, steps, done) as shown, closing(job.loader.batches(done, steps)) as batches:
        for step in range(done, steps):
            before = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - before
            _set_rate(optimizer, rate_at(step, steps, peak, job.warmup_fraction))
            terms = _step(job, optimizer, batch, step)
            sums = {name: sums.get(name, 0.0) + value for name, value in terms.items()}
            shown.advance(
                **terms, images_s=shown.rate * job.loader.batch,
                data_wait_pct=100 * waited / (time.monotonic() - started),
            )  # fmt: skip
            epoch, rest = divmod(step + 1, job.loader.steps)
            if rest == 0:
                curve.append(_row(job, epoch, sums))
                sums = {}
            if rest == 0 or time.monotonic() - saved > CHECKPOINT_EVERY_S:
                _save(job, optimizer, step + 1, curve, sums)
                saved = time.monotonic()
    job.module.eval()
    job.module.zero_grad()  # a returned model holds no gradients, which are as large as itself
    return curve


def _row(job: Job, epoch: int, sums: dict[str, float]) -> dict[str, float]:
    """Return the means of an epoch, with the validation score after every tenth of the training."""
    row = {"epoch": float(epoch)} | {name: value / job.loader.steps for name, value in sums.items()}
    if job.validate is not None and (epoch == job.epochs or epoch % max(1, job.epochs // 10) == 0):
        row["validation"] = job.validate()
        job.module.train()
    return row


def bf16_is_fast() -> bool:
    """Tell whether this CPU multiplies bf16 natively; on plain AVX2 autocast is 5 to 8 times slower than fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _step(job: Job, optimizer: torch.optim.Optimizer, batch: Batch, step: int) -> dict[str, float]:
    """Take one optimiser step and return the value of every term and of their sum."""
    moment = whole(len(batch.pixels), torch.Generator().manual_seed(job.seed * 1_000_003 + step))
    with torch.autocast("cpu", torch.bfloat16, enabled=job.bf16 and bf16_is_fast()):
        terms = job.loss(batch, moment)
    total = torch.stack([t.float() for t in terms.values()]).sum()
    values = {name: float(t.detach()) for name, t in terms.items()} | {"loss": float(total.detach())}
    _refuse_endless(job, batch, step, "loss", values["loss"], values)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], job.clip)
    # Before the weights take it in: else a checkpoint of them would be the last one.
    _refuse_endless(job, batch, step, "gradient's norm", float(norm), values)
    optimizer.step()
    return values


def _refuse_endless(job: Job, batch: Batch, step: int, what: str, value: float, terms: dict[str, float]) -> None:
    if math.isfinite(value):
        return
    files = [job.loader.images.paths[i] for i in batch.indices[:4].tolist()]
    kept = job.checkpoint is not None and job.checkpoint.exists()
    raise InputError(
        f"{job.name}: the {what} became {value} at step {step} (terms {terms}; batch begins with {files})",
        expected="finite numbers",
        fix="lower the learning rate" + (f"; the last good checkpoint is kept at {job.checkpoint}" if kept else ""),
    )


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


# ---------------------------------------------------------------- checkpoints


def _identity(job: Job) -> dict[str, Any]:
    """Return what must be the same for a checkpoint to go on from."""
    return {
        "name": job.name, "epochs": job.epochs, "batch": job.loader.batch, "seed": job.seed, "lr": job.lr,
        "values": sum(p.numel() for p in job.module.parameters()), "images": job.loader.images.fingerprint,
    }  # fmt: skip


def _save(job: Job, optimizer: torch.optim.Optimizer, done: int, curve: Curve, sums: dict[str, float]) -> None:
    if job.checkpoint is None:
        return
    buffer = io.BytesIO()
    state = {
        "job": _identity(job), "module": job.module.state_dict(), "optimizer": optimizer.state_dict(), "done": done,
        "curve": curve, "sums": sums,
    }  # fmt: skip
    torch.save(state, buffer)
    write_atomic(job.checkpoint, buffer.getvalue())


def _resume(job: Job, optimizer: torch.optim.Optimizer) -> tuple[int, Curve, dict[str, float]]:
    """Return (steps done, curve, running sums), after loading the checkpoint when there is a sound one."""
    state = None if job.checkpoint is None else _read(job.checkpoint)
    if state is None:
        return 0, [], {}
    mine = _identity(job)
    theirs = state.get("job", mine)
    wrong = [f"{name} {theirs.get(name)!r}, not {value!r}" for name, value in mine.items() if theirs.get(name) != value]
    if wrong:
        raise CheckpointError(
            f"'{job.checkpoint}' is the checkpoint of another training: {'; '.join(wrong)}",
            expected="the checkpoint of this very training, or none",
            fix="remove it to start anew, or name another file",
        )
    job.module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("%s: going on after step %d", job.name, state["done"])
    return state["done"], state["curve"], state["sums"]


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint; None when there is none or, said aloud, when it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        # torch does not look at the checksums that it writes: of 150 flipped bits it found 15.
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            bad = archive.testzip()
        if bad is None:
            return dict(torch.load(io.BytesIO(data), weights_only=True))
        reason = f"{bad} has another checksum"
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError) as error:
        reason = str(error).partition("\n")[0]
    log.warning("checkpoint '%s' is damaged (%s): this training starts anew", path, reason)
    return None
