"""Static int8 for OpenVINO: NNCF places the quantizers, the result is OpenVINO IR (model.xml, model.bin)."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgemae.device.engines.openvino import shared_core
from edgemae.profiling.layers.module_names import module_of
from edgemae.quantize.qdq_linear import find_linears
from edgemae.spec.errors import EngineMissingError
from edgemae.spec.graph import PixelContract

Floats = NDArray[np.float32]


def load_openvino() -> tuple[ModuleType, ModuleType]:
    """Return the modules (openvino, nncf)."""
    try:
        openvino, nncf = import_module("openvino"), import_module("nncf")
    except ImportError as error:
        raise EngineMissingError(
            f"module '{error.name}' is not installed",
            expected="openvino and nncf, to quantize for OpenVINO",
            fix="pip install 'edgemae[build]', or leave openvino-static out of quantize.schemes",
        ) from error
    return openvino, nncf


def quantize_ir(data: bytes, images: Floats, alpha: float) -> dict[str, bytes]:
    """Return {"model.xml", "model.bin"} of an ONNX graph (bytes), int8 with smoothing `alpha` (-1: off).

    Weights get 7 bits (OverflowFix.ENABLE): on CPUs without VNNI the u8 x s8 instruction saturates in int16, and the
    default fix covers first layers only. Measured on ViT-Tiny, AVX2: cosine 0.94 without, 0.9995 with.
    Ranges hold every value seen: NNCF's default averages the extremes of images, which gave 2 to 26 times the error.
    """
    openvino, nncf = load_openvino()
    estimators = import_module("nncf.quantization.range_estimator")
    core = shared_core()
    with _quiet():
        model = core.read_model(data)
        options = nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE,
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=alpha, convolution=-1),
            activations_range_estimator_params=estimators.RangeEstimatorParametersSet.MINMAX,
            disable_bias_correction=True,  # on every tested graph it changed no bit and cost a third of the time
        )
        quantized = nncf.quantize(
            model,
            nncf.Dataset([image[None] for image in images]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=_keep_float(model, data)),
            advanced_parameters=options,
        )
    return _files(openvino, quantized)


def ir_of(data: bytes) -> dict[str, bytes]:
    """Return {"model.xml", "model.bin"} of a Q/DQ ONNX graph (bytes) with uint8 inputs, its scales as they are."""
    openvino, _ = load_openvino()
    with _quiet():
        return _files(openvino, shared_core().read_model(data))


def uint8_ir(files: dict[str, bytes], pixel: PixelContract) -> dict[str, bytes]:
    """Return {"model.xml", "model.bin"} of IR bytes with the input (B, H, W, C) uint8, normalised as `pixel` says."""
    openvino, _ = load_openvino()
    preprocess = import_module("openvino.preprocess")
    model = _read(openvino, files)
    with _quiet():
        steps = preprocess.PrePostProcessor(model)
        port = steps.input()
        port.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
        port.model().set_layout(openvino.Layout("NCHW"))
        mean, std = ([255 * value for value in part] for part in (pixel.mean, pixel.std))
        port.preprocess().convert_element_type(openvino.Type.f32).mean(mean).scale(std)
        return _files(openvino, steps.build())


def _read(openvino: ModuleType, files: dict[str, bytes]) -> Any:
    weights = openvino.Tensor(np.frombuffer(files["model.bin"], np.uint8))
    return shared_core().read_model(files["model.xml"], weights)


def openvino_session(files: dict[str, bytes]) -> Callable[[Floats], list[Any]]:
    """Return a function that runs IR bytes on this CPU, outputs in the order of the graph."""
    openvino, _ = load_openvino()
    # f32 as the device's engine has it: else float layers run in bf16 wherever the processor multiplies that.
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 2, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = shared_core().compile_model(_read(openvino, files), "CPU", settings)
    request = compiled.create_infer_request()

    def run(pixels: Floats) -> list[Any]:
        request.infer({0: pixels})
        return [np.array(request.get_output_tensor(i).data) for i in range(len(compiled.outputs))]

    return run


def _keep_float(model: Any, data: bytes) -> list[str]:
    """Return the names of weighted operations that stay float: all but the linears of the blocks."""
    linears = {linear.name for linear in find_linears(onnx.load_from_string(data))}
    return [
        op.get_friendly_name()
        for op in model.get_ops()
        if op.get_type_name() in ("Convolution", "MatMul") and op.get_friendly_name().split("/")[0] not in linears
    ]


def _files(openvino: ModuleType, model: Any) -> dict[str, bytes]:
    """Serialize with names and run-time info that do not depend on the process or the folder.

    What came from a layer keeps its name in front, so that a profile of the IR still names its layers.
    """
    operations = model.get_ordered_ops()
    modules = _modules(operations)
    for number, (op, module) in enumerate(zip(operations, modules, strict=True)):
        if op.get_type_name() not in ("Parameter", "Result"):
            op.set_friendly_name("/".join(filter(None, (module, f"{op.get_type_name()}.{number}"))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(model, str(path), compress_to_fp16=False)
        return {name: (path.parent / name).read_bytes() for name in ("model.xml", "model.bin")}


def _modules(operations: list[Any]) -> list[str]:
    """Return the layer that each operation came from, "" for none; weights that NNCF made anew go with their reader."""
    modules = {op.get_friendly_name(): module_of(op.get_friendly_name()) for op in operations}
    constant: set[str] = set()
    for op in operations:
        sources = [value.get_source_output().get_node().get_friendly_name() for value in op.inputs()]
        if op.get_type_name() != "Parameter" and constant.issuperset(sources):
            constant.add(op.get_friendly_name())
    for op in reversed(operations):
        for value in op.inputs():
            name = value.get_source_output().get_node().get_friendly_name()
            if name in constant and not modules[name]:
                modules[name] = modules[op.get_friendly_name()]
    return [modules[op.get_friendly_name()] for op in operations]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's progress bars and log lines off stdout: it belongs to results."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
