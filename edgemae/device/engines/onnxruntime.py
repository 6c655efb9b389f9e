"""ONNX Runtime on the CPU: runs everywhere, so it comes last in most bundles."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.device.engines._external_data import private_folder, refuse_external_data
from edgemae.device.hardware.cpu_features import u8s8_saturates
from edgemae.device.operators import PRECISION, VALUE_BYTES, Operator, Shape, bytes_of, macs_of
from edgemae.device.session import (
    Engine,
    Instrumented,
    Session,
    Tensors,
    engine_errors,
    library,
    library_version,
    only_file,
)
from edgemae.spec.target import Target

NAME = "onnxruntime"
MODULES = ("onnxruntime",)
_PATHS_BELOW = "session.model_external_initializers_file_folder_path"
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
    session = _session(runtime, blob, _options(runtime, target))
    pixels = session.get_inputs()[0].name
    outputs = [output.name for output in session.get_outputs()]

    def run(batch: NDArray[np.float32]) -> Tensors:
        return dict(zip(outputs, session.run(outputs, {pixels: batch}), strict=True))

    return Session(NAME, run, _nothing)


def _session(runtime: Any, graph: bytes, options: Any) -> Any:
    """Return a session of a graph whose paths, if it had any, would lead into an empty folder."""
    with private_folder() as folder, engine_errors(NAME, "load the graph"):
        options.add_session_config_entry(_PATHS_BELOW, str(folder))
        return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def input_dtype(graph: bytes) -> str:
    """Return the type of a graph's input, as numpy names it. Raises EngineRuntimeError."""
    runtime = library(NAME, MODULES, NEEDS)
    kind = str(_session(runtime, graph, runtime.SessionOptions()).get_inputs()[0].type)
    return {"tensor(float)": "float32", "tensor(uint8)": "uint8"}.get(kind, kind)


def instrument(files: Mapping[str, bytes], target: Target) -> Instrumented:
    """Return a session that writes a trace: about 0.5 MB a run of a ViT-Tiny, read and deleted by `finish`."""
    runtime = library(NAME, MODULES, NEEDS)
    graph = build(files, target)
    folder = tempfile.TemporaryDirectory(prefix="edgemae-trace-")
    options = _options(runtime, target)
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(folder.name) / "trace")
    session = _session(runtime, graph, options)
    pixels = session.get_inputs()[0].name

    def finish() -> list[Operator]:
        with folder:
            return _operators(Path(session.end_profiling()).read_bytes())

    return Instrumented(NAME, lambda batch: session.run(None, {pixels: batch}), _nothing, finish)


class _Facts(msgspec.Struct, frozen=True):
    op_name: str = ""
    node_index: str = ""
    input_type_shape: list[dict[str, list[int]]] = []
    output_type_shape: list[dict[str, list[int]]] = []


class _Event(msgspec.Struct, frozen=True):
    cat: str
    name: str
    dur: int = 0  # us
    args: _Facts = _Facts()


_KERNEL = "_kernel_time"
_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")  # a new shape for the same memory: nothing moves


def _operators(trace: bytes) -> list[Operator]:
    """Return the operators of a trace in the order of execution; every one ran once in each run."""
    seen: dict[tuple[str, str], list[_Event]] = {}
    for event in msgspec.json.decode(trace, type=list[_Event]):
        if event.cat == "Node" and event.name.endswith(_KERNEL):
            seen.setdefault((event.name, event.args.node_index), []).append(event)
    return [_operator(events) for events in seen.values()]


def _operator(events: list[_Event]) -> Operator:
    facts, name = events[-1].args, events[-1].name.removesuffix(_KERNEL)
    inputs, outputs = _tensors(facts.input_type_shape), _tensors(facts.output_type_shape)
    integer = any(word in facts.op_name for word in ("QGemm", "QLinear", "Integer", "DynamicQuantize"))
    dtype = "uint8" if integer else inputs[0][0] if inputs else ""
    macs = macs_of(facts.op_name, [shape for _, shape in inputs], [shape for _, shape in outputs])
    size = bytes_of([*inputs, *outputs]) if facts.op_name not in _VIEWS else None
    if size and macs and outputs and "Conv" not in facts.op_name and sum(len(shape) > 1 for _, shape in inputs) == 1:
        size += inputs[0][1][-1] * outputs[0][1][-1] * VALUE_BYTES.get(dtype, 0)  # the weights that were repacked
    times = np.array([event.dur for event in events]) / 1e3
    return Operator(name, name, facts.op_name, PRECISION.get(dtype, dtype), times, macs, size)


def _tensors(listed: list[dict[str, list[int]]]) -> list[tuple[str, Shape]]:
    return [(dtype, tuple(shape)) for tensor in listed for dtype, shape in tensor.items()]


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


ENGINE = Engine(
    name=NAME, needs=NEEDS, version=version, compile=build, load=load, instrument=instrument, facts=_no_facts,
    cached=False,
)  # fmt: skip
