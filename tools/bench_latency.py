"""Latency of one ViT through every engine and precision of this machine, interleaved with torch eager.

    python tools/bench_latency.py --quick --json latency.json
    python tools/bench_latency.py --bundle my.edgemae

The ViT has random weights: fine for speed, meaningless for accuracy. A ratio above 1 is faster than the reference.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from support.as_command import as_command

from edgemae.device.engines import ENGINES, open_session
from edgemae.device.hardware.cpu_affinity import usable_cores
from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.device.preprocess import preprocess
from edgemae.export.to_onnx import ATTENTION_FORMS, to_onnx
from edgemae.model.vit import ViT, ViTShape
from edgemae.profiling.stats.comparison import ratio
from edgemae.profiling.stats.percentiles import summarise
from edgemae.profiling.timing.interference import combined_verdict
from edgemae.profiling.timing.timer import Samples, interleave
from edgemae.quantize.calibrate import Calibration
from edgemae.quantize.schemes import ENGINE_SCHEMES, SCHEMES
from edgemae.spec.bundle import open_bundle
from edgemae.spec.errors import EdgemaeError
from edgemae.spec.graph import Graph, PixelContract
from edgemae.spec.plan_schema import QuantizePlan
from edgemae.spec.target import Target, find_target

SCHEMA = "edgemae.bench-latency/1"
EAGER = "torch eager fp32"
CPU_ENGINES = ("onnxruntime", "openvino")
PIXEL = PixelContract(image_px=224)
TINY = ViTShape.uniform(image_px=224, patch_px=16, width=192, depth=12, heads=3, classes=1000)
Run = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    rounds: int
    calibration_images: int


QUICK, FULL = Effort(rounds=10, calibration_images=32), Effort(rounds=40, calibration_images=64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 rounds instead of 40")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--bundle", type=Path, help="also compare all graphs of this bundle with each other")
    parser.add_argument("--threads", type=int, default=len(usable_cores()), help="of torch and of every engine")
    args = parser.parse_args()
    effort = QUICK if args.quick else FULL
    target = msgspec.structs.replace(find_target("cpu-onnxruntime"), threads=args.threads)
    torch.set_num_threads(args.threads)
    groups = [vit_tiny(target, effort)]
    if args.bundle is not None:
        groups.append(bundle(args.bundle, target, effort))
    result = {
        "schema": SCHEMA, "command": shlex.join(["python", *sys.argv]), "threads": args.threads,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": fingerprint() | {"torch": torch.__version__}, "groups": groups,
    }  # fmt: skip
    for group in groups:
        print("\n".join(table(group)))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def vit_tiny(target: Target, effort: Effort) -> dict[str, Any]:
    """Measure a random ViT-Tiny/16 at 224 px: torch eager, both attention forms, every int8 scheme."""
    torch.manual_seed(0)
    vit = ViT(TINY).eval()
    pixels = pictures(1)
    tensor = torch.from_numpy(pixels)

    def eager() -> None:
        with torch.inference_mode():
            vit(tensor)

    runs: dict[str, Run] = {EAGER: eager}
    skipped: dict[str, str] = {}
    with ExitStack() as sessions:
        for name, engine, graph in tiny_graphs(vit, effort):
            try:
                session = sessions.enter_context(open_session(engine, graph.files, target))
            except EdgemaeError as error:
                skipped[name] = error.what
                continue
            runs[name] = lambda session=session: session(pixels)
        measurements = interleave(runs, effort.rounds)
    return group_of("ViT-Tiny/16, 224 px, batch 1", EAGER, measurements, skipped)


def tiny_graphs(vit: ViT, effort: Effort) -> Iterator[tuple[str, str, Graph]]:
    """Yield (name, engine, graph) of everything to compare."""
    forms = {form: to_onnx(vit, PIXEL, attention=form) for form in ATTENTION_FORMS}
    for engine in CPU_ENGINES:
        for form, graph in forms.items():
            yield f"{engine} fp32 {form}", engine, graph
    calibration = Calibration.of(pictures(effort.calibration_images))
    for engine in CPU_ENGINES:
        for scheme in ENGINE_SCHEMES[engine] if ENGINES[engine].version() is not None else ():
            print(f"quantizing: {scheme}", file=sys.stderr)
            yield f"{engine} int8 {scheme}", engine, SCHEMES[scheme](forms["explicit"], calibration, QuantizePlan())


def bundle(path: Path, target: Target, effort: Effort) -> dict[str, Any]:
    """Measure every variant of a bundle that runs here; the reference is its first float one, else its first."""
    opened = open_bundle(path)
    pixel, variants = opened.manifest.pixel, opened.manifest.variants
    pixels = preprocess(np.zeros((pixel.image_px, pixel.image_px, 3), np.uint8), pixel)
    runs: dict[str, Run] = {}
    skipped: dict[str, str] = {}
    with ExitStack() as sessions:
        for variant in variants:
            try:
                session = sessions.enter_context(open_session(variant.engine, opened.variant_files(variant), target))
            except EdgemaeError as error:
                skipped[variant.id] = error.what
                continue
            runs[variant.id] = lambda session=session: session(pixels)
        float_variants = [variant.id for variant in variants if variant.id in runs and variant.precision == "fp32"]
        measurements = interleave(runs, effort.rounds)
    reference = (float_variants or list(runs) or [""])[0]
    return group_of(f"bundle {opened.manifest.name} {opened.manifest.version}", reference, measurements, skipped)


def group_of(title: str, reference: str, measurements: dict[str, Samples], skipped: dict[str, str]) -> dict[str, Any]:
    """Return one comparison, JSON-ready."""
    rows = []
    for name, samples in measurements.items():
        gain = ratio(measurements[reference], samples)
        rows.append(
            {
                "name": name, **msgspec.to_builtins(summarise(samples.ns)), "ratio": gain.median,
                "ratio_low": gain.low, "ratio_high": gain.high, "different": gain.different, "rounds": gain.rounds,
                "interference": msgspec.to_builtins(samples.interference),
            }
        )  # fmt: skip
    verdict = combined_verdict(*(samples.interference.verdict for samples in measurements.values()))
    return {"title": title, "reference": reference, "verdict": verdict, "rows": rows, "skipped": skipped}


def table(group: dict[str, Any]) -> list[str]:
    """Return a comparison as a Markdown table."""
    lines = [
        f"\n{group['title']}: machine {group['verdict']}\n",
        f"| | p50 ms | p90 ms | runs | times as fast as {group['reference']} | 95 % interval |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in group["rows"]:
        p90 = f"needs {row['withheld']['p90']} runs" if row["p90_ms"] is None else f"{row['p90_ms']:.2f}"
        lines.append(
            f"| {row['name']} | {row['p50_ms']:.2f} | {p90} | {row['n']} | {row['ratio']:.2f} | "
            f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f} |"
        )
    return lines + [f"| {name} | not run: {reason} | | | | |" for name, reason in group["skipped"].items()]


def pictures(count: int) -> NDArray[np.float32]:
    """Return smooth random pictures as tensors (count, 3, 224, 224): calibration refuses plain noise."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (14, 14, 3), np.uint8) for _ in range(count)]
    frames = [cv2.resize(small, (224, 224), interpolation=cv2.INTER_CUBIC) for small in coarse]
    return np.concatenate([preprocess(frame, PIXEL) for frame in frames])  # type: ignore[arg-type]


if __name__ == "__main__":
    as_command(main)
