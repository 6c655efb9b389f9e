"""Child process of `ab_test`: hold one side, run a block of it on request, and rest in between.

Speaks JSON lines: orders on stdin, answers on what was stdout when it started (libraries that print go to stderr).

    -> {"kind": "onnx", "path": ..., "engine": ..., "target": ..., "pixels_of": ...}  what to hold
    <- {"name": ..., "engine": ..., "version": ..., "precision": ..., "typical_s": ...}  it is warm
    -> {"block": 3, "runs": 20}
    <- {"idle": true}                                                               its threads are at rest
    -> {"end": true}
    <- {"ns": [...], "switches": [...], "blocks": [...], "canaries": [...]}

An order that cannot be followed is answered with {"error": {"code", "what", "expected", "fix"}}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from edgemae.device.child_process import claim_stdout
from edgemae.device.engines import ENGINES, open_session
from edgemae.device.engines.onnxruntime import input_dtype
from edgemae.device.model import load
from edgemae.device.outputs import top_classes
from edgemae.device.preprocess import preprocess
from edgemae.profiling.golden_inputs import golden_frames
from edgemae.profiling.timing.timer import LEAD_RUNS, Recorder, Run, wait_until_idle, warm
from edgemae.spec.bundle import Bundle, open_bundle
from edgemae.spec.errors import EdgemaeError
from edgemae.spec.target import Target, find_target

WARMUP_RUNS = 10
Order = Mapping[str, Any]
WorkerSetup = tuple[Run, dict[str, str]]  # what to time; name, engine and precision


def serve(makers: Mapping[str, Callable[[Order], WorkerSetup]]) -> None:
    """Follow orders until stdin ends. `makers`: kind -> a function of the first order."""
    send = claim_stdout()
    try:
        first = _order()
        run, about = makers[first["kind"]](first)
        send({**about, "typical_s": warm(run, WARMUP_RUNS)})
        wait_until_idle()
        recorder = Recorder(first["capacity"])
        while order := _order():
            if order.get("end"):
                send({name: values.tolist() for name, values in recorder.measurements().items()})
                continue
            for _ in range(LEAD_RUNS):
                run()
            for _ in range(order["runs"]):
                recorder.once(run, order["block"])
            send({"idle": wait_until_idle()})
    except EdgemaeError as error:
        send({"error": error.row})
    except BrokenPipeError:  # the parent is gone
        return


def _order() -> dict[str, Any]:
    line = sys.stdin.readline()
    order: dict[str, Any] = json.loads(line) if line else {}
    return order


# ---------------------------------------------------------------- kinds


def goal_of(order: Order, bundle: Bundle) -> Target:
    """Return the target whose threads and settings count: the one that was asked for, or the bundle's own."""
    return find_target(order["target"]) if order["target"] else bundle.manifest.target


def _bundle(order: Order) -> WorkerSetup:
    """Hold a bundle: a whole call, pixels in to result out."""
    model = load(order["path"], order["target"] or None, order["engine"])
    frames = cycle(golden_frames(open_bundle(order["pixels_of"])))
    about = {"name": model.manifest.name, "engine": model.variant.engine, "precision": model.variant.precision,
             "version": ENGINES[model.variant.engine].version() or ""}  # fmt: skip
    return lambda: model(next(frames)), about


def _onnx(order: Order) -> WorkerSetup:
    """Hold an ONNX file in ONNX Runtime, behind the pixel contract of the bundle that it is compared with."""
    bundle = open_bundle(order["pixels_of"])
    graph = Path(order["path"]).read_bytes()
    session = open_session("onnxruntime", {"graph.onnx": graph}, goal_of(order, bundle))
    dtype = input_dtype(graph)
    frames, manifest = cycle(golden_frames(bundle)), bundle.manifest

    def run() -> None:
        outputs = session(preprocess(next(frames), manifest.pixel, dtype))
        if "logits" in outputs:
            top_classes(outputs["logits"][0], manifest.labels)

    about = {"name": Path(order["path"]).stem, "engine": "onnxruntime", "precision": "as in the file"}
    return run, about | {"version": ENGINES["onnxruntime"].version() or ""}


if __name__ == "__main__":
    serve({"bundle": _bundle, "onnx": _onnx})
