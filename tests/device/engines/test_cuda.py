"""The CUDA driver: memory, copies and devices, on a stand-in that counts what is allocated."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from edgemae.device.engines import ENGINES
from edgemae.spec.errors import EngineRuntimeError
from tests.support.engine_inputs import PIXELS
from tests.support.fake_tensorrt import FakeDriver


def test_results_outlive_the_buffers_that_they_came_through(jetson: SimpleNamespace) -> None:
    with ENGINES["tensorrt"].load(b"plan", jetson.target) as session:
        first = session(PIXELS)["logits"]
        kept = first.copy()
        session(2 * PIXELS)
        np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(first, kept)


def test_another_gpu_no_gpu_and_a_failing_driver_are_told_apart(
    jetson: SimpleNamespace, block_onnx: Callable[..., bytes]
) -> None:
    files = {"x.onnx": block_onnx()}
    other = msgspec.structs.replace(jetson.target, compute_capability="7.2")
    for work in (lambda: ENGINES["tensorrt"].compile(files, other), lambda: ENGINES["tensorrt"].load(b"plan", other)):
        with pytest.raises(EngineRuntimeError, match=r"8\.7"):
            work()
    jetson.driver = FakeDriver(devices=0)
    with pytest.raises(EngineRuntimeError, match="finds no GPU"):
        ENGINES["tensorrt"].load(b"plan", jetson.target)
    jetson.driver = FakeDriver(fail="cuMemAlloc_v2")
    with (
        ENGINES["tensorrt"].load(b"plan", jetson.target) as session,
        pytest.raises(EngineRuntimeError, match=r"cuMemAlloc_v2 .* 2 \(CUDA_ERROR_OUT_OF_MEMORY\)"),
    ):
        session(PIXELS)
