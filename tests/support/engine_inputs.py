"""A graph and pixels that every engine takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

ON_CPU = ("onnxruntime", "openvino")
PIXELS = np.random.default_rng(3).standard_normal((1, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def graph(block_onnx: Callable[..., bytes]) -> dict[str, bytes]:
    return {"graph/fp32.onnx": block_onnx()}
