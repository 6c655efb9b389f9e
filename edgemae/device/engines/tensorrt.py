"""TensorRT 10 and 11, and TensorRT for RTX: strongly typed, so precision is what the graph says (fp16 and int8 Q/DQ).

Plans are executable artefacts bound to a GPU, a driver and a version: they are built on the device, or ahead of time
for a named compute capability with TensorRT for RTX, and never travel in a bundle. Memory goes through
`edgemae.device.engines._cuda`. Building is tested for real without a GPU; running needs one, and the tests run it on a
stand-in for the driver and the context only.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.device.engine_cache import compiled
from edgemae.device.engines._cuda import Cuda, driver
from edgemae.device.engines._external_data import private_folder, refuse_external_data
from edgemae.device.engines._tensorrt_layers import Watch, products_of
from edgemae.device.operators import Operator
from edgemae.device.session import Engine, Instrumented, Session, Tensors, engine_errors, library, only_file
from edgemae.spec.errors import EngineRuntimeError
from edgemae.spec.target import Target

NAME = "tensorrt"
MODULES = ("tensorrt_rtx", "tensorrt")
NEEDS = "pip install 'edgemae[tensorrt]' for RTX GPUs; on Jetson TensorRT comes with JetPack 6.1 or later"
_log = logging.getLogger("edgemae.device")


def version() -> str | None:
    """Return what is installed, such as "tensorrt_rtx 1.7.1", or None when neither module can be imported."""
    found = []
    for name in MODULES:
        try:
            found.append(f"{name} {importlib.import_module(name).__version__}")
        except (ImportError, OSError):
            continue
    return ", ".join(found) or None


def build(files: Mapping[str, bytes], target: Target) -> bytes:
    """Return a plan for `target.compute_capability`. Raises EngineRuntimeError with the parser's own words."""
    trt = _library(target)
    graph = only_file(NAME, files, ".onnx")
    refuse_external_data(graph)
    ahead = _ahead_of_time(trt, target)
    if ahead is None:  # such a builder times its kernels, so it needs the GPU that the plan is for
        cuda = Cuda(driver())
        try:
            _check_capability(cuda, target)
        finally:
            cuda.close()
    with engine_errors(NAME, "build the plan"):
        logger = _logger(trt)
        builder = trt.Builder(logger)
        network = _read(trt, builder, graph, logger)
        config = _config(trt, builder, network, target)
        if ahead is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(ahead, 0)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise _failure("build the plan", logger.errors)
        return bytes(plan)


def _read(trt: Any, builder: Any, graph: bytes, logger: Any) -> Any:
    """Return the network of an ONNX file. Raises EngineRuntimeError with the parser's own words."""
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    with private_folder() as folder:
        parsed = parser.parse(graph, str(folder / "graph.onnx"))
    if not parsed:
        raise _failure("read the graph", [_quote(parser.get_error(i)) for i in range(parser.num_errors)])
    return network


def load(blob: bytes, target: Target) -> Session:
    """Return a session on the first GPU. Raises EngineRuntimeError when there is no driver, no GPU or another GPU."""
    runner = _runner(blob, target)
    return Session(NAME, runner, runner.close)


def instrument(files: Mapping[str, bytes], target: Target) -> Instrumented:
    """Return a session whose context reports the time of every layer; a kernel's MACs are those of all nodes in it."""
    runner = _runner(compiled(ENGINE, files, target), target)
    with engine_errors(NAME, "read the graph"):
        logger = _logger(runner.trt)
        builder = runner.trt.Builder(logger)
        products = products_of(runner.trt, _read(runner.trt, builder, only_file(NAME, files, ".onnx"), logger))
    watch = Watch(runner.trt, runner.context, products)

    def finish() -> list[Operator]:
        try:
            return watch.operators(runner.engine)
        finally:
            runner.close()

    return Instrumented(NAME, runner, watch.read, finish)


def _runner(blob: bytes, target: Target) -> _Runner:
    trt = _library(target)
    cuda = Cuda(driver())
    try:
        _check_capability(cuda, target)
        with engine_errors(NAME, "load the plan"):
            logger = _logger(trt)
            runtime = trt.Runtime(logger)
            engine = runtime.deserialize_cuda_engine(blob)
            if engine is None:
                raise _failure("load the plan", logger.errors)
            return _Runner(trt, cuda, engine)
    except BaseException:
        cuda.close()
        raise


def facts() -> dict[str, str]:
    """Return GPU, compute capability and driver, or that there is none."""
    try:
        cuda = Cuda(driver())
    except EngineRuntimeError:
        return {"gpu": "none"}
    try:
        return cuda.facts()
    finally:
        cuda.close()


class _Runner:
    """Run one execution context on a stream of its own; memory on both sides is allocated once for each batch size."""

    def __init__(self, trt: Any, cuda: Cuda, engine: Any) -> None:
        self.trt, self._cuda, self.engine = trt, cuda, engine
        self.context = engine.create_execution_context()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        self._host: Tensors = {}
        self._device: dict[str, int] = {}

    def __call__(self, batch: NDArray[np.float32]) -> Tensors:
        self._cuda.make_current()
        pixels = self._inputs[0]
        if pixels not in self._host or self._host[pixels].shape != batch.shape:
            self._allocate(batch.shape)
        np.copyto(self._host[pixels], batch, casting="same_kind")
        self._cuda.to_device(self._device[pixels], self._host[pixels])
        if not self.context.execute_async_v3(self._cuda.stream):
            raise _failure("run the plan", [])
        for name in self._outputs:
            self._cuda.to_host(self._host[name], self._device[name])
        self._cuda.wait()
        # Copies, in float32 whatever the plan computes in: the next call reuses the host arrays.
        return {name: self._host[name].astype(np.float32) for name in self._outputs}

    def _allocate(self, shape: tuple[int, ...]) -> None:
        self._free()
        if not self.context.set_input_shape(self._inputs[0], shape):
            built = tuple(self.engine.get_tensor_shape(self._inputs[0]))
            raise EngineRuntimeError(
                f"the plan was given an input of shape {shape}", expected=str(built), fix="pass one frame at a time"
            )
        for name in (*self._inputs, *self._outputs):
            dtype = self.trt.nptype(self.engine.get_tensor_dtype(name))
            self._host[name] = self._cuda.pinned(tuple(self.context.get_tensor_shape(name)), dtype)
            self._device[name] = self._cuda.allocate(self._host[name].nbytes)
            self.context.set_tensor_address(name, self._device[name])

    def _free(self) -> None:
        while self._host:
            self._cuda.free_pinned(self._host.popitem()[1])
        while self._device:
            self._cuda.free(self._device.popitem()[1])

    def close(self) -> None:
        self._cuda.make_current()
        self._free()
        self.context = self.engine = None  # before the GPU context they live in
        self._cuda.close()


def _library(target: Target) -> Any:
    """Return TensorRT for RTX when it knows the target's GPU, else TensorRT."""
    trt = library(NAME, MODULES, NEEDS)
    if hasattr(trt, "ComputeCapability") and target.compute_capability and _capability(trt, target) is None:
        try:
            return importlib.import_module("tensorrt")
        except ImportError as error:
            known = [name[2:-1] + "." + name[-1] for name in dir(trt.ComputeCapability) if name.startswith("SM")]
            raise EngineRuntimeError(
                f"TensorRT for RTX cannot build for compute capability {target.compute_capability} ({target.name})",
                expected=f"one of {', '.join(sorted(known, key=float))}",
                fix="build on the device itself, where its own TensorRT is installed",
            ) from error
    if int(trt.__version__.split(".")[0]) < 10 and trt.__name__ == "tensorrt":
        raise EngineRuntimeError(
            f"TensorRT {trt.__version__} has no strongly typed networks", expected="TensorRT 10 or later", fix=NEEDS
        )
    return trt


def _capability(trt: Any, target: Target) -> Any:
    return getattr(trt.ComputeCapability, "SM" + target.compute_capability.replace(".", ""), None)


def _ahead_of_time(trt: Any, target: Target) -> Any:
    """Return the capability to build for without a GPU, or None where this TensorRT cannot."""
    if not hasattr(trt, "ComputeCapability") or not target.compute_capability:
        return None
    return _capability(trt, target)


def _check_capability(cuda: Cuda, target: Target) -> None:
    if target.compute_capability and cuda.capability() != target.compute_capability:
        raise EngineRuntimeError(
            f"this GPU has compute capability {cuda.capability()}",
            expected=f"{target.compute_capability}, as target '{target.name}' says",
            fix="choose a target for this GPU, or write a target file with its capability",
        )


def _network_flags(trt: Any) -> int:
    # TensorRT 11 may drop the flag, because nothing else is left there.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _config(trt: Any, builder: Any, network: Any, target: Target) -> Any:
    config = builder.create_builder_config()
    # A quarter of the memory: on Jetson the GPU shares it with everything else.
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, min(1 << 30, (target.memory_mib << 20) // 4))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names of nodes travel in the plan; no kernel changes
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # 10 bits of mantissa are not the fp32 that was measured
    shape = tuple(network.get_input(0).shape)
    if -1 in shape:
        profile = builder.create_optimization_profile()
        one = tuple(1 if size == -1 else size for size in shape)
        profile.set_shape(network.get_input(0).name, one, one, one)
        config.add_optimization_profile(profile)
    return config


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keep errors for the message of the exception; nothing is printed."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                _log.debug("tensorrt: %s", message)

    return Logger()


def _quote(error: Any) -> str:
    return f"{error.desc()} (node '{error.node_name()}', {error.node_operator()})"


def _failure(work: str, reasons: list[str]) -> EngineRuntimeError:
    return EngineRuntimeError(
        f"tensorrt failed to {work}: {'; '.join(reasons)[:600] or 'it gave no reason'}",
        expected="a graph that TensorRT takes and a GPU that it was built for",
        fix="run `edgemae doctor`, or use another engine of the bundle with --engine",
    )


ENGINE = Engine(name=NAME, needs=NEEDS, version=version, compile=build, load=load, instrument=instrument, facts=facts)
