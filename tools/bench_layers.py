"""Where the time of a ViT-Tiny goes on the CPU engines, fp32 and int8, and whether the answer holds.

    python tools/bench_layers.py --quick --json layers.json

Shown for each: that the shares of two watched passes agree (points between them, of modules with at least 5 % of the
time), that the time they are scaled to is that of a plain session on its own (taken later; within 5 %), how much of a
watched inference lies in no operator, and how much belongs to no module. And once, with whole calls interleaved: what
it costs to time the stages and to keep them. The ViT has random weights: fine for speed.

"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from bench_latency import PIXEL, TINY, pictures
from support.as_command import as_command
from support.tiny_bundles import tiny_bundle

from edgemae.device.engines import open_session
from edgemae.device.hardware.cpu_affinity import usable_cores
from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.device.model import load
from edgemae.device.outputs import top_classes
from edgemae.device.preprocess import as_bgr, preprocess
from edgemae.export.to_onnx import to_onnx
from edgemae.model.vit import ViT, count_macs
from edgemae.profiling.golden_inputs import bundle_of, golden_frames
from edgemae.profiling.layers.layer_profile import by_kind, by_module, profile_layers
from edgemae.profiling.records import Layers
from edgemae.profiling.scenarios import CALL_STAGES, Rows, stages_of
from edgemae.profiling.stats.comparison import ratio
from edgemae.profiling.timing.interference import combined_verdict
from edgemae.profiling.timing.timer import interleave, measure, wait_until_idle
from edgemae.quantize.calibrate import Calibration
from edgemae.quantize.schemes import SCHEMES
from edgemae.spec.plan_schema import QuantizePlan
from edgemae.spec.target import Target, find_target

SCHEMA = "edgemae.bench-layers/2"
AGREES = 0.05  # between the time that operators are scaled to and a plain session's
ENGINE = "onnxruntime"  # of the call whose tracing is timed
EIGHTS = {"onnxruntime": "ort-static", "openvino": "openvino-static"}
BIG, TOP = 0.05, 10  # share of time that makes a module a big one; modules that are printed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 plain runs instead of 200")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--threads", type=int, default=len(usable_cores()), help="of every engine")
    args = parser.parse_args()
    target = msgspec.structs.replace(find_target("cpu-onnxruntime"), threads=args.threads)
    torch.set_num_threads(args.threads)
    cost = tracing(target, 8 if args.quick else 40)
    print(tracing_line(cost), flush=True)
    results = []
    for name, engine, files in graphs():
        results.append(study(name, engine, files, target, 30 if args.quick else 200))
        print("\n".join(table(results[-1])), flush=True)
    if args.json is not None:
        found = {
            "schema": SCHEMA, "command": shlex.join(["python", *sys.argv]), "threads": args.threads,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": fingerprint() | {"torch": torch.__version__}, "results": results,
            "tracing": cost,
        }  # fmt: skip
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def graphs() -> Iterator[tuple[str, str, Mapping[str, bytes]]]:
    """Yield (name, engine, files) of what is studied."""
    torch.manual_seed(0)
    graph = to_onnx(ViT(TINY).eval(), PIXEL)
    for engine in EIGHTS:
        yield f"{engine} fp32", engine, graph.files
    calibration, plan = Calibration.of(pictures(32)), QuantizePlan(smooth_alphas=(-1.0,))
    for engine, scheme in EIGHTS.items():
        yield f"{engine} int8 {scheme}", engine, SCHEMES[scheme](graph, calibration, plan).files


def tracing(target: Target, rounds: int) -> dict[str, Any]:
    """Return how much longer a call takes whose stages are timed and kept, interleaved with one without."""
    with (
        tempfile.TemporaryDirectory() as folder,
        load(tiny_bundle(Path(folder) / "t.edgemae", ENGINE, target)) as model,
    ):
        (frame, *_), spans = golden_frames(bundle_of(model)), Rows(CALL_STAGES, 1)

        def bare() -> None:
            top_classes(model.session(preprocess(as_bgr(frame), model.pixel))["logits"][0], model.labels)

        measurements = interleave({"traced": lambda: spans.note(0, stages_of(model(frame))), "bare": bare}, rounds)
    found = ratio(measurements["traced"], measurements["bare"])
    return {"ratio": found.median, "low": found.low, "high": found.high, "rounds": found.rounds,
            "p50_ms": float(np.median(measurements["bare"].ns)) / 1e6,
            "verdict": combined_verdict(*(s.interference.verdict for s in measurements.values()))}  # fmt: skip


def study(name: str, engine: str, files: Mapping[str, bytes], target: Target, runs: int) -> dict[str, Any]:
    """Profile twice and time a plain session on its own afterwards."""
    pixels = pictures(1)
    first, second = (profile_layers(engine, files, target, pixels) for _ in range(2))
    wait_until_idle()
    with open_session(engine, files, target) as session:
        alone = measure(lambda: session(pixels), min_runs=runs, min_seconds=0)
    alone_ms = float(np.median(alone.ns)) / 1e6
    a, b = by_module(first), by_module(second)
    apart = {module: 100 * abs(a[module] - b.get(module, 0.0)) for module in a if a[module] >= BIG}
    kinds = by_kind(first), by_kind(second)
    macs = sum(row.macs or 0 for row in first.rows)
    return {
        "name": name, "layers": msgspec.to_builtins(first), "macs": macs, "macs_of_shape": count_macs(TINY),
        "points_apart": apart,
        "points_apart_by_kind": {k: 100 * abs(v - kinds[1].get(k, 0.0)) for k, v in kinds[0].items() if v >= BIG},
        "overheads": [first.overhead, second.overhead], "alone_ms": alone_ms,
        "infer_against_alone": [layers.infer_ms / alone_ms - 1 for layers in (first, second)],
        "agrees": all(abs(layers.infer_ms / alone_ms - 1) <= AGREES for layers in (first, second)),
        "overhead_against_alone": second.instrumented_ms / alone_ms - 1, "verdict": alone.interference.verdict,
        "modules": [module_row(first, module, share) for module, share in list(a.items())[:TOP]],
    }  # fmt: skip


def module_row(layers: Layers, module: str, share: float) -> dict[str, Any]:
    """Return one module: its time, what it computes, and its share of the limit, weighted by the time of its rows."""
    rows = [row for row in layers.rows if row.module == module]
    ms = sum(row.ms for row in rows)
    placed = sum(row.ms for row in rows if row.limit_share is not None)
    reached = sum(row.ms * row.limit_share for row in rows if row.limit_share is not None)
    return {
        "module": module, "share": share, "ms": ms, "mmacs": sum(row.macs or 0 for row in rows) / 1e6,
        "limit_share": reached / placed if placed else None, "kinds": sorted({row.kind for row in rows}),
    }  # fmt: skip


def table(result: dict[str, Any]) -> list[str]:
    """Return one study as Markdown."""
    layers, apart, kinds = result["layers"], result["points_apart"], result["points_apart_by_kind"]
    peaks = ", ".join(f"{kind} {peak:.0f} GMAC/s" for kind, peak in layers["peak_gmacs"].items())
    beside = " and ".join(f"{100 * apart:+.1f} %" for apart in result["infer_against_alone"])
    agrees = "within" if result["agrees"] else "NOT within"
    overheads = " and ".join(f"{100 * overhead:+.1f} %" for overhead in result["overheads"])
    largest = max((*apart.values(), *kinds.values()), default=0.0)
    lines = [
        f"\n{result['name']}: {layers['infer_ms']:.2f} ms, machine {result['verdict']}\n",
        f"- scaled to {beside} of a plain session on its own: {agrees} {100 * AGREES:.0f} %",
        f"- operators hold {100 * layers['covered']:.0f} % of a watched inference; this pass was {layers['verdict']}",
        f"- overhead {overheads} in two passes, {100 * result['overhead_against_alone']:+.1f} % by a plain run",
        f"- unmapped {100 * layers['unmapped_share']:.1f} % of the time",
        f"- {result['macs'] / 1e6:.1f} M MACs, the shape has {result['macs_of_shape'] / 1e6:.1f} M",
        f"- two passes: at most {largest:.1f} points apart, modules and kinds of {100 * BIG:.0f} % and more",
        f"- limits: {peaks}; memory {layers['peak_gbytes']:.1f} GB/s",
        f"- by kind: {', '.join(f'{kind} {100 * share:.0f} %' for kind, share in shares(layers).items())}",
        "",
        "| module | share % | ms | MMACs | % of limit |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in result["modules"]:
        limit = "" if row["limit_share"] is None else f"{100 * row['limit_share']:.0f}"
        lines.append(
            f"| {row['module'] or '?'} | {100 * row['share']:.1f} | {row['ms']:.3f} | {row['mmacs']:.1f} | {limit} |"
        )
    return lines


def tracing_line(cost: dict[str, Any]) -> str:
    return (
        f"Timing the stages of a call and keeping them makes it {cost['ratio']:.4f} times as long ({cost['low']:.4f} "
        f"to {cost['high']:.4f}, {cost['rounds']} interleaved rounds, a call of {cost['p50_ms']:.1f} ms, "
        f"{cost['verdict']})."
    )


def readme_table(found: dict[str, Any]) -> str:
    """Return all studies as one Markdown table."""
    head = ("ViT-Tiny in", "ms", "beside a plain run", "watching costs", "in operators", "not mapped",
            "two passes apart", "machine")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"]
    for row in found["results"]:
        layers, apart = row["layers"], (*row["points_apart"].values(), *row["points_apart_by_kind"].values())
        lines.append(
            f"| {row['name']} | {layers['infer_ms']:.2f} | {100 * row['infer_against_alone'][0]:+.1f} % | "
            f"{100 * layers['overhead']:+.0f} % | {100 * layers['covered']:.0f} % | "
            f"{100 * layers['unmapped_share']:.1f} % | {max(apart, default=0.0):.1f} points | {row['verdict']} |"
        )
    return "\n".join([*lines, "", tracing_line(found["tracing"])])


def shares(layers: dict[str, Any]) -> dict[str, float]:
    """Return the kinds of module (blocks taken together) and their share of the time: attn.qkv, mlp.fc1, norm1 ..."""
    found: dict[str, float] = {}
    for row in layers["rows"]:
        kind = ".".join(part for part in row["module"].split(".")[2:]) or row["module"].split(".")[0] or "?"
        found[kind] = found.get(kind, 0.0) + row["ms"] / layers["infer_ms"]
    return dict(sorted(found.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    as_command(main)
