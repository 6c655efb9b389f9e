"""What `model(frame)` costs beyond the bare engine call, on a ViT-Tiny at 224 px, both interleaved.

    python tools/bench_overhead.py --json tools/results/overhead.json
    python tools/bench_overhead.py --quick

The bare call is the library's own (`InferenceSession.run`, `InferRequest.infer`) on a tensor that lies ready. Frames
have the input's own size, so that no resize is counted: what is left is normalising, our session, softmax and Result,
which may cost 5 % of the engine. A second group takes 1080p frames, to show what the resize adds with either kernel.
Times are processor time of the process on one thread: wall time on a shared machine is mostly about the others.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import torch
from bench_latency import PIXEL, TINY
from numpy.typing import NDArray
from support.as_command import as_command

from edgemae.device.engines import open_session
from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.device.model import Model, load
from edgemae.device.preprocess import preprocess
from edgemae.device.selfcheck import golden_files, golden_name
from edgemae.export.to_onnx import to_onnx
from edgemae.export.uint8_input import take_uint8
from edgemae.model.vit import ViT
from edgemae.spec.bundle import write_bundle
from edgemae.spec.graph import Graph, PixelContract
from edgemae.spec.manifest import Manifest, Tolerance, Variant
from edgemae.spec.target import Target, find_target

ENGINES = ("onnxruntime", "openvino")
LIMIT = 1.05
FAST = msgspec.structs.replace(PIXEL, kernel="halve-linear")
Run = Callable[[], object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 rounds in place of 150")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    args = parser.parse_args()
    rounds = 60 if args.quick else 150
    torch.manual_seed(0)
    graph = to_onnx(ViT(TINY).eval(), PIXEL)
    target = msgspec.structs.replace(find_target("cpu-onnxruntime"), threads=1)
    cv2.setNumThreads(1)
    result: dict[str, Any] = {
        "command": shlex.join(["python", "tools/bench_overhead.py", *sys.argv[1:]]), "rounds": rounds, "limit": LIMIT,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "engines": [on_engine(engine, graph, target, rounds) for engine in ENGINES],
        "parts_us": parts(rounds), "machine": fingerprint(),
    }  # fmt: skip
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    return 0 if all(row["rows"][1]["high"] <= LIMIT for row in result["engines"]) else 1


def on_engine(engine: str, graph: Graph, target: Target, rounds: int) -> dict[str, Any]:
    """Return the ratios of whole calls to the bare call of one engine."""
    small, large = picture(224, 224), picture(1080, 1920)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        models = {
            name: held.enter_context(load(bundle(Path(folder) / name, engine, made, pixel, target)))
            for name, made, pixel in (
                ("model(frame)", graph, PIXEL),
                ("model(frame), bytes in", take_uint8(graph, PIXEL), PIXEL),
                ("model(1080p frame), halve-linear", graph, FAST),
                ("model(1080p frame), area-linear", graph, PIXEL),
            )
        }
        runs: dict[str, Run] = {"bare engine": bare(engine, graph, target)}
        runs |= {name: called(model, large if "1080p" in name else small) for name, model in models.items()}
        return {"engine": engine, "rows": compare(runs, rounds)}


def called(model: Model, frame: NDArray[np.uint8]) -> Run:
    return lambda: model(frame)


def picture(height: int, width: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)  # type: ignore[return-value]


def bare(engine: str, graph: Graph, target: Target) -> Run:
    """Return the library's own call with our settings, on a tensor that lies ready."""
    pixels = preprocess(picture(224, 224), PIXEL)
    if engine == "onnxruntime":
        import onnxruntime

        from edgemae.device.engines.onnxruntime import _options

        session = onnxruntime.InferenceSession(
            graph.onnx, _options(onnxruntime, target), providers=["CPUExecutionProvider"]
        )
        return lambda: session.run(None, {"pixels": pixels})
    from edgemae.device.engines.openvino import _options as settings
    from edgemae.device.engines.openvino import shared_core

    core = shared_core()
    request = core.compile_model(core.read_model(graph.onnx), "CPU", settings(target)).create_infer_request()
    return lambda: request.infer({0: pixels}, share_inputs=True)


def bundle(path: Path, engine: str, graph: Graph, pixel: PixelContract, target: Target) -> Path:
    """Write a bundle of one graph, whose golden output is its own."""
    frame = picture(60, 80)
    with open_session(engine, graph.files, target) as session:
        row = session(preprocess(frame, pixel, graph.io.dtype))["logits"]
    variant = Variant(engine=engine, files=("graph/fp32.onnx",), precision="fp32", golden=golden_name(f"{engine}-fp32"),
                tolerance=Tolerance(cosine_min=0.999, max_abs=1.0))  # fmt: skip
    golden, files = golden_files([frame], pixel, {variant.id: row}, dtype=graph.io.dtype)
    manifest = Manifest(
        name="overhead", version=1, created="", status="passed", target=target, io=graph.io, pixel=pixel,
        variants=(variant,), golden=golden, labels=tuple(str(i) for i in range(1000)),
    )  # fmt: skip
    return write_bundle(path.with_suffix(".edgemae"), manifest, files | {"graph/fp32.onnx": graph.onnx})


def compare(runs: dict[str, Run], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each way: its processor time, and its ratio to the first with a 95 % interval."""
    for run in runs.values():
        for _ in range(3):
            run()
    measurements: dict[str, list[int]] = {name: [] for name in runs}
    for number in range(rounds):  # forwards and backwards: what drifts, drifts for all
        for name in list(runs) if number % 2 else reversed(runs):
            start = time.process_time_ns()
            runs[name]()
            measurements[name].append(time.process_time_ns() - start)
    first = np.array(measurements[next(iter(runs))])
    rng = np.random.default_rng(0)
    rows = []
    for name, ns in measurements.items():
        ratios = np.array(ns) / first
        drawn = [float(np.median(rng.choice(ratios, len(ratios)))) for _ in range(500)]
        rows.append({"name": name, "p50_ms": float(np.median(ns)) / 1e6, "ratio": float(np.median(ratios)),
                     "low": float(np.quantile(drawn, 0.025)), "high": float(np.quantile(drawn, 0.975))})  # fmt: skip
    return rows


def parts(rounds: int) -> dict[str, float]:
    """Return the median processor time in us of what a call does around the engine."""
    from edgemae.device.outputs import top_classes
    from edgemae.device.preprocess import crop, normalise
    from edgemae.device.session import Session

    frame = picture(224, 224)
    seen, logits = crop(frame, PIXEL), np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    labels, nothing = tuple(map(str, range(1000))), Session("none", lambda pixels: {}, lambda: None)
    runs: dict[str, Run] = {
        "recolour": lambda: crop(frame, PIXEL), "normalise": lambda: normalise(seen, PIXEL),
        "session": lambda: nothing(seen), "top 5 of 1000": lambda: top_classes(logits, labels),
    }  # fmt: skip
    return {row["name"]: round(1e3 * row["p50_ms"], 1) for row in compare(runs, 5 * rounds)}


def table(result: dict[str, Any]) -> str:
    lines = ["| engine | call | processor time | of the bare engine |", "| --- | --- | ---: | --- |"]
    lines += [
        f"| {group['engine']} | {row['name']} | {row['p50_ms']:.2f} ms | {row['ratio']:.3f} "
        f"({row['low']:.3f} to {row['high']:.3f}) |"
        for group in result["engines"]
        for row in group["rows"]
    ]
    return "\n".join([*lines, f"in us: {result['parts_us']}"])


def readme_table(result: dict[str, Any]) -> str:
    """Return the table of docs/benchmarks.md: a row for each way to call, a column for each engine."""
    names = [row["name"] for row in result["engines"][0]["rows"][1:]]
    lines = ["| Call | " + " | ".join(group["engine"] for group in result["engines"]) + " |",
             "| --- |" + " ---: |" * len(result["engines"])]  # fmt: skip
    for name in names:
        rows = [next(row for row in group["rows"] if row["name"] == name) for group in result["engines"]]
        cells = (f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for row in rows)
        lines.append(f"| `{name.split(', ')[0]}`{name.partition(')')[2]} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    as_command(main)
