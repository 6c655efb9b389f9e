"""Bundles, rightly hashed, that only somebody hostile would write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from support.release_bytes import field, npy, png, varint
from support.release_case import case, cases
from support.release_runner import DIGITS, Outcome, Workbench


def graph_of(bench: Workbench) -> str:
    """Return the name of the first ONNX file of the bundle's variants."""
    return next(f for variant in bench.manifest()["variants"] for f in variant["files"] if f.endswith(".onnx"))


# ---------------------------------------------------------------- graphs that reach out of the bundle

TAGS: list[tuple[str, Callable[[int], bytes]]] = [
    ("plain", varint), ("a tag of five bytes", lambda tag: varint(tag, 5)),
    ("a tag of ten bytes", lambda tag: varint(tag, 10)), ("bit 32 of the tag", lambda tag: varint(1 << 32 | tag)),
]  # fmt: skip


def external(bench: Workbench, spelled: Callable[[int], bytes]) -> bytes:
    """Return the bundle's graph with one weight in `secret.bin`, the fields that say so under tags as `spelled`."""
    import onnx

    model = onnx.load_from_string(bench.file_of(graph_of(bench)))
    weight = next(w for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT and len(w.dims) == 2)
    (bench.scratch / "secret.bin").write_bytes(bytes(4 * int(np.prod(weight.dims))))
    rest = onnx.TensorProto(dims=weight.dims, data_type=weight.data_type, name=weight.name)
    location = onnx.StringStringEntryProto(key="location", value="secret.bin")
    data = rest.SerializeToString() + field(13, location.SerializeToString(), spelled(13 << 3 | 2))
    data += spelled(14 << 3) + b"\x01"  # data_location = EXTERNAL
    model.graph.initializer.remove(weight)
    graph = model.graph.SerializeToString() + field(5, data)
    model.ClearField("graph")
    found: bytes = model.SerializeToString() + field(7, graph)
    return found


@cases("graph", [(f"external data: {name}, {engine}", (spelled, engine)) for name, spelled in TAGS
                 for engine in ("openvino", "onnxruntime")], 2, 5, says="ONNX")  # fmt: skip
def _external(bench: Workbench, how: tuple[Callable[[int], bytes], str]) -> Outcome:
    spelled, engine = how
    name = graph_of(bench)

    def alone(tree: dict[str, Any]) -> None:
        tree["variants"] = [{**tree["variants"][0], "engine": engine, "files": [name]}]

    return bench.edgemae("verify", bench.rewritten(files={name: external(bench, spelled)}, change=alone))


@cases(
    "graph", [("cut off", lambda d: d[:-7]), ("empty", lambda d: b""), ("noise", lambda d: bytes(range(256)) * 64)], 5
)
def _graph(bench: Workbench, change: Callable[[bytes], bytes]) -> Outcome:
    name = graph_of(bench)
    path = bench.rewritten(files={name: change(bench.file_of(name))})
    return bench.edgemae("verify", path, "--fallback", "never")


def endless() -> bytes:
    """Return a graph of the demo's input and outputs that loops without end."""
    import onnx
    from onnx import TensorProto, helper

    make = helper.make_tensor_value_info
    true = helper.make_node("Constant", [], ["go"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["on_"]), helper.make_node("Identity", ["x"], ["x_"])], "body",
        [make("i", TensorProto.INT64, []), make("on", TensorProto.BOOL, []), make("x", TensorProto.FLOAT, [1, 1])],
        [make("on_", TensorProto.BOOL, []), make("x_", TensorProto.FLOAT, [1, 1])],
    )  # fmt: skip
    mean = helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0)
    loop = helper.make_node("Loop", ["", "go", "mean"], ["embedding"], body=body)
    graph = helper.make_graph([true, mean, loop], "g", [make("pixels", TensorProto.FLOAT, [1, 1, 1, 1])],
                              [make("embedding", TensorProto.FLOAT, [1, 1])])  # fmt: skip
    found: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString()
    assert onnx
    return found


@case("graph", "a loop without end", 5, most_s=60.0)
def _loop(bench: Workbench) -> Outcome:
    name = graph_of(bench)
    return bench.edgemae("verify", bench.rewritten(files={name: endless()}), "--fallback", "never")


# ---------------------------------------------------------------- manifests that make no sense


def at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change that sets a place of the manifest, such as "pixel.image_px"."""

    def change(tree: Any) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in way:
            tree = tree[part]
        tree[last] = value

    return change


MANIFESTS = [
    ("version", DIGITS), ("io.inputs", []), ("io.outputs", []), ("io.inputs.0.dtype", "object"),
    ("io.inputs.0.shape", [1, 7, 32, 32]), ("io.outputs.0.dtype", "int64"), ("io.outputs.0.name", "mood"),
    ("pixel.image_px", 0), ("pixel.image_px", -32), ("pixel.image_px", 10**9), ("pixel.channels", 7),
    ("pixel.color", "CMYK"), ("pixel.resize", "liquid"), ("pixel.kernel", "lanczos9"), ("pixel.crop_fraction", 0.0),
    ("pixel.crop_fraction", 1e300), ("pixel.mean", []), ("pixel.std", [0.0]), ("pixel.exif", "maybe"),
    ("pixel.rotation_deg", 45), ("labels", ["0"]), ("labels", ["0"] * 10), ("target.threads", 10**6),
    ("target.threads", 0), ("target.engines", []), ("target.name", "../../etc"), ("name", "../../etc"), ("name", ""),
    ("variants", []), ("variants.0.engine", "abacus"), ("variants.0.precision", "int3"), ("variants.0.files", []),
    ("variants.0.tolerance.cosine_min", -2.0), ("variants.0.tolerance.max_abs", 1e300),
    ("golden.frames", []), ("golden.color", "CMYK"), ("status", "splendid"), ("previous", "x" * 10**6),
    ("created", "yesterday\n"), ("gates", [{"name": "p90", "limit": 1.0, "value": 9.0, "passed": False}]),
]  # fmt: skip


@cases("manifest", [(f"{path} = {str(value)[:24]}", (path, value)) for path, value in MANIFESTS], 2, 5)
def _manifest(bench: Workbench, how: tuple[str, Any]) -> Outcome:
    return bench.edgemae("verify", bench.rewritten(change=at(*how)), "--fallback", "never")


@case("manifest", "int8 and float graphs exchanged", 2, 5)
def _exchanged(bench: Workbench) -> Outcome:
    def change(tree: dict[str, Any]) -> None:
        for variant in tree["variants"]:
            variant["precision"] = "int8" if variant["precision"] == "fp32" else "fp32"

    return bench.edgemae("verify", bench.rewritten(change=change), "--fallback", "never")


ARRAYS = [
    ("10^12 values", npy("(1000000, 1000000)")), ("a shape below zero", npy("(-1, 32)")),
    ("objects", npy("(1,)", "|O")),
    ("an archive", b"PK\x03\x04" + bytes(64)), ("nothing", b""), ("another shape", npy("(2, 2)", data=bytes(16))),
    ("a structure", npy("(1,)", "V1000000")), ("text", b"not an array"),
]  # fmt: skip


@cases("golden", [(f"tensor: {name}", data) for name, data in ARRAYS], 2, 5)
def _tensor(bench: Workbench, data: bytes) -> Outcome:
    name = bench.manifest()["golden"]["tensors"][0]
    return bench.edgemae("verify", bench.rewritten(files={name: data}))


@cases("golden", [(f"reference: {name}", data) for name, data in ARRAYS], 2, 5)
def _reference(bench: Workbench, data: bytes) -> Outcome:
    name = bench.manifest()["variants"][0]["golden"]
    return bench.edgemae("verify", bench.rewritten(files={name: data}), "--fallback", "never")


FRAMES = [("30,000 x 30,000", png(30000, 30000)), ("no image", b"GIF89a"), ("empty", b""), ("0 x 0", png(0, 0)),
          ("1 x 1,000,000", png(1, 10**6, rows=10**6))]  # fmt: skip


@cases("golden", [(f"frame: {name}", data) for name, data in FRAMES], 2, 5)
def _frame(bench: Workbench, data: bytes) -> Outcome:
    name = bench.manifest()["golden"]["frames"][0]
    return bench.edgemae("verify", bench.rewritten(files={name: data}))
