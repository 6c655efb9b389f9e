"""Calibration: what is refused, how noise is separated from photos, and ranges that depend on the values alone."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sklearn.datasets import load_digits

from edgemae.quantize.calibrate import (
    Calibration,
    View,
    batches,
    channel_ranges,
    check_calibration,
    neighbour_correlation,
    percentile_ranges,
)
from edgemae.spec.errors import DataError

RANDOM = np.random.default_rng(0)


def images_of(count: int = 40) -> np.ndarray:
    coarse = np.random.default_rng(1).standard_normal((count, 6, 6, 3)).astype(np.float32)
    return np.stack([cv2.resize(c, (32, 32), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1) for c in coarse])


def with_nan() -> np.ndarray:
    images = images_of()
    images[3, 0, 0, 0] = np.nan
    return images


WRONG = {
    r"\b31\b": images_of(31),
    r"\b1\b.*\b40\b": images_of(1).repeat(40, axis=0),
    r"\b0\.1 or": RANDOM.standard_normal((64, 3, 32, 32)).astype(np.float32),
    r"\b0\.\d\d\)": RANDOM.random((64, 1, 32, 32)).astype(np.float32),
    "40 of 40": np.linspace(-1, 1, 40, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((40, 3, 32, 32), np.float32),
    "1 of 40": with_nan(),
    "float64": images_of().astype(np.float64),
    r"\(40, 3, 32\)": images_of()[..., 0],
}


@pytest.mark.parametrize("value", WRONG)
def test_refusal(value: str) -> None:
    with pytest.raises(DataError, match=value) as caught:
        Calibration.of(WRONG[value])
    assert caught.value.exit_code == 2
    assert caught.value.fix


def test_images_pass_with_a_digest_of_their_bytes() -> None:
    one, two = Calibration.of(images_of()), Calibration.of(images_of())
    assert one.digest == two.digest
    assert len(one.digest) == 64
    assert Calibration.of(images_of()[::-1].copy()).digest != one.digest


def test_digits_and_textures_are_no_noise() -> None:
    digits = load_digits().images[:64, None].astype(np.float32)
    assert neighbour_correlation(digits) > 0.4
    check_calibration(Calibration(digits, ""))
    checkers = np.indices((32, 32)).sum(axis=0) % 2 * 2.0 - 1
    many = (checkers * np.linspace(1, 2, 40).reshape(-1, 1, 1, 1)).astype(np.float32)
    check_calibration(Calibration(many, ""))
    assert neighbour_correlation(RANDOM.standard_normal((32, 1, 8, 8)).astype(np.float32)) < 0.1


def model(batch: int) -> bytes:
    """Return y = x * 2, whose value t is looked at."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (batch, 1, 16, 16)) for name in ("pixels", "y")]
    nodes = [helper.make_node("Add", ["pixels", "pixels"], ["t"]), helper.make_node("Identity", ["t"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_ranges_do_not_depend_on_batch_or_order(batch: int) -> None:
    images = np.random.default_rng(5).standard_normal((64, 1, 16, 16)).astype(np.float32)
    low, high = channel_ranges(model(batch), ["t"], images)["t"]
    np.testing.assert_array_equal(high, 2 * images.max(axis=(0, 1, 2)))
    views = {"a": View("t", None, float(low.min()), float(high.max()))}
    ranges = percentile_ranges(model(batch), views, images, (99.0,))[99.0]["a"]
    assert ranges == percentile_ranges(model(1), views, images[::-1].copy(), (99.0,))[99.0]["a"]
    want = np.percentile(2 * images, [1, 99])
    np.testing.assert_allclose(ranges, want, atol=8 * (high.max() - low.min()) / 4096)


def test_percentile_100_keeps_everything_and_zero_stays_inside() -> None:
    images = np.random.default_rng(6).random((32, 1, 16, 16)).astype(np.float32) + 1
    views = {"a": View("t", None, 2.0, 4.0)}
    low, high = percentile_ranges(model(1), views, images, (100.0,))[100.0]["a"]
    assert low == 0.0
    assert high >= 2 * images.max() - 1e-3


def test_last_batch_is_filled_up() -> None:
    images = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    assert [list(b.ravel()) for b in batches(images, 2)] == [[0, 1], [2, 3], [4, 0]]
    assert onnx.load_from_string(model(2)).graph.input[0].name == "pixels"
