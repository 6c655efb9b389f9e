"""What TensorRT reports of its layers: times through IProfiler, names and shapes through the engine inspector."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgemae.device.operators import PRECISION, Operator, bytes_of, macs_of

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


class Watch:
    """Keep the time of every layer of every run of an execution context; `products` are those of `products_of`."""

    def __init__(self, trt: Any, context: Any, products: Mapping[str, int]) -> None:
        self._trt, self._profiler, self._products = trt, _profiler(trt), products
        self._times: list[dict[str, float]] = []
        context.profiler = self._profiler  # the context reports at the end of every run: enqueue_emits_profile is set

    def read(self) -> None:
        """Store the run that just ended."""
        self._times.append(dict(self._profiler.ms))
        self._profiler.ms.clear()

    def operators(self, engine: Any) -> list[Operator]:
        """Return the layers in the order of execution; a plan that was built without details gives bare names."""
        inspector = engine.create_engine_inspector()
        report = json.loads(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))
        facts = {layer["Name"]: layer for layer in report.get("Layers", ()) if isinstance(layer, dict)}
        return [
            _operator(name, facts.get(name, {}), np.array([run.get(name, 0.0) for run in self._times]), self._products)
            for name in (self._times[-1] if self._times else ())
        ]


def products_of(trt: Any, network: Any) -> dict[str, int]:
    """Return the multiply-accumulates of each layer of a network as it was read, by the name of its ONNX node."""
    found = {}
    for layer in map(network.get_layer, range(network.num_layers)):
        kind = {trt.LayerType.CONVOLUTION: "Conv", trt.LayerType.MATRIX_MULTIPLY: "MatMul"}.get(layer.type)
        if kind is None:
            continue
        inputs = [tuple(layer.get_input(i).shape) for i in range(layer.num_inputs)]
        if kind == "Conv":  # its weights are no input, unless they are quantized
            layer.__class__ = trt.IConvolutionLayer
            channels = inputs[0][1] // layer.num_groups
            inputs = [inputs[0], (layer.num_output_maps, channels, *layer.kernel_size_nd)]
        macs = macs_of(kind, inputs, [tuple(layer.get_output(0).shape)])
        if macs and macs > 0:  # a size that is not known before the run is -1
            found[layer.name] = macs
    return found


def _operator(name: str, facts: dict[str, Any], ms: Any, products: Mapping[str, int]) -> Operator:
    """Return one layer; its metadata reads "[ONNX Layer: blocks.0.norm1]" for every node that went into it."""
    ports = [*facts.get("Inputs", ()), *facts.get("Outputs", ())]
    # "Datatype" since TensorRT 10; before, and beside it, "Format/Datatype": "Row major linear FP16 format".
    tensors = [(str(port.get("Datatype", "")), tuple(port.get("Dimensions", ()))) for port in ports]
    types = [PRECISION.get(dtype, "") for dtype, _ in tensors]
    precision = next((kind for kind in ("int8", "fp16", "fp32") if kind in types), "")
    origin = facts.get("Metadata") or name
    macs = sum(products.get(node, 0) for node in dict.fromkeys(_NODE.findall(origin))) or None
    return Operator(name, origin, facts.get("LayerType", ""), precision, ms, macs, bytes_of(tensors) or None)


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        """Add up the time of each layer of one run."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.ms[layer_name] = self.ms.get(layer_name, 0.0) + ms

    return Profiler()
