"""What the values of a manifest may be: form is checked by their types, meaning and ranges here, in one place.

A manifest comes from whoever wrote the bundle. A value outside of these rules either has no meaning on a device (an
image of 0 px, a rotation by 45 degrees), or takes its memory, its time or its files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from datetime import datetime

from edgemae.spec.errors import TargetError
from edgemae.spec.graph import COLORS, EXIF, KERNELS, RESIZES, ROTATIONS_DEG, IoContract, PixelContract, TensorSpec
from edgemae.spec.manifest import Manifest, Variant
from edgemae.spec.names import FORM, is_file_name
from edgemae.spec.target import PRECISIONS, Target, check_target

IMAGE_PX = (1, 4096)
VERSION = (0, 2**53)  # what every JSON reader holds exactly
AXIS = (1, 2**20)  # of an output: classes, embedding, tokens
GOLDEN_FRAMES = (1, 64)
VARIANTS = (1, 64)
COSINE_MIN = (0.95, 1.0)  # int8 on another machine than the one it was made on is held to 0.98
MAX_ABS = (0.0, 1e4)  # of logits
LONGEST = {"reason": 2000, "licence": 4000, "label": 1000}  # characters
DTYPES = ("float32", "uint8")  # of the input
OUTPUTS = {"logits": 2, "embedding": 2, "tokens": 3}  # name -> number of axes
ENDINGS = {"openvino": ({".onnx"}, {".xml", ".bin"}), "onnxruntime": ({".onnx"},), "tensorrt": ({".onnx"},)}
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def wrong_in_manifest(manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the values of a manifest, each with its field, its value and what may stand there."""
    yield from _name("name", manifest.name)
    yield from _within("version", manifest.version, VERSION)
    yield from _moment("created", manifest.created)
    if manifest.previous is not None and not _SHA256.match(manifest.previous):
        yield "'previous' is not a sha256"
    yield from _long("licence", manifest.licence, "licence")
    yield from _target(manifest.target)
    yield from _pixel(manifest.pixel)
    yield from _io(manifest.io, manifest.pixel)
    yield from _labels(manifest)
    yield from _golden(manifest)
    yield from _within("the number of variants", len(manifest.variants), VARIANTS)
    for variant in manifest.variants:
        yield from _variant(variant)
    ids = [variant.id for variant in manifest.variants]
    if len(set(ids)) < len(ids):
        yield f"two variants are '{max(ids, key=ids.count)}'"
    yield from _status(manifest)


def _name(field: str, name: str) -> Iterator[str]:
    if not is_file_name(name):
        yield f"{field} is {name[:60]!r}, not {FORM}"


def _target(target: Target) -> Iterator[str]:
    try:
        check_target(target, "target")
    except TargetError as error:
        yield f"{error.what}, not {error.expected}"


def _pixel(pixel: PixelContract) -> Iterator[str]:
    yield from _within("pixel.image_px", pixel.image_px, IMAGE_PX)
    yield from _among("pixel.channels", pixel.channels, COLORS)
    yield from _among("pixel.color", pixel.color, COLORS.get(pixel.channels, ()))
    yield from _among("pixel.resize", pixel.resize, RESIZES)
    yield from _among("pixel.kernel", pixel.kernel, KERNELS)
    yield from _among("pixel.exif", pixel.exif, EXIF)
    yield from _among("pixel.rotation_deg", pixel.rotation_deg, ROTATIONS_DEG)
    if not 0.05 <= pixel.crop_fraction <= 1:
        yield f"pixel.crop_fraction is {pixel.crop_fraction}, not 0.05 to 1"
    for field, values in (("pixel.mean", pixel.mean), ("pixel.std", pixel.std)):
        if len(values) != pixel.channels or not all(math.isfinite(value) and abs(value) <= 1e3 for value in values):
            yield f"{field} is {list(values)[:4]}, not a number for each of {pixel.channels} channels"
    if any(value < 1e-6 for value in pixel.std):
        yield f"pixel.std is {list(pixel.std)[:4]}, not above 0"


def _io(io: IoContract, pixel: PixelContract) -> Iterator[str]:
    if [spec.name for spec in io.inputs] != ["pixels"]:
        yield f"io.inputs are {[spec.name[:20] for spec in io.inputs][:4]}, not 'pixels' alone"
        return
    (pixels,) = io.inputs
    yield from _among("io.inputs: dtype", pixels.dtype, DTYPES)
    size = (pixel.image_px, pixel.image_px)
    shape = (*size, pixel.channels) if pixels.dtype == "uint8" else (pixel.channels, *size)
    if pixels.shape[1:] != shape or pixels.shape[:1] not in ((1,), (-1,)):
        yield f"io.inputs: shape is {pixels.shape[:8]}, and the pixel contract makes {(1, *shape)}"
    names = [spec.name for spec in io.outputs]
    if len(set(names)) < len(names) or not set(names) <= set(OUTPUTS) or not {"logits", "embedding"} & set(names):
        yield f"io.outputs are {[name[:20] for name in names[:4]]}, not 'logits' or 'embedding', and maybe 'tokens'"
    for spec in io.outputs:
        yield from _output(spec)


def _output(spec: TensorSpec) -> Iterator[str]:
    axes = OUTPUTS.get(spec.name, len(spec.shape))
    least, most = AXIS
    fits = len(spec.shape) == axes and spec.shape[0] in (1, -1) and all(least <= n <= most for n in spec.shape[1:])
    if spec.dtype != "float32" or not fits:
        yield f"io.outputs: {spec.name[:20]} is {spec.dtype[:20]} {spec.shape[:8]}, not float32 of {axes} axes"


def _labels(manifest: Manifest) -> Iterator[str]:
    width = sum(spec.shape[-1] for spec in manifest.io.outputs if spec.name == "logits" and spec.shape)
    if len(manifest.labels) not in (0, width):  # without names a class is called by its number
        yield f"there are {len(manifest.labels)} labels for {width} logits"
    if len(set(manifest.labels)) < len(manifest.labels):
        yield f"two labels are {max(manifest.labels, key=manifest.labels.count)[:60]!r}"
    for label in manifest.labels:
        yield from _long("a label", label, "label")


def _golden(manifest: Manifest) -> Iterator[str]:
    golden = manifest.golden
    yield from _within("the number of golden frames", len(golden.frames), GOLDEN_FRAMES)
    yield from _among("golden.color", golden.color, ("BGR",))
    for names, ending in ((golden.frames, ".png"), (golden.tensors, ".npy")):
        yield from (f"golden: '{name}' is no {ending} file" for name in names if not name.endswith(ending))


def _variant(variant: Variant) -> Iterator[str]:
    what = f"variant {variant.id[:60]!r}"
    yield from _name(f"{what}: engine", variant.engine)  # one that is not known here is skipped, with the reason
    yield from _among(f"{what}: precision", variant.precision, PRECISIONS)
    yield from _long(f"{what}: reason", variant.reason, "reason")
    yield from _name(f"{what}: scheme", variant.scheme.replace("+", "-") or "float")
    endings = [name[name.rfind(".") :] for name in variant.files]
    if variant.engine in ENDINGS and (
        set(endings) not in ENDINGS[variant.engine] or len(set(endings)) < len(endings)
    ):  # fmt: skip
        yield f"{what} has files {list(variant.files)[:4]}, which {variant.engine} does not read"
    if not variant.golden.endswith(".npy"):
        yield f"{what}: reference outputs '{variant.golden}' are no .npy file"
    tolerance = variant.tolerance
    yield from _within(f"{what}: cosine_min", tolerance.cosine_min, COSINE_MIN)
    yield from _within(f"{what}: max_abs", tolerance.max_abs, MAX_ABS)


def _status(manifest: Manifest) -> Iterator[str]:
    missed = [gate.gate for gate in manifest.gates if not gate.passed]
    if manifest.status == "passed" and missed:
        yield f"status is 'passed' beside the missed limit '{missed[0][:40]}'"
    if manifest.status == "untested" and manifest.gates:
        yield f"status is 'untested' beside {len(manifest.gates)} limits"
    if manifest.status == "failed" and not missed:
        yield "status is 'failed' without a missed limit"


def _moment(field: str, text: str) -> Iterator[str]:
    try:
        datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError:
        yield f"{field} is {text[:40]!r}, not a time such as 2026-01-31T12:00:00Z"


def _within(field: str, value: float, limits: tuple[float, float]) -> Iterator[str]:
    if not limits[0] <= value <= limits[1]:  # NaN fails
        yield f"{field} is {_short(value)}, not {limits[0]:g} to {limits[1]:g}"


def _among(field: str, value: object, known: Collection[object]) -> Iterator[str]:
    if value not in known:
        yield f"{field} is {_short(value)}, not one of {', '.join(map(str, known))}"


def _long(field: str, text: str, kind: str) -> Iterator[str]:
    if len(text) > LONGEST[kind]:
        yield f"{field} has {len(text)} characters, not {LONGEST[kind]} at most"


def _short(value: object) -> str:
    """Return a value for a message; an integer of 5,000 digits has no text in Python."""
    if isinstance(value, int) and abs(value) > 10**30:
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:60]
