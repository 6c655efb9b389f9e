"""OpenVINO on the CPU: the fastest int8 on x86 with VNNI (1.7x to 2.1x over float for ViT-Tiny and ViT-Small).

Without VNNI its int8 saturates at 16 bits and nothing at load can prevent it: such graphs must be quantized with an
overflow fix, and the golden frames refuse those that were not. Its own CACHE_DIR is never used: it takes blobs with
flipped bits (18 of 24 trials); ours go through `edgemae.device.cache`.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.device.onnx_scan import refuse_external_data
from edgemae.device.session import Engine, Session, Tensors, engine_errors, library, library_version, only_file
from edgemae.spec.target import Target

NAME = "openvino"
MODULES = ("openvino",)
NEEDS = "pip install 'edgemae[openvino]'"


def silence_telemetry() -> None:
    """Keep `import openvino` from sending an event and writing an id below the home folder.

    A None in sys.modules makes OpenVINO take its own empty stand-in for the package that does so.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def version() -> str | None:
    """Return the version of OpenVINO, or None when it cannot be imported."""
    silence_telemetry()
    return library_version(NAME, MODULES, NEEDS)


def build(files: Mapping[str, bytes], target: Target) -> bytes:
    """Return an exported blob of an IR pair (.xml and .bin) or of one .onnx file."""
    silence_telemetry()
    openvino = library(NAME, MODULES, NEEDS)
    core = openvino.Core()
    if any(name.endswith(".xml") for name in files):
        network, weights = only_file(NAME, files, ".xml"), only_file(NAME, files, ".bin")
        with engine_errors(NAME, "read the graph"):
            model = core.read_model(network, weights)
    else:
        graph = only_file(NAME, files, ".onnx")
        refuse_external_data(graph)
        with engine_errors(NAME, "read the graph"):
            model = core.read_model(graph)
    with engine_errors(NAME, "compile the graph"):
        blob = core.compile_model(model, "CPU", _options(target)).export_model()
    return blob.getvalue() if isinstance(blob, io.BytesIO) else bytes(blob)


def load(blob: bytes, target: Target) -> Session:
    """Return a session with one synchronous request on `target.threads` threads."""
    silence_telemetry()
    openvino = library(NAME, MODULES, NEEDS)
    with engine_errors(NAME, "load the compiled graph"):
        request = openvino.Core().import_model(blob, "CPU", _options(target)).create_infer_request()
    held: list[Any] = [request]

    def run(batch: NDArray[np.float32]) -> Tensors:
        # The request reuses its output memory, so the next call would change what this one returned.
        outputs = held[0].infer({0: np.ascontiguousarray(batch)})
        return {port.get_any_name(): np.array(value) for port, value in outputs.to_dict().items()}

    return Session(NAME, run, held.clear)


def _options(target: Target) -> dict[str, Any]:
    # f32: without the hint OpenVINO runs float layers in bf16 wherever the processor has it.
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": target.threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }


def _no_facts() -> dict[str, str]:
    return {}


ENGINE = Engine(name=NAME, needs=NEEDS, version=version, compile=build, load=load, facts=_no_facts)
