"""A stand-in for TensorRT 10 on a Jetson, with host memory for the GPU's: real code of ours, no GPU."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from edgemae.device.engines import tensorrt
from edgemae.spec.target import Target


@pytest.fixture
def gpu(box: Target) -> Target:
    return msgspec.structs.replace(box, engines=("tensorrt",), compute_capability="8.9", memory_mib=8192)


def needs_rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")


class FakeDriver:
    """Stand in for libcuda with host memory; counts what is allocated."""

    def __init__(self, capability: tuple[int, int] = (8, 7), devices: int = 1, fail: str = "") -> None:
        self.capability, self.devices, self.fail = capability, devices, fail
        self.memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}  # page-locked memory of the host
        self.contexts = self.streams = 0

    def __getattr__(self, call: str) -> Any:
        if not call.startswith("cu"):
            raise AttributeError(call)

        def run(*arguments: Any) -> int:
            if call == self.fail:
                return 2
            handler = getattr(self, "do_" + call, None)
            if handler is not None:
                handler(*(getattr(a, "_obj", a) for a in arguments))
            return 0

        return run

    def do_cuGetErrorName(self, _: Any, text: Any) -> None:  # noqa: N802 - the driver's names
        text.value = b"CUDA_ERROR_OUT_OF_MEMORY"

    def do_cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802
        count.value = self.devices

    def do_cuDeviceGetAttribute(self, value: Any, which: Any, _: Any) -> None:  # noqa: N802
        value.value = self.capability[{75: 0, 76: 1}[which.value]]

    def do_cuDeviceGetName(self, name: Any, *_: Any) -> None:  # noqa: N802
        name.value = b"Orin"

    def do_cuDriverGetVersion(self, version: Any) -> None:  # noqa: N802
        version.value = 12060

    def do_cuDevicePrimaryCtxRetain(self, *_: Any) -> None:  # noqa: N802
        self.contexts += 1

    def do_cuDevicePrimaryCtxRelease_v2(self, *_: Any) -> None:  # noqa: N802
        self.contexts -= 1

    def do_cuStreamCreate(self, stream: Any, _: Any) -> None:  # noqa: N802
        self.streams += 1
        stream.value = 77

    def do_cuStreamDestroy_v2(self, *_: Any) -> None:  # noqa: N802
        self.streams -= 1

    def do_cuMemAlloc_v2(self, pointer: Any, size: Any) -> None:  # noqa: N802
        buffer = ctypes.create_string_buffer(size.value)
        pointer.value = ctypes.addressof(buffer)
        self.memory[pointer.value] = buffer

    def do_cuMemFree_v2(self, pointer: Any) -> None:  # noqa: N802
        del self.memory[pointer.value]

    def do_cuMemAllocHost_v2(self, pointer: Any, size: Any) -> None:  # noqa: N802
        buffer = ctypes.create_string_buffer(size.value)
        pointer.value = ctypes.addressof(buffer)
        self.pinned[pointer.value] = buffer

    def do_cuMemFreeHost(self, pointer: Any) -> None:  # noqa: N802
        del self.pinned[pointer.value]

    def do_cuMemcpyHtoDAsync_v2(self, sink: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        self.copy(sink, source, size, stream, self.memory, self.pinned)

    def do_cuMemcpyDtoHAsync_v2(self, sink: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        self.copy(sink, source, size, stream, self.pinned, self.memory)

    @staticmethod
    def copy(sink: Any, source: Any, size: Any, stream: Any, to: dict[int, Any], of: dict[int, Any]) -> None:
        assert stream.value == 77, "copies run on the session's stream"
        assert len(of[source.value]) >= size.value <= len(to[sink.value])
        ctypes.memmove(sink.value, source.value, size.value)


class FakeContext:
    """Stand in for an execution context: logits = twice the first five pixels, in half precision."""

    def __init__(self, dynamic: bool) -> None:
        self.dynamic, self.addresses, self.fails = dynamic, {}, False  # type: ignore[var-annotated]
        self.shapes: dict[str, tuple[int, ...]] = {"pixels": (1, 3, 32, 32), "logits": (1, 5)}
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if not self.dynamic and shape != self.shapes[name]:
            return False
        self.shapes = {"pixels": shape, "logits": (shape[0], 5)}
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        batch, each = self.shapes["pixels"][0], int(np.prod(self.shapes["pixels"][1:]))
        pixels = (ctypes.c_float * (batch * each)).from_address(self.addresses["pixels"])
        logits = (ctypes.c_uint16 * (batch * 5)).from_address(self.addresses["logits"])
        values = 2 * np.frombuffer(pixels, np.float32).reshape(batch, each)[:, :5]
        np.frombuffer(logits, np.float16).reshape(batch, 5)[:] = values
        if self.profiler is not None:  # as IExecutionContext does: one call a layer, a kernel may come twice
            for name, ms in (("fc", 0.5), ("__myl_norm", 0.25), ("fc", 0.5)):
                self.profiler.report_layer_time(name, ms)
        return not self.fails


@pytest.fixture
def jetson(gpu: Target, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Put a stand-in for TensorRT 10 on a Jetson in place: real code, no GPU."""
    fake = SimpleNamespace(driver=FakeDriver(), context=FakeContext(dynamic=True), errors=[], plan=b"plan", parses=True)

    class Logger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, blob: bytes) -> Any:
            for level, message in fake.errors:
                self.logger.log(level, message)
            names = ["pixels", "logits"]
            return (
                None
                if blob != b"plan"
                else SimpleNamespace(
                    num_io_tensors=2,
                    get_tensor_name=names.__getitem__,
                    get_tensor_mode=lambda name: "in" if name == "pixels" else "out",
                    get_tensor_dtype=lambda name: np.float32 if name == "pixels" else np.float16,
                    get_tensor_shape=fake.context.get_tensor_shape,
                    create_execution_context=lambda: fake.context,
                    create_engine_inspector=lambda: SimpleNamespace(
                        get_engine_information=lambda form: json.dumps(fake.layers[form])
                    ),
                )
            )

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> Any:
            fake.flags = flags
            ports = [SimpleNamespace(shape=shape) for shape in ((16, 64), (64, 256), (16, 256))]
            layer = SimpleNamespace(type="product", name="blocks.0.mlp.fc1", num_inputs=2, get_input=ports.__getitem__,
                                    get_output=lambda i: ports[2])  # fmt: skip
            return SimpleNamespace(get_input=lambda i: SimpleNamespace(name="pixels", shape=(1, 3, 32, 32)),
                                   num_layers=1, get_layer=lambda i: layer)  # fmt: skip

        def create_builder_config(self) -> Any:
            return SimpleNamespace(set_memory_pool_limit=lambda pool, size: setattr(fake, "pool", size))

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            self.logger.log(1, "no tactic")
            return fake.plan

    class IProfiler:
        pass

    port = {"Dimensions": [16, 64], "Datatype": "Half"}
    fc = {"Name": "fc", "LayerType": "gemm", "Inputs": [port], "Outputs": [port],
          "Metadata": "[ONNX Layer: blocks.0.mlp.fc1]\x1e[ONNX Layer: gelu.23]"}  # fmt: skip
    fake.layers = {"json": {"Layers": [fc, "a bare name"]}}
    parser = SimpleNamespace(parse=lambda data, path: fake.parses, num_errors=0)
    module = SimpleNamespace(
        __name__="tensorrt",
        __version__="10.3.0",
        ILogger=Logger,
        Runtime=Runtime,
        Builder=Builder,
        OnnxParser=lambda network, logger: parser,
        IProfiler=IProfiler,
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
        LayerType=SimpleNamespace(CONVOLUTION="convolution", MATRIX_MULTIPLY="product"),
        BuilderFlag=SimpleNamespace(),
        MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=2),
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        nptype=lambda dtype: dtype,
    )
    fake.module = module
    fake.target = msgspec.structs.replace(gpu, name="orin", compute_capability="8.7")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(tensorrt, "driver", lambda: fake.driver)
    yield fake
    left = fake.driver.memory, fake.driver.pinned, fake.driver.contexts, fake.driver.streams
    assert left == ({}, {}, 0, 0), "memory of the GPU, or for it, was leaked"
