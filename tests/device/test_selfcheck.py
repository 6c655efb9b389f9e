"""The golden check: pixels to the last bit, outputs within the tolerance, figures in the message."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgemae.device.engines import open_session
from edgemae.device.selfcheck import check, golden_files, golden_name
from edgemae.device.session import Session
from edgemae.spec.bundle import Bundle, open_bundle
from edgemae.spec.errors import BundleCorruptError, InternalError, SelfCheckError
from edgemae.spec.graph import PixelContract
from edgemae.spec.manifest import Manifest, Tolerance
from edgemae.spec.target import Target

Outputs = dict[str, NDArray[Any]]


def moved(bundle: Bundle, box: Target, change: Callable[[Outputs], Outputs]) -> Session:
    """Return the bundle's own session with its outputs changed, as a miscompiling engine would."""
    real = open_session("onnxruntime", bundle.variant_files(bundle.manifest.variants[0]), box)
    return Session("onnxruntime", lambda pixels: change(real(pixels)), real.close)


def test_a_right_engine_passes_with_figures(make_bundle: Callable[..., Path], box: Target) -> None:
    for head in (True, False):
        bundle = open_bundle(make_bundle(head=head))
        for variant in bundle.manifest.variants:
            with open_session(variant.engine, bundle.variant_files(variant), box) as session:
                proof = check(session, bundle, variant)
            assert (proof.variant, proof.frames) == (variant.id, 3)
            assert proof.cosine > 0.99999
            assert proof.max_abs < 1e-4
            assert proof.labels_kept == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: out | {"logits": out["logits"] + np.float32(0.01)}, r" 0\.01,"),
        (lambda out: out | {"logits": -out["logits"]}, r" -1\.0"),
        (lambda out: out | {"logits": out["logits"] * 0}, r" 0\.0"),
        (lambda out: out | {"logits": out["logits"] * np.nan}, " nan, 0 "),
        (lambda out: out | {"logits": out["logits"][:, ::-1]}, r">= 0\.9999"),
        (lambda out: out | {"logits": out["logits"][:, :4]}, r"\(1, 4\)"),
    ],
    ids=["shifted", "negated", "zero", "nan", "reversed", "cut"],
)
def test_an_engine_that_computes_something_else_is_refused(
    change: Callable[[Outputs], Outputs], message: str, make_bundle: Callable[..., Path], box: Target
) -> None:
    bundle = open_bundle(make_bundle())
    with (
        moved(bundle, box, change) as session,
        np.errstate(invalid="ignore"),
        pytest.raises(SelfCheckError, match=message),
    ):
        check(session, bundle, bundle.manifest.variants[0])


def test_a_changed_label_is_refused_within_the_other_tolerances(make_bundle: Callable[..., Path], box: Target) -> None:
    def swap(out: Outputs) -> Outputs:
        logits = out["logits"].copy()
        order = np.argsort(logits[0])
        logits[0, order[[-1, -2]]] = logits[0, order[[-1, -2]]].mean() + np.array([-1e-3, 1e-3], np.float32)
        return out | {"logits": logits}

    def edit(manifest: Manifest, files: dict[str, bytes]) -> Manifest:
        wide = Tolerance(cosine_min=0.95, max_abs=1e4)
        loose = msgspec.structs.replace(wide, top1=False)
        first, second = manifest.variants
        variants = (msgspec.structs.replace(first, tolerance=wide), msgspec.structs.replace(second, tolerance=loose))
        return msgspec.structs.replace(manifest, variants=variants)

    bundle = open_bundle(make_bundle(edit=edit))
    with moved(bundle, box, swap) as session:
        with pytest.raises(SelfCheckError, match=r"0 labels kept\n.*every label kept"):
            check(session, bundle, bundle.manifest.variants[0])
        assert check(session, bundle, bundle.manifest.variants[1]).labels_kept == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": "linear"}, r"golden/frame-00\.png"),
        ({"color": "BGR"}, r"OpenCV \d"),
        ({"mean": (0.1, 0.2, 0.3)}, r"3072 of 3072 values of 'golden/frame-00\.png'"),
    ],
)
def test_pixels_that_differ_in_one_bit_are_refused(
    changes: dict[str, Any], message: str, make_bundle: Callable[..., Path], box: Target
) -> None:
    """The manifest's contract is changed and the golden tensors are not: what another OpenCV would do."""

    def edit(manifest: Manifest, files: dict[str, bytes]) -> Manifest:
        return msgspec.structs.replace(manifest, pixel=msgspec.structs.replace(manifest.pixel, **changes))

    bundle = open_bundle(make_bundle(edit=edit))
    with moved(bundle, box, lambda out: out) as session, pytest.raises(SelfCheckError, match=message):
        check(session, bundle, bundle.manifest.variants[0])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("golden/frame-01.png", b"no image"),
        ("golden/frame-00.npy", b"no array"),
        ("golden/openvino-fp32.npy", b""),
    ],
)
def test_golden_files_that_cannot_be_read_are_named(
    name: str, data: bytes, make_bundle: Callable[..., Path], box: Target
) -> None:
    def edit(manifest: Manifest, files: dict[str, bytes]) -> Manifest:
        files[name] = data
        return manifest

    bundle = open_bundle(make_bundle(edit=edit))
    with (
        moved(bundle, box, lambda out: out) as session,
        pytest.raises(BundleCorruptError, match=re.escape(f"'{name}'")),
    ):
        check(session, bundle, bundle.manifest.variants[0])


def test_pickled_arrays_are_refused(make_bundle: Callable[..., Path], box: Target, tmp_path: Path) -> None:
    def edit(manifest: Manifest, files: dict[str, bytes]) -> Manifest:
        np.save(tmp_path / "evil.npy", np.array([{"run": "me"}], dtype=object), allow_pickle=True)
        files["golden/frame-00.npy"] = (tmp_path / "evil.npy").read_bytes()
        return manifest

    bundle = open_bundle(make_bundle(edit=edit))
    with moved(bundle, box, lambda out: out) as session, pytest.raises(BundleCorruptError, match="array of object"):
        check(session, bundle, bundle.manifest.variants[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokens: tokens * 1.2, r"tokens .* 1\.0"),
        (lambda tokens: tokens[:, ::-1], r"tokens .* 0\."),
        (lambda tokens: tokens * np.nan, "tokens .* nan"),
        (lambda tokens: tokens[:, :, :16], r"\(1, \d+, 16\) for 'tokens'"),
    ],
    ids=["scaled", "reversed", "nan", "cut"],
)
def test_tokens_that_moved_are_refused(
    change: Callable[[NDArray[Any]], NDArray[Any]], message: str, weave: Path, box: Target
) -> None:
    bundle = open_bundle(weave / "weave.edgemae")
    first, second = bundle.manifest.variants
    assert golden_name(first.id, "-tokens") in bundle.manifest.files
    assert second.scheme == "ort-static+smooth0.5", "a name that files of a bundle may not have"
    with moved(bundle, box, lambda out: out) as session:
        assert check(session, bundle, first).frames == 8
    with (
        moved(bundle, box, lambda out: out | {"tokens": change(out["tokens"])}) as session,
        pytest.raises(SelfCheckError, match=message),
    ):
        check(session, bundle, first)


def test_golden_files_are_the_same_every_time_and_complete() -> None:
    frames = [np.full((9, 7, 3), value, np.uint8) for value in (0, 128, 255)]
    pixel = PixelContract(image_px=8)
    rows = np.arange(6, dtype=np.float64).reshape(3, 2)
    golden, files = golden_files(frames, pixel, {"a": rows})
    assert golden_files(frames, pixel, {"a": rows}) == (golden, files)
    assert set(files) == {*golden.frames, *golden.tensors, golden_name("a")}
    assert len(golden.frames) == len(golden.tensors) == 3
    with pytest.raises(InternalError, match="2 reference outputs for 'a'"):
        golden_files(frames, pixel, {"a": rows[:2]})


@pytest.mark.parametrize("name", ["graph/fp32.onnx", "graph/int8.onnx"])
def test_a_graph_of_another_precision_than_listed_is_refused(
    name: str, make_bundle: Callable[..., Path], box: Target
) -> None:
    """Float and int8 exchanged: outputs may agree, and the latency and size that the manifest states would not."""

    def edit(manifest: Manifest, files: dict[str, bytes]) -> Manifest:
        precision = "int8" if "fp32" in name else "fp32"
        if precision == "fp32":
            model = onnx.load_from_string(files[manifest.variants[0].files[0]])
            scale = onnx.helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [1.0])
            model.graph.initializer.append(scale)
            model.graph.node.append(onnx.helper.make_node("QuantizeLinear", ["pixels", "scale"], ["rounded"]))
            files[manifest.variants[0].files[0]] = model.SerializeToString()
        variants = tuple(msgspec.structs.replace(v, precision=precision) for v in manifest.variants)
        return msgspec.structs.replace(manifest, variants=variants)

    bundle = open_bundle(make_bundle(edit=edit))
    with (
        moved(bundle, box, lambda out: out) as session,
        pytest.raises(SelfCheckError, match="as the manifest lists it"),
    ):
        check(session, bundle, bundle.manifest.variants[0])
