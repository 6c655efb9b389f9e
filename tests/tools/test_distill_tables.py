"""Gains of the benchmark of distillation, seed by seed and over all of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def tables(bench_tool: Callable[[str], ModuleType]) -> ModuleType:
    return bench_tool("support.distill_tables")


def row(method: str, seed: int, right: str) -> dict[str, Any]:
    return {"method": method, "seed": seed, "right": right}


def test_the_mean_of_the_seeds_counts_each_photo_once(tables: ModuleType) -> None:
    rows = [row("relation", 0, "1101"), row("relation", 1, "1011"), row("logit", 0, "0101"), row("logit", 1, "1001")]
    gain, low, high = tables.together(rows, "relation", "logit")
    assert gain == pytest.approx((0.5 + 0 + 0.5 + 0) / 4)
    half = 1.96 * (4 * 0.25**2 / 3) ** 0.5 / 4**0.5
    assert (low, high) == pytest.approx((gain - half, gain + half), abs=1e-3)


def test_the_same_answers_again_make_an_interval_no_narrower(tables: ModuleType) -> None:
    rng = random.Random(0)
    mine, other = ("".join(rng.choices("01", (1 - share, share), k=341)) for share in (0.8, 0.75))
    rows = [row(name, seed, right) for seed in range(3) for name, right in (("relation", mine), ("logit", other))]
    (alone,) = [m for m in tables.margins(rows) if (m["method"], m["over"], m["seed"]) == ("relation", "logit", 0)]
    gain, low, high = tables.together(rows, "relation", "logit")
    assert gain == pytest.approx(alone["gain"])
    assert (low, high) == pytest.approx((alone["low"], alone["high"]), abs=0.005)


def test_one_seed_has_no_mean_and_nothing_gains_over_itself(tables: ModuleType) -> None:
    rows = [row("relation", 0, "11"), row("logit", 0, "01"), row("logit", 1, "01")]
    assert tables.together(rows, "relation", "logit") is None
    assert tables.together(rows, "logit", "logit") is None
    assert tables.together(rows, "logit", "scratch") is None
    text = tables.gain_text(tables.margins(rows), "relation", "logit", None)
    assert text == "+50.0"
