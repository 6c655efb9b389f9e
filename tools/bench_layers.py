"""Where the time of a ViT-Tiny goes on the CPU engines, fp32 and int8, and whether the answer holds.

    python tools/bench_layers.py --quick --json layers.json

Three things are shown for each: that the shares of two watched passes agree (points between them, of modules with at
least 5 % of the time), that the stated overhead is right (against a plain run of its own, taken later), and how much of
the time belongs to no module. The ViT has random weights: fine for speed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from bench_latency import PIXEL, TINY, pictures

from edgemae.device.engines import open_session
from edgemae.device.latency import fingerprint, measure, park
from edgemae.device.latency.machine import usable_cpus
from edgemae.device.profiling.layers import by_kind, by_module, profile_layers
from edgemae.device.profiling.record import Layers
from edgemae.export.to_onnx import to_onnx
from edgemae.model.vit import ViT, count_macs
from edgemae.quantize.calibrate import Calibration
from edgemae.quantize.schemes import SCHEMES
from edgemae.spec.errors import EdgemaeError
from edgemae.spec.sections import QuantizePlan
from edgemae.spec.target import Target, find_target

SCHEMA = "edgemae.bench-layers/1"
EIGHTS = {"onnxruntime": "ort-static", "openvino": "openvino-static"}
BIG, TOP = 0.05, 10  # share of time that makes a module a big one; modules that are printed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 plain runs instead of 200")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--threads", type=int, default=len(usable_cpus()), help="of every engine")
    args = parser.parse_args()
    target = msgspec.structs.replace(find_target("cpu-onnxruntime"), threads=args.threads)
    torch.set_num_threads(args.threads)
    results = []
    for name, engine, files in graphs():
        results.append(study(name, engine, files, target, 30 if args.quick else 200))
        print("\n".join(table(results[-1])), flush=True)
    if args.json is not None:
        found = {
            "schema": SCHEMA, "command": shlex.join(["python", *sys.argv]), "threads": args.threads,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": fingerprint() | {"torch": torch.__version__}, "results": results,
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


def study(name: str, engine: str, files: Mapping[str, bytes], target: Target, runs: int) -> dict[str, Any]:
    """Profile twice and time a plain session on its own afterwards."""
    pixels = pictures(1)
    first, second = (profile_layers(engine, files, target, pixels) for _ in range(2))
    park()
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
    overheads = " and ".join(f"{100 * overhead:+.1f} %" for overhead in result["overheads"])
    largest = max((*apart.values(), *kinds.values()), default=0.0)
    lines = [
        f"\n{result['name']}: {layers['infer_ms']:.2f} ms, machine {result['verdict']}\n",
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


def shares(layers: dict[str, Any]) -> dict[str, float]:
    """Return the kinds of module (blocks taken together) and their share of the time: attn.qkv, mlp.fc1, norm1 ..."""
    found: dict[str, float] = {}
    for row in layers["rows"]:
        kind = ".".join(part for part in row["module"].split(".")[2:]) or row["module"].split(".")[0] or "?"
        found[kind] = found.get(kind, 0.0) + row["ms"] / layers["infer_ms"]
    return dict(sorted(found.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgemaeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
