"""The product that limits are measured with is valid ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgemae.device.engines import open_session
from edgemae.profiling.layers.matmul_onnx import product_onnx
from edgemae.spec.target import Target
from tests.support.layers import ON_CPU


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_product_is_onnx(precision: str, box: Target) -> None:
    data = product_onnx(16, precision)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    x = np.random.default_rng(0).uniform(-3, 3, (16, 16)).astype(np.float32)
    outputs = {}
    for name in ON_CPU:
        with open_session(name, {"p.onnx": data}, box) as session:
            (outputs[name],) = session(x).values()
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load_from_string(data).graph.initializer}
    w = weights["w"] if precision == "fp32" else weights["w_int8"] / 64
    for y in outputs.values():
        np.testing.assert_allclose(y, x @ w, atol=1e-4 if precision == "fp32" else 0.5)
