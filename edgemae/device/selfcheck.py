"""Prove at load that pixels and engine still compute what was measured when the bundle was built."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgemae.device.camera.image_header import declared_px
from edgemae.device.engines._external_data import operators_of
from edgemae.device.preprocess import ImageBGR, as_bgr, decode, preprocess
from edgemae.device.session import Session
from edgemae.spec.bundle import Bundle
from edgemae.spec.errors import BundleCorruptError, InternalError, SelfCheckError
from edgemae.spec.graph import PixelContract
from edgemae.spec.manifest import Golden, Variant

TOKENS = "-tokens"
PNG = b"\x89PNG\r\n\x1a\n"
# What only int8 graphs have: operators of ONNX, and in OpenVINO's IR the quantizers and weights in eight bits.
INTEGER_OPERATORS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger",
                     "MatMulIntegerToFloat", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm"}  # fmt: skip
INTEGER_MARKS = (b"FakeQuantize", b'element_type="i8"')
MAX_FRAME_PX = 2**24  # of a golden frame: 48 MiB as BGR; edgemae writes at most twice the input's sides
MAX_HEADER = 1024  # bytes; NumPy writes 118
GOLDEN_TOKENS = 8  # patches of each golden frame that are kept: 24 KB a variant at 8 frames of 96 wide


@dataclass(frozen=True)
class Check:
    """What the golden frames showed. `cosine` and `max_abs` are the worst of all frames."""

    variant: str
    frames: int
    cosine: float
    max_abs: float
    labels_kept: int
    first_ms: float = 0.0  # of the session's very first run, in which engines allocate and choose kernels


def golden_name(variant_id: str, part: str = "") -> str:
    """Return the name of a variant's reference outputs inside the bundle; `part` TOKENS: those of its patches."""
    return f"golden/{variant_id.replace('+', '-')}{part}.npy"  # a scheme may be called ort-static+smooth0.5


def some_tokens(tokens: NDArray[Any]) -> NDArray[np.float64]:
    """Return evenly spread patches of (1, N, D), flattened: enough to see that each is at its place."""
    count = tokens.shape[1]
    places = np.linspace(0, count - 1, min(count, GOLDEN_TOKENS)).round().astype(int)
    return np.asarray(tokens[0, places], np.float64).ravel()


def golden_files(
    frames_bgr: Sequence[ImageBGR], pixel: PixelContract, outputs: Mapping[str, NDArray[Any]],
    tokens: Mapping[str, NDArray[Any]] | None = None, dtype: str = "float32",
) -> tuple[Golden, dict[str, bytes]]:  # fmt: skip
    """Return the golden set and its files: frames as PNG, their tensors, and outputs[variant id] of shape (frames, K).

    The reference of a variant is its logits, or its embedding when the model has no head; see `golden_name`. Where
    graphs give tokens, `tokens` holds rows of `some_tokens` likewise.
    """
    files: dict[str, bytes] = {}
    frames, tensors = [], []
    for i, frame_bgr in enumerate(frames_bgr):
        done, png = cv2.imencode(".png", frame_bgr)
        if not done:
            raise InternalError("a golden frame cannot be stored", expected="a uint8 BGR frame", fix="report this")
        frames.append(f"golden/frame-{i:02d}.png")
        tensors.append(f"golden/frame-{i:02d}.npy")
        files[frames[-1]] = png.tobytes()
        files[tensors[-1]] = _dump(preprocess(frame_bgr, pixel, dtype))
    for part, references in (("", outputs), (TOKENS, tokens or {})):
        for variant_id, rows in references.items():
            if len(rows) != len(frames):
                raise InternalError(
                    f"{len(rows)} reference outputs for '{variant_id}'",
                    expected=f"{len(frames)}",
                    fix="report this",
                )
            files[golden_name(variant_id, part)] = _dump(np.asarray(rows, np.float32))
    return Golden(frames=tuple(frames), tensors=tuple(tensors)), files


def check(session: Session, bundle: Bundle, variant: Variant) -> Check:
    """Run the golden frames through pixels and engine. Raises SelfCheckError with the figures when either moved, and
    BundleCorruptError for golden files that are not what the manifest says."""
    manifest = bundle.manifest
    _require_precision(bundle, variant)
    shapes = {spec.name: spec.shape[1:] for spec in manifest.io.outputs}
    output = "logits" if "logits" in shapes else "embedding"
    count = len(manifest.golden.frames)
    reference = _array(bundle, variant.golden, (count, *shapes[output]), "float32").astype(np.float64)
    rows, patches, took_ns = [], [], []
    for frame_name, tensor_name in zip(manifest.golden.frames, manifest.golden.tensors, strict=True):
        tensor = _golden_tensor(bundle, frame_name, tensor_name)
        start = time.perf_counter_ns()
        outputs = session(tensor)
        took_ns.append(time.perf_counter_ns() - start)
        _require_outputs(outputs, shapes, variant)
        rows.append(outputs[output].reshape(-1).astype(np.float64))
        if "tokens" in shapes:
            patches.append(some_tokens(outputs["tokens"]))
    if patches:
        name = golden_name(variant.id, TOKENS)
        _compare_tokens(np.stack(patches), _array(bundle, name, (count, patches[0].size), "float32"), variant)
    return replace(_compare(np.stack(rows), reference, variant, output), first_ms=took_ns[0] / 1e6)


def _require_precision(bundle: Bundle, variant: Variant) -> None:
    """Refuse an int8 graph that is listed as float, and the other way round: its figures would be another graph's."""
    has_integers = any(_has_integers(name, data) for name, data in bundle.variant_files(variant).items())
    if has_integers != (variant.precision == "int8"):
        found = "rounds to integers" if has_integers else "holds floats alone"
        raise SelfCheckError(
            f"the graph of {variant.id} {found}",
            expected=f"a graph of {variant.precision}, as the manifest lists it",
            fix="compile the bundle again",
        )


def _has_integers(name: str, data: bytes) -> bool:
    """Tell whether a graph file computes in eight bits; weights are not searched, they may be gigabytes."""
    if name.endswith(".xml"):
        return any(mark in data for mark in INTEGER_MARKS)
    if not name.endswith(".onnx"):
        return False
    try:
        return not INTEGER_OPERATORS.isdisjoint(operators_of(data))
    except (ValueError, IndexError):
        return False  # no engine takes it, and says so


def _require_outputs(
    outputs: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], variant: Variant
) -> None:
    """Refuse a graph that does not give what the manifest's `io` lists."""
    for name, shape in shapes.items():
        found = outputs.get(name)
        if found is None or found.dtype != np.float32 or found.shape != (1, *shape):
            gave = "no such output" if found is None else f"{found.dtype} {found.shape}"
            raise SelfCheckError(
                f"{variant.id} gave {gave} for '{name}'",
                expected=f"float32 {(1, *shape)}, as the manifest lists it",
                fix="compile the bundle again",
            )


def _compare(found: NDArray[np.float64], reference: NDArray[np.float64], variant: Variant, output: str) -> Check:
    limit = variant.tolerance
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
    cosines = np.where(norms > 0, np.sum(found * reference, axis=1) / np.where(norms > 0, norms, 1), 0.0)
    result = Check(
        variant=variant.id,
        frames=len(found),
        cosine=float(cosines.min()),
        max_abs=float(np.abs(found - reference).max()),
        labels_kept=int((found.argmax(axis=1) == reference.argmax(axis=1)).sum()),
    )
    labels_fine = result.labels_kept == result.frames or not limit.top1 or output != "logits"
    # Written so that NaN, which compares false with everything, fails.
    if not (result.cosine >= limit.cosine_min and result.max_abs <= limit.max_abs and labels_fine):
        raise SelfCheckError(
            f"{variant.id} does not compute here what was measured: {output} of {result.frames} golden frames have "
            f"cosine {result.cosine:.6f}, largest difference {result.max_abs:.3g}, {result.labels_kept} labels kept",
            expected=f"cosine >= {limit.cosine_min}, difference <= {limit.max_abs:g}"
            + (", every label kept" if limit.top1 and output == "logits" else ""),
            fix="load it with another of its engines, or compile it for this machine",
        )
    return result


def _compare_tokens(found: NDArray[np.float64], reference: NDArray[Any], variant: Variant) -> None:
    """Hold patches (frames, K) to the variant's cosine, and to its error at the norm of the reference."""
    reference = reference.astype(np.float64)
    if found.shape != reference.shape:
        raise SelfCheckError(
            f"{variant.id} gave tokens of shape {found.shape}",
            expected=f"{reference.shape}",
            fix="compile the bundle again",
        )
    norm = np.linalg.norm(reference, axis=1)
    cosine = float((np.sum(found * reference, axis=1) / np.maximum(norm * np.linalg.norm(found, axis=1), 1e-12)).min())
    error, limit = np.linalg.norm(found - reference, axis=1).max(), variant.tolerance.cosine_min
    allowed = max(1e-5, float(norm.max() * np.sqrt(2 * max(1 - limit, 0.0))))
    if not (cosine >= limit and error <= allowed):  # NaN fails
        raise SelfCheckError(
            f"{variant.id} does not compute here what was measured: tokens of golden frames have cosine {cosine:.6f}, "
            f"error {error:.3g}",
            expected=f"cosine >= {limit}, error <= {allowed:.3g}",
            fix="load it with another of its engines, or compile it for this machine",
        )


def _golden_tensor(bundle: Bundle, frame_name: str, tensor_name: str) -> NDArray[Any]:
    """Return the tensor of a golden frame, after showing that this machine makes the very same one."""
    io, pixel, png = bundle.manifest.io, bundle.manifest.pixel, bundle.read(frame_name)
    golden = _array(bundle, tensor_name, (1, *io.inputs[0].shape[1:]), io.dtype)
    frame = decode(png, pixel) if png.startswith(PNG) and 0 < declared_px(png) <= MAX_FRAME_PX else None
    if frame is None:
        raise BundleCorruptError(
            f"'{frame_name}' is no golden frame",
            expected=f"a PNG of at most {MAX_FRAME_PX} px",
            fix="compile the bundle again",
        )
    tensor = preprocess(as_bgr(frame, bundle.manifest.golden.color), pixel, io.dtype)
    if not np.array_equal(tensor, golden):
        moved = int((tensor != golden).sum())
        raise SelfCheckError(
            f"preprocessing differs on this machine: {moved} of {tensor.size} values of '{frame_name}', "
            f"OpenCV {cv2.__version__}",
            expected="exactly the golden tensor",
            fix="use the OpenCV version that the manifest names, or compile the bundle on this machine",
        )
    return tensor


def _array(bundle: Bundle, name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return an array of the bundle that has this shape and type. They are compared before memory is taken."""
    data = bundle.read(name)
    wanted = f"{dtype} {shape}"
    try:
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"it has format {version}")
        found = np.lib.format.read_array_header_1_0(file, max_header_size=MAX_HEADER)
    except (ValueError, EOFError, OSError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise BundleCorruptError(
            f"'{name}' is not an array: {str(error)[:200]}",
            expected=f"a .npy of {wanted}",
            fix="compile the bundle again",
        ) from error
    if (
        found != (shape, False, np.dtype(dtype))
        or len(data) - file.tell() != math.prod(shape) * np.dtype(dtype).itemsize
    ):
        raise BundleCorruptError(
            f"'{name}' is an array of {str(found[2])[:40]} {str(found[0])[:80]} in {len(data)} bytes",
            expected=f"a .npy of {wanted}, row by row",
            fix="compile the bundle again",
        )
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


def _dump(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
