"""ONNX Runtime: int8 products are exact on every processor."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemae.device.engines import onnxruntime, open_session
from edgemae.device.hardware.cpu_features import cpu_flags, machine_facts
from edgemae.spec.target import Target


def saturating_onnx() -> bytes:
    """Return x -> QDQ int8 product whose sums of pairs are 2 x 255 x 127 = 64,770: over the 32,767 of 16 bits."""
    depth = 64
    node = helper.make_node
    names = ["one", "zero_u8"], ["one", "zero_s8"]
    nodes = [
        node("QuantizeLinear", ["pixels", *names[0]], ["qx"]),
        node("DequantizeLinear", ["qx", *names[0]], ["x"]),
        node("DequantizeLinear", ["weights", *names[1]], ["w"]),
        node("MatMul", ["x", "w"], ["y"]),
        node("QuantizeLinear", ["y", "large", "zero_u8"], ["qy"]),
        node("DequantizeLinear", ["qy", "large", "zero_u8"], ["logits"]),
    ]
    weights = [
        numpy_helper.from_array(np.full((depth, 16), 127, np.int8), "weights"),
        numpy_helper.from_array(np.float32(1), "one"),
        numpy_helper.from_array(np.float32(255 * 127 * depth / 200), "large"),
        numpy_helper.from_array(np.uint8(0), "zero_u8"),
        numpy_helper.from_array(np.int8(0), "zero_s8"),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [4, depth])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [4, 16])
    graph = helper.make_graph(nodes, "products", [pixels], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def test_int8_products_do_not_saturate_where_there_is_no_vnni(box: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, exact = np.full((4, 64), 255, np.float32), 255 * 127 * 64
    with open_session("onnxruntime", {"q.onnx": saturating_onnx()}, box) as session:
        np.testing.assert_allclose(session(batch)["logits"], exact, rtol=0.01)
    if any("vnni" in flag for flag in cpu_flags()) or machine_facts()["arch"] != "x86_64":
        return
    monkeypatch.setattr(onnxruntime, "u8s8_saturates", lambda isa: False)
    with open_session("onnxruntime", {"q.onnx": saturating_onnx()}, box) as session:
        assert session(batch)["logits"].max() < 0.6 * exact, "this processor saturates when nothing is done"
