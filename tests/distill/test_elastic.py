"""Elastic students: what is nested in what, what a step trains, and that what is taken out is what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch

from edgemae.data.image_set import ImageSet
from edgemae.data.loader import Batch
from edgemae.distill import elastic
from edgemae.distill.elastic import Space, curve, extract, kept_blocks, run_at, shrink, space_of
from edgemae.distill.elastic_training import in_stage_one, in_stage_two
from edgemae.distill.recipes import RECIPES
from edgemae.distill.stages import Images, distill
from edgemae.model.student import Student, load_student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT, count_macs
from edgemae.pipeline.datasets import Inputs
from edgemae.pipeline.preflight import check_recipe
from edgemae.pipeline.stage_cache import StageCache
from edgemae.pipeline.stage_files import ModelFile
from edgemae.pipeline.training_stages import StageContext, distill_stages, extract_stage
from edgemae.spec.errors import CheckpointError, PlanError
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import ElasticPlan, Plan
from edgemae.train import loop
from edgemae.train.step_context import StepContext, StepRandom, whole
from tests.support.tiny_job import Job, Ran, edgemae, stage

PIXEL = PixelContract(image_px=32)
SIZES = ElasticPlan(on=True, depths=(1, 2), heads=(1, 2), mlp_ratios=(1.0, 2.0), image_pxs=(16,))
MakeViT, MakePlan, MakeTeacher = Callable[..., ViT], Callable[..., Plan], Callable[..., Teacher]


def trained(vit: ViT, space: Space) -> Student:
    """Return a student that says of itself that it was trained elastically."""
    step = elastic.Step(stage=elastic.STAGE, plan=space.as_dict())
    return Student(vit, PIXEL, tuple("abc"), (step,))


def pictures_of(rows: int, px: int = 32) -> torch.Tensor:
    return torch.randn(rows, 3, px, px, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- the space


def test_the_space_holds_every_combination_and_the_student_itself(tiny_vit: MakeViT) -> None:
    space = space_of(SIZES, tiny_vit(depth=3).shape)
    assert space.sizes == ((1, 2, 3), (1, 2), (32, 64, 128), (16, 32))
    assert len(set(space.shapes)) == 36
    macs = [count_macs(shape) for shape in space.shapes]
    assert macs == sorted(macs)
    assert space.shapes[-1] == space.full


def test_sensible_sizes_without_a_plan(tiny_vit: MakeViT) -> None:
    space = space_of(ElasticPlan(), tiny_vit(depth=4, heads=4).shape)
    assert space.sizes == ((2, 3, 4), (2, 3, 4), (64, 96, 128), (24, 32))
    one = space_of(ElasticPlan(), tiny_vit(depth=1, heads=1, image_px=8).shape)
    assert one.sizes == ((1,), (1,), (64, 96, 128), (8,))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"depths": (0,)}, "elastic.depths"), ({"heads": (3,)}, "elastic.heads"), ({"mlp_ratios": (5.0,)}, "mlp_ratios"),
     ({"image_pxs": (20,)}, "in multiples of 8")],
)  # fmt: skip
def test_sizes_that_are_not_nested_are_refused(tiny_vit: MakeViT, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        space_of(ElasticPlan(**wrong), tiny_vit().shape)


def test_a_shape_that_was_not_trained_is_refused_with_the_nearest(tiny_vit: MakeViT) -> None:
    space = space_of(SIZES, tiny_vit(depth=3).shape)
    assert space.find((2, 1, 64, 16)) == space.at(2, 1, 64, 16)
    with pytest.raises(PlanError, match="no sub-network has depth 7, heads 1, mlp 50, image_px 24") as caught:
        space.find((7, 1, 50, 24))
    assert caught.value.fix == "the nearest one has depth 3, heads 1, mlp 64, image_px 32"


def test_blocks_are_nested_and_spread() -> None:
    assert [kept_blocks(depth, 5) for depth in range(1, 6)] == [[0], [0, 4], [0, 2, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]]
    assert kept_blocks(1, 1) == [0]
    for full in range(1, 13):
        kept = [set(kept_blocks(depth, full)) for depth in range(1, full + 1)]
        assert [len(blocks) for blocks in kept] == list(range(1, full + 1))
        assert all(fewer < more for fewer, more in pairwise(kept))


# ---------------------------------------------------------------- sub-networks


def test_what_is_taken_out_computes_what_was_trained(tiny_vit: MakeViT, tmp_path: Path) -> None:
    vit = tiny_vit(depth=3)
    space = space_of(SIZES, vit.shape)
    for shape in space.shapes:
        small = extract(trained(vit, space), elastic.sizes_of(shape))
        small.save(tmp_path / "small.safetensors")
        plain = load_student(tmp_path / "small.safetensors")
        pixels = pictures_of(2, shape.image_px)
        for mine, theirs in zip(run_at(vit, shape, pixels), plain.vit(pixels), strict=True):
            assert mine is not None
            assert torch.allclose(mine, theirs, rtol=0, atol=1e-6)
        assert type(plain.vit) is ViT
        assert plain.vit.shape == shape
        assert plain.pixel == msgspec.structs.replace(PIXEL, image_px=shape.image_px)
        assert plain.labels == ("a", "b", "c")
        assert [step.stage for step in plain.history] == ["elastic", "extract"]
        assert tuple(plain.history[-1].plan.values()) == elastic.sizes_of(shape)


def test_the_largest_is_the_network_itself(tiny_vit: MakeViT) -> None:
    vit, pixels = tiny_vit(depth=3), pictures_of(2)
    assert torch.equal(run_at(vit, vit.shape, pixels)[1], vit(pixels)[1])
    assert shrink(pixels, 32) is pixels


def test_a_place_in_the_picture_has_one_position_at_every_size(tiny_vit: MakeViT) -> None:
    """Of 4 x 4 patches, 2 x 2 larger ones lie in the middle of four each; the same grid is left as it is."""
    vit = tiny_vit()
    assert torch.equal(elastic.slices(vit, vit.shape)["pos"], vit.pos)
    coarse = elastic.slices(vit, replace(vit.shape, image_px=16))["pos"][0]
    angle = torch.tensor([0.5, 2.5])[:, None] / 10000 ** (torch.arange(8) / 8)
    assert torch.allclose(coarse[:2, :8], angle.sin(), atol=1e-6)  # the first row, from left to right
    assert torch.allclose(coarse[::2, 24:], angle.cos(), atol=1e-6)  # the first column, downwards


def test_learned_positions_are_resampled(tiny_vit: MakeViT) -> None:
    vit = tiny_vit(learned_pos=True, cls_token=True)
    torch.nn.init.normal_(vit.pos)
    space = space_of(SIZES, vit.shape)
    small, pixels = extract(trained(vit, space), (1, 1, 32, 16)), pictures_of(2, 16)
    assert torch.allclose(small.vit(pixels)[1], run_at(vit, small.vit.shape, pixels)[1], rtol=0, atol=1e-6)
    assert torch.equal(small.vit.pos[:, 0], vit.pos[:, 0])


def test_only_an_elastic_student_is_taken_apart(tiny_vit: MakeViT) -> None:
    vit = tiny_vit()
    student = trained(vit, space_of(SIZES, vit.shape))
    with pytest.raises(CheckpointError, match="not trained, or not to the end: its last step is 'extract'"):
        extract(extract(student, (1, 2, 64, 32)), (1, 1, 64, 32))
    with pytest.raises(CheckpointError, match="not trained"):
        extract(replace(student, history=()), (1, 1, 64, 32))


# ---------------------------------------------------------------- training


def test_gradients_reach_only_what_a_sub_network_has(tiny_vit: MakeViT) -> None:
    vit = tiny_vit(depth=3)
    shape = space_of(SIZES, vit.shape).at(2, 1, 32, 16)
    logits, _ = run_at(vit, shape, pictures_of(2, 16))
    assert logits is not None
    logits.square().sum().backward()
    assert all(p.grad is None for p in vit.blocks[1].parameters())
    for block in (vit.blocks[0], vit.blocks[2]):
        rows = block.attn.qkv.weight.grad.unflatten(0, (3, 2, 16)).abs().amax(dim=(2, 3))
        assert bool((rows[:, 0] > 0).all())
        assert not bool(rows[:, 1].any())
        assert bool(block.mlp.fc2.weight.grad[:, :32].any())
        assert not bool(block.mlp.fc2.weight.grad[:, 32:].any())
        assert not bool(block.mlp.fc1.bias.grad[32:].any())
    assert vit.pos.grad is None


@pytest.mark.parametrize("name", RECIPES)
def test_stage_one_teaches_a_sub_network_what_its_shape_alone_would_learn(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, name: str
) -> None:
    """A student with the same weights gives the same terms and gradients; the teacher is asked once a step."""
    plan = plan_with(distill__drop_path=0.3).distill
    recipe = RECIPES[name](tiny_vit(depth=3, classes=3), teacher_with(labels=tuple("abc")), PIXEL, plan)
    batch = Batch(pictures_of(4), torch.full((4,), -1), torch.arange(4))
    space = space_of(SIZES, recipe.student.shape)
    asked, teacher_targets = [], recipe.teacher_targets
    recipe.teacher_targets = lambda *args: asked.append(teacher_targets(*args)) or asked[-1]  # type: ignore[method-assign,func-returns-value]
    step = in_stage_one(recipe, space, msgspec.structs.replace(SIZES, samples=2))
    terms = step(batch, whole(4, torch.Generator().manual_seed(5)))
    own = {term for term in terms if " " not in term}
    assert set(terms) == own | {f"{kind} {term}" for kind in ("drawn", "smallest") for term in own}
    assert len(asked) == 1
    sum(term for kind, term in terms.items() if kind.startswith("smallest")).backward()  # type: ignore[union-attr]

    alone = RECIPES[name](tiny_vit(depth=3, classes=3), teacher_with(labels=tuple("abc")), PIXEL, plan)
    alone.load_state_dict(recipe.state_dict())
    alone.student = extract(trained(recipe.student, space.full_size_images), (1, 1, 32, 32)).vit
    expected = alone(batch, asked[0])
    for term, value in expected.items():
        torch.testing.assert_close(terms[f"smallest {term}"], value, rtol=1e-5, atol=1e-6)
    sum(expected.values()).backward()  # type: ignore[union-attr]
    theirs = dict(alone.named_parameters())
    for shared, parameter in recipe.named_parameters():
        if not shared.startswith("student.blocks"):
            torch.testing.assert_close(parameter.grad, theirs[shared].grad, rtol=1e-4, atol=1e-6)
    mine = recipe.student.blocks[0].mlp.fc1.weight.grad
    torch.testing.assert_close(mine[:32], alone.student.blocks[0].mlp.fc1.weight.grad, rtol=1e-4, atol=1e-6)
    assert not bool(mine[32:].any())


@pytest.mark.parametrize("name", RECIPES)
def test_a_divided_step_of_stage_one_is_the_same_step(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, name: str
) -> None:
    teacher = teacher_with(labels=tuple("abc"))
    recipe = RECIPES[name](tiny_vit(depth=3, classes=3), teacher, PIXEL, plan_with(distill__drop_path=0.3).distill)
    batch = Batch(pictures_of(8), torch.full((8,), -1), torch.arange(8))
    step = in_stage_one(recipe, space_of(SIZES, recipe.student.shape), SIZES)

    def at(rows: slice) -> dict[str, torch.Tensor]:
        context = StepContext(8, rows, StepRandom(torch.Generator().manual_seed(5)))
        return step(batch.part(rows, torch.device("cpu")), context)

    one, first, second = at(slice(0, 8)), at(slice(0, 4)), at(slice(4, 8))
    for term, value in one.items():
        assert value.item() == pytest.approx((first[term] + second[term]).item() / 2, rel=1e-4)


def test_draws_are_even_and_do_not_depend_on_how_a_step_is_divided(tiny_vit: MakeViT) -> None:
    vit = tiny_vit(depth=3)
    space = space_of(SIZES, vit.shape)
    assert {space.draw(whole(4, torch.Generator().manual_seed(s))) for s in range(300)} == set(space.shapes)
    pixels, says = pictures_of(8), torch.randn(8, 3, generator=torch.Generator().manual_seed(3))
    terms = in_stage_two(vit, space, SIZES)

    def at(rows: slice) -> dict[str, torch.Tensor]:
        def learn(logits: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"label": logits.square().mean(), "teacher": logits.abs().mean()}

        return terms(
            pixels[rows], says[rows], learn, StepContext(8, rows, StepRandom(torch.Generator().manual_seed(5)))
        )

    one, first, second = at(slice(0, 8)), at(slice(0, 4)), at(slice(4, 8))
    assert set(one) == {"drawn label", "drawn teacher", "smallest label", "smallest teacher", "in-place"}
    for name in one:
        assert one[name].item() == pytest.approx((first[name] + second[name]).item() / 2, rel=1e-5)
    few = in_stage_two(vit, space, msgspec.structs.replace(SIZES, samples=0, largest_weight=0.0))
    found = few(pixels, says, lambda logits: {"label": logits.sum()}, whole(8, torch.Generator()))
    assert set(found) == {"smallest label"}


def test_a_step_costs_less_than_three(tiny_vit: MakeViT) -> None:
    vit = tiny_vit(depth=4, heads=4)
    space = space_of(ElasticPlan(), vit.shape)
    macs = [count_macs(shape) for shape in space.shapes]
    assert space.cost(0) == pytest.approx(1 + macs[0] / macs[-1])
    assert 1.5 < space.cost(ElasticPlan().samples) < 3


def test_an_elastic_distillation(
    plan_with: MakePlan, teacher_with: MakeTeacher, pictures: ImageSet, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Every part is trained, colours are learnt by the smallest too, and a resumed run ends alike."""
    plan = plan_with(
        elastic__on=True, elastic__image_pxs=(16,), distill__finetune__epochs=6, distill__finetune__lr=0.02
    )
    images, teacher = Images(pictures.unlabelled(), pictures, pictures), teacher_with()
    student, curves = distill(teacher, plan, images, tmp_path / "train.ckpt")
    assert list(curves) == ["distill", "elastic"]
    assert {"pixel", "smallest pixel", "smallest relation", "drawn relation"} < set(curves["distill"][0])
    assert {"label", "smallest label", "in-place", "drawn label"} < set(curves["elastic"][0])
    assert [step.plan["image_px"] for step in student.history[-2:]] == [[16, 32]] * 2
    rows = curve(student, pictures, points=4)
    assert [row["top1"] for row in rows] == [1.0] * 4
    assert [row["macs"] for row in rows] == sorted(row["macs"] for row in rows)
    assert rows[-1]["params"] == sum(p.numel() for p in student.vit.parameters())

    saved, last = loop._Run._save, {"distill (relation)": 3, "elastic": 9}

    def die(run: Any) -> None:
        saved(run)
        if run.done == last[run.job.name]:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Run, "_save", die)
    for _ in last:
        with pytest.raises(KeyboardInterrupt):
            distill(teacher, plan, images, tmp_path / "other.ckpt")
    monkeypatch.undo()
    again, _ = distill(teacher, plan, images, tmp_path / "other.ckpt")
    mine, theirs = student.vit.state_dict(), again.vit.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# ---------------------------------------------------------------- command line


def test_distill_elastic_then_extract(job: Job, compiled: Ran, tmp_path: Path) -> None:
    teacher, tuned = (stage(job.output, name) / "teacher.safetensors" for name in ("pretrain", "finetune"))
    ran = edgemae(
        "distill", teacher, "--finetuned-teacher", tuned, *job.work, "--elastic", "-o", tmp_path / "out", "--json"
    )
    assert ran.code == 0, ran.err
    rows = json.loads((stage(tmp_path / "out", "student") / "curve.json").read_bytes())
    assert len(rows) == 12
    assert set(rows[0]) == {"depth", "heads", "mlp", "image_px", "macs", "params", "top1"}
    small = tmp_path / "small.safetensors"
    ran = edgemae("extract", ran.json["student"], "--heads", 1, "--px", 24, "-o", small, "--json")
    assert ran.json == {"student": str(small), "depth": 1, "heads": 1, "mlp": 128, "image_px": 24,
                        "macs": ran.json["macs"], "params": ran.json["params"]}  # fmt: skip
    assert load_student(small).vit.shape.heads == (1,)
    ran = edgemae("extract", small, "--heads", 1, "-o", tmp_path / "x.safetensors")
    assert (ran.code, "not trained" in ran.err) == (2, True)


def test_elastic_needs_labels_and_a_teacher(job: Job, compiled: Ran, tmp_path: Path) -> None:
    plan = ("--plan", job.plan, "--elastic", "--output", tmp_path / "out")
    ran = edgemae("compile", "--data", job.flat, *plan, "--target", job.target)
    assert (ran.code, "has none" in ran.err) == (2, True)
    student = stage(job.output, "student") / "student.safetensors"
    ran = edgemae("compile", student, "--data", job.train, *plan, "--target", job.target)
    assert (ran.code, "is a student already" in ran.err) == (2, True)


def test_a_first_stage_serves_only_the_sub_networks_that_it_trained(
    plan_with: MakePlan, teacher_with: MakeTeacher, pictures: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 1 of a plain student is not gone on from, nor one of other sub-networks; settings of stage 2 keep it."""
    source, flat = tmp_path / "teacher.safetensors", pictures.unlabelled()
    teacher_with().save(source)
    untrained = Student(ViT(teacher_with().vit.shape), PIXEL)
    monkeypatch.setattr("edgemae.pipeline.training_stages.distill", lambda *args: (untrained, {}))

    def folder(**elastic: Any) -> Path:
        plan = plan_with(**{f"elastic__{name}": value for name, value in elastic.items()})
        context = StageContext(plan, StageCache(tmp_path / "out"), Inputs(flat, None, pictures, pictures))
        return distill_stages(context, ModelFile(source), None).path

    made = [folder(), folder(on=True), folder(on=True, heads=(1,)), folder(on=True, samples=1)]
    assert len(set(made)) == 4
    assert folder(on=True, lr_scale=1.0, largest_weight=0.0, shape=(1, 1, 64, 24)) == made[1]


def test_a_plan_names_what_is_compiled(tiny_vit: MakeViT, plan_with: MakePlan, tmp_path: Path) -> None:
    vit, source = tiny_vit(), tmp_path / "student.safetensors"
    trained(vit, space_of(SIZES, vit.shape)).save(source)
    work, inputs = StageCache(tmp_path / "out"), cast(Inputs, None)
    file = ModelFile(source)
    assert extract_stage(StageContext(plan_with(elastic__on=True), work, inputs), file) is file
    small = extract_stage(StageContext(plan_with(elastic__on=True, elastic__shape=(1, 2, 64, 16)), work, inputs), file)
    assert elastic.sizes_of(small.student.vit.shape) == (1, 2, 64, 16)


def test_the_shape_of_a_compile_is_checked_ahead(plan_with: MakePlan, teacher_with: MakeTeacher) -> None:
    teacher = teacher_with()
    assert check_recipe(plan_with(elastic__on=True, elastic__shape=(1, 1, 64, 24)), teacher)
    with pytest.raises(PlanError, match="no sub-network has depth 3"):
        check_recipe(plan_with(elastic__on=True, elastic__shape=(3, 1, 64, 24)), teacher)
