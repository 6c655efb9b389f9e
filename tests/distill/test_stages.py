"""The training arrows: value in, new value out, the way written down, and clear refusals."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgemae.data.image_set import ImageSet
from edgemae.distill.frozen_teacher import FrozenTeacher
from edgemae.distill.recipes import choose_recipe
from edgemae.distill.stages import (
    Images,
    distill,
    finetune,
    heal_embedding,
    pretrain,
    shape_of,
    student_pixel,
    train_further,
)
from edgemae.model.student import Student, load_student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT
from edgemae.pipeline.plan_rules import check_plan
from edgemae.pipeline.preflight import check_recipe
from edgemae.spec.errors import CheckpointError, DataError, PlanError
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_loading import plan_tree
from edgemae.spec.plan_schema import Plan

PIXEL = PixelContract(image_px=32)
MakeTeacher, MakePlan = Callable[..., Teacher], Callable[..., Plan]


def equal(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@contextmanager
def unchanged(*modules: nn.Module) -> Iterator[None]:
    """Assert that weights, gradients, modes and settings of modules are left as they were."""
    before = [copy.deepcopy(module) for module in modules]
    yield
    for module, old in zip(modules, before, strict=True):
        assert equal(module, old)
        assert module.training == old.training
        for (name, p), (_, q) in zip(module.named_parameters(), old.named_parameters(), strict=True):
            assert p.requires_grad == q.requires_grad, name
            assert p.grad is None, name


@pytest.fixture
def images(pictures: ImageSet) -> Images:
    return Images(pictures.unlabelled(), pictures)


@pytest.fixture
def unlabelled(pictures: ImageSet) -> Images:
    return Images(pictures.unlabelled())


# ---------------------------------------------------------------- pretrain


def test_pretrain_from_scratch(plan_with: MakePlan, unlabelled: Images) -> None:
    plan = plan_with(pretrain__epochs=6, teacher__depth=3)
    teacher, curve = pretrain(plan, unlabelled.unlabelled, PIXEL)
    assert teacher.vit.shape == shape_of(plan.teacher, norm_after_pool=False)
    assert teacher.mae is not None
    assert teacher.mae.encoder is teacher.vit
    assert (teacher.vit.head, teacher.labels) == (None, ())
    assert curve[-1]["pixel"] < curve[0]["pixel"]
    assert [step.stage for step in teacher.history] == ["pretrain"]
    step = teacher.history[0]
    assert step.plan == plan_tree(plan.pretrain)
    assert step.scores == {"pixel": curve[-1]["pixel"], "loss": curve[-1]["loss"]}
    assert (step.seed, step.data) == (plan.seed, unlabelled.unlabelled.fingerprint)
    assert step.tools == {"torch": torch.__version__}
    assert not teacher.vit.training


@pytest.mark.parametrize("decoder", [True, False])
def test_pretrain_onwards(plan_with: MakePlan, teacher_with: MakeTeacher, unlabelled: Images, decoder: bool) -> None:
    start = teacher_with(decoder=decoder, cls_token=True)
    with unchanged(start.vit, *([start.mae] if start.mae else [])):
        teacher, curve = pretrain(plan_with(pretrain__decoder_width=24), unlabelled.unlabelled, PIXEL, start)
    assert teacher.mae is not None
    assert teacher.mae.decoder.shape.width == (
        16 if decoder else 24
    )  # its own decoder goes on, a new one is the plan's
    assert teacher.vit.shape == start.vit.shape
    assert not equal(teacher.vit, start.vit)
    assert (teacher.licence, len(curve)) == ("test licence", 2)
    fresh, first = pretrain(plan_with(), unlabelled.unlabelled, PIXEL)
    assert [len(t.history) for t in (start, teacher, fresh)] == [0, 1, 1]
    again, _ = pretrain(plan_with(), unlabelled.unlabelled, PIXEL, fresh)
    assert [step.stage for step in again.history] == ["pretrain", "pretrain"]
    assert first[0]["epoch"] == 1.0


def test_pretrain_onwards_keeps_the_loss_of_the_start(plan_with: MakePlan, unlabelled: Images) -> None:
    first, _ = pretrain(plan_with(pretrain__loss="bce"), unlabelled.unlabelled, PIXEL)
    onwards, _ = pretrain(plan_with(pretrain__epochs=1), unlabelled.unlabelled, PIXEL, first)
    assert onwards.mae is not None
    assert onwards.mae.loss_kind == "bce"


def test_the_history_tells_what_was_pretrained_with(
    plan_with: MakePlan, unlabelled: Images, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, _ = pretrain(plan_with(pretrain__loss="bce"), unlabelled.unlabelled, PIXEL)
    pretrain(plan_with(pretrain__epochs=1, pretrain__loss="bce"), unlabelled.unlabelled, PIXEL, first)
    assert "not with the plan's" not in caplog.text
    onwards, _ = pretrain(
        plan_with(pretrain__epochs=1, pretrain__decoder_width=24), unlabelled.unlabelled, PIXEL, first
    )
    said = onwards.history[-1].plan
    assert (said["loss"], said["decoder_width"], said["epochs"]) == ("bce", 16, 1)
    assert "going on with the MAE's own decoder and loss" in caplog.text


def test_pretraining_a_tuned_teacher_drops_its_head(
    plan_with: MakePlan, teacher_with: MakeTeacher, unlabelled: Images, tmp_path: Path
) -> None:
    start = teacher_with(labels=("a", "b"))
    with unchanged(start.vit):
        teacher, _ = pretrain(plan_with(pretrain__epochs=1), unlabelled.unlabelled, PIXEL, start)
    assert (teacher.vit.head, teacher.vit.shape.classes, teacher.labels) == (None, 0, ())
    teacher.save(tmp_path / "teacher.safetensors")


def test_unknown_masks_are_refused(plan_with: MakePlan, teacher_with: MakeTeacher, images: Images) -> None:
    with pytest.raises(PlanError, match=r"pretrain\.mask is 'randon'\. Did you mean 'random'"):
        pretrain(plan_with(pretrain__mask="randon"), images.unlabelled, PIXEL)
    with pytest.raises(PlanError, match=r"distill\.mask is 'lattice'"):
        distill(teacher_with(), plan_with(distill__mask="lattice"), images)


# ---------------------------------------------------------------- finetune


def test_finetune(plan_with: MakePlan, teacher_with: MakeTeacher, images: Images) -> None:
    teacher, plan = teacher_with(decoder=True), plan_with(finetune__epochs=6, finetune__lr=0.03)
    judged = replace(images, evaluation=images.labelled)
    with unchanged(teacher.vit, *([teacher.mae] if teacher.mae else [])):
        finetuned, curve = finetune(teacher, plan, judged)
    assert finetuned.labels == ("blue", "red")
    assert finetuned.vit.shape.classes == 2
    assert finetuned.mae is None  # its encoder has moved on
    assert (finetuned.licence, finetuned.pixel) == (teacher.licence, teacher.pixel)
    assert curve[-1]["validation"] == 1.0
    assert finetuned.history[-1].stage == "finetune"
    assert finetuned.history[-1].scores["validation"] == 1.0
    assert images.labelled is not None
    assert finetuned.history[-1].data == images.labelled.fingerprint


def test_finetune_needs_labels(plan_with: MakePlan, teacher_with: MakeTeacher, unlabelled: Images) -> None:
    with pytest.raises(DataError, match="fine-tuning needs labels"):
        finetune(teacher_with(), plan_with(), unlabelled)


# ---------------------------------------------------------------- distill


def test_distill_with_labels(plan_with: MakePlan, teacher_with: MakeTeacher, images: Images) -> None:
    teacher = teacher_with(cls_token=True, width=64, heads=4)
    finetuned, _ = finetune(teacher, plan_with(), images)
    with unchanged(teacher.vit, finetuned.vit):
        student, curves = distill(teacher, plan_with(), images, finetuned=finetuned)
    assert list(curves) == ["distill", "finetune-student"]
    assert {"pixel", "relation", "loss"} < set(curves["distill"][0])
    assert {"label", "teacher", "loss"} < set(curves["finetune-student"][0])
    assert student.labels == ("blue", "red")
    assert [step.stage for step in student.history] == ["distill", "finetune-student"]
    assert student.vit.shape == shape_of(plan_with().student, classes=2)


def test_distill_without_labels(
    plan_with: MakePlan, teacher_with: MakeTeacher, unlabelled: Images, tmp_path: Path
) -> None:
    student, curves = distill(teacher_with(), plan_with(), unlabelled)
    assert list(curves) == ["distill"]
    assert (student.labels, student.vit.head) == ((), None)
    logits, embedding = student.vit(torch.randn(2, 3, 32, 32))
    assert (logits, embedding.shape) == (None, (2, 32))
    student.save(tmp_path / "student.safetensors")
    assert equal(load_student(tmp_path / "student.safetensors").vit, student.vit)


def test_throw_away_parts_do_not_ship(plan_with: MakePlan, teacher_with: MakeTeacher, unlabelled: Images) -> None:
    student, _ = distill(teacher_with(), plan_with(), unlabelled)
    plain = ViT(student.vit.shape)
    assert student.vit.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in student.vit.named_modules()] == [name for name, _ in plain.named_modules()]


def test_without_a_guide_labels_teach_alone(plan_with: MakePlan, teacher_with: MakeTeacher, images: Images) -> None:
    student, curves = distill(teacher_with(), plan_with(), images)
    assert set(curves["finetune-student"][0]) == {"epoch", "label", "loss"}
    assert student.labels == ("blue", "red")


def test_the_logit_recipe(plan_with: MakePlan, teacher_with: MakeTeacher, images: Images, unlabelled: Images) -> None:
    plan, teacher = plan_with(distill__recipe="logit"), teacher_with(labels=("blue", "red"))
    student, curves = distill(teacher, plan, images)
    assert set(curves["distill"][0]) == {"epoch", "logit", "loss"}
    assert student.labels == ("blue", "red")
    alone, curves = distill(teacher_with(labels=("a", "b", "c")), plan, unlabelled)
    assert list(curves) == ["distill"]
    assert (alone.labels, alone.vit.shape.classes) == (("a", "b", "c"), 3)


def test_the_logit_recipe_needs_a_head(
    plan_with: MakePlan, teacher_with: MakeTeacher, images: Images, unlabelled: Images
) -> None:
    for given in (images, unlabelled):
        with pytest.raises(DataError, match="'logit' learns from a teacher with a classification head") as caught:
            distill(teacher_with(), plan_with(distill__recipe="logit"), given)
        assert "relation" in caught.value.fix


def test_unknown_recipes_are_refused(plan_with: MakePlan, teacher_with: MakeTeacher, images: Images) -> None:
    with pytest.raises(PlanError, match=r"distill.recipe is 'relations'\. Did you mean 'relation'"):
        distill(teacher_with(), plan_with(distill__recipe="relations"), images)


@pytest.mark.parametrize("labels", [("red", "blue"), ("blue", "green"), ("a", "b", "c")])
def test_a_guide_for_other_classes_is_refused(
    plan_with: MakePlan, teacher_with: MakeTeacher, images: Images, labels: tuple[str, ...]
) -> None:
    """Its logits would be taken for those of other classes, without a word where the numbers agree."""
    with pytest.raises(DataError, match=r"the teacher knows \d classes"):
        distill(teacher_with(), plan_with(), images, finetuned=teacher_with(labels=labels))
    student = Student(teacher_with(labels=("blue", "red")).vit, PIXEL, ("blue", "red"))
    with pytest.raises(DataError, match=r"the teacher knows \d classes"):
        train_further(student, plan_with().prune.heal, plan_with(), images, teacher_with(labels=labels))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student__channels": 1}, r"reads 3 channels \(RGB\), the student 1"),
        ({"data__mean": (0.5,)}, r"data\.mean has 1 values"),
        ({"data__std": (0.5, 0.5)}, r"data\.std has 2 values"),
    ],
)
def test_pixels_that_cannot_agree_are_refused(
    plan_with: MakePlan, teacher_with: MakeTeacher, unlabelled: Images, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        distill(teacher_with(), plan_with(**changes), unlabelled)


def test_a_guide_that_reads_other_colours_is_refused_before_stage_one(
    plan_with: MakePlan, teacher_with: MakeTeacher, images: Images, tmp_path: Path
) -> None:
    swapped = teacher_with(labels=("blue", "red"), pixel=PixelContract(image_px=32, color="BGR"))
    with pytest.raises(PlanError, match=r"reads 3 channels \(BGR\), the student 3 \(RGB\)") as caught:
        distill(teacher_with(), plan_with(), images, tmp_path / "train.ckpt", swapped)
    assert "that reads RGB" in caught.value.fix
    assert not list(tmp_path.iterdir())


def test_a_block_is_that_of_the_teacher_that_is_learnt_from(plan_with: MakePlan, teacher_with: MakeTeacher) -> None:
    plan = plan_with(distill__recipe="feature", distill__teacher_block=4)
    check_recipe(plan, teacher_with(), teacher_with(depth=4, labels=("blue", "red")))
    with pytest.raises(PlanError, match="the teacher has 2 blocks"):
        check_recipe(plan, teacher_with(depth=4), teacher_with(labels=("blue", "red")))


def test_the_students_pixels_are_the_teachers_at_its_own_size(plan_with: MakePlan) -> None:
    own = PixelContract(image_px=224, mean=(0.5,) * 3, std=(0.5,) * 3, crop_fraction=0.875, kernel="cubic")
    found = student_pixel(own, plan_with())
    assert (found.image_px, found.mean, found.crop_fraction, found.kernel) == (32, own.mean, 0.875, "cubic")
    other = student_pixel(own, plan_with(data__mean=(0.1, 0.2, 0.3), data__resize="stretch"))
    assert (other.mean, other.std, other.resize) == ((0.1, 0.2, 0.3), own.std, "stretch")
    assert student_pixel(own, plan_with(data__kernel="halve-linear")).kernel == "halve-linear"


def test_teacher_and_student_of_different_sizes(plan_with: MakePlan, teacher_with: MakeTeacher, images: Images) -> None:
    big = teacher_with(pixel=PixelContract(image_px=64), patch_px=16, labels=("blue", "red"), cls_token=True)
    student, curves = distill(big, plan_with(), images)
    assert student.pixel.image_px == 32
    assert "teacher" in curves["finetune-student"][0]


# ---------------------------------------------------------------- training on, healing


def test_train_further(plan_with: MakePlan, teacher_with: MakeTeacher, images: Images) -> None:
    plan = plan_with()
    student, _ = distill(teacher_with(), plan, images)
    with unchanged(student.vit):
        further, curve = train_further(student, plan.prune.heal, plan, images, None, name="heal")
    assert [step.stage for step in further.history] == ["distill", "finetune-student", "heal"]
    assert len(student.history) == 2
    assert not equal(further.vit, student.vit)
    assert len(curve) == 2


def test_a_student_of_other_classes_is_refused(
    plan_with: MakePlan, teacher_with: MakeTeacher, images: Images, unlabelled: Images
) -> None:
    plan = plan_with()
    bare, _ = distill(teacher_with(), plan, unlabelled)
    with pytest.raises(DataError, match=r"the student knows no named classes, .* has 2 classes"):
        train_further(bare, plan.prune.heal, plan, images, None)
    with pytest.raises(DataError, match="stage 2 needs labels"):
        train_further(bare, plan.prune.heal, plan, unlabelled, None)


def test_healing_brings_the_embedding_back(plan_with: MakePlan, teacher_with: MakeTeacher, unlabelled: Images) -> None:
    plan = plan_with(prune__heal__epochs=8)
    original = Student(teacher_with().vit, PIXEL)
    damaged = replace(original, vit=copy.deepcopy(original.vit))
    with torch.no_grad():
        damaged.vit.blocks[1].mlp.fc2.weight.mul_(0.2)
    with unchanged(original.vit, damaged.vit):
        healed, curve = heal_embedding(damaged, original, plan.prune.heal, plan, unlabelled.unlabelled)
    assert curve[-1]["embedding"] < 0.5 * curve[0]["embedding"]
    assert [step.stage for step in healed.history] == ["heal"]
    pixels = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        wanted, before, after = (s.vit(pixels)[1] for s in (original, damaged, healed))
    assert (after - wanted).square().mean() < (before - wanted).square().mean()


# ---------------------------------------------------------------- reproducible


def test_the_same_seed_gives_the_same_weights(
    plan_with: MakePlan, teacher_with: MakeTeacher, images: Images, tmp_path: Path
) -> None:
    random = {
        "distill__finetune__mixup": 0.4,
        "distill__finetune__drop_path": 0.2,
        "distill__finetune__token_keep": 0.5,
    }

    def run(seed: int, checkpoint: Path | None) -> tuple[Teacher, Student]:
        torch.rand(7)  # what happened before must not matter
        plan = plan_with(seed=seed, **random)
        first, _ = pretrain(plan, images.unlabelled, PIXEL)
        finetuned, _ = finetune(first, plan, images)
        return finetuned, distill(first, plan, images, checkpoint, finetuned)[0]

    (teacher, student), (teacher_2, student_2), (_, other) = run(3, None), run(3, tmp_path / "a.ckpt"), run(4, None)
    assert equal(teacher.vit, teacher_2.vit)
    assert equal(student.vit, student_2.vit)
    assert student.history == student_2.history
    assert not equal(student.vit, other.vit)
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"a-1.ckpt", "a-2.ckpt"}  # one for each stage


def test_another_plan_or_teacher_finds_no_checkpoint_to_go_on_from(
    plan_with: MakePlan, teacher_with: MakeTeacher, images: Images, tmp_path: Path
) -> None:
    """A finished checkpoint would give back its weights untrained, under the name of the other plan."""
    first, other = teacher_with(), teacher_with(seed=2)
    finetuned, _ = finetune(first, plan_with(), images, tmp_path / "tuned.ckpt")
    again, _ = finetune(first, plan_with(finetune__epochs=2, distill__crop_min=0.9), images, tmp_path / "tuned.ckpt")
    assert equal(finetuned.vit, again.vit)
    with pytest.raises(CheckpointError, match=r"mixup 0.0, not 0.8; weight_decay 0.05, not 1.0|weight_decay .*mixup"):
        finetune(first, plan_with(finetune__mixup=0.8, finetune__weight_decay=1.0), images, tmp_path / "tuned.ckpt")
    with pytest.raises(CheckpointError, match="teacher '"):
        finetune(other, plan_with(), images, tmp_path / "tuned.ckpt")
    distill(first, plan_with(), images, tmp_path / "student.ckpt", finetuned)
    with pytest.raises(CheckpointError, match=r"relation_weight 1\.0, not 0\.5"):
        distill(first, plan_with(distill__relation_weight=0.5), images, tmp_path / "student.ckpt", finetuned)
    narrow = {"student__heads": 4, "student__head_dim": 8}  # as many values
    for changes, named in ((narrow, "heads of the model"), ({"data__kernel": "cubic"}, "kernel of pixels")):
        with pytest.raises(CheckpointError, match=named):
            distill(first, plan_with(**changes), images, tmp_path / "student.ckpt", finetuned)
    (tmp_path / "student-1.ckpt").unlink()  # stage 1 begins anew; what stage 2 has learnt is of the student before
    with pytest.raises(CheckpointError, match="student '"):
        distill(other, plan_with(), images, tmp_path / "student.ckpt", finetuned)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, set()), ({"relation_weight": 0.0}, set()), ({"relation_weight": 1e-9}, {"relation"})],
    ids=["both", "switched off", "next to nothing"],
)
def test_a_term_that_its_weight_switches_off_is_not_reported(
    plan_with: MakePlan, teacher_with: MakeTeacher, unlabelled: Images, settings: dict[str, float], told: set[str]
) -> None:
    plan = plan_with(distill__epochs=1, **{f"distill__{name}": value for name, value in settings.items()})
    _, curves = distill(teacher_with(), plan, unlabelled)
    assert {name.removeprefix("small ") for name in curves["distill"][0] if name.startswith("small ")} == told


def test_a_student_in_memory_trains_as_one_from_its_file(
    plan_with: MakePlan, teacher_with: MakeTeacher, images: Images, tmp_path: Path
) -> None:
    plan = plan_with(distill__finetune__drop_path=0.3)
    student, _ = distill(teacher_with(), plan, images)
    student.save(tmp_path / "student.safetensors")
    read = load_student(tmp_path / "student.safetensors")
    kept, _ = heal_embedding(student, student, plan.prune.heal, plan, images.unlabelled)
    again, _ = heal_embedding(read, read, plan.prune.heal, plan, images.unlabelled)
    assert equal(kept.vit, again.vit)


# ---------------------------------------------------------------- fixed views


@pytest.mark.parametrize("recipe", ["feature", "relation-full", "logit"])
def test_a_teacher_is_asked_once_for_each_fixed_view(
    plan_with: MakePlan, teacher_with: MakeTeacher, images: Images, tmp_path: Path, recipe: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[int] = []
    plain = FrozenTeacher.pixels
    monkeypatch.setattr(
        FrozenTeacher, "pixels", lambda self, pixels: (asked.append(len(pixels)), plain(self, pixels))[1]
    )
    plan = plan_with(
        distill__recipe=recipe, distill__views=2, distill__epochs=6, distill__finetune__views=2,
        distill__finetune__epochs=4, scale__views_folder=str(tmp_path / "kept"),
    )  # fmt: skip
    teacher = teacher_with(labels=("blue", "red"))
    first, _ = distill(teacher, plan, images)
    once = 2 * (2 * len(images.unlabelled))  # two stages of other crops, two views of every image in each
    assert sum(asked) == once
    again, _ = distill(teacher, plan, images)
    assert sum(asked) == once  # a second run asks for nothing
    assert equal(first.vit, again.vit)


def test_a_preset_that_mixes_is_named_where_views_are_asked_for(plan_with: MakePlan) -> None:
    plan = plan_with(preset="base-millions", distill__finetune__views=3)
    with pytest.raises(PlanError, match=r"distill\.finetune\.views is 3") as caught:
        check_plan(plan)
    assert "preset 'base-millions'" in caught.value.expected


def test_fixed_views_that_would_not_repeat_are_refused(
    plan_with: MakePlan, teacher_with: MakeTeacher, images: Images
) -> None:
    with pytest.raises(PlanError, match="shows the teacher other patches in every step"):
        distill(teacher_with(), plan_with(distill__views=2), images)


@pytest.mark.parametrize(
    ("recipe", "learn_from", "head"),
    [
        ("relation", "auto", False), ("relation", "finetuned", True), ("feature", "auto", True),
        ("feature", "pretrained", False), ("logit", "auto", True),
    ],
)  # fmt: skip
def test_which_teacher_a_recipe_learns_from(
    plan_with: MakePlan, teacher_with: MakeTeacher, recipe: str, learn_from: str, head: bool
) -> None:
    plan = plan_with(distill__recipe=recipe, distill__learn_from=learn_from).distill
    _, source = choose_recipe(plan, teacher_with(), teacher_with(labels=("blue", "red")))
    assert bool(source.labels) == head


def test_logits_are_not_learnt_from_a_pretrained_teacher(plan_with: MakePlan, teacher_with: MakeTeacher) -> None:
    plan = plan_with(distill__recipe="logit", distill__learn_from="pretrained").distill
    with pytest.raises(PlanError, match="learns from a fine-tuned teacher's logits"):
        choose_recipe(plan, teacher_with(), teacher_with(labels=("blue", "red")))
