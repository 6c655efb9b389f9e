"""The layers of a TensorRT plan: times, names, and what each multiplies."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from edgemae.device.engines import ENGINES, tensorrt
from edgemae.device.engines._tensorrt_layers import Watch, products_of
from edgemae.profiling.layers.module_names import module_of
from edgemae.spec.target import Target
from tests.support.engine_inputs import PIXELS
from tests.support.fake_tensorrt import needs_rtx


def test_the_layers_of_a_plan_are_told_apart(jetson: SimpleNamespace, block_onnx: Callable[..., bytes]) -> None:
    watched = ENGINES["tensorrt"].instrument({"x.onnx": block_onnx()}, jetson.target)
    for _ in range(3):
        watched(PIXELS)
    fc, norm = watched.finish()
    assert (fc.name, fc.kind, fc.precision, fc.bytes) == ("fc", "gemm", "fp16", 2 * 16 * 64 * 2)
    assert (module_of(fc.origin), module_of(norm.origin), norm.bytes) == ("blocks.0.mlp.fc1", "", None)
    assert (fc.macs, norm.macs) == (16 * 64 * 256, None)
    np.testing.assert_allclose([*fc.ms, *norm.ms], [1.0] * 3 + [0.25] * 3)
    assert len(watched.walls_ns) == 3


def test_the_real_profiler_takes_what_a_context_reports(gpu: Target, block_onnx: Callable[..., bytes]) -> None:
    """The real base class and the real builder setting; only the context and the plan are stand-ins."""
    trt = needs_rtx()
    context = SimpleNamespace()
    watch = Watch(trt, context, {})
    assert isinstance(context.profiler, trt.IProfiler)
    for ms in (1.0, 3.0):
        context.profiler.report_layer_time("fc", ms)
        watch.read()
    report = SimpleNamespace(get_engine_information=lambda form: {trt.LayerInformationFormat.JSON: "{}"}[form])
    (fc,) = watch.operators(SimpleNamespace(create_engine_inspector=lambda: report))
    assert (fc.name, fc.origin, list(fc.ms), fc.macs) == ("fc", "fc", [1.0, 3.0], None)
    builder = trt.Builder(tensorrt._logger(trt))
    network = builder.create_network(tensorrt._network_flags(trt))
    network.add_input("pixels", trt.float32, (1, 3, 32, 32))
    config = tensorrt._config(trt, builder, network, gpu)
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


@pytest.mark.parametrize("scheme", ["", "tensorrt-qdq"])
def test_the_real_parser_tells_what_a_student_multiplies(scheme: str) -> None:
    import torch

    from edgemae.export.to_onnx import to_onnx
    from edgemae.model.vit import ViT, ViTShape, count_macs
    from edgemae.quantize.calibrate import Calibration
    from edgemae.quantize.schemes import SCHEMES
    from edgemae.spec.graph import PixelContract
    from edgemae.spec.plan_schema import QuantizePlan

    trt = needs_rtx()
    torch.manual_seed(0)
    shape = ViTShape.uniform(image_px=32, patch_px=8, width=64, depth=2, heads=2, classes=3)
    graph = to_onnx(ViT(shape).eval(), PixelContract(image_px=32))
    if scheme:
        soft = np.cumsum(np.cumsum(np.random.default_rng(1).standard_normal((32, 3, 32, 32)), 2), 3)
        calibration = Calibration.of((soft / 16).astype(np.float32))
        graph = SCHEMES[scheme](graph, calibration, QuantizePlan(smooth_alphas=(-1.0,)))
    logger = tensorrt._logger(trt)
    builder = trt.Builder(logger)
    found = products_of(trt, tensorrt._read(trt, builder, graph.onnx, logger))
    assert sum(found.values()) == pytest.approx(count_macs(shape), rel=0.01)
    assert found["blocks.1.mlp.fc1"] == 16 * 64 * 256
