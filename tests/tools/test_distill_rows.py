"""Rows of the benchmark of distillation: none is shown for a plan, images or a teacher that it was not made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_loading import load_plan, plan_tree
from edgemae.spec.plan_schema import Plan

PIXEL = PixelContract(image_px=96)


@pytest.fixture
def tool(bench_tool: Callable[[str], ModuleType]) -> ModuleType:
    return bench_tool("support.distill_rows")


@dataclass
class Set:
    fingerprint: str

    def __len__(self) -> int:
        return 4


@dataclass
class Sets:
    unlabelled: Set
    labelled: Set
    evaluation: Set


def sets(evaluation: str = "c") -> Any:
    return Sets(Set("a"), Set("b"), Set(evaluation))


@pytest.fixture
def teachers(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "teacher.safetensors", tmp_path / "tuned.safetensors"
    for path in paths:
        path.write_text(path.name)
    return paths


def plan(*settings: str) -> Plan:
    return load_plan(None, settings)


def test_a_digest_stands_for_plan_images_and_teachers(tool: ModuleType, teachers: tuple[Path, Path]) -> None:
    def of(method: str = "relation", seed: int = 0, images: Any = None, *settings: str, pixel: Any = PIXEL) -> str:
        return str(tool.digest(plan(*settings), images or sets(), pixel, teachers, method, seed))

    first, scratch = of(), of("scratch")
    others = [of("logit"), of(seed=1), of("relation", 0, sets("d")), of("relation", 0, None, "distill.lr=0.1"), scratch]
    assert len({first, *others}) == 6
    assert of("relation", 0, None, "prune.steps=9", "threads=1", "workers=0") == first  # has no part in it
    for teacher in reversed(teachers):
        teacher.write_text("other")
        assert (of() != first, of("scratch") != scratch) == (True, False)  # from scratch no teacher is asked
        first = of()
    other = PixelContract(image_px=96, mean=(0.5, 0.5, 0.5))
    assert (of(pixel=other) != first, of("scratch", pixel=other) != scratch) == (True, True)


@pytest.mark.parametrize("marked", [True, False])
def test_rows_of_a_result_are_kept_only_for_the_same(
    tool: ModuleType, teachers: tuple[Path, Path], tmp_path: Path, marked: bool
) -> None:
    """Rows without a digest are of an earlier version: plan, teacher and the number of images speak for them."""
    here, images = plan(), sets()
    wanted = partial(tool.digest, here, images, PIXEL, teachers)
    row: dict[str, Any] = {"method": "relation", "seed": 0}
    tree = plan_tree(here)
    result = {"plan": tree, "teacher": {"right": "101"}, "data": tool.counts(images), "rows": [row]}
    if marked:
        row["digest"] = wanted("relation", 0)
    file = tmp_path / "result.json"
    file.write_text(json.dumps(result))
    (found,) = tool.kept(file, here, images, "101", wanted)
    assert found == row | {"digest": wanted("relation", 0)}
    other = plan("distill.lr=0.1")
    assert tool.kept(file, other, images, "101", partial(tool.digest, other, images, PIXEL, teachers)) == []
    assert (tool.kept(file, here, images, "111", wanted) == []) is not marked
    assert tool.kept(None, here, images, "101", wanted) == []
    json.loads(file.read_text())["plan"]["distill"]["finetune"]["views"] = 7  # is set for each run
    assert tool.alike(tree, json.loads(file.read_text())["plan"])


def test_a_row_of_another_plan_is_made_again(tool: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "relation-0"
    assert tool.finished(folder, "one") is None
    (folder / "row.json").write_text('{"method": "relation", "seed": 0, "top1": 0.5}')
    (folder / "train-1.ckpt").write_text("")
    assert tool.finish(folder, "one")["digest"] == "one"
    assert tool.finished(folder, "one")["top1"] == 0.5
    assert tool.finished(folder, "two") is None
    assert sorted(path.name for path in folder.iterdir()) == ["digest.txt"]
    (folder / "train-1.ckpt").write_text("")  # killed on the way
    assert tool.finished(folder, "two") is None
    assert (folder / "train-1.ckpt").exists()
    assert tool.finished(folder, "three") is None
    assert not (folder / "train-1.ckpt").exists()


@pytest.mark.parametrize("trusted", [True, False])
def test_rows_of_an_earlier_version_are_taken_where_the_plan_is_the_same(
    tool: ModuleType, tmp_path: Path, trusted: bool
) -> None:
    (tmp_path / "logit-1").mkdir()
    (tmp_path / "logit-1" / "row.json").write_text('{"method": "logit", "seed": 1}')
    tool.adopt(tmp_path, [{"method": "mae", "seed": 2, "digest": "mae2"}], lambda m, s: f"{m}{s}", trusted=trusted)
    assert tool.finished(tmp_path / "mae-2", "mae2") is not None
    assert (tool.finished(tmp_path / "logit-1", "logit1") is not None) is trusted


def test_the_time_of_stage_1_is_of_all_its_runs(tool: ModuleType, tmp_path: Path) -> None:
    """The hours between a kill and the next run do not count."""
    events = [("start", 10), ("step", 15), ("epoch", 20), ("start", 900), ("epoch", 905), ("end", 906), ("start", 990)]
    lines = [json.dumps({"event": name, "time": at}) for name, at in [*events, ("end", 990.5)]]
    (tmp_path / "train-1.events.jsonl").write_text("\n".join(lines))
    (tmp_path / "train-2.events.jsonl").write_text("")
    assert tool.trained_s(tmp_path) == pytest.approx(10 + 6 + 0.5)
