"""Recipes of stage 1: what is trained, what is compared, and which teachers fit which students."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

import edgemae.distill.recipes as recipes
from edgemae.data.loader import Batch
from edgemae.distill.recipes.feature import Feature, resample
from edgemae.distill.recipes.logit import Logit
from edgemae.distill.recipes.relation import Relation
from edgemae.distill.recipes.relation_full import RelationFull, divergence
from edgemae.model.mae import patch_stats, patchify
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT
from edgemae.spec.errors import PlanError
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import Plan
from edgemae.train.losses import distillation
from edgemae.train.step_context import StepContext, whole

PIXEL = PixelContract(image_px=32)
MakeTeacher, MakePlan, MakeViT = Callable[..., Teacher], Callable[..., Plan], Callable[..., ViT]


@pytest.fixture
def batch() -> Batch:
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return Batch(pixels, torch.full((6,), -1), torch.arange(6))


def draw() -> StepContext:
    return whole(6, torch.Generator().manual_seed(5))


def gradients(module: torch.nn.Module, batch: Batch) -> dict[str, float]:
    """Return the largest gradient of every parameter after one step; 0 where there is none."""
    module.train()
    sum(module.step(batch, draw()).values()).backward()  # type: ignore[union-attr]
    return {n: 0.0 if p.grad is None else p.grad.abs().max().item() for n, p in module.named_parameters()}


def test_the_registry_names_the_files() -> None:
    files = {path.stem.replace("_", "-") for path in Path(recipes.__file__).parent.glob("*.py")} - {"--init--"}
    assert set(recipes.RECIPES) == files


# ---------------------------------------------------------------- relation


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_every_block_that_ships_is_trained(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch, depth: int
) -> None:
    student = tiny_vit(depth=depth, classes=0)
    found = gradients(Relation(student, teacher_with(), PIXEL, plan_with().distill), batch)
    shipped = {n.removeprefix("student.") for n in found if n.startswith("student.")}
    still = {n.removeprefix("student.") for n, size in found.items() if n.startswith("student.") and size == 0}
    assert shipped == {n for n, _ in student.named_parameters()}
    assert still == {"pos", "norm.weight", "norm.bias"}  # fixed, and what comes after the last block
    assert {n for n, size in found.items() if size == 0} - {f"student.{n}" for n in still} == {
        "probe.proj.weight", "probe.proj.bias", "decoder.pos"
    }  # fmt: skip


def test_each_term_reaches_its_own_part(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch
) -> None:
    """Pixels are read at two thirds of three blocks; relations behind the last one."""
    for pixel_weight, relation_weight, trained in ((1.0, 0.0, {0, 1}), (0.0, 1.0, {0, 1, 2})):
        plan = plan_with(distill__pixel_weight=pixel_weight, distill__relation_weight=relation_weight).distill
        found = gradients(Relation(tiny_vit(depth=3, classes=0), teacher_with(), PIXEL, plan), batch)
        assert {i for i in range(3) if found[f"student.blocks.{i}.mlp.fc2.weight"] > 0} == trained


def test_the_teacher_is_not_part_of_what_is_trained(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch
) -> None:
    teacher = teacher_with(depth=4)
    before = {n: v.clone() for n, v in teacher.vit.state_dict().items()}
    recipe = Relation(tiny_vit(classes=0), teacher, PIXEL, plan_with().distill)
    assert not any("view" in n for n, _ in recipe.named_parameters())
    assert not any("view" in n for n in recipe.state_dict())
    gradients(recipe, batch)
    assert not recipe.view.vit.training  # also while the student trains
    assert all(p.grad is None for p in [*teacher.vit.parameters(), *recipe.view.vit.parameters()])
    assert all(torch.equal(before[n], v) for n, v in teacher.vit.state_dict().items())


@pytest.mark.parametrize(
    ("teacher_depth", "student_depth", "asked", "block"),
    [(2, 2, 0, 2), (2, 3, 0, 2), (4, 2, 0, 3), (8, 4, 0, 6), (12, 6, 0, 9), (8, 4, 8, 8), (4, 2, 1, 1)],
)
def test_the_teacher_runs_as_deep_as_its_chosen_block(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch,
    teacher_depth: int, student_depth: int, asked: int, block: int,
) -> None:  # fmt: skip
    plan = plan_with(distill__teacher_block=asked).distill
    recipe = Relation(tiny_vit(depth=student_depth, classes=0), teacher_with(depth=teacher_depth), PIXEL, plan)
    ran: list[int] = []
    for i, part in enumerate(recipe.view.vit.blocks):
        part.register_forward_hook(lambda *_, i=i: ran.append(i))
    recipe.step(batch, draw())
    assert recipe.view.vit.shape.depth == block
    assert ran == list(range(block - 1))


@pytest.mark.parametrize("asked", [-1, 3])
def test_a_block_that_the_teacher_lacks_is_refused(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, asked: int
) -> None:
    with pytest.raises(PlanError, match=f"teacher_block is {asked}, the teacher has 2 blocks"):
        Relation(tiny_vit(classes=0), teacher_with(), PIXEL, plan_with(distill__teacher_block=asked).distill)


@pytest.mark.parametrize("mask", ["random", "block", "grid"])
def test_both_see_the_same_patches(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch, mask: str
) -> None:
    recipe = Relation(tiny_vit(classes=0), teacher_with(), PIXEL, plan_with(distill__mask=mask).distill)
    keeps: list[Tensor] = []
    for vit in (recipe.student, recipe.view.vit):
        plain = vit.embed
        vit.embed = lambda pixels, keep, plain=plain: (keeps.append(keep), plain(pixels, keep))[1]  # type: ignore[method-assign]
    recipe.step(batch, draw())
    assert len(keeps) == 2
    assert torch.equal(keeps[0], keeps[1])
    assert keeps[0].shape == (6, 4)  # a quarter of 16 patches


def test_the_terms_are_what_they_say(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch
) -> None:
    plan = plan_with(distill__pixel_weight=0.5, distill__relation_weight=3.0).distill
    recipe = Relation(tiny_vit(classes=0), teacher_with(), PIXEL, plan)
    keep = torch.tensor([[0, 5, 10, 15]]).repeat(6, 1)
    targets = {"keep": keep, "relations": recipe.view.relations(batch.pixels, keep)}
    student = recipe.student_taps(batch.pixels, keep)
    terms = recipe.loss(student, targets, batch.pixels)
    assert set(terms) == {"pixel", "relation"}
    mine, theirs = (side["relations"] - side["relations"].mean(-1, keepdim=True) for side in (student, targets))
    spread = theirs.square().mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(terms["relation"], 3.0 * ((mine - theirs).square() / spread).mean(), rtol=1e-3, atol=0)
    target = patchify(batch.pixels, 8)
    mean, scale = patch_stats(target)
    hidden = [i for i in range(16) if i not in (0, 5, 10, 15)]
    error = (student["predicted"] - ((target - mean) / scale)[:, hidden]).square().mean()
    torch.testing.assert_close(terms["pixel"], 0.5 * error)


def test_the_relation_term_does_not_depend_on_the_teachers_scale(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch
) -> None:
    """Nor on what is the same for a whole row, which a softmax does not see."""
    recipe = Relation(tiny_vit(classes=0), teacher_with(), PIXEL, plan_with().distill)
    keep = torch.tensor([[0, 5, 10, 15]]).repeat(6, 1)
    student, theirs = recipe.student_taps(batch.pixels, keep), torch.randn(6, 2, 4, 4)
    silent = student | {"relations": torch.zeros(6, 2, 4, 4)}

    def term(mine: dict[str, Tensor], wanted: Tensor) -> float:
        return recipe.loss(mine, {"keep": keep, "relations": wanted}, batch.pixels)["relation"].item()

    assert term(silent, theirs) == pytest.approx(1, rel=1e-3)
    assert term(silent, 40 * theirs + torch.randn(6, 2, 4, 1)) == pytest.approx(1, rel=1e-3)
    assert term(student | {"relations": theirs}, theirs + 5) == pytest.approx(0, abs=1e-6)


SHAPES = [
    pytest.param({"cls_token": True, "pool": "cls"}, id="cls token"),
    pytest.param({"heads": 4, "head_dim": 8}, id="heads"),
    pytest.param({"depth": 5}, id="depth"),
    pytest.param({"width": 64, "heads": 4}, id="width"),
    pytest.param({"learned_pos": True, "cls_token": True}, id="learned positions"),
    pytest.param({"pixel": PixelContract(image_px=64)}, id="resolution"),
    pytest.param({"pixel": PixelContract(image_px=64), "patch_px": 16}, id="resolution and patch"),
    pytest.param({"pixel": PixelContract(image_px=56), "patch_px": 14, "cls_token": True}, id="another grid"),
    pytest.param({"pixel": PixelContract(image_px=32, mean=(0.5,) * 3, std=(0.5,) * 3)}, id="normalisation"),
    pytest.param({"norm_after_pool": False}, id="norm before pool"),
]


@pytest.mark.parametrize("changes", SHAPES)
def test_teachers_of_other_shapes(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch, changes: dict[str, object]
) -> None:
    recipe = Relation(tiny_vit(classes=0), teacher_with(**changes), PIXEL, plan_with().distill)
    terms = recipe.step(batch, draw())
    assert all(torch.isfinite(term) and term > 0 for term in terms.values())
    heads = teacher_with(**changes).vit.shape.heads[0]
    targets = recipe.teacher_targets(batch, draw())
    student = recipe.student_taps(batch.pixels, targets["keep"])
    assert {side["relations"].shape for side in (student, targets)} == {(6, heads, 4, 4)}


def test_a_pruned_student_can_learn(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch
) -> None:
    shape = replace(tiny_vit(classes=0).shape, heads=(2, 1), mlp=(48, 16))
    found = gradients(Relation(ViT(shape), teacher_with(), PIXEL, plan_with().distill), batch)
    assert found["student.blocks.1.attn.proj.weight"] > 0


def test_other_channels_are_refused(tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan) -> None:
    gray = msgspec.structs.replace(PIXEL, channels=1, color="GRAY", mean=(0.5,), std=(0.5,))
    with pytest.raises(PlanError, match="reads 3 channels"):
        Relation(tiny_vit(channels=1, classes=0), teacher_with(), gray, plan_with().distill)


# ---------------------------------------------------------------- logit


def test_logits_on_whole_pictures(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch
) -> None:
    student, teacher = tiny_vit(classes=2), teacher_with(labels=("a", "b"), depth=3)
    recipe = Logit(student, teacher, PIXEL, plan_with(distill__finetune__teacher_temperature=2.0).distill)
    terms = recipe.step(batch, draw())
    assert set(terms) == {"logit"}
    wanted = distillation(student(batch.pixels)[0], teacher.vit(batch.pixels)[0], 2.0)
    torch.testing.assert_close(terms["logit"], wanted)
    found = gradients(recipe, batch)
    assert {n for n, size in found.items() if size == 0} == {"student.pos"}
    assert all(p.grad is None for p in recipe.view.vit.parameters())


# ---------------------------------------------------------------- relation-full


@pytest.mark.parametrize("depth", [1, 3])
def test_the_last_block_is_trained_by_all_relations(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch, depth: int
) -> None:
    student = tiny_vit(depth=depth, classes=0)
    found = gradients(RelationFull(student, teacher_with(depth=4), PIXEL, plan_with().distill), batch)
    still = {n for n, size in found.items() if size == 0}
    assert still == {"student.pos", "student.norm.weight", "student.norm.bias", "probe.proj.weight", "probe.proj.bias"}


def test_relations_of_all_patches_by_hand(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch
) -> None:
    teacher = teacher_with(heads=4, head_dim=8, cls_token=True)
    plan = plan_with(distill__query_key_weight=2.0, distill__value_weight=0.5).distill
    recipe = RelationFull(tiny_vit(classes=0), teacher, PIXEL, plan)
    assert (recipe.probe.heads, recipe.probe.head_dim) == (4, 8)  # the teacher's number of heads
    terms = recipe.step(batch, draw())
    block = teacher.vit.blocks[1]
    theirs = block.attn.split(block.norm1(teacher.vit.encode(batch.pixels, blocks=1)))
    mine = recipe.probe.split(recipe.probe_norm(recipe.student.encode(batch.pixels)))
    for name, weight, pair in (("query_key", 2.0, (0, 1)), ("value", 0.5, (2, 2))):
        p, q = (
            (one[pair[0]][:, :, skip:] @ one[pair[1]][:, :, skip:].transpose(-2, -1) / 8**0.5).softmax(-1)
            for one, skip in ((theirs, 1), (mine, 0))
        )
        missed, said = (p * (p / q).log()).sum(-1), (p * (p * p.shape[-1]).log()).sum(-1)
        expected = (missed.mean(dim=(1, 2)) / said.mean(dim=(1, 2))).mean()
        torch.testing.assert_close(terms[name], weight * expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_an_ignorant_student_loses_one_whatever_the_teacher(scale: float) -> None:
    theirs = scale * torch.randn(3, 2, 16, 16)
    wanted, even = theirs.log_softmax(-1), torch.zeros_like(theirs)
    assert divergence(even, wanted).item() == pytest.approx(1, abs=1e-3)
    assert divergence(theirs, wanted).item() == pytest.approx(0, abs=1e-6)
    assert divergence(even, even.log_softmax(-1)) == 0  # such a teacher has nothing to say, and no unit


def test_a_student_that_relates_as_its_teacher_has_nothing_to_learn(
    tiny_vit: MakeViT, plan_with: MakePlan, batch: Batch
) -> None:
    vit = tiny_vit(classes=0)
    recipe = RelationFull(vit, Teacher(vit, PIXEL), PIXEL, plan_with(distill__teacher_block=2).distill)
    recipe.student.blocks = recipe.student.blocks[:1]
    recipe.probe_norm.load_state_dict(vit.blocks[0].norm1.state_dict())
    view = recipe.view.vit.blocks[1]
    recipe.probe_norm.load_state_dict(view.norm1.state_dict())
    recipe.probe.load_state_dict(view.attn.state_dict())
    assert all(term.abs() < 1e-6 for term in recipe.step(batch, draw()).values())


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("name", ["relation-full", "feature"])
def test_whole_views_of_teachers_of_other_shapes(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch, name: str,
    changes: dict[str, object],
) -> None:  # fmt: skip
    recipe = recipes.RECIPES[name](tiny_vit(classes=0), teacher_with(**changes), PIXEL, plan_with().distill)
    assert all(torch.isfinite(term) and term > 0 for term in recipe.step(batch, draw()).values())


def test_more_heads_than_width_are_refused(tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan) -> None:
    with pytest.raises(PlanError, match="has 40 heads, the student is only 32 wide"):
        RelationFull(tiny_vit(classes=0), teacher_with(heads=40, head_dim=4), PIXEL, plan_with().distill)


# ---------------------------------------------------------------- feature


def test_every_part_of_the_student_learns_features(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch
) -> None:
    found = gradients(Feature(tiny_vit(classes=0), teacher_with(width=48), PIXEL, plan_with().distill), batch)
    assert {n for n, size in found.items() if size == 0} == {"student.pos"}


def test_targets_are_normalised_token_by_token(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch
) -> None:
    """A teacher whose tokens are a thousand times larger in one dimension asks for the same."""
    teacher = teacher_with()
    plan = plan_with(distill__pooled_weight=0.5, distill__patch_weight=3.0).distill
    recipe = Feature(tiny_vit(classes=0), teacher, PIXEL, plan)
    terms = recipe.step(batch, draw())
    tokens = teacher.vit.encode(batch.pixels)
    flat = torch.nn.functional.layer_norm(tokens, (32,))
    expected = (recipe.patch(recipe.student.encode(batch.pixels)) - flat).square().mean()
    torch.testing.assert_close(terms["patch"], 3.0 * expected)
    embedding = torch.nn.functional.layer_norm(teacher.vit(batch.pixels)[1], (32,))
    expected = (recipe.pooled(recipe.student(batch.pixels)[1]) - embedding).square().mean()
    torch.testing.assert_close(terms["pooled"], 0.5 * expected)


@pytest.mark.parametrize(("old", "new"), [(4, 8), (8, 4), (7, 4)])
def test_tokens_of_another_grid_are_resampled_in_place(old: int, new: int) -> None:
    """A ramp stays the same ramp: left to right in one dimension, top to bottom in the other."""

    def ramp(grid: int) -> Tensor:
        axis = (torch.arange(grid) + 0.5) / grid
        row, column = torch.meshgrid(axis, axis, indexing="ij")
        return torch.stack([row, column], -1).reshape(1, grid * grid, 2)

    inner = slice(1, new - 1)  # edges are flattened by any filter
    found, wanted = (t.reshape(new, new, 2)[inner, inner] for t in (resample(ramp(old), new), ramp(new)))
    torch.testing.assert_close(found, wanted, atol=0.03, rtol=0)


def test_the_same_grid_is_untouched() -> None:
    tokens = torch.randn(2, 16, 3)
    assert resample(tokens, 4) is tokens


def test_a_feature_block_that_the_teacher_lacks_is_refused(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan
) -> None:
    with pytest.raises(PlanError, match="teacher_block is 3, the teacher has 2 blocks"):
        Feature(tiny_vit(classes=0), teacher_with(), PIXEL, plan_with(distill__teacher_block=3).distill)


# ---------------------------------------------------------------- parts of a step


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_a_divided_step_has_the_loss_of_the_whole(
    tiny_vit: MakeViT, teacher_with: MakeTeacher, plan_with: MakePlan, batch: Batch, name: str
) -> None:
    needs = recipes.RECIPES[name].needs_head
    labels = ("a", "b") if needs else ()
    plan = plan_with(distill__drop_path=0.3, distill__mask="attention").distill
    recipe = recipes.RECIPES[name](tiny_vit(depth=3, classes=len(labels)), teacher_with(labels=labels), PIXEL, plan)
    together = recipe.step(batch, draw())
    parts = []
    for first in (0, 2, 4):
        rows = slice(first, first + 2)
        parts.append(recipe.step(batch.part(rows, torch.device("cpu")), replace(draw(), rows=rows)))
    for term, value in together.items():
        torch.testing.assert_close(sum(part[term] for part in parts) / 3, value)
