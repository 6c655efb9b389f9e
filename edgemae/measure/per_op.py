"""Where the time of a graph goes, operator by operator: the evidence when int8 gains less than expected.

Instrumented times are longer than real ones (1.1x to 1.5x on small ViTs), so only shares are reported.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.device.engines.openvino import silence_telemetry
from edgemae.spec.target import Target

RUNS = 40


def per_op(engine: str, files: Mapping[str, bytes], target: Target, pixels: NDArray[np.float32]) -> dict[str, float]:
    """Return the share of time (0..1) of each operator type, largest first. Engines: see PROFILERS."""
    times = PROFILERS[engine](files, target, pixels)
    total = sum(times.values()) or 1.0
    return {op: round(ms / total, 4) for op, ms in sorted(times.items(), key=lambda row: -row[1])}


def _onnxruntime(files: Mapping[str, bytes], target: Target, pixels: NDArray[np.float32]) -> dict[str, float]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = target.threads, 1
    options.enable_profiling, options.log_severity_level = True, 3
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "trace")
        session = ort.InferenceSession(next(iter(files.values())), options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, {session.get_inputs()[0].name: pixels})
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]] += event["dur"] / 1e3
    return times


def _openvino(files: Mapping[str, bytes], target: Target, pixels: NDArray[np.float32]) -> dict[str, float]:
    silence_telemetry()
    import openvino as ov

    parts = {Path(name).suffix: data for name, data in files.items()}
    core = ov.Core()
    model = core.read_model(parts[".onnx"]) if ".onnx" in parts else core.read_model(parts[".xml"], parts[".bin"])
    settings = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": target.threads, "PERF_COUNT": True,
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    times: dict[str, float] = defaultdict(float)
    for _ in range(RUNS):
        request.infer({0: pixels})
        for row in request.get_profiling_info():
            times[row.node_type] += row.real_time.total_seconds() * 1e3
    return {op: ms for op, ms in times.items() if ms > 0}


PROFILERS = {"onnxruntime": _onnxruntime, "openvino": _openvino}
