"""Goals of the training benchmark: each for its own case, met or missed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def goals(bench_tool: Callable[[str], ModuleType]) -> ModuleType:
    return bench_tool("support.train_goals")


def group(case: str, reference: str, ratio: float) -> dict[str, Any]:
    return {
        "title": f"{case}, batch 8, fp32",
        "case": {"name": case},
        "reference": reference,
        "rows": [{"ratio": ratio}],
    }


def test_each_goal_is_judged_for_its_own_case(goals: ModuleType) -> None:
    small, large = "128x4, 96 px", "ViT-Large/16 to ViT-Tiny/16, 224 px"
    result = {
        "bare": [group(small, "transformers", 1.1), group(small, "edgemae", 0.5), group(large, "edgemae", 0.1)],
        "files": [{"name": name, "case": small, "wait_share": 0.02} for name in ("edgemae", "transformers")],
        "large": [{"name": "logit", "case": large, "peak_mib": 25 * 1024}],
    }
    found = goals.judge(result)
    assert [(f["found"], f["met"]) for f in found] == [(1.1, True), (2.0, False), (0.02, True), (25, False)]
    assert [line[:6] for line in goals.lines(found)] == ["met   ", "MISSED", "met   ", "MISSED"]


def test_one_step_of_every_recipe_at_the_named_size_was_measured(goals: ModuleType) -> None:
    from edgemae.distill.recipes import RECIPES

    result = json.loads((ROOT / "tools/results/train-large.json").read_bytes())
    assert {row["name"] for row in result["large"]} == set(RECIPES)
    assert all(row["tensors_moved"] > 140 for row in result["large"])
    assert goals.judge(result) == result["goals"]
    assert all(goal["met"] for goal in result["goals"])


def test_contenders_from_files_are_compared_turn_by_turn(bench_tool: Callable[[str], ModuleType]) -> None:
    bench, tables = bench_tool("bench_train"), bench_tool("support.train_tables")

    def run(images_s: float, peak_mib: float) -> dict[str, float]:
        return {"images_s": images_s, "wait_share": 0.01, "first_batch_s": 1.0, "peak_mib": peak_mib}

    # A machine that slows down to a half from one turn to the next does not change how they compare.
    turns = [{"ours": run(300, 500), "theirs": run(200, 600)}, {"ours": run(150, 510), "theirs": run(100, 600)},
             {"ours": run(220, 505), "theirs": run(110, 600)}]  # fmt: skip
    ours, theirs = (bench.over_turns(turns, name, "theirs") | {"name": name} for name in ("ours", "theirs"))
    assert (ours["images_s"], ours["peak_mib"], ours["ratio"]) == (220, 510, 1.5)
    assert tables.times(ours) == "1.50 (1.50 to 2.00)"
    assert tables.times(theirs) == "1.00"
