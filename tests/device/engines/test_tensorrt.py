"""TensorRT: plans built without a GPU by the real library, and run on a stand-in for one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from edgemae.device.engines import ENGINES, open_session
from edgemae.device.engines import _cuda as cuda_room
from edgemae.device.engines._cuda import Cuda
from edgemae.spec.errors import EngineRuntimeError
from edgemae.spec.target import Target
from tests.support.engine_inputs import PIXELS
from tests.support.fake_tensorrt import needs_rtx


def without_gpu() -> bool:
    try:
        Cuda(cuda_room.driver()).close()
    except EngineRuntimeError:
        return True
    return False


def test_a_plan_is_built_ahead_of_time_without_a_gpu(block_onnx: Callable[..., bytes], gpu: Target) -> None:
    trt = needs_rtx()
    for batch in (1, "batch"):
        plan = ENGINES["tensorrt"].compile({"x.onnx": block_onnx(batch=batch)}, gpu)
        assert len(plan) > 10_000
    assert ENGINES["tensorrt"].version() == f"tensorrt_rtx {trt.__version__}"
    if without_gpu():
        with pytest.raises(EngineRuntimeError, match="CUDA driver") as error:
            ENGINES["tensorrt"].load(plan, gpu)
        assert "NVIDIA" in error.value.expected
        assert "--engine" in error.value.fix
        assert ENGINES["tensorrt"].facts() == {"gpu": "none"}


def test_the_parser_is_quoted(gpu: Target) -> None:
    needs_rtx()
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4])
    node = helper.make_node("NoSuchOperator", ["pixels"], ["logits"])
    model = helper.make_model(helper.make_graph([node], "g", [pixels], [logits]))
    with pytest.raises(EngineRuntimeError, match="NoSuchOperator"):
        ENGINES["tensorrt"].compile({"x.onnx": model.SerializeToString()}, gpu)


def test_a_capability_that_cannot_be_built_for_here_is_named(gpu: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_rtx()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    orin = msgspec.structs.replace(gpu, compute_capability="8.7")
    with pytest.raises(EngineRuntimeError, match=r"8\.7") as error:
        ENGINES["tensorrt"].compile({}, orin)
    assert "8.9" in error.value.expected
    assert "on the device" in error.value.fix


def test_a_plan_runs_and_gives_everything_back(jetson: SimpleNamespace, block_onnx: Callable[..., bytes]) -> None:
    with open_session("tensorrt", {"x.onnx": block_onnx()}, jetson.target) as session:
        assert jetson.flags == 1 << 2, "networks are strongly typed"
        assert jetson.pool == 1 << 30
        for batch in (1, 1, 3):
            pixels = np.random.default_rng(batch).standard_normal((batch, 3, 32, 32)).astype(np.float32)
            logits = session(pixels)["logits"]
            assert logits.dtype == np.float32
            np.testing.assert_allclose(logits, 2 * pixels[:, 0, 0, :5], rtol=2e-3)
            both = len(jetson.driver.memory), len(jetson.driver.pinned)
            assert both == (2, 2), "one buffer a tensor on either side, whatever came before"
    assert ENGINES["tensorrt"].facts() == {"gpu": "Orin", "capability": "8.7", "driver": "12060"}
    assert ENGINES["tensorrt"].version() == "tensorrt 10.3.0"


def test_the_real_library_has_every_name_that_running_uses() -> None:
    """What the stand-ins stand in for, asked of the real classes: no GPU is needed to see that a name is there."""
    trt = needs_rtx()
    for owner, names in {
        trt.ICudaEngine: ("create_execution_context", "num_io_tensors", "get_tensor_name", "get_tensor_mode",
                          "get_tensor_dtype", "get_tensor_shape", "create_engine_inspector"),
        trt.IExecutionContext: ("set_input_shape", "get_tensor_shape", "set_tensor_address", "execute_async_v3",
                                "profiler"),
        trt.Runtime: ("deserialize_cuda_engine",),
    }.items():  # fmt: skip
        assert [name for name in names if not hasattr(owner, name)] == []
    dtypes = {trt.float32: np.float32, trt.float16: np.float16, trt.uint8: np.uint8, trt.int64: np.int64}
    assert {dtype: trt.nptype(dtype) for dtype in dtypes} == dtypes
    assert {"INPUT", "OUTPUT"} <= set(trt.TensorIOMode.__members__)


def test_a_plan_of_another_shape_or_a_failing_run_is_an_error(jetson: SimpleNamespace) -> None:
    jetson.context.dynamic = False
    with ENGINES["tensorrt"].load(b"plan", jetson.target) as session:
        with pytest.raises(EngineRuntimeError, match=r"\(2, 3, 32, 32\)"):
            session(np.zeros((2, 3, 32, 32), np.float32))
        jetson.context.fails = True
        with pytest.raises(EngineRuntimeError, match="failed to run the plan"):
            session(PIXELS)


def test_a_plan_that_is_refused_quotes_the_logger(jetson: SimpleNamespace) -> None:
    jetson.errors = [(1, "Serialization version 239"), (2, "a warning"), (3, "chat")]
    with pytest.raises(EngineRuntimeError, match="Serialization version 239"):
        ENGINES["tensorrt"].load(b"other", jetson.target)


def test_a_build_that_fails_quotes_the_logger(jetson: SimpleNamespace, block_onnx: Callable[..., bytes]) -> None:
    jetson.plan = None
    with pytest.raises(EngineRuntimeError, match="no tactic"):
        ENGINES["tensorrt"].compile({"x.onnx": block_onnx()}, jetson.target)
    jetson.parses = False
    with pytest.raises(EngineRuntimeError, match="it gave no reason"):
        ENGINES["tensorrt"].compile({"x.onnx": block_onnx()}, jetson.target)


def test_tensorrt_8_is_too_old(jetson: SimpleNamespace, block_onnx: Callable[..., bytes]) -> None:
    jetson.module.__version__ = "8.6.2"
    with pytest.raises(EngineRuntimeError, match=r"8\.6\.2"):
        ENGINES["tensorrt"].compile({"x.onnx": block_onnx()}, jetson.target)
