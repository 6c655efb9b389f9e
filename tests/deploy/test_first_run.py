"""A stranger's graph that never ends, or that wants all memory, ends with an error of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgemae.deploy import first_run as module
from edgemae.deploy.first_run import first_run
from edgemae.spec.errors import BundleError, EngineRuntimeError, InputError
from edgemae.spec.manifest import Manifest

make = helper.make_tensor_value_info


def looping() -> bytes:
    """Return a graph that adds to itself without end."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["on_"]), helper.make_node("Add", ["x", "one"], ["x_"])], "body",
        [make("i", TensorProto.INT64, []), make("on", TensorProto.BOOL, []), make("x", TensorProto.FLOAT, [1, 5])],
        [make("on_", TensorProto.BOOL, []), make("x_", TensorProto.FLOAT, [1, 5])],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Expand", ["mean", "shape"], ["wide"]),
        helper.make_node("Greater", ["mean", "low"], ["all"]), helper.make_node("Squeeze", ["all"], ["go"]),
        helper.make_node("Loop", ["", "go", "wide"], ["logits"], body=body),
    ]  # fmt: skip
    weights = [
        helper.make_tensor("shape", TensorProto.INT64, [2], [1, 5]),
        helper.make_tensor("low", TensorProto.FLOAT, [1], [-1e9]),
    ]
    return graph_of(nodes, weights)


def hungry() -> bytes:
    """Return a graph that fills 12 GB: a product of two vectors that it makes itself."""
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Expand", ["mean", "tall"], ["column"]), helper.make_node("Expand", ["mean", "wide"], ["row"]),
        helper.make_node("MatMul", ["column", "row"], ["square"]),
        helper.make_node("ReduceMax", ["square"], ["most"], axes=[0, 1], keepdims=1),
        helper.make_node("Expand", ["most", "out"], ["logits"]),
    ]  # fmt: skip
    sizes = {"tall": [54772, 1], "wide": [1, 54772], "out": [1, 5]}
    return graph_of(nodes, [helper.make_tensor(name, TensorProto.INT64, [2], size) for name, size in sizes.items()])


def graph_of(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> bytes:
    pixels, logits = make("pixels", TensorProto.FLOAT, [1, 3, 32, 32]), make("logits", TensorProto.FLOAT, [1, 5])
    graph = helper.make_graph(nodes, "g", [pixels], [logits], weights)
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    ).SerializeToString()
    return data


def with_graph(data: bytes) -> Callable[[Manifest, dict[str, bytes]], Manifest]:
    def edit(manifest: Manifest, files: dict[str, bytes]) -> Manifest:
        files[manifest.variants[0].files[0]] = data
        return manifest

    return edit


def test_it_says_what_runs_and_passes_warnings_on(
    make_bundle: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    info = first_run(make_bundle(engines=("npu", "onnxruntime")), engine="auto")
    assert (info["engine"], info["variant"], info["check"]["frames"]) == ("onnxruntime", "onnxruntime-fp32", 3)
    assert [record.levelno for record in caplog.records if "npu" in record.message] == [logging.WARNING]


def test_errors_are_those_of_load(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"gone\.edgemae"):
        first_run(tmp_path / "gone.edgemae")
    with pytest.raises(InputError, match="'tensorrt'"):
        first_run(make_bundle(), engine="tensorrt")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_loop_without_end_is_ended(
    engine: str, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIME_LIMIT_S", 3.0)
    with pytest.raises(EngineRuntimeError) as caught:
        first_run(make_bundle(engines=(engine,), edit=with_graph(looping())))
    assert "3 s" in caught.value.what or engine in caught.value.what  # an engine may refuse to build it


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_memory_is_bounded(engine: str, make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(EngineRuntimeError) as caught:
        first_run(make_bundle(engines=(engine,), edit=with_graph(hungry())))
    assert "alloc" in caught.value.what.lower()
