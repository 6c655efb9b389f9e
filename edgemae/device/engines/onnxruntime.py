"""ONNX Runtime on the CPU: runs everywhere, so it is the last rung of most ladders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.device.isa import u8s8_saturates
from edgemae.device.onnx_scan import refuse_external_data
from edgemae.device.session import Engine, Session, Tensors, engine_errors, library, library_version, only_file
from edgemae.spec.target import Target

NAME = "onnxruntime"
MODULES = ("onnxruntime",)
NEEDS = "pip install 'edgemae[onnxruntime]'"


def version() -> str | None:
    """Return the version of ONNX Runtime, or None when it cannot be imported."""
    return library_version(NAME, MODULES, NEEDS)


def build(files: Mapping[str, bytes], target: Target) -> bytes:
    """Return the ONNX bytes as they are.

    An optimised model would be tied to this processor, has to go through a path on disk, and saves under 0.1 s.
    """
    library(NAME, MODULES, NEEDS)
    graph = only_file(NAME, files, ".onnx")
    refuse_external_data(graph)
    return graph


def load(blob: bytes, target: Target) -> Session:
    """Return a session on `target.threads` threads."""
    runtime = library(NAME, MODULES, NEEDS)
    with engine_errors(NAME, "load the graph"):
        session = runtime.InferenceSession(blob, _options(runtime, target), providers=["CPUExecutionProvider"])
    pixels = session.get_inputs()[0].name
    outputs = [output.name for output in session.get_outputs()]

    def run(batch: NDArray[np.float32]) -> Tensors:
        return dict(zip(outputs, session.run(outputs, {pixels: batch}), strict=True))

    return Session(NAME, run, _nothing)


def _options(runtime: Any, target: Target) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors; warnings about unused initializers help nobody on a device
    # Threads that spin between frames take the cores that capture and decoding need. Seen on two cores with other work
    # (ViT, 96 px, two threads): 0.99x to 1.01x the time without spinning back to back, 0.85x with 20 ms between frames.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if u8s8_saturates(target.isa):
        # VPMADDUBSW adds pairs of u8 x s8 products in 16 bits; this switches to u8 x u8, slower (about 14 %) and exact.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _nothing() -> None:
    return None


def _no_facts() -> dict[str, str]:
    return {}


ENGINE = Engine(name=NAME, needs=NEEDS, version=version, compile=build, load=load, facts=_no_facts, cached=False)
