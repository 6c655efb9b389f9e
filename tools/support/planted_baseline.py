"""Child process of tools/bench_trust.py: an engine's call made slower by an exact share of itself."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from edgemae.device.engines import open_session
from edgemae.profiling.compare.ab_worker import Order, WorkerSetup, serve
from edgemae.spec.target import find_target


def hold(order: Order) -> WorkerSetup:
    """Hold a graph; `slower` 0.05 spins for 5 % of each call's own duration after it."""
    job = json.loads(order["path"])
    session = open_session(job["engine"], {"graph.onnx": Path(job["graph"]).read_bytes()}, find_target(order["target"]))
    pixels = np.zeros((1, 3, job["px"], job["px"]), np.float32)
    share = job["slower"]

    def run() -> None:
        start = time.perf_counter_ns()
        session(pixels)
        took = time.perf_counter_ns() - start
        end = start + took + int(share * took)
        while time.perf_counter_ns() < end:
            pass

    return run, {"name": f"{share:.0%} slower", "engine": job["engine"], "precision": "fp32"}


if __name__ == "__main__":
    serve({"planted": hold})
