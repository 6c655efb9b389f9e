"""A bundle with the graph of a ViT-Tiny with random weights, for benchmarks: fine for speed, right in nothing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from bench_latency import PIXEL, TINY

from edgemae.device.engines import open_session
from edgemae.device.preprocess import preprocess
from edgemae.device.selfcheck import golden_files, golden_name
from edgemae.export.to_onnx import to_onnx
from edgemae.model.vit import ViT
from edgemae.spec.bundle import write_bundle
from edgemae.spec.manifest import Manifest, Tolerance, Variant
from edgemae.spec.target import Target

GRAPH = "graph/fp32.onnx"


def tiny_bundle(path: Path, engine: str, target: Target) -> Path:
    """Write a bundle with one variant in fp32 and two golden frames; return where it lies."""
    torch.manual_seed(0)
    graph = to_onnx(ViT(TINY).eval(), PIXEL)
    (data,) = graph.files.values()
    rng = np.random.default_rng(0)
    frames = [cv2.resize(rng.integers(0, 256, (14, 14, 3), np.uint8), (320, 240)) for _ in range(2)]
    with open_session(engine, {GRAPH: data}, target) as session:
        rows = np.concatenate([session(preprocess(frame, PIXEL))["logits"] for frame in frames])  # type: ignore[arg-type]
    tolerance = Tolerance(cosine_min=0.999, max_abs=1e-3)
    variant = Variant(engine=engine, files=(GRAPH,), precision="fp32", golden=golden_name(f"{engine}-fp32"),
                tolerance=tolerance)  # fmt: skip
    golden, files = golden_files(frames, PIXEL, {variant.id: rows})  # type: ignore[arg-type]
    manifest = Manifest(
        name=path.stem, version=1, created="2026-01-01T00:00:00Z", status="passed", target=target, pixel=PIXEL,
        io=graph.io, variants=(variant,), golden=golden, labels=tuple(map(str, range(TINY.classes))),
    )  # fmt: skip
    return write_bundle(path, manifest, {GRAPH: data, **files})
