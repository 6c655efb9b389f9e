"""Engines: one contract for all; errors that say what is missing; a GPU engine built without a GPU."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemae.device import engines
from edgemae.device.engines import ENGINES, Engine, Session, find_engine, onnxruntime, open_session, openvino, tensorrt
from edgemae.device.engines import _cuda as cuda_room
from edgemae.device.engines._cuda import Cuda
from edgemae.device.engines._external_data import refuse_external_data
from edgemae.device.engines._tensorrt_layers import Watch, products_of
from edgemae.device.hardware import cpu_features
from edgemae.device.hardware.cpu_features import cpu_flags, machine_facts, u8s8_saturates
from edgemae.profiling.layers.module_names import module_of
from edgemae.spec.errors import EngineMissingError, EngineRuntimeError, InputError
from edgemae.spec.target import ENGINE_NAMES, Target

ON_CPU = ("onnxruntime", "openvino")
PIXELS = np.random.default_rng(3).standard_normal((1, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def graph(block_onnx: Callable[..., bytes]) -> dict[str, bytes]:
    return {"graph/fp32.onnx": block_onnx()}


# ------------------------------------------------------------------------------------------------ the contract


def test_there_is_one_file_and_one_line_for_each_engine() -> None:
    files = {path.stem for path in Path(engines.__file__).parent.glob("[!_]*.py")}
    assert set(ENGINES) == files == set(ENGINE_NAMES)
    for name, engine in ENGINES.items():
        assert isinstance(engine, Engine)
        assert engine.name == name
        assert "edgemae[" in engine.needs


def test_engines_agree_on_the_same_graph(graph: dict[str, bytes], box: Target) -> None:
    outputs = {}
    for name in ON_CPU:
        with open_session(name, graph, box) as session:
            assert isinstance(session, Session)
            outputs[name] = session(PIXELS)
    for key, shape in (("logits", (1, 5)), ("embedding", (1, 16))):
        first, second = (outputs[name][key] for name in ON_CPU)
        assert first.shape == second.shape == shape
        assert first.dtype == second.dtype == np.float32
        np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("name", ON_CPU)
def test_outputs_stay_valid_after_the_next_call(name: str, graph: dict[str, bytes], box: Target) -> None:
    with open_session(name, graph, box) as session:
        first = session(PIXELS)["logits"]
        kept = first.copy()
        assert not np.array_equal(session(PIXELS * 2)["logits"], kept)
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(session(PIXELS[:, :, ::1])["logits"], kept)


@pytest.mark.parametrize("name", [name for name in ON_CPU if ENGINES[name].cached])
def test_a_kept_blob_that_cannot_be_loaded_is_made_again(
    name: str, graph: dict[str, bytes], box: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Its digest is right: it was written that way."""
    monkeypatch.setenv("EDGEMAE_CACHE_DIR", str(tmp_path))
    with open_session(name, graph, box) as session:
        expected = session(PIXELS)["logits"]
    (blob,) = tmp_path.rglob("*.blob")
    whole = blob.read_bytes()
    blob.write_bytes(whole[:100])
    digest = hashlib.sha256(whole[:100]).hexdigest()
    blob.with_suffix(".sha256").write_text(f"{digest}  {blob.name}\n")
    for said in (1, 0):
        caplog.clear()
        with open_session(name, graph, box) as session:
            np.testing.assert_array_equal(session(PIXELS)["logits"], expected)
        assert caplog.text.count("cannot be loaded, compiling again") == said


@pytest.mark.parametrize("name", ON_CPU)
def test_a_batch_is_only_read_and_may_lie_anywhere(name: str, graph: dict[str, bytes], box: Target) -> None:
    """No engine copies it first: it may be read-only, unaligned, and used for something else after the call."""
    fixed, scratch = PIXELS.copy(), PIXELS.copy()
    fixed.flags.writeable = False
    crooked = np.empty(PIXELS.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(PIXELS.shape)
    crooked[:] = PIXELS
    with open_session(name, graph, box) as session:
        expected = session(scratch)["logits"]
        np.testing.assert_array_equal(scratch, PIXELS)
        kept, scratch[:] = expected.copy(), 0.0
        for batch in (fixed, crooked, np.asfortranarray(PIXELS)):
            np.testing.assert_array_equal(session(batch)["logits"], kept)
        np.testing.assert_array_equal(expected, kept)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_batch_of_another_size_needs_a_dynamic_graph(
    name: str, graph: dict[str, bytes], block_onnx: Callable[..., bytes], box: Target
) -> None:
    both = np.concatenate([PIXELS, PIXELS])
    with open_session(name, {"any.onnx": block_onnx(batch="batch")}, box) as session:
        assert session(both)["logits"].shape == (2, 5)
    with open_session(name, graph, box) as session, pytest.raises(EngineRuntimeError, match=f"{name} failed to run"):
        session(both)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_closed_session_says_so_and_closes_once_more(name: str, graph: dict[str, bytes], box: Target) -> None:
    session = open_session(name, graph, box)
    session.close()
    session.close()
    with pytest.raises(EngineRuntimeError, match="session is closed"):
        session(PIXELS)


def test_threads_are_those_of_the_target(graph: dict[str, bytes], box: Target) -> None:
    """Ask both libraries: threads are set, never "all", and one frame at a time runs on all of them."""
    import onnxruntime as runtime

    three = onnxruntime._options(runtime, msgspec.structs.replace(box, threads=3))
    assert (three.intra_op_num_threads, three.inter_op_num_threads) == (3, 1)
    assert three.get_session_config_entry("session.intra_op.allow_spinning") == "0"

    core = openvino.shared_core()
    network = core.compile_model(core.read_model(graph["graph/fp32.onnx"]), "CPU", openvino._options(box))
    assert network.get_property("INFERENCE_NUM_THREADS") == box.threads == 1
    assert network.get_property("NUM_STREAMS") == 1


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("data", [b"", b"junk" * 100, b"\x08\x0a" * 3], ids=["empty", "text", "no graph"])
def test_a_graph_that_is_none_is_an_engine_error(name: str, data: bytes, box: Target) -> None:
    with pytest.raises(EngineRuntimeError):
        open_session(name, {"x.onnx": data}, box)


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_a_variant_with_the_wrong_files_is_named(name: str, box: Target) -> None:
    for files in ({}, {"a.bin": b""}, {"a.onnx": b"", "b.onnx": b""}):
        with pytest.raises(EngineRuntimeError, match=rf"one \.(onnx|xml) file|{name}"):
            ENGINES[name].compile(files, box)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_damaged_blob_is_an_engine_error(name: str, box: Target) -> None:
    with pytest.raises(EngineRuntimeError, match=f"{name} failed to load"):
        ENGINES[name].load(b"not a blob" * 20, box)


def test_openvino_reads_its_own_format(tmp_path: Path, graph: dict[str, bytes], box: Target) -> None:
    from openvino import save_model

    model = openvino.shared_core().read_model(graph["graph/fp32.onnx"])
    save_model(model, tmp_path / "net.xml", compress_to_fp16=False)
    pair = {f"openvino/{name}": (tmp_path / name).read_bytes() for name in ("net.xml", "net.bin")}
    with open_session("openvino", pair, box) as ours, open_session("openvino", graph, box) as reference:
        np.testing.assert_allclose(ours(PIXELS)["logits"], reference(PIXELS)["logits"], atol=1e-6)
    cut = pair | {"openvino/net.bin": pair["openvino/net.bin"][:100]}
    with pytest.raises(EngineRuntimeError, match="openvino failed to read"):
        open_session("openvino", cut, box)


# ------------------------------------------------------------------------------------------------ missing engines


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_a_missing_engine_names_its_extra(
    name: str, graph: dict[str, bytes], box: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    assert ENGINES[name].version() is None
    for work in (lambda: open_session(name, graph, box), lambda: ENGINES[name].load(b"", box)):
        with pytest.raises(EngineMissingError, match=rf"'{name}' is not installed") as error:
            work()
        assert f"edgemae[{name}]" in error.value.fix


@pytest.mark.parametrize("content", ["raise ImportError('libengine.so.3: not found')", "import not_there_at_all"])
def test_a_broken_engine_is_told_from_a_missing_one(
    content: str, tmp_path: Path, box: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text(content)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineMissingError, match=r"installed but cannot be imported: .*(not found|not_there_at_all)"):
        ENGINES["onnxruntime"].compile({}, box)
    assert ENGINES["onnxruntime"].version() is None


def test_versions_are_those_of_the_libraries() -> None:
    import onnxruntime

    assert ENGINES["onnxruntime"].version() == onnxruntime.__version__
    assert (ENGINES["openvino"].version() or "").startswith("20")


def test_an_unknown_engine_gets_the_nearest_name() -> None:
    with pytest.raises(InputError, match="Did you mean 'openvino'"):
        find_engine("openvivo")


# ------------------------------------------------------------------------------------------------ saturation


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


@pytest.mark.parametrize(
    ("arch", "flags", "target_isa", "saturates"),
    [
        ("x86_64", {"avx2"}, "avx2", True),
        ("x86_64", {"avx2"}, "avx2_vnni", True),  # the bundle was made for better than this machine
        ("x86_64", {"avx512f", "avx512_vnni"}, "avx512_vnni", False),
        ("x86_64", {"avx2", "avx_vnni"}, "avx2", True),  # the target's word: an emulated processor
        ("x86_64", set(), "avx2_vnni", False),  # flags unknown: the target's word
        ("AMD64", {"avx2"}, "avx2", True),
        ("aarch64", {"asimddp"}, "dotprod", False),
    ],
)
def test_who_saturates(
    arch: str, flags: set[str], target_isa: str, saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_features.platform, "machine", lambda: arch)
    monkeypatch.setattr(cpu_features, "cpu_flags", lambda: frozenset(flags))
    assert u8s8_saturates(target_isa) is saturates


def test_processor_flags_are_read_from_x86_and_arm_lists(tmp_path: Path) -> None:
    read = cpu_flags.__wrapped__
    (tmp_path / "x86").write_text("processor : 0\nflags\t\t: fpu avx2 avx_vnni\nflags : other\n")
    (tmp_path / "arm").write_text("processor : 0\nFeatures\t: fp asimd asimddp\n")
    (tmp_path / "none").write_text("nothing\n")
    assert read(str(tmp_path / "x86")) == {"fpu", "avx2", "avx_vnni"}
    assert read(str(tmp_path / "arm")) == {"fp", "asimd", "asimddp"}
    assert read(str(tmp_path / "none")) == read(str(tmp_path / "missing")) == frozenset()


# ------------------------------------------------------------------------------------------------ hostile graphs


def external(model: onnx.ModelProto, tensor: onnx.TensorProto) -> bytes:
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("name", ENGINE_NAMES)
@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph", "sparse", "function"])
def test_weights_in_another_file_are_refused(
    name: str, where: str, block_onnx: Callable[..., bytes], box: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_from_string(block_onnx())
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "t")
    inner = helper.make_graph([], "inner", [], [], [tensor])
    if where == "attribute":
        model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
        found = model.graph.node[-1].attribute[0].t
    elif where == "subgraph":
        model.graph.node.append(helper.make_node("If", ["b"], ["c"], then_branch=inner, else_branch=inner))
        found = model.graph.node[-1].attribute[1].g.initializer[0]
    elif where == "sparse":
        found = model.graph.sparse_initializer.add().values
        found.CopyFrom(tensor)
    elif where == "function":
        function = model.functions.add(name="f", domain="d")
        function.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
        found = function.node[0].attribute[0].t
    else:
        found = model.graph.initializer[0]
    refuse_external_data(model.SerializeToString())
    gpu = msgspec.structs.replace(box, compute_capability="8.9")
    with pytest.raises(EngineRuntimeError, match="weights in another file"):
        ENGINES[name].compile({"x.onnx": external(model, found)}, gpu)


@pytest.mark.parametrize("data", [b"\x0b", b"\x3a\xff", b"\x3a" + b"\x80" * 11, b"\x3d\0", b"\x3a"], ids=repr)
def test_bytes_that_are_no_protobuf_are_refused(data: bytes) -> None:
    with pytest.raises(EngineRuntimeError, match="not an ONNX file"):
        refuse_external_data(data)


def test_a_graph_nested_without_end_is_refused() -> None:
    data = b""
    for _ in range(60):  # graph -> node -> attribute -> graph ...
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            size, length = len(data), b""
            while size > 127:
                length += bytes([size & 127 | 128])
                size >>= 7
            data = tag + length + bytes([size]) + data
    with pytest.raises(EngineRuntimeError, match="nested too deeply"):
        refuse_external_data(b"\x3a" + _varint(len(data)) + data)


def _varint(size: int) -> bytes:
    out = b""
    while size > 127:
        out += bytes([size & 127 | 128])
        size >>= 7
    return out + bytes([size])


# ------------------------------------------------------------------------------------------------ TensorRT


@pytest.fixture
def gpu(box: Target) -> Target:
    return msgspec.structs.replace(box, engines=("tensorrt",), compute_capability="8.9", memory_mib=8192)


def needs_rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")


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
    with pytest.raises(EngineRuntimeError, match=r"(?s)failed to read the graph.*NoSuchOperator"):
        ENGINES["tensorrt"].compile({"x.onnx": model.SerializeToString()}, gpu)


def test_a_capability_that_cannot_be_built_for_here_is_named(gpu: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_rtx()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    orin = msgspec.structs.replace(gpu, compute_capability="8.7")
    with pytest.raises(EngineRuntimeError, match=r"8\.7") as error:
        ENGINES["tensorrt"].compile({}, orin)
    assert "8.9" in error.value.expected
    assert "on the device" in error.value.fix


class FakeDriver:
    """Stand in for libcuda with host memory; counts what is allocated."""

    def __init__(self, capability: tuple[int, int] = (8, 7), devices: int = 1, fail: str = "") -> None:
        self.capability, self.devices, self.fail = capability, devices, fail
        self.memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}  # page-locked memory of the host
        self.contexts = self.streams = 0

    def __getattr__(self, call: str) -> Any:
        if not call.startswith("cu"):
            raise AttributeError(call)

        def run(*arguments: Any) -> int:
            if call == self.fail:
                return 2
            handler = getattr(self, "do_" + call, None)
            if handler is not None:
                handler(*(getattr(a, "_obj", a) for a in arguments))
            return 0

        return run

    def do_cuGetErrorName(self, _: Any, text: Any) -> None:  # noqa: N802 - the driver's names
        text.value = b"CUDA_ERROR_OUT_OF_MEMORY"

    def do_cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802
        count.value = self.devices

    def do_cuDeviceGetAttribute(self, value: Any, which: Any, _: Any) -> None:  # noqa: N802
        value.value = self.capability[{75: 0, 76: 1}[which.value]]

    def do_cuDeviceGetName(self, name: Any, *_: Any) -> None:  # noqa: N802
        name.value = b"Orin"

    def do_cuDriverGetVersion(self, version: Any) -> None:  # noqa: N802
        version.value = 12060

    def do_cuDevicePrimaryCtxRetain(self, *_: Any) -> None:  # noqa: N802
        self.contexts += 1

    def do_cuDevicePrimaryCtxRelease_v2(self, *_: Any) -> None:  # noqa: N802
        self.contexts -= 1

    def do_cuStreamCreate(self, stream: Any, _: Any) -> None:  # noqa: N802
        self.streams += 1
        stream.value = 77

    def do_cuStreamDestroy_v2(self, *_: Any) -> None:  # noqa: N802
        self.streams -= 1

    def do_cuMemAlloc_v2(self, pointer: Any, size: Any) -> None:  # noqa: N802
        buffer = ctypes.create_string_buffer(size.value)
        pointer.value = ctypes.addressof(buffer)
        self.memory[pointer.value] = buffer

    def do_cuMemFree_v2(self, pointer: Any) -> None:  # noqa: N802
        del self.memory[pointer.value]

    def do_cuMemAllocHost_v2(self, pointer: Any, size: Any) -> None:  # noqa: N802
        buffer = ctypes.create_string_buffer(size.value)
        pointer.value = ctypes.addressof(buffer)
        self.pinned[pointer.value] = buffer

    def do_cuMemFreeHost(self, pointer: Any) -> None:  # noqa: N802
        del self.pinned[pointer.value]

    def do_cuMemcpyHtoDAsync_v2(self, sink: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        self.copy(sink, source, size, stream, self.memory, self.pinned)

    def do_cuMemcpyDtoHAsync_v2(self, sink: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        self.copy(sink, source, size, stream, self.pinned, self.memory)

    @staticmethod
    def copy(sink: Any, source: Any, size: Any, stream: Any, to: dict[int, Any], of: dict[int, Any]) -> None:
        assert stream.value == 77, "copies run on the session's stream"
        assert len(of[source.value]) >= size.value <= len(to[sink.value])
        ctypes.memmove(sink.value, source.value, size.value)


class FakeContext:
    """Stand in for an execution context: logits = twice the first five pixels, in half precision."""

    def __init__(self, dynamic: bool) -> None:
        self.dynamic, self.addresses, self.fails = dynamic, {}, False  # type: ignore[var-annotated]
        self.shapes: dict[str, tuple[int, ...]] = {"pixels": (1, 3, 32, 32), "logits": (1, 5)}
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if not self.dynamic and shape != self.shapes[name]:
            return False
        self.shapes = {"pixels": shape, "logits": (shape[0], 5)}
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        batch, each = self.shapes["pixels"][0], int(np.prod(self.shapes["pixels"][1:]))
        pixels = (ctypes.c_float * (batch * each)).from_address(self.addresses["pixels"])
        logits = (ctypes.c_uint16 * (batch * 5)).from_address(self.addresses["logits"])
        values = 2 * np.frombuffer(pixels, np.float32).reshape(batch, each)[:, :5]
        np.frombuffer(logits, np.float16).reshape(batch, 5)[:] = values
        if self.profiler is not None:  # as IExecutionContext does: one call a layer, a kernel may come twice
            for name, ms in (("fc", 0.5), ("__myl_norm", 0.25), ("fc", 0.5)):
                self.profiler.report_layer_time(name, ms)
        return not self.fails


@pytest.fixture
def jetson(gpu: Target, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Put a stand-in for TensorRT 10 on a Jetson in place: real code, no GPU."""
    fake = SimpleNamespace(driver=FakeDriver(), context=FakeContext(dynamic=True), errors=[], plan=b"plan", parses=True)

    class Logger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, blob: bytes) -> Any:
            for level, message in fake.errors:
                self.logger.log(level, message)
            names = ["pixels", "logits"]
            return (
                None
                if blob != b"plan"
                else SimpleNamespace(
                    num_io_tensors=2,
                    get_tensor_name=names.__getitem__,
                    get_tensor_mode=lambda name: "in" if name == "pixels" else "out",
                    get_tensor_dtype=lambda name: np.float32 if name == "pixels" else np.float16,
                    get_tensor_shape=fake.context.get_tensor_shape,
                    create_execution_context=lambda: fake.context,
                    create_engine_inspector=lambda: SimpleNamespace(
                        get_engine_information=lambda form: json.dumps(fake.layers[form])
                    ),
                )
            )

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> Any:
            fake.flags = flags
            ports = [SimpleNamespace(shape=shape) for shape in ((16, 64), (64, 256), (16, 256))]
            layer = SimpleNamespace(type="product", name="blocks.0.mlp.fc1", num_inputs=2, get_input=ports.__getitem__,
                                    get_output=lambda i: ports[2])  # fmt: skip
            return SimpleNamespace(get_input=lambda i: SimpleNamespace(name="pixels", shape=(1, 3, 32, 32)),
                                   num_layers=1, get_layer=lambda i: layer)  # fmt: skip

        def create_builder_config(self) -> Any:
            return SimpleNamespace(set_memory_pool_limit=lambda pool, size: setattr(fake, "pool", size))

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            self.logger.log(1, "no tactic")
            return fake.plan

    class IProfiler:
        pass

    port = {"Dimensions": [16, 64], "Datatype": "Half"}
    fc = {"Name": "fc", "LayerType": "gemm", "Inputs": [port], "Outputs": [port],
          "Metadata": "[ONNX Layer: blocks.0.mlp.fc1]\x1e[ONNX Layer: gelu.23]"}  # fmt: skip
    fake.layers = {"json": {"Layers": [fc, "a bare name"]}}
    parser = SimpleNamespace(parse=lambda data: fake.parses, num_errors=0)
    module = SimpleNamespace(
        __name__="tensorrt",
        __version__="10.3.0",
        ILogger=Logger,
        Runtime=Runtime,
        Builder=Builder,
        OnnxParser=lambda network, logger: parser,
        IProfiler=IProfiler,
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
        LayerType=SimpleNamespace(CONVOLUTION="convolution", MATRIX_MULTIPLY="product"),
        BuilderFlag=SimpleNamespace(),
        MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=2),
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        nptype=lambda dtype: dtype,
    )
    fake.module = module
    fake.target = msgspec.structs.replace(gpu, name="orin", compute_capability="8.7")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(tensorrt, "driver", lambda: fake.driver)
    yield fake
    left = fake.driver.memory, fake.driver.pinned, fake.driver.contexts, fake.driver.streams
    assert left == ({}, {}, 0, 0), "memory of the GPU, or for it, was leaked"


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
    told = SimpleNamespace(get_engine_information=lambda form: {trt.LayerInformationFormat.JSON: "{}"}[form])
    (fc,) = watch.operators(SimpleNamespace(create_engine_inspector=lambda: told))
    assert (fc.name, fc.origin, list(fc.ms), fc.macs) == ("fc", "fc", [1.0, 3.0], None)
    builder = trt.Builder(tensorrt._logger(trt))
    network = builder.create_network(tensorrt._network_flags(trt))
    network.add_input("pixels", trt.float32, (1, 3, 32, 32))
    config = tensorrt._config(trt, builder, network, gpu)
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


def test_results_outlive_the_buffers_that_they_came_through(jetson: SimpleNamespace) -> None:
    with ENGINES["tensorrt"].load(b"plan", jetson.target) as session:
        first = session(PIXELS)["logits"]
        kept = first.copy()
        session(2 * PIXELS)
        np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(first, kept)


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


def test_a_plan_of_another_shape_or_a_failing_run_is_an_error(jetson: SimpleNamespace) -> None:
    jetson.context.dynamic = False
    with ENGINES["tensorrt"].load(b"plan", jetson.target) as session:
        with pytest.raises(EngineRuntimeError, match=r"input of shape \(2, 3, 32, 32\)"):
            session(np.zeros((2, 3, 32, 32), np.float32))
        jetson.context.fails = True
        with pytest.raises(EngineRuntimeError, match="failed to run the plan"):
            session(PIXELS)


def test_a_plan_that_is_refused_quotes_the_logger(jetson: SimpleNamespace) -> None:
    jetson.errors = [(1, "Serialization version 239"), (2, "a warning"), (3, "chat")]
    with pytest.raises(EngineRuntimeError, match="load the plan: Serialization version 239"):
        ENGINES["tensorrt"].load(b"other", jetson.target)


def test_a_build_that_fails_quotes_the_logger(jetson: SimpleNamespace, block_onnx: Callable[..., bytes]) -> None:
    jetson.plan = None
    with pytest.raises(EngineRuntimeError, match="build the plan: no tactic"):
        ENGINES["tensorrt"].compile({"x.onnx": block_onnx()}, jetson.target)
    jetson.parses = False
    with pytest.raises(EngineRuntimeError, match="it gave no reason"):
        ENGINES["tensorrt"].compile({"x.onnx": block_onnx()}, jetson.target)


def test_another_gpu_no_gpu_and_a_failing_driver_are_told_apart(
    jetson: SimpleNamespace, block_onnx: Callable[..., bytes]
) -> None:
    files = {"x.onnx": block_onnx()}
    other = msgspec.structs.replace(jetson.target, compute_capability="7.2")
    for work in (lambda: ENGINES["tensorrt"].compile(files, other), lambda: ENGINES["tensorrt"].load(b"plan", other)):
        with pytest.raises(EngineRuntimeError, match=r"this GPU has compute capability 8\.7"):
            work()
    jetson.driver = FakeDriver(devices=0)
    with pytest.raises(EngineRuntimeError, match="finds no GPU"):
        ENGINES["tensorrt"].load(b"plan", jetson.target)
    jetson.driver = FakeDriver(fail="cuMemAlloc_v2")
    with (
        ENGINES["tensorrt"].load(b"plan", jetson.target) as session,
        pytest.raises(EngineRuntimeError, match=r"cuMemAlloc_v2 failed with CUDA error 2 \(CUDA_ERROR_OUT_OF_MEMORY\)"),
    ):
        session(PIXELS)


def test_tensorrt_8_is_too_old(jetson: SimpleNamespace, block_onnx: Callable[..., bytes]) -> None:
    jetson.module.__version__ = "8.6.2"
    with pytest.raises(EngineRuntimeError, match=r"TensorRT 8\.6\.2 has no strongly typed"):
        ENGINES["tensorrt"].compile({"x.onnx": block_onnx()}, jetson.target)


def test_openvino_writes_and_sends_nothing_below_the_home_folder(tmp_path: Path) -> None:
    script = "from edgemae.device.engines import ENGINES; print(ENGINES['openvino'].version())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() != "None"
    assert list(tmp_path.iterdir()) == []


SIGNALLED = """
import signal, sys
from pathlib import Path
import numpy as np
from edgemae.device.engines import open_session
from edgemae.spec.target import find_target

graph = {"fp32.onnx": Path(sys.argv[1]).read_bytes()}
sessions = [open_session("openvino", graph, find_target("intel-openvino")) for _ in range(3)]
for session in sessions:  # in the order in which they came, not the other way round
    session.close()
del session, sessions
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_after_sessions_is_survived(block_onnx: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(block_onnx())
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, tmp_path / "graph.onnx"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(engines.__file__).parents[3])},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
