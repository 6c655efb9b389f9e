"""Half precision: close to float32, and a weight beyond its range is refused by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from edgemae.quantize.calibrate import Calibration, session
from edgemae.quantize.fp16 import to_fp16
from edgemae.spec.errors import InputError
from edgemae.spec.graph import Graph


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a.ravel() @ b.ravel()) / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_fp16_stays_close(graph: Graph, calibration: Calibration) -> None:
    half = to_fp16(graph)
    assert half.precision == "fp16"
    assert half.size_bytes < graph.size_bytes * 0.6
    want, have = session(graph.onnx), session(half.onnx)
    for image in calibration.images[:4]:
        for a, b in zip(want(image[None]), have(image[None]), strict=True):
            assert b.dtype == np.float32
            assert cosine(a, b) > 0.9999


def test_fp16_refuses_what_does_not_fit(graph: Graph) -> None:
    model = onnx.load_from_string(graph.onnx)
    init = next(i for i in model.graph.initializer if i.name == "head.bias")
    init.CopyFrom(onnx.numpy_helper.from_array(np.full(10, 1e5, np.float32), init.name))
    with pytest.raises(InputError, match=r"'head\.bias' .*1e\+05"):
        to_fp16(replace(graph, files={"model.onnx": model.SerializeToString()}))
