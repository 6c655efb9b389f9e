"""Training from picture files for bench_train.py: our loader and loop, and the way most people write it."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from support.train_baselines import MAKERS, SHORT, THEIRS, Candidate, Case
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgemae.data.augment import Augment, crop_box
from edgemae.data.image_set import ImageSet, scan
from edgemae.data.loader import Batch, Loader
from edgemae.spec.graph import PixelContract
from edgemae.train.distributed import bf16_is_fast
from edgemae.train.job import Job
from edgemae.train.loop import fit
from edgemae.train.schedule import param_groups
from edgemae.train.step_context import whole

WORKERS = 2
LEAD_STEPS = 5  # not counted: workers start, buffers fill, memory grows


@dataclass
class Clock:
    """Note when each batch was asked for and how long it took to come."""

    asked_s: list[float] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)
    end_s: float = 0.0

    def watch(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        try:
            while True:
                began = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    return
                self.asked_s.append(began)
                self.waited_s.append(time.perf_counter() - began)
                yield batch
        finally:
            self.end_s = time.perf_counter()
            batches.close()

    def result(self, batch: int) -> dict[str, float]:
        """Return images/s and the share of waiting, both after the first steps; what the start cost, by itself."""
        steps, total_s = len(self.asked_s) - LEAD_STEPS, self.end_s - self.asked_s[LEAD_STEPS]
        return {
            "images_s": steps * batch / total_s, "wait_share": sum(self.waited_s[LEAD_STEPS:]) / total_s,
            "first_batch_s": self.waited_s[0], "steps": steps,
        }  # fmt: skip


@dataclass(frozen=True)
class Watched(Loader):
    """Be a Loader under a clock, so that `fit` is timed from outside, as it is."""

    clock: Clock = field(default_factory=Clock)

    def batches(self, first: int, stop: int) -> Generator[Batch, None, None]:
        return self.clock.watch(super().batches(first, stop))


def from_files(name: str, case: Case, folder: Path, steps: int) -> dict[str, Any]:
    """Train at least `steps` steps from files with two workers, both in bf16 where the processor is fast in it."""
    images = scan(folder)
    torch.manual_seed(0)
    kind = torch.bfloat16 if bf16_is_fast(torch.device("cpu")) else torch.float32
    candidate, clock = MAKERS[name](case, kind), Clock()
    loader = Watched(
        images, case.pixel, case.batch, Augment(crop_min=0.2, flip=True), workers=WORKERS, clock=clock
    )  # fmt: skip
    epochs = -(-(steps + LEAD_STEPS) // loader.steps)
    if name == THEIRS:
        plain_loop(candidate, clock.watch(plain_batches(images, case, epochs)), kind)
    else:
        fit(Job(
            name=name, module=candidate.module, groups=param_groups(candidate.module, 0.05), loss=candidate.loss,
            loader=loader, epochs=epochs, lr=1e-5, warmup_fraction=0.1, seed=0, all_used=False,
        ))  # fmt: skip
    return clock.result(case.batch) | {"precision": SHORT[kind]}


# ---------------------------------------------------------------- as most people write it


class Photos(Dataset[Tensor]):
    """Decode, random crop, flip and normalise one picture at a time."""

    def __init__(self, images: ImageSet, pixel: PixelContract) -> None:
        self.images, self.pixel = images, pixel
        self.mean, self.std = np.array(pixel.mean, np.float32), np.array(pixel.std, np.float32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(0, 2**31, ())))
        frame = cv2.cvtColor(np.asarray(cv2.imread(self.images.paths[index])), cv2.COLOR_BGR2RGB)
        top, left, h, w = crop_box(frame.shape[0], frame.shape[1], 0.2, rng)
        view = cv2.resize(frame[top : top + h, left : left + w], (self.pixel.image_px,) * 2)
        if rng.random() < 0.5:
            view = view[:, ::-1]
        return torch.from_numpy(((view / np.float32(255) - self.mean) / self.std).transpose(2, 0, 1).copy())


def plain_batches(images: ImageSet, case: Case, epochs: int) -> Generator[Batch, None, None]:
    cv2.setNumThreads(1)  # the workers are forks, and OpenCV's threads do not survive one
    loader = DataLoader(
        Photos(images, case.pixel), case.batch, shuffle=True, drop_last=True, num_workers=WORKERS,
        persistent_workers=True,
    )  # fmt: skip
    labels = torch.full((case.batch,), -1)
    for _ in range(epochs):
        for pixels in loader:
            yield Batch(pixels, labels, labels)


def plain_loop(candidate: Candidate, batches: Generator[Batch, None, None], kind: torch.dtype) -> None:
    candidate.module.train()
    optimizer = torch.optim.AdamW(param_groups(candidate.module, 0.05), lr=1e-5, betas=(0.9, 0.95), fused=True)
    generator = torch.Generator()
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            loss = candidate.loss(batch, whole(len(batch.pixels), generator))["pixel"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(candidate.module.parameters(), 3.0)
        optimizer.step()


# ---------------------------------------------------------------- pictures


def pictures(folder: Path, count: int) -> Path:
    """Write smooth noise with some grain as JPEGs of 160 to 256 px, every fourth turned by its EXIF tag."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        height, width = (int(side) for side in rng.integers(160, 257, 2))
        coarse = rng.integers(0, 256, (int(rng.integers(4, 40)), int(rng.integers(4, 40)), 3), np.uint8)
        frame = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        frame = np.clip(frame + rng.integers(-12, 13, frame.shape), 0, 255).astype(np.uint8)
        data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        (folder / f"{number:04d}.jpg").write_bytes(turned(data) if number % 4 == 0 else data)
    return folder


def turned(jpeg: bytes) -> bytes:
    """Return a JPEG whose EXIF tag says orientation 6: a quarter turn."""
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    body = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]
