"""What TensorRT tells of its layers: times through IProfiler, names and shapes through the engine inspector."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from edgemae.device.operators import PRECISION, Operator, bytes_of


class Watch:
    """Keep the time of every layer of every run of an execution context."""

    def __init__(self, trt: Any, context: Any) -> None:
        self._trt, self._profiler = trt, _profiler(trt)
        self._times: list[dict[str, float]] = []
        context.profiler = self._profiler  # the context reports at the end of every run: enqueue_emits_profile is set

    def read(self) -> None:
        """Store the run that just ended."""
        self._times.append(dict(self._profiler.ms))
        self._profiler.ms.clear()

    def operators(self, engine: Any) -> list[Operator]:
        """Return the layers in the order of execution; a plan that was built without details gives bare names."""
        inspector = engine.create_engine_inspector()
        told = json.loads(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))
        facts = {layer["Name"]: layer for layer in told.get("Layers", ()) if isinstance(layer, dict)}
        return [
            _operator(name, facts.get(name, {}), np.array([run.get(name, 0.0) for run in self._times]))
            for name in (self._times[-1] if self._times else ())
        ]


def _operator(name: str, facts: dict[str, Any], ms: Any) -> Operator:
    """Return one layer; its metadata reads "[ONNX Layer: blocks.0.norm1]" for every node that went into it."""
    ports = [*facts.get("Inputs", ()), *facts.get("Outputs", ())]
    # "Datatype" since TensorRT 10; before, and beside it, "Format/Datatype": "Row major linear FP16 format".
    tensors = [(str(port.get("Datatype", "")), tuple(port.get("Dimensions", ()))) for port in ports]
    types = [PRECISION.get(dtype, "") for dtype, _ in tensors]
    precision = next((kind for kind in ("int8", "fp16", "fp32") if kind in types), "")
    return Operator(
        name, facts.get("Metadata") or name, facts.get("LayerType", ""), precision, ms, None, bytes_of(tensors) or None
    )


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        """Add up the time of each layer of one run."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.ms[layer_name] = self.ms.get(layer_name, 0.0) + ms

    return Profiler()
