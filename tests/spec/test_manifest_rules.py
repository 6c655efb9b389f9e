"""A manifest whose values have no meaning, or would take a device's memory, time or files, is refused with its field.

Each row was accepted, or ended as an error that was not ours, before these rules. Siblings: every other field that is a
number with a range, a choice, a name or a shape stands in `wrong_in_manifest` too.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from edgemae.spec.graph import IoContract, TensorSpec
from edgemae.spec.manifest import Manifest, Tolerance, Variant
from edgemae.spec.manifest_rules import wrong_in_manifest
from edgemae.spec.report import GateVerdict
from tests.spec.test_bundle import manifest

MISSED = GateVerdict(gate="p90_ms", limit=1.0, value=9.0, passed=False)


def changed(path: str, value: Any) -> Manifest:
    """Return the manifest with one place changed, such as "pixel.image_px" or "variants.0.engine"."""

    def put(node: Any, way: list[str]) -> Any:
        if not way:
            return value
        if isinstance(node, tuple):
            at = int(way[0])
            return (*node[:at], put(node[at], way[1:]), *node[at + 1 :])
        return msgspec.structs.replace(node, **{way[0]: put(getattr(node, way[0]), way[1:])})

    found: Manifest = put(manifest(), path.split("."))
    return found


def test_what_edgemae_writes_is_fine() -> None:
    assert list(wrong_in_manifest(manifest())) == []
    assert list(wrong_in_manifest(manifest(labels=()))) == []  # a class without a name is called by its number
    assert list(wrong_in_manifest(manifest(gates=(MISSED,), status="failed"))) == []
    assert list(wrong_in_manifest(changed("variants.0.engine", "npu"))) == []  # skipped with its reason, not refused


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "../../etc/cron.d/x"), ("name", ""), ("name", "a/b"), ("name", "con"), ("name", "\x1b[2J"),
        ("version", 2**53 + 1), ("version", 10**300), ("created", "yesterday"), ("previous", "x" * 64),
        ("licence", "x" * 5000), ("target.name", "../x"), ("target.threads", 10**6), ("target.threads", 0),
        ("target.engines", ()), ("target.precisions", ("int3",)), ("target.memory_mib", 0),
        ("pixel.image_px", 0), ("pixel.image_px", -1), ("pixel.image_px", 10**9), ("pixel.channels", 7),
        ("pixel.channels", 0), ("pixel.color", "CMYK"), ("pixel.color", "GRAY"), ("pixel.resize", "liquid"),
        ("pixel.kernel", "lanczos9"), ("pixel.crop_fraction", 0.0), ("pixel.crop_fraction", math.nan),
        ("pixel.crop_fraction", 2.0), ("pixel.mean", ()), ("pixel.mean", (math.inf, 0.0, 0.0)),
        ("pixel.std", (0.0, 1.0, 1.0)),
        ("pixel.std", (1.0, 1.0)), ("pixel.exif", "maybe"), ("pixel.rotation_deg", 45),
        ("io.inputs", ()), ("io.inputs.0.name", "image"), ("io.inputs.0.dtype", "object"),
        ("io.inputs.0.shape", (1, 7, 32, 32)), ("io.inputs.0.shape", (10**9, 3, 32, 32)), ("io.inputs.0.shape", ()),
        ("io.outputs", ()), ("io.outputs.0.name", "mood"), ("io.outputs.0.dtype", "int64"),
        ("io.outputs.0.shape", (1, 10**12)), ("io.outputs.0.shape", (1,)), ("io.outputs.0.shape", (1, 0)),
        ("labels", ("a",)), ("labels", ("a", "a")), ("labels", ("a", "x" * 2000)),
        ("variants", ()), ("variants.0.engine", "../x"), ("variants.0.precision", "int3"),
        ("variants.0.files", ("graph/fp32.onnx", "graph/fp32.onnx")), ("variants.1.files", ("openvino/int8.xml",)),
        ("variants.0.golden", "golden/frame-00.png"), ("variants.0.reason", "x" * 3000), ("variants.0.scheme", "../x"),
        ("variants.0.tolerance", Tolerance(cosine_min=-2.0, max_abs=1.0)),
        ("variants.0.tolerance", Tolerance(cosine_min=0.999, max_abs=1e300)),
        ("variants.0.tolerance", Tolerance(cosine_min=math.nan, max_abs=1.0)),
        ("golden.frames", ()), ("golden.frames", ("a.png",) * 65), ("golden.frames", ("golden/frame-00.npy",)),
        ("golden.color", "CMYK"), ("gates", (MISSED,)), ("status", "failed"), ("status", "untested"),
    ],
)  # fmt: skip
def test_a_value_without_meaning_is_named(path: str, value: Any) -> None:
    found = list(wrong_in_manifest(changed(path, value)))
    table, _, field = path.partition(".")
    names = {"io": path[:9], "variants": "variant", "gates": "status", "golden": "golden", "labels": "label"}
    assert names.get(table, field or table) in found[0], found
    assert all(what.isprintable() and len(what) < 600 for what in found)


def test_two_outputs_of_one_name_and_two_variants_alike_are_named() -> None:
    logits = TensorSpec(name="logits", dtype="float32", shape=(1, 2))
    io = IoContract(inputs=manifest().io.inputs, outputs=(logits, logits))
    assert any("io.outputs" in what for what in wrong_in_manifest(manifest(io=io)))
    first: Variant = manifest().variants[0]
    assert any("two variants" in what for what in wrong_in_manifest(manifest(variants=(first, first))))
