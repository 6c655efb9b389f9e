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
        ("student.patch_px=0", r"student\.patch_px is 0"),
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


# A number of each kind that is absurd: below its range, above it, a shape or a list that takes all memory.
ABSURD = [
    "seed=-1", "seed=4294967296", "version=-1", "workers=100000", "threads=1000000", "student.depth=1000000",
    "student.width=1000000000", "student.heads=-1", "student.mlp_ratio=-4", "student.mlp_ratio=1e9",
    "student.image_px=1000000000", "student.channels=4", "teacher.depth=100000", "teacher.head_dim=0",
    "teacher_heads=-3", "distill.teacher_block=-1", "distill.pixel_weight=-1", "distill.mask_ratio_end=1.0",
    "pretrain.decoder_depth=100000", "pretrain.epochs=1000000000", "finetune.batch=1000000000000",
    "prune.steps=100000", "quantize.min_speedup=-1", "elastic.samples=1000000", "scale.accumulate=0",
    "distill.views=1000000", "finetune.weight_decay=1e30", "gates.max_drop_pts=-1", "gates.max_drop_pts=101",
    "gates.p90_ms=-0.5", "gates.size_mib=-1", "gates.min_agreement=0", "gates.min_agreement=1.5",
]  # fmt: skip


@pytest.mark.parametrize("text", ABSURD)
def test_an_absurd_number_is_refused_with_what_can_be_given(text: str) -> None:
    with pytest.raises(PlanError) as error:
        check_plan(load_plan(overrides=(text,)))
    assert error.value.what.startswith(f"{text.partition('=')[0]} is ")
    assert error.value.expected


@pytest.mark.parametrize(
    "texts",
    [
        ("student.image_px=8192", "student.patch_px=8"),
        ("teacher.depth=512", "teacher.width=16384"),
        (f"elastic.depths={[1] * 65}", "elastic.on=true"),
    ],
)
def test_a_whole_that_takes_all_memory_is_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(PlanError, match=r"(image_px|depth|depths) is") as error:
        check_plan(load_plan(overrides=texts))
    assert len(error.value.what) < 300


@pytest.mark.parametrize("text", ["gates.max_drop_pts=0", "gates.p90_ms=0", "gates.size_mib=0"])
def test_a_limit_of_zero_is_a_limit(text: str) -> None:
    check_plan(load_plan(overrides=(text,)))
