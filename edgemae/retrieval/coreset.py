"""Core-set: the few patches that stand for all normal ones, chosen so that none lies far from a chosen one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
POOL = 16_384  # patches that are chosen from, themselves drawn at random: with 2,048 chosen 2 s on a core
PROJECTED = (
    64  # values a patch while choosing: a random projection keeps distances to some percent (Johnson, Lindenstrauss)
)


def k_center(rows: Floats, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Return the indices (at most `count`) of rows (M, D), each new one the farthest from those chosen before.

    Greedy: the largest distance that remains is at most twice the smallest possible (Gonzalez 1985). The order is that
    of choice, so a shorter core-set is the beginning of a longer one. Duplicates are not chosen.
    """
    rng = np.random.default_rng(seed)
    pool = np.arange(len(rows)) if len(rows) <= POOL else np.sort(rng.choice(len(rows), POOL, replace=False))
    points = rows[pool]
    if points.shape[1] > PROJECTED:
        across = rng.standard_normal((points.shape[1], PROJECTED), np.float32) / np.float32(np.sqrt(PROJECTED))
        points = points @ across
    squares = np.einsum("ij,ij->i", points, points)
    scale = float(squares.max(initial=0.0))
    left = np.full(len(points), np.inf, np.float32)
    chosen: list[int] = []
    new = int(rng.integers(len(points))) if len(points) else -1
    while len(chosen) < min(count, len(points)) and left[new] > 1e-6 * scale:  # below lies rounding
        chosen.append(new)
        np.minimum(left, squares + squares[new] - 2 * (points @ points[new]), out=left)
        left[new] = -1.0
        new = int(left.argmax())
    return pool[chosen]
