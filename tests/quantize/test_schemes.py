"""Schemes: real quantization of a small ViT, real integer kernels, close to float, byte for byte repeatable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgemae.export.lint import lint
from edgemae.quantize.calibrate import Calibration, session
from edgemae.quantize.fp16 import to_fp16
from edgemae.quantize.openvino_int8 import openvino_session
from edgemae.quantize.qdq_linear import find_linears
from edgemae.quantize.schemes import ENGINE_SCHEMES, SCHEMES, schemes_for
from edgemae.spec.errors import DataError, InputError, PlanError
from edgemae.spec.graph import Graph
from edgemae.spec.plan_schema import QuantizePlan
from edgemae.spec.target import ENGINE_NAMES, Target

PLAN = QuantizePlan(smooth_alphas=(-1.0, 0.5))
LINEARS = 8  # four a block


@pytest.fixture(scope="module")
def quantized(graph: Graph, calibration: Calibration) -> dict[str, Graph]:
    return {name: scheme(graph, calibration, PLAN) for name, scheme in SCHEMES.items()}


def runner(graph: Graph):  # type: ignore[no-untyped-def]
    return openvino_session(graph.files) if "model.xml" in graph.files else session(graph.onnx)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a.ravel() @ b.ravel()) / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("name", SCHEMES)
def test_close_to_float(name: str, graph: Graph, quantized: dict[str, Graph], calibration: Calibration) -> None:
    want, have = session(graph.onnx), runner(quantized[name])
    pairs = [(want(image[None]), have(image[None])) for image in calibration.images[:6]]
    assert [output.name for output in quantized[name].io.outputs] == ["logits", "embedding", "tokens"]
    for i in range(3):
        assert pairs[0][1][i].shape == pairs[0][0][i].shape
        assert min(cosine(a[i], b[i]) for a, b in pairs) >= 0.99


@pytest.mark.parametrize("name", SCHEMES)
def test_new_graph_says_what_it_is(
    name: str, graph: Graph, quantized: dict[str, Graph], calibration: Calibration
) -> None:
    new = quantized[name]
    assert graph.precision == "fp32"
    assert len(graph.history) == 1
    assert new.precision == "int8"
    assert new.io == graph.io
    assert new.scheme.split("+")[0] == name
    step = new.history[-1]
    assert step.stage == "quantize"
    assert step.data == calibration.digest
    assert step.scores["relative_error"] < 0.02
    assert set(new.files) == ({"model.xml", "model.bin"} if name == "openvino-static" else {"model.onnx"})
    if name != "openvino-static":
        assert new.size_bytes < graph.size_bytes * 0.55


@pytest.mark.parametrize("name", ["ort-static", "ort-dynamic", "tensorrt-qdq", "openvino-static"])
def test_same_bytes_twice(name: str, graph: Graph, quantized: dict[str, Graph], calibration: Calibration) -> None:
    assert SCHEMES[name](graph, calibration, PLAN).files == quantized[name].files


KERNELS = {"ort-static": "QGemm", "ort-dynamic": "DynamicQuantizeMatMul"}


@pytest.mark.parametrize("name", KERNELS)
def test_onnxruntime_runs_integer_kernels(name: str, quantized: dict[str, Graph], tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that the file fits this machine only
    onnxruntime.InferenceSession(quantized[name].onnx, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node)
    assert kinds[KERNELS[name]] == LINEARS
    assert kinds["DequantizeLinear"] == 0
    assert kinds["LayerNormalization"] == 5
    assert kinds["Softmax"] == 2


def test_no_cpu_scheme_needs_vnni(quantized: dict[str, Graph], calibration: Calibration) -> None:
    """7-bit weights: the exact u8 x u8 kernels (a no-op on VNNI) and the fast, saturating ones agree."""
    for name in KERNELS:
        model = onnx.load_from_string(quantized[name].onnx)
        weights = [onnx.numpy_helper.to_array(i) for i in model.graph.initializer if i.name.endswith("weight_int8")]
        assert len(weights) == LINEARS
        assert max(int(np.abs(w.astype(int)).max()) for w in weights) == 64
        plain = onnxruntime.InferenceSession(quantized[name].onnx, providers=["CPUExecutionProvider"])
        exact = session(quantized[name].onnx)
        for image in calibration.images[:4]:
            for a, b in zip(plain.run(None, {"pixels": image[None]}), exact(image[None]), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-4)


def test_tensorrt_graph_is_clean_and_builds(graph: Graph, quantized: dict[str, Graph]) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    half = to_fp16(graph)
    assert lint(quantized["tensorrt-qdq"]) == []
    assert lint(half) == []
    for one in (quantized["tensorrt-qdq"], half):
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        assert parser.parse(one.onnx), [str(parser.get_error(i)) for i in range(parser.num_errors)]
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        plan = builder.build_serialized_network(network, config)
        assert plan is not None
        assert plan.nbytes > 10_000


def test_only_linears_of_blocks_are_quantized(graph: Graph, quantized: dict[str, Graph]) -> None:
    names = [linear.name for linear in find_linears(onnx.load_from_string(graph.onnx))]
    assert len(names) == LINEARS
    assert all(name.startswith("blocks.") for name in names)
    for name in ("ort-static", "tensorrt-qdq"):
        nodes = onnx.load_from_string(quantized[name].onnx).graph.node
        readers = {n.op_type for n in nodes for i in n.input if i.endswith((".x_dq", ".w_dq"))}
        assert readers == {"Gemm"}


def test_quantizing_twice_is_refused(quantized: dict[str, Graph], calibration: Calibration) -> None:
    with pytest.raises(InputError):
        SCHEMES["ort-static"](quantized["ort-static"], calibration, PLAN)


@pytest.mark.parametrize("name", SCHEMES)
def test_calibration_is_checked(name: str, graph: Graph, calibration: Calibration) -> None:
    with pytest.raises(DataError, match=r"\b8\b"):
        SCHEMES[name](graph, Calibration(calibration.images[:8], ""), PLAN)
    with pytest.raises(DataError, match=r"\(3, 24, 32\)"):
        SCHEMES[name](graph, Calibration(calibration.images[:, :, :24], ""), PLAN)


def target(*engines: str, precisions: tuple[str, ...] = ("int8", "fp32")) -> Target:
    return Target(
        name="t", title="t", engines=engines, precisions=precisions, arch="x86_64", isa="avx2", threads=2,
        width_multiple=32, memory_mib=1024, source="a test",
    )  # fmt: skip


def test_candidates() -> None:
    assert tuple(ENGINE_SCHEMES)
    assert set(ENGINE_SCHEMES) == set(ENGINE_NAMES)
    assert {name for names in ENGINE_SCHEMES.values() for name in names} == set(SCHEMES)
    both = target("openvino", "onnxruntime")
    assert schemes_for(both, QuantizePlan()) == ("openvino-static", "ort-static", "ort-dynamic")
    assert schemes_for(both, QuantizePlan(schemes=("ort-static",))) == ("ort-static",)
    assert schemes_for(target("onnxruntime", precisions=("fp32",)), QuantizePlan()) == ()
    with pytest.raises(PlanError, match="'ort-static'"):
        schemes_for(both, QuantizePlan(schemes=("ort-statik",)))
    with pytest.raises(PlanError, match="'tensorrt-qdq'"):
        schemes_for(both, QuantizePlan(schemes=("tensorrt-qdq",)))
