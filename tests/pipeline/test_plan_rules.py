"""The numbers of a plan: what no stage can work with is named with its value, what works passes."""

from __future__ import annotations

import pytest

from edgemae.pipeline.plan_rules import check_plan
from edgemae.spec.errors import PlanError
from edgemae.spec.plan_loading import load_plan


def test_the_defaults_pass() -> None:
    check_plan(load_plan())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("student.image_px=97", r"student\.image_px is 97"),
        ("student.width=30", r"student\.width is 30"),
        ("student.depth=0", r"student\.depth is 0"),
        ("student.patch_px=0", r"student\.image_px"),
        ("pretrain.mask_ratio=1.0", r"pretrain\.mask_ratio is 1\.0"),
        ("distill.mask_ratio=0.0", r"distill\.mask_ratio is 0\.0"),
        ("prune.keep_macs=0.01", r"prune\.keep_macs is 0\.01"),
        ("prune.keep_macs=1.5", r"prune\.keep_macs is 1\.5"),
        ("prune.steps=0", r"prune\.steps is 0"),
        ("prune.score_batches=0", r"prune\.score_batches is 0"),
        ("gates.confidence=95", r"gates\.confidence is 95"),
        ("quantize.calibration_images=8", r"quantize\.calibration_images is 8"),
        ("workers=-1", "workers is -1"),
        ("threads=0", "threads is 0"),
        ("data.eval_fraction=1.5", r"data\.eval_fraction is 1\.5"),
    ],
)
def test_a_number_that_cannot_work_is_named_with_its_value(text: str, value: str) -> None:
    with pytest.raises(PlanError, match=value) as error:
        check_plan(load_plan(overrides=(text,)))
    assert text.partition("=")[0].split(".")[-1] in error.value.fix or "image_px" in error.value.fix
