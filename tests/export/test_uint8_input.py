"""Graphs that take bytes: the same answers as their float32 twins on every engine, and a bundle made of them."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgemae.device.engines import ENGINES, open_session
from edgemae.device.model import load
from edgemae.device.preprocess import preprocess
from edgemae.export.lint import lint
from edgemae.export.to_onnx import both_forms
from edgemae.export.uint8_input import take_uint8, with_uint8
from edgemae.model.vit import ViT, ViTShape
from edgemae.quantize.calibrate import Calibration
from edgemae.quantize.fp16 import to_fp16
from edgemae.quantize.openvino_int8 import uint8_ir
from edgemae.quantize.schemes import SCHEMES
from edgemae.spec.bundle import open_bundle
from edgemae.spec.errors import InputError
from edgemae.spec.graph import Graph, PixelContract
from edgemae.spec.plan_schema import QuantizePlan
from edgemae.spec.target import find_target
from tests.support.tiny_job import Job, Ran, edgemae, stage

PIXEL = PixelContract(image_px=32)
BOX = msgspec.structs.replace(find_target("laptop-x86-avx2"), threads=1)
KINDS = ("explicit", "fused", "fp16", *SCHEMES)


def image_of(number: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, (40, 32), interpolation=cv2.INTER_CUBIC)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    """Return one ViT in every form that ships, as float32 takes it."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    vit = ViT(ViTShape(image_px=32, patch_px=8, width=32, heads=(2,), head_dim=16, mlp=(64,), classes=10)).eval()
    float_graphs = both_forms(vit, PIXEL)
    calibration = Calibration.of(np.concatenate([preprocess(image_of(i), PIXEL) for i in range(32)]))
    plan = QuantizePlan(smooth_alphas=(-1.0,))
    int8_graphs = {name: scheme(float_graphs["explicit"], calibration, plan) for name, scheme in SCHEMES.items()}
    return float_graphs | {"fp16": to_fp16(float_graphs["explicit"])} | int8_graphs


def as_bytes(graph: Graph) -> Graph:
    if "model.onnx" in graph.files:
        return take_uint8(graph, PIXEL)
    return with_uint8(graph, PIXEL, uint8_ir(graph.files, PIXEL))


@pytest.mark.parametrize(
    ("kind", "engine"),
    [(kind, engine) for kind in KINDS for engine in ("onnxruntime", "openvino")
     if (kind, engine) != ("openvino-static", "onnxruntime")],  # which reads no IR
)  # fmt: skip
def test_bytes_in_give_what_floats_give(kind: str, engine: str, graphs: dict[str, Graph]) -> None:
    old, new = graphs[kind], as_bytes(graphs[kind])
    assert (new.io.inputs[0].dtype, new.io.inputs[0].shape) == ("uint8", (1, 32, 32, 3))
    assert (new.precision, new.scheme, new.io.outputs) == (old.precision, old.scheme, old.io.outputs)
    # A rounding of 1e-7 before a quantizer may move single integers by one step.
    limit = {"fp32": 1e-5, "fp16": 5e-3, "int8": 5e-2}[old.precision]
    with open_session(engine, old.files, BOX) as float_session, open_session(engine, new.files, BOX) as byte_session:
        for number in range(4):
            want = float_session(preprocess(image_of(number), PIXEL))
            have = byte_session(preprocess(image_of(number), PIXEL, "uint8"))
            for name, values in want.items():
                assert np.abs(have[name] - values).max() <= limit * np.abs(values).max(), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_graph_gives_the_same_bytes(kind: str, graphs: dict[str, Graph]) -> None:
    assert as_bytes(graphs[kind]).files == as_bytes(graphs[kind]).files
    assert graphs[kind].io.dtype == "float32", "the graph that came in is as it was"


def test_the_normalisation_is_inside_the_patch_embedding(graphs: dict[str, Graph]) -> None:
    old, new = (onnx.load_from_string(g.onnx) for g in (graphs["explicit"], as_bytes(graphs["explicit"])))
    assert [node.op_type for node in new.graph.node[:3]] == ["Cast", "Transpose", "Conv"]
    assert len(new.graph.node) == len(old.graph.node) + 2
    half = onnx.load_from_string(as_bytes(graphs["fp16"]).onnx)
    assert [node.op_type for node in half.graph.node[:6]] == ["Cast", "Transpose", "Mul", "Sub", "Cast", "Conv"]


@pytest.mark.parametrize("kind", ["fp16", "tensorrt-qdq"])
def test_tensorrt_builds_it_and_lint_says_nothing_new(kind: str, graphs: dict[str, Graph]) -> None:
    new = as_bytes(graphs[kind])
    assert {f.rule for f in lint(new)} == {f.rule for f in lint(graphs[kind])}
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    rtx = msgspec.structs.replace(BOX, engines=("tensorrt",), compute_capability="8.9", memory_mib=8192)
    assert len(ENGINES["tensorrt"].compile(new.files, rtx)) > 10_000


def test_a_dynamic_batch_stays_dynamic() -> None:
    from edgemae.export.to_onnx import to_onnx

    vit = ViT(ViTShape(image_px=32, patch_px=8, width=32, heads=(2,), head_dim=16, mlp=(64,))).eval()
    new = take_uint8(to_onnx(vit, PIXEL, batch=None), PIXEL)
    assert new.io.inputs[0].shape == (-1, 32, 32, 3)
    three = np.concatenate([preprocess(image_of(i), PIXEL, "uint8") for i in range(3)])
    with open_session("onnxruntime", new.files, BOX) as session:
        assert session(three)["embedding"].shape == (3, 32)


def test_a_graph_is_converted_once_and_with_its_own_contract(graphs: dict[str, Graph]) -> None:
    with pytest.raises(InputError, match="uint8"):
        take_uint8(as_bytes(graphs["explicit"]), PIXEL)
    with pytest.raises(InputError, match=r"\(1, 3, 32, 32\)"):
        take_uint8(graphs["explicit"], PixelContract(image_px=64))


def test_a_bundle_of_bytes_is_measured_proved_and_judged_as_such(job: Job, compiled: Ran, tmp_path: Path) -> None:
    student = stage(job.output, "pruned") / "student.safetensors"
    rest = ("--set", "prune.keep_macs=1", "--set", "graph_input=uint8", "--set", "quantize.qat.epochs=0")
    rest += ("--set", 'quantize.schemes=["ort-dynamic", "openvino-static"]')
    ran = edgemae("compile", student, *job.work, *rest, "--target", job.target, "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    path = tmp_path / "out" / "shapes.edgemae"
    opened = open_bundle(path)
    assert opened.manifest.io.dtype == "uint8"
    tensor = np.load(io.BytesIO(opened.read(opened.manifest.golden.tensors[0])))
    assert (tensor.dtype, tensor.shape) == (np.uint8, (1, 32, 32, 3))
    frame = cv2.imread(str(next(job.val.rglob("*.png"), next(job.val.rglob("*.*")))))
    for engine in ("onnxruntime", "openvino"):
        with load(path, engine=engine) as new, load(job.bundle, engine=engine) as old:
            want, have = old(frame), new(frame)
            assert (have.label, new.manifest.golden.frames) == (want.label, old.manifest.golden.frames)
            assert have.embedding is not None
            np.testing.assert_allclose(have.embedding, want.embedding, atol=0.2)
    evaluated = edgemae("eval", path, "--eval-data", job.val, "--json", "--fallback", "never", "--threads", 1)
    assert evaluated.code == 0, evaluated.err
    assert evaluated.json["top1"] == ran.json["stages"][-1]["top1"] or ran.json["stages"][-1]["stage"] != "int8"
    assert edgemae("run", path, job.flat, "--limit", 2, "--cores", "x").code == 2


def test_the_plan_knows_two_inputs_and_the_kernels(job: Job, compiled: Ran, tmp_path: Path) -> None:
    work = (*job.work, "--target", job.target, "-o", tmp_path / "out", "--dry-run")
    refused = edgemae("compile", *work, "--set", "graph_input=int8")
    assert refused.code == 2
    assert "graph_input is 'int8'" in refused.err
    student = stage(job.output, "pruned") / "student.safetensors"
    other = edgemae("compile", student, *work, "--set", "data.kernel=halve-linear")
    assert other.code == 2
    assert "the student learned from 'area-linear'" in other.err
    kernel = edgemae("compile", *work, "--set", "data.kernel=halving")
    assert kernel.code == 2
    assert "Did you mean 'halve-linear'?" in kernel.err
