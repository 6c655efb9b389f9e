"""Presets: by the student's size and the number of images, under everything that a plan says itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemae.spec.errors import PlanError
from edgemae.spec.plan_loading import load_plan, plan_from
from edgemae.spec.presets import NAMES, preset, preset_for

HERE = {"data.train": "photos", "data.unlabelled": "more"}


@pytest.mark.parametrize(
    ("parameters", "images", "name"),
    [
        (0.9e6, 4_066, "tiny-thousands"), (5.7e6, 1_281_167, "tiny-millions"),
        (22e6, 100_000, "small-hundred-thousands"),
        (86e6, 14_000_000, "base-millions"), (10e6, 49_999, "small-thousands"), (1, 50_000, "tiny-hundred-thousands"),
    ],
)  # fmt: skip
def test_the_preset_of_a_size(parameters: float, images: int, name: str) -> None:
    assert preset_for(parameters, images) == name


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_names_fields_of_the_plan(name: str) -> None:
    plan = load_plan(None, (f"preset={name}",))
    for field, value in preset(name).items():
        found: object = plan
        for part in field.split("."):
            found = getattr(found, part)
        assert found == value, field
    assert plan.preset == name


def test_auto_counts_all_that_is_trained_on() -> None:
    asked: list[str] = []

    def count(place: str) -> int:
        asked.append(place)
        return 30_000

    plan = load_plan(None, ("student.width=384", "student.depth=12", "student.heads=6"), HERE, count)
    assert asked == ["photos", "more"]
    assert plan.preset == "small-hundred-thousands"  # all 60,000 for stage 1
    assert plan.distill.batch == preset("small-hundred-thousands")["distill.batch"]
    assert plan.distill.finetune.batch == 64  # 30,000 with labels for stage 2
    assert plan.distill.finetune.randaug == preset("small-thousands")["distill.finetune.randaug"]


def test_the_plans_own_values_lie_above(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text("preset = 'tiny-thousands'\n[distill]\nepochs = 7\n[distill.finetune]\nlr = 0.5\n")
    plan = load_plan(file, ("distill.batch=9",), {"pretrain.epochs": 3})
    assert (plan.distill.epochs, plan.distill.finetune.lr, plan.distill.batch, plan.pretrain.epochs) == (7, 0.5, 9, 3)
    assert plan.distill.lr == preset("tiny-thousands")["distill.lr"]


def test_none_and_a_plan_made_in_code_have_the_defaults() -> None:
    plain = plan_from({})
    assert load_plan(None, ("preset=none",), HERE, lambda _: 10).distill == plain.distill
    assert load_plan(None, (), HERE).distill == plain.distill


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(PlanError, match=r"preset is 'tiny-thousand'. Did you mean 'tiny-thousands'"):
        load_plan(None, ("preset=tiny-thousand",))


def test_a_wrong_plan_is_told_before_images_are_counted() -> None:
    with pytest.raises(PlanError, match="epochz"):
        load_plan(None, ("distill.epochz=3",), HERE, lambda _: pytest.fail("counted"))
