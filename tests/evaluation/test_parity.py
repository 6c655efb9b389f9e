"""Parity of two forms of one model, and the tolerance of golden outputs."""

from __future__ import annotations

import numpy as np
import pytest

from edgemae.evaluation.parity import COSINE_MIN, compare, tolerance_for
from edgemae.spec.errors import EngineRuntimeError, InternalError
from edgemae.spec.target import PRECISIONS

RNG = np.random.default_rng(0)


def within(reference: np.ndarray, other: np.ndarray, precision: str) -> bool:
    cosine_min, max_abs = tolerance_for(precision, reference)
    parity = compare(reference, other)
    return parity.cosine_min >= cosine_min and parity.max_abs <= max_abs


def test_compare_by_hand() -> None:
    parity = compare(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 2.5]]))
    assert parity.max_abs == 1.0
    assert (parity.cosine_min, parity.cosine_mean) == (0.0, 0.5)
    assert parity.top1_agreement == 0.5


def test_compare_flattens_tokens_and_takes_a_vector_as_one_row() -> None:
    tokens = RNG.normal(size=(2, 3, 4))
    assert compare(tokens, tokens).cosine_min == pytest.approx(1.0)
    assert compare(np.array([3.0, 4.0]), np.array([6.0, 8.0])).cosine_mean == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_numbers_are_refused_on_either_side(bad: float) -> None:
    fine, broken = np.ones((2, 2)), np.array([[1.0, bad], [1.0, 1.0]])
    for pair in ((fine, broken), (broken, fine)):
        with pytest.raises(EngineRuntimeError, match=r"\b1\b"):
            compare(*pair)


@pytest.mark.parametrize("other", [np.ones((2, 3)), np.ones((3, 2)), np.ones(4)])
def test_other_shapes_are_refused(other: np.ndarray) -> None:
    with pytest.raises(InternalError):
        compare(np.ones((2, 2)), other)


def test_there_is_a_tolerance_for_every_precision() -> None:
    assert set(COSINE_MIN) == set(PRECISIONS)
    with pytest.raises(InternalError):
        tolerance_for("int4", np.ones((1, 2)))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_rounding_of_other_kernels_passes_and_faults_do_not(precision: str, scale: float) -> None:
    golden = RNG.normal(size=(8, 10)) * scale
    rounding = {"fp32": 1e-4, "fp16": 2e-3, "int8": 1e-2}[precision]  # relative, well above what was measured
    assert within(golden, golden * (1 + rounding * RNG.normal(size=golden.shape)), precision)
    faults = {
        "wrong scale": golden * 2,
        "swapped outputs": golden[:, ::-1],
        "swapped images": golden[::-1],
        "one column lost": np.where(np.arange(10) == 3, 0, golden),
        "saturated": np.clip(golden, -scale, scale),
    }
    for name, wrong in faults.items():
        assert not within(golden, wrong, precision), name


def test_a_golden_output_of_zeros_leaves_room_for_rounding_only() -> None:
    zeros = np.zeros((2, 4))
    assert 0 < tolerance_for("fp32", zeros)[1] < 1e-4
    assert within(zeros, zeros, "fp32")
