"""One attention block as ONNX, made without torch, and bundles of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemae.device.engines import open_session
from edgemae.device.preprocess import preprocess
from edgemae.device.selfcheck import golden_files, golden_name
from edgemae.spec.bundle import write_bundle
from edgemae.spec.graph import IoContract, PixelContract, TensorSpec
from edgemae.spec.manifest import Manifest, Tolerance, Variant
from edgemae.spec.target import Target

WIDTH, PATCH_PX, IMAGE_PX, CLASSES = 16, 8, 32, 5


def _block_onnx(seed: int = 0, head: bool = True, batch: int | str = 1) -> bytes:
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) * 0.3).astype(np.float32), name)

    def integers(name: str, *values: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    node = helper.make_node
    nodes = [
        node("Conv", ["pixels", "patch"], ["grid"], kernel_shape=[PATCH_PX] * 2, strides=[PATCH_PX] * 2),
        node("Reshape", ["grid", "flat"], ["columns"]),
        node("Transpose", ["columns"], ["tokens"], perm=[0, 2, 1]),
        node("LayerNormalization", ["tokens", "gain", "bias"], ["normal"], axis=-1, epsilon=1e-6),
        node("MatMul", ["normal", "wq"], ["q"]),
        node("MatMul", ["normal", "wk"], ["k"]),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "normal"], ["mixed"]),
        node("Add", ["mixed", "tokens"], ["sum"]),
        node("Gelu", ["sum"], ["active"]),
        node("ReduceMean", ["active", "axis"], ["embedding"], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, WIDTH])]
    weights = [
        weight("patch", WIDTH, 3, PATCH_PX, PATCH_PX),
        weight("wq", WIDTH, WIDTH),
        weight("wk", WIDTH, WIDTH),
        numpy_helper.from_array(np.ones(WIDTH, np.float32), "gain"),
        numpy_helper.from_array(np.zeros(WIDTH, np.float32), "bias"),
        integers("flat", 0, WIDTH, -1),
        integers("axis", 1),
    ]
    if head:
        nodes.append(node("MatMul", ["embedding", "head"], ["logits"]))
        weights.append(weight("head", WIDTH, CLASSES))
        outputs.insert(0, helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES]))
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, IMAGE_PX, IMAGE_PX])
    graph = helper.make_graph(nodes, "block", [pixels], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture(scope="session")
def block_onnx() -> Callable[..., bytes]:
    """Return a maker of tiny ViT-like graphs: pixels (batch, 3, 32, 32) -> logits (batch, 5), embedding (batch, 16)."""
    return _block_onnx


@pytest.fixture(scope="session")
def box() -> Target:
    """Return a target for this machine."""
    return Target(
        name="box",
        title="the machine of the tests",
        engines=("openvino", "onnxruntime"),
        precisions=("fp32",),
        arch="x86_64",
        isa="avx2",
        threads=1,
        width_multiple=8,
        memory_mib=1024,
        source="made up",
    )


@pytest.fixture(scope="session")
def make_bundle(
    tmp_path_factory: pytest.TempPathFactory, box: Target, block_onnx: Callable[..., bytes]
) -> Callable[..., Path]:
    """Return a maker of bundles: one variant an engine; `edit(manifest, files)` may spoil both before writing."""

    def make(
        engines: tuple[str, ...] = ("openvino", "onnxruntime"),
        head: bool = True,
        edit: Callable[[Manifest, dict[str, bytes]], Manifest] | None = None,
        **changes: Any,
    ) -> Path:
        pixel = changes.pop("pixel", PixelContract(image_px=IMAGE_PX))
        rng = np.random.default_rng(7)
        frames = [cv2.resize(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), (48, 40)) for _ in range(3)]
        graph = block_onnx(head=head)
        variants = tuple(
            Variant(
                engine=engine,
                files=("graph/fp32.onnx",),
                precision="fp32",
                golden=golden_name(f"{engine}-fp32"),
                tolerance=Tolerance(cosine_min=0.9999, max_abs=1e-3),
            )
            for engine in engines
        )
        with open_session("onnxruntime", {"fp32.onnx": graph}, box) as session:
            rows = np.concatenate([next(iter(session(preprocess(f, pixel)).values())) for f in frames])
        golden, files = golden_files(frames, pixel, {variant.id: rows for variant in variants})
        files["graph/fp32.onnx"] = graph
        names = ("logits", "embedding") if head else ("embedding",)
        shapes = {"logits": (1, CLASSES), "embedding": (1, WIDTH)}
        facts: dict[str, Any] = {
            "name": "block",
            "version": 1,
            "created": "2025-01-01T00:00:00Z",
            "status": "passed",
            "target": box,
            "io": IoContract(
                inputs=(TensorSpec(name="pixels", dtype="float32", shape=(1, 3, IMAGE_PX, IMAGE_PX)),),
                outputs=tuple(TensorSpec(name=name, dtype="float32", shape=shapes[name]) for name in names),
            ),
            "pixel": pixel,
            "labels": ("ant", "bee", "cat", "dog", "eel") if head else (),
            "variants": variants,
            "golden": golden,
        }
        manifest = Manifest(**(facts | changes))
        if edit is not None:
            manifest = edit(manifest, files)
        return write_bundle(tmp_path_factory.mktemp("bundle") / "block.edgemae", manifest, files)

    return make
