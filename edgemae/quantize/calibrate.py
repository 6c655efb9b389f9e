"""Calibration: the images that set activation ranges, and the activation ranges of a float graph on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.spec.errors import DataError
from edgemae.spec.graph import Scales

Floats = NDArray[np.float32]
MIN_IMAGES = 32  # 32 against 128 images: at most 0.06 points on ImageNet (PTQ4ViT, table 5); fewer was never tested
NOISE_CORRELATION = 0.1  # photos: 0.9 and more; 8 x 8 digits: 0.6; white noise: below 0.02 over 32 images
BINS = 4096  # of a range that holds every value: 16 bins an int8 step before clipping


@dataclass(frozen=True)
class Calibration:
    """Hold preprocessed images (N, C, H, W) float32 and the digest that names them in the history.

    `scales`: what training has settled. A scheme of that kind takes them as they are, and images only give the error.
    """

    images: Floats
    digest: str
    scales: Scales | None = None

    @classmethod
    def of(cls, images: Floats) -> Calibration:
        """Return a checked Calibration of `images`, with the digest of their bytes."""
        calibration = cls(images, hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest())
        check_calibration(calibration)
        return calibration


def check_calibration(calibration: Calibration) -> None:
    """Refuse images that cannot set ranges. Raises DataError.

    Refused: fewer than 32 different ones, NaN or infinity, mostly flat ones, and random noise. Noise shows in its
    neighbours: in any image of something, pixels one or two apart go together; in noise they do not. Noise that was
    blurred passes: no statistic here separates it from a photo.
    """
    images = calibration.images
    if not isinstance(images, np.ndarray) or images.dtype != np.float32 or images.ndim != 4 or 0 in images.shape:
        kind = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}".strip()
        raise _refusal(f"the calibration tensor is {kind}", "float32 (N, C, H, W)", "preprocess the images first")
    if not np.isfinite(images).all():
        bad = int((~np.isfinite(images)).any(axis=(1, 2, 3)).sum())
        raise _refusal(
            f"{bad} of {len(images)} calibration images hold NaN or infinity", "finite pixels", "remove them"
        )
    distinct = len({hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in images})
    if distinct < MIN_IMAGES:
        raise _refusal(
            f"{distinct} different calibration images ({len(images)} in all)",
            f"at least {MIN_IMAGES}",
            "add images like those the device will see; they need no labels",
        )
    flat = int((images.std(axis=(2, 3)).max(axis=1) < 1e-4).sum())
    if flat * 2 > len(images):
        raise _refusal(
            f"{flat} of {len(images)} calibration images have one flat colour", "real images", "replace them"
        )
    correlation = neighbour_correlation(images)
    if correlation < NOISE_CORRELATION:
        raise _refusal(
            f"the calibration images look like random noise (neighbouring pixels correlate by {correlation:.2f})",
            f"real images, whose neighbours correlate by {NOISE_CORRELATION} or more",
            "pass a folder of images like those the device will see; random ranges ruin int8 silently",
        )


def neighbour_correlation(images: Floats) -> float:
    """Return the largest mean correlation, signs dropped, of pixels one or two apart, across or down: 0 for noise."""
    if min(images.shape[2:]) < 3:
        return 1.0  # nothing to compare
    means = []
    for lag in (1, 2):
        for left, right in (
            (images[:, :, :, :-lag], images[:, :, :, lag:]),
            (images[:, :, :-lag], images[:, :, lag:]),
        ):
            a = left - left.mean(axis=(2, 3), keepdims=True)
            b = right - right.mean(axis=(2, 3), keepdims=True)
            power = np.sqrt((a * a).mean(axis=(2, 3)) * (b * b).mean(axis=(2, 3)))
            means.append(float(((a * b).mean(axis=(2, 3)) / np.maximum(power, 1e-8)).mean()))
    return max(abs(value) for value in means)


def _refusal(what: str, expected: str, fix: str) -> DataError:
    return DataError(what, expected=expected, fix=fix)


# ---------------------------------------------------------------- ranges


@dataclass(frozen=True)
class View:
    """Ask for the histogram of one tensor, its last axis divided by `divisor` (a smoothing), within `low` .. `high`."""

    tensor: str
    divisor: Floats | None
    low: float
    high: float


def channel_ranges(model: bytes, names: list[str], images: Floats) -> dict[str, tuple[Floats, Floats]]:
    """Return per-channel (minimum, maximum) over the last axis of each named tensor."""
    ranges: dict[str, tuple[Floats, Floats]] = {}
    for values in _activations(model, names, images):
        for name, value in values.items():
            flat = value.reshape(-1, value.shape[-1])
            low, high = flat.min(axis=0), flat.max(axis=0)
            if name in ranges:
                low, high = np.minimum(low, ranges[name][0]), np.maximum(high, ranges[name][1])
            ranges[name] = low, high
    return ranges


def percentile_ranges(
    model: bytes, views: dict[str, View], images: Floats, percentiles: tuple[float, ...]
) -> dict[float, dict[str, tuple[float, float]]]:
    """Return, by percentile, (low, high) of every view; (100 - percentile) % of its values lie beyond each end.

    Zero is always inside. One pass and one histogram a view, whatever the number of images: counts add up, so ranges
    depend neither on the batch nor on the order of images.
    """
    counts = {key: np.zeros(BINS, np.int64) for key in views}
    names = sorted({view.tensor for view in views.values()})
    for values in _activations(model, names, images):
        for key, view in views.items():
            value = values[view.tensor] if view.divisor is None else values[view.tensor] / view.divisor
            step = max(view.high - view.low, 1e-12) / BINS
            bins = ((value.ravel() - view.low) * np.float32(1 / step)).astype(np.int32)
            counts[key] += np.bincount(np.clip(bins, 0, BINS - 1, out=bins), minlength=BINS)
    return {p: {key: _clip(counts[key], view, p) for key, view in views.items()} for p in percentiles}


def _clip(count: NDArray[np.int64], view: View, percentile: float) -> tuple[float, float]:
    total = count.cumsum()
    beyond = total[-1] * (100 - percentile) / 100
    first = int(np.searchsorted(total, beyond, side="right"))  # bins below `first` hold at most `beyond` values
    last = int(np.searchsorted(total, total[-1] - beyond, side="left"))
    step = (view.high - view.low) / BINS
    return min(0.0, view.low + min(first, BINS - 1) * step), max(0.0, view.low + (min(last, BINS - 1) + 1) * step)


def _activations(model: bytes, names: list[str], images: Floats) -> Iterator[dict[str, Floats]]:
    """Yield the named tensors for one batch of images after another."""
    import onnx

    proto = onnx.load_from_string(model)
    have = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in have)
    run = session(proto.SerializeToString(), names)
    for pixels in batches(images, batch_of(proto)):
        yield dict(zip(names, run(pixels), strict=True))


def batch_of(proto: Any) -> int:
    """Return the batch of a graph's input; 1 when it is dynamic."""
    return max(1, proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value)


def batches(images: Floats, size: int) -> Iterator[Floats]:
    """Yield `size` images at a time; the last batch is filled up from the start."""
    for start in range(0, len(images), size):
        yield images[np.arange(start, start + size) % len(images)]


def session(model: bytes, outputs: list[str] | None = None) -> Callable[[Floats], list[Any]]:
    """Return a function that runs an ONNX graph with ONNX Runtime on this CPU.

    `session.x64quantprecision` makes CPUs without VNNI multiply exactly whatever the weights, so that alphas for a GPU
    (127 levels) are not chosen by this CPU's saturation.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 2
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others work beside a calibration
    engine = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda pixels: list(engine.run(outputs, {"pixels": pixels}))
