"""OpenVINO on the CPU: the fastest int8 on x86 with VNNI (1.7x to 2.1x over float for ViT-Tiny and ViT-Small).

Without VNNI its int8 saturates at 16 bits and nothing at load can prevent it: such graphs must be quantized with an
overflow fix, and the golden frames refuse those that were not. Its own CACHE_DIR is never used: it takes blobs with
flipped bits (18 of 24 trials); ours go through `edgemae.device.engine_cache`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.device.engines._external_data import private_folder, refuse_external_data
from edgemae.device.operators import PRECISION, Operator, Shape, bytes_of, macs_of
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

NAME = "openvino"
MODULES = ("openvino",)
NEEDS = "pip install 'edgemae[openvino]'"


def version() -> str | None:
    """Return the version of OpenVINO, or None when it cannot be imported."""
    return library_version(NAME, MODULES, NEEDS)


def shared_core() -> Any:
    """Return this process's one Core, which lives as long as the process.

    The CPU plugin of a Core gives its thread a signal stack of its own and puts the old one back when it goes. Of two
    that live at once, the one that goes last puts back the stack of the other, which is freed by then: the next signal
    with a handler, Ctrl-C among them, would end the process with a segmentation fault.
    """
    return _core_of(library(NAME, MODULES, NEEDS))


@cache
def _core_of(openvino: ModuleType) -> Any:
    return openvino.Core()


def build(files: Mapping[str, bytes], target: Target) -> bytes:
    """Return an exported blob of an IR pair (.xml and .bin) or of one .onnx file."""
    core = shared_core()
    model = _read(core, files)
    with engine_errors(NAME, "compile the graph"):
        blob = core.compile_model(model, "CPU", _options(target)).export_model()
    return blob.getvalue() if isinstance(blob, io.BytesIO) else bytes(blob)


def _read(core: Any, files: Mapping[str, bytes]) -> Any:
    if any(name.endswith(".xml") for name in files):
        network, weights = only_file(NAME, files, ".xml"), only_file(NAME, files, ".bin")
        with engine_errors(NAME, "read the graph"):
            return core.read_model(network, weights)
    graph = only_file(NAME, files, ".onnx")
    refuse_external_data(graph)
    # Of a graph in memory OpenVINO reads any path, below the working folder or absolute; of one in a file it refuses
    # those that lead out of the file's folder.
    with private_folder() as folder, engine_errors(NAME, "read the graph"):
        (folder / "graph.onnx").write_bytes(graph)
        return core.read_model(folder / "graph.onnx")


def load(blob: bytes, target: Target) -> Session:
    """Return a session with one synchronous request on `target.threads` threads."""
    core = shared_core()
    with engine_errors(NAME, "load the compiled graph"):
        request = core.import_model(blob, "CPU", _options(target)).create_infer_request()
    held: list[Any] = [request]

    def run(batch: NDArray[np.float32]) -> Tensors:
        # The request reuses its output memory, so the next call would change what this one returned.
        outputs = _infer(held[0], np.ascontiguousarray(batch))
        return {port.get_any_name(): np.array(value) for port, value in outputs.to_dict().items()}

    return Session(NAME, run, held.clear)


def _infer(request: Any, batch: NDArray[np.float32]) -> Any:
    """Run a request on a batch where it lies: to copy it costs 2.5 % of a ViT-Tiny."""
    return request.infer({0: batch}, share_inputs=True, share_outputs=True)


def instrument(files: Mapping[str, bytes], target: Target) -> Instrumented:
    """Return a session that counts: what it saw is read after every run, and belongs to the last one only."""
    core = shared_core()
    model = _read(core, files)
    products = _products(model)
    with engine_errors(NAME, "compile the graph"):
        network = core.compile_model(model, "CPU", {**_options(target), "PERF_COUNT": True})
        request = network.create_infer_request()
    rows: list[Any] = []
    times: list[list[float]] = []

    def read() -> None:
        found = request.get_profiling_info()
        rows[:] = found
        times.append([row.real_time.total_seconds() * 1e3 for row in found])

    def finish() -> list[Operator]:
        table = np.array(times)
        nodes = {node.get_friendly_name(): node for node in network.get_runtime_model().get_ops()}
        return [
            _operator(row, nodes.get(row.node_name), table[:, i], products)
            for i, row in enumerate(rows)
            if table[:, i].any()  # operators that were fused away, or only give memory a new shape, never run
        ]

    return Instrumented(NAME, lambda batch: _infer(request, batch), read, finish)


def _products(model: Any) -> dict[str, int]:
    """Return the multiply-accumulates of each operation of the graph as it was read, by name.

    An execution graph shows the attention of a block as one subgraph, which no longer tells what it multiplies.
    """
    found = {}
    for op in model.get_ops():
        if not any(value.get_partial_shape().is_dynamic for value in (*op.inputs(), *op.outputs())):
            macs = macs_of(op.get_type_name(), [shape for _, shape in _ports(op.inputs())],
                           [shape for _, shape in _ports(op.outputs())])  # fmt: skip
            if macs:
                found[op.get_friendly_name()] = macs
    return found


def _operator(row: Any, node: Any, ms: NDArray[np.float64], products: dict[str, int]) -> Operator:
    """Return one row of the profile; `node` of the execution graph is None for what the plugin put in without one."""
    if node is None:
        return Operator(row.node_name, row.node_name, row.node_type, "", ms, None, None)
    facts = {key: str(value.value) for key, value in node.get_rt_info().items()}
    inputs, outputs = _ports(node.inputs()), _ports(node.outputs())
    macs = macs_of(row.node_type, [shape for _, shape in inputs], [shape for _, shape in outputs])
    fused = facts.get("originalLayersNames", "")
    if macs is None:
        macs = sum(products.get(name, 0) for name in fused.split(",")) or None
    # Some int8 products are named after a Multiply that was fused into them: their weights still tell which they are.
    sources = [value.get_source_output().get_node() for value in node.inputs()]
    weights = [source.get_friendly_name() for source in sources if not source.inputs()]
    precision = PRECISION.get(facts.get("runtimePrecision", ""), facts.get("runtimePrecision", ""))
    origin = ",".join(filter(None, (fused or row.node_name, *weights)))
    return Operator(row.node_name, origin, row.node_type, precision, ms, macs, bytes_of([*inputs, *outputs]))


def _ports(values: Any) -> list[tuple[str, Shape]]:
    return [
        (value.get_element_type().get_type_name(), tuple(value.get_shape()))
        for value in values
        if not value.get_partial_shape().is_dynamic
    ]


def _options(target: Target) -> dict[str, Any]:
    # f32: without the hint OpenVINO runs float layers in bf16 wherever the processor has it.
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": target.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        # Its own pinning moves the caller's thread too and gives back the cores that it found when it was made: an app
        # that pinned its thread since then loses that. Free was 1.06 (1.02 to 1.14) times as fast beside other work.
        "ENABLE_CPU_PINNING": False,
    }


def _no_facts() -> dict[str, str]:
    return {}


ENGINE = Engine(
    name=NAME, needs=NEEDS, version=version, compile=build, load=load, instrument=instrument, facts=_no_facts
)
