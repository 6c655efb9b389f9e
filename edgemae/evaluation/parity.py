"""Parity: do two forms of one model compute the same? And how far may another machine's kernels be from ours?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.evaluation.accuracy import cosine
from edgemae.spec.errors import EngineRuntimeError, InternalError

Array = NDArray[Any]

# Smallest cosine of a golden output to the same graph's output where it was made. Measured, worst of 256 images, as
# 1 - cosine: on a small ViT (four blocks, briefly trained) OpenVINO against ONNX Runtime in fp32 under 1e-12, fp16
# arithmetic 1.2e-6, bf16 arithmetic, which engines may pick on a CPU that has it, 4e-5. int8 of one engine on one
# instruction set repeats bit for bit; on a ViT-Tiny, int8 kernels without VNNI saturate at 16 bits and are 2e-3 off
# fp32 where those with VNNI are 1e-4 off: the former must be refused.
COSINE_MIN = {"fp32": 0.9999, "fp16": 0.9995, "int8": 0.999}


@dataclass(frozen=True)
class Parity:
    """State how far outputs (N, D) moved: largest absolute error, cosine over rows, share of rows with equal argmax."""

    max_abs: float
    cosine_min: float
    cosine_mean: float
    top1_agreement: float


def compare(reference: Array, other: Array) -> Parity:
    """Compare two outputs (N, ...) row by row; a row is flattened, and one without a batch axis is one row.

    Raises InternalError when the shapes differ and EngineRuntimeError when either holds NaN or infinity.
    """
    reference, other = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    if reference.shape != other.shape or not reference.size:
        raise InternalError(
            f"outputs of shape {reference.shape} against {other.shape}",
            expected="equal shapes that are not empty",
            fix="report this as a bug",
        )
    for name, value in (("reference", reference), ("compared", other)):
        if not np.isfinite(value).all():
            raise EngineRuntimeError(
                f"the {name} output holds {int((~np.isfinite(value)).sum())} values that are NaN or infinite",
                expected="finite numbers",
                fix="try --precision fp32, or another --engine",
            )
    rows = 1 if reference.ndim < 2 else len(reference)
    reference, other = reference.reshape(rows, -1), other.reshape(rows, -1)
    cosines = cosine(reference, other)
    return Parity(
        max_abs=float(np.abs(reference - other).max()),
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        top1_agreement=float((reference.argmax(axis=1) == other.argmax(axis=1)).mean()),
    )


def tolerance_for(precision: str, reference: Array) -> tuple[float, float]:
    """Return (cosine_min, max_abs) within which another machine's output (N, ...) counts as the golden one.

    `reference` is the golden output itself, from the same graph: an absolute error means nothing without its scale.
    A row of norm r whose cosine is c is off by at most r * sqrt(2 (1 - c)) when its norm is right: 1.4 % of the norm in
    fp32, 4.5 % in int8. The cosine cannot see a wrong scale (logits times two has cosine 1); this bound can.
    """
    if precision not in COSINE_MIN:
        raise InternalError(
            f"there is no tolerance for precision '{precision}'",
            expected=f"one of {', '.join(COSINE_MIN)}",
            fix="report this as a bug",
        )
    reference = np.asarray(reference, np.float64)
    rows = reference.reshape(1 if reference.ndim < 2 else len(reference), -1)
    cosine_min = COSINE_MIN[precision]
    norm = float(np.linalg.norm(rows, axis=1).max())
    # A golden output of zeros still needs room for rounding.
    return cosine_min, max(1e-5, norm * float(np.sqrt(2 * (1 - cosine_min))))
