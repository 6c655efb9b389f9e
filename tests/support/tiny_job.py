"""A job that is small enough to be done whole: images of two shapes, a plan of single epochs, the command line."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import msgspec
import numpy as np
import pytest

from edgemae.device.hardware.cpu_features import isa_class

if TYPE_CHECKING:
    from edgemae.model.vit import ViT

CLASSES = ("circle", "square")
PLAN = """
name = "shapes"
workers = 0
threads = 1
[teacher]
image_px = 32
patch_px = 8
width = 32
depth = 2
heads = 2
head_dim = 16
[student]
image_px = 32
patch_px = 8
width = 32
depth = 1
heads = 2
head_dim = 16
[pretrain]
epochs = 1
batch = 16
decoder_width = 16
decoder_heads = 2
[finetune]
epochs = 1
batch = 16
[distill]
epochs = 1
batch = 16
decoder_width = 16
decoder_heads = 2
[distill.finetune]
epochs = 1
batch = 16
[prune]
steps = 1
score_batches = 2
[quantize.qat]
epochs = 1
batch = 16
[prune.heal]
epochs = 1
batch = 16
[quantize]
calibration_images = 32
smooth_alphas = [-1.0]
schemes = []
"""
TARGET = """
name = "{name}"
title = "the machine of the tests"
engines = {engines}
precisions = {precisions}
arch = "{arch}"
isa = "{isa}"
threads = 1
width_multiple = 16
memory_mib = 1024
compute_capability = "8.9"
source = "made up"
"""


def write_shapes(folder: Path, per_class: int, seed: int, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write `per_class` images of a disc and of a box in random colours; without classes a flat folder of both."""
    rng = np.random.default_rng(seed)
    for k, name in enumerate(classes or ("", "")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            frame_bgr = np.full((28, 36, 3), rng.integers(0, 60, 3), np.uint8)
            x, y = (int(v) for v in rng.integers(9, 19, 2))
            color = tuple(int(v) for v in rng.integers(120, 255, 3))
            if k % 2:
                cv2.rectangle(frame_bgr, (x - 6, y - 6), (x + 6, y + 6), color, -1)
            else:
                cv2.circle(frame_bgr, (x, y), 6, color, -1)
            assert cv2.imwrite(str(folder / name / f"{k}-{i:03d}.png"), frame_bgr)
    return folder


def write_target(
    path: Path, engines: tuple[str, ...] = ("onnxruntime",), precisions: tuple[str, ...] = ("int8", "fp32")
) -> Path:
    """Write a target file for this very machine, so that its latencies count."""
    text = TARGET.format(
        name=path.stem, engines=json.dumps(engines), precisions=json.dumps(precisions), isa=isa_class(),
        arch=platform.machine().lower().replace("amd64", "x86_64"),
    )  # fmt: skip
    path.write_text(text)
    return path


@dataclass(frozen=True)
class Job:
    """A tiny job on disk: images in two labelled halves, more without labels, a plan, a target for this machine."""

    root: Path

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def val(self) -> Path:
        return self.root / "val"

    @property
    def flat(self) -> Path:
        return self.root / "flat"

    @property
    def plan(self) -> Path:
        return self.root / "plan.toml"

    @property
    def target(self) -> Path:
        return self.root / "box.toml"

    @property
    def output(self) -> Path:
        """Folder of the one compile that all tests share; `compiled` fills it."""
        return self.root / "out"

    @property
    def bundle(self) -> Path:
        return self.output / "shapes.edgemae"

    @property
    def work(self) -> tuple[object, ...]:
        """Arguments that every verb with a plan takes."""
        return ("--plan", self.plan, "--data", self.train, "--eval-data", self.val)


def write_job(root: Path) -> Job:
    """Write everything that `Job` names, but its output."""
    job = Job(root)
    write_shapes(job.train, 24, seed=1)
    write_shapes(job.val, 12, seed=2)
    write_shapes(job.flat, 20, seed=3, classes=())
    job.plan.write_text(PLAN)
    write_target(job.target, ("onnxruntime", "openvino"))
    return job


def meta_pth(path: Path) -> Path:
    """Write a checkpoint as Meta's MAE code does: encoder and decoder, under 'model', without the number of heads."""
    import torch

    from edgemae.model.mae import MAE, DecoderShape
    from edgemae.model.vit import ViT, ViTShape

    torch.manual_seed(5)
    shape = ViTShape.uniform(image_px=32, patch_px=8, width=32, depth=2, heads=2, cls_token=True, norm_after_pool=False)
    mae = MAE(ViT(shape), DecoderShape(16, 1, 2), loss_kind="norm-pixel", mean=(0.5,) * 3, std=(0.5,) * 3)
    renamed = {"cls": "cls_token", "pos": "pos_embed", "patch_embed.weight": "patch_embed.proj.weight",
               "patch_embed.bias": "patch_embed.proj.bias"}  # fmt: skip
    tensors = {renamed.get(name, name): value for name, value in mae.encoder.state_dict().items()}
    spelled = {"embed": "decoder_embed", "mask_token": "mask_token", "pos": "decoder_pos_embed",
               "blocks": "decoder_blocks", "norm": "decoder_norm", "pred": "decoder_pred"}  # fmt: skip
    for name, value in mae.decoder.state_dict().items():
        first, _, rest = name.partition(".")
        tensors[spelled[first] + (f".{rest}" if rest else "")] = value
    torch.save({"model": tensors, "epoch": 800}, path)
    return path


def write_weave(folder: Path, count: int, seed: int) -> Path:
    """Write a flat folder of 64 px images of one woven cloth: its threads never lie twice at the same place."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        assert cv2.imwrite(str(folder / f"{i:03d}.png"), weave(rng))
    return folder


def weave(rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return one 64 px image of a cloth, BGR."""
    row, column = np.mgrid[:64, :64]
    down, across = rng.uniform(0, 6.28, 2)
    gray = 128 + 40 * np.sin(0.55 * column + across) * np.cos(0.55 * row + down) + rng.normal(0, 6, (64, 64))
    return np.clip(gray[:, :, None] * (0.8, 0.9, 1.0), 0, 255).astype(np.uint8)


def write_bundle_of(path: Path, vit: ViT, folder: Path, *, tokens: bool = True, **changes: Any) -> Path:
    """Write a bundle of a model as it is, with the float graph and int8 for ONNX Runtime; golden frames from a folder.

    `changes` are fields of the manifest.
    """
    from edgemae.data.image_set import scan
    from edgemae.export.to_onnx import to_onnx
    from edgemae.pipeline.candidate_graphs import Candidate, calibration_of
    from edgemae.pipeline.packaging import pack
    from edgemae.pipeline.selection import Choice
    from edgemae.pipeline.stage_files import graph_digest
    from edgemae.quantize.calibrate import Calibration
    from edgemae.quantize.schemes import SCHEMES
    from edgemae.spec.bundle import write_bundle
    from edgemae.spec.graph import PixelContract
    from edgemae.spec.manifest import Manifest
    from edgemae.spec.plan_schema import QuantizePlan
    from edgemae.spec.target import find_target

    pixel = PixelContract(image_px=vit.shape.image_px)
    images, target = scan(folder), find_target("cpu-onnxruntime")
    graph = to_onnx(vit, pixel, tokens=tokens)
    calibration = Calibration.of(calibration_of(images, pixel, 0).images)
    both = (graph, SCHEMES["ort-static"](graph, calibration, QuantizePlan(smooth_alphas=(0.5,))))
    choices = [Choice(Candidate("onnxruntime", g, "explicit", graph_digest(g)), "made for tests") for g in both]
    packed = pack(choices, target, pixel, images, seed=0)
    facts: dict[str, Any] = {
        "name": "weave", "version": 1, "created": "2025-01-01T00:00:00Z", "status": "passed", "target": target,
        "io": graph.io, "pixel": pixel, "variants": packed.variants, "golden": packed.golden,
    }  # fmt: skip
    return write_bundle(path, Manifest(**(facts | changes)), packed.files)


@dataclass(frozen=True)
class Ran:
    """What one command left on its streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return the one JSON value that stdout must be."""
        return json.loads(self.out)


def edgemae(*arguments: object, draw: bool = False) -> Ran:
    """Run the command line in this process as `main` does, but with short latencies; without `draw` plots are blank."""
    from edgemae.cli import app
    from edgemae.cli.exit_codes import (
        run_app,
    )

    out, err = io.StringIO(), io.StringIO()
    with _restored(), _shortened(draw), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = ["edgemae", *map(str, arguments)]
        code = run_app(app)
    return Ran(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _shortened(draw: bool) -> Iterator[None]:
    """Leave out what only takes time: 16 plots are half of a finished compile, 12 rounds of 40 ms most of the rest."""
    from edgemae.evaluation.report import plots
    from edgemae.profiling.compare import graph_benchmark
    from edgemae.profiling.timing.timer import interleave

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_benchmark, "ROUNDS", 8)  # the fewest that an interval can be made of
        patch.setattr(graph_benchmark, "interleave", _quiet(partial(interleave, block_ms=4.0)))
        if not draw:
            patch.setattr(plots, "png", lambda sheet: cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes())
        yield


def _quiet(take: Callable[..., Any]) -> Callable[..., Any]:
    """Call each measurement TRUSTED: what a compile does with a busy machine has tests of its own."""

    def trusted(*given: Any) -> Any:
        return {
            name: replace(s, interference=msgspec.structs.replace(s.interference, verdict="TRUSTED", reasons=()))
            for name, s in take(*given).items()
        }

    return trusted


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Put back what a command changes for its process: arguments, log handlers and levels."""
    argv, root, ours = sys.argv, logging.getLogger(), logging.getLogger("edgemae")
    handlers, level, own_level = root.handlers[:], root.level, ours.level
    root.handlers[:] = []  # or the command would close them
    try:
        yield
    finally:
        sys.argv = argv
        root.handlers[:] = handlers
        root.setLevel(level)
        ours.setLevel(own_level)


def parts(text: str) -> list[str]:
    """Return the lines of a three-part message, without its labels. Fails for anything else on stderr."""
    lines = text.rstrip("\n").split("\n")
    assert len(lines) == 3, text
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  expected: ")
    assert lines[2].startswith("  fix: ")
    return [line.split(": ", 1)[1] for line in lines]


def stage(output: Path, name: str) -> Path:
    (folder,) = (path for path in (output / "stages").glob(f"{name}-*") if path.name.rpartition("-")[0] == name)
    return folder
