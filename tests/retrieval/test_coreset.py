"""The core-set stands for all patches."""

from __future__ import annotations

import numpy as np

from edgemae.retrieval.coreset import POOL, k_center


def test_the_core_set_leaves_no_patch_far_away() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(0, 0.01, (900, 8)), rng.normal(3, 0.01, (99, 8)), np.full((1, 8), -5)])
    rows = rows.astype(np.float32)
    first = k_center(rows, 3, seed=4)
    assert {min(int(i >= 900) + int(i >= 999), 2) for i in first} == {0, 1, 2}, "one of each heap, the single one too"
    np.testing.assert_array_equal(k_center(rows, 40, seed=4)[:3], first)
    assert len(k_center(np.repeat(rows[:5], 7, axis=0), 20)) == 5, "duplicates are not chosen"
    assert len(k_center(rows[:0], 20)) == 0
    far = np.linalg.norm(rows[:, None] - rows[k_center(rows, 40)], axis=2).min(axis=1).max()
    drawn = np.linalg.norm(rows[:, None] - rows[rng.choice(1000, 40)], axis=2).min(axis=1).max()
    assert far < drawn / 10


def test_a_core_set_of_many_wide_patches_is_projected_and_drawn_from_a_pool() -> None:
    rows = np.random.default_rng(0).standard_normal((POOL + 500, 80)).astype(np.float32)
    chosen = k_center(rows, 12, seed=1)
    assert len(set(chosen.tolist())) == 12
    np.testing.assert_array_equal(chosen, k_center(rows, 12, seed=1))
    assert set(chosen.tolist()) != set(k_center(rows, 12, seed=2).tolist())
