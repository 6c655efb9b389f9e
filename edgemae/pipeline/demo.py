"""The main job on scikit-learn's bundled handwritten digits: 1,797 images of 8x8 pixels, shown at 32x32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgemae.pipeline.compile import CompileResult, compile_bundles
from edgemae.pipeline.stage_cache import StageCache
from edgemae.spec.errors import MachineError
from edgemae.spec.plan_loading import load_plan
from edgemae.spec.target import Target

PX = 32
# Sized for two cores: about 4 minutes from images to bundle on a processor with plain AVX2.
PLAN: dict[str, Any] = {
    "name": "digits",
    "workers": 0,
    "threads": 2,
    "teacher.image_px": PX, "teacher.patch_px": 4, "teacher.channels": 1,
    "teacher.width": 96, "teacher.depth": 4, "teacher.heads": 3, "teacher.head_dim": 32,
    "student.image_px": PX, "student.patch_px": 4, "student.channels": 1,
    "student.width": 64, "student.depth": 3, "student.heads": 4, "student.head_dim": 16,
    "pretrain.loss": "bce", "pretrain.epochs": 30, "pretrain.batch": 64, "pretrain.lr": 4e-3, "pretrain.flip": False,
    "pretrain.crop_min": 0.6, "pretrain.decoder_width": 64, "pretrain.decoder_heads": 2,
    "finetune.epochs": 14, "finetune.batch": 64, "finetune.lr": 4e-3,
    "finetune.flip": False, "finetune.crop_min": 0.6,
    "distill.epochs": 20, "distill.batch": 64, "distill.lr": 4e-3, "distill.flip": False, "distill.crop_min": 0.6,
    "distill.decoder_width": 64, "distill.decoder_heads": 2,
    "distill.finetune.epochs": 16, "distill.finetune.batch": 64, "distill.finetune.lr": 6e-3,
    "distill.finetune.flip": False, "distill.finetune.crop_min": 0.6, "distill.finetune.layer_decay": 1.0,
    "prune.keep_macs": 0.85, "prune.steps": 2, "prune.heal.epochs": 3, "prune.heal.batch": 64,
    "prune.heal.lr": 2e-3, "prune.heal.flip": False, "prune.heal.crop_min": 0.6,
}  # fmt: skip


def run_demo(
    output: Path, target: Target, overrides: tuple[str, ...] = (), seed: int | None = None, *,
    overwrite: bool = False, resume: bool = False,
) -> CompileResult:  # fmt: skip
    """Write the digits as image folders and compile them: training half in, test half judges."""
    at: dict[str, Any] = {"overwrite": overwrite, "resume": resume}
    folders = {"data.train": str(output / "images" / "train"), "data.eval": str(output / "images" / "test")}
    plan = load_plan(None, overrides, {**PLAN, **folders, "seed": seed})
    StageCache(output, **at)  # refuses somebody else's folder before anything is written
    write_digits(output / "images")
    return compile_bundles(plan, [target], None, output, resume=resume)[0]


def write_digits(folder: Path) -> None:
    """Write train/<digit>/*.png and test/<digit>/*.png, every second image of each digit in the test half.

    They appear all at once: a run that was killed, or that ran out of disk, leaves no half of them behind.
    """
    if folder.is_dir():
        return
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MachineError(
            "scikit-learn is not installed, and the demo uses its bundled digits",
            expected="the build extra",
            fix="pip install 'edgemae[build]'",
        ) from error
    images, labels = load_digits(return_X_y=True)
    seen = dict.fromkeys(range(10), 0)
    part = folder.with_name(f"{folder.name}.part")
    for image, label in zip(images, labels, strict=True):
        number = seen[int(label)]
        seen[int(label)] += 1
        path = part / ("test" if number % 2 else "train") / str(label) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = np.round(image.reshape(8, 8) * (255 / 16)).astype(np.uint8)
        large = cv2.resize(small, (PX, PX), interpolation=cv2.INTER_CUBIC)
        path.write_bytes(cv2.imencode(".png", large)[1].tobytes())  # cv2.imwrite says nothing about a full disk
    part.rename(folder)
