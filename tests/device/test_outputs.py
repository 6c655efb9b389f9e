"""Class shares, and the best classes among them."""

from __future__ import annotations

import numpy as np

from edgemae.device.outputs import top_classes


def test_scores_do_not_overflow() -> None:
    logits = np.array([1e4, -1e4, 0, 0, 0], np.float32)
    assert top_classes(logits, ("ant", "bee"), 2) == [("ant", 1.0), ("bee", 0.0)]
    assert top_classes(logits, ("ant",), 2)[1][0] == "1"  # a class without a name goes by its number


def test_the_best_are_those_of_a_full_sort_and_ties_go_by_number() -> None:
    rng = np.random.default_rng(0)
    for classes in (1, 2, 7, 1000):
        logits = rng.integers(0, 9, classes).astype(np.float32)  # ties everywhere
        order = [str(i) for i in np.argsort(-logits, kind="stable")]
        for top in (1, 5, 2000):
            assert [label for label, _ in top_classes(logits, (), top)] == order[:top]
    assert len(top_classes(np.full(4, np.nan, np.float32), (), 2)) == 2
