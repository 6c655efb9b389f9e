from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from edgemae.model.mae import MAE, DecoderShape, make_keep
from edgemae.model.student import Student, load_student
from edgemae.model.vit import ViT, ViTShape, count_macs
from edgemae.prune import prune
from edgemae.prune.budget import Scores, choose
from edgemae.prune.cut import cut
from edgemae.spec.errors import DataError, InternalError, PlanError
from edgemae.spec.graph import PixelContract, Step
from edgemae.spec.plan_schema import PrunePlan

Make = Callable[..., Student]
Batch = tuple[Tensor, Tensor | None]


def labelled() -> Iterable[Batch]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 32, 32, generator=g), torch.randint(5, (8,), generator=g)) for _ in range(3)]


def unlabelled() -> Iterable[Batch]:
    return [(pixels, None) for pixels, _ in labelled()]


def cross_entropy(vit: ViT, pixels: Tensor, labels: Tensor | None) -> Tensor:
    logits = vit(pixels)[0]
    assert logits is not None
    assert labels is not None
    return F.cross_entropy(logits, labels)


def mae_loss(vit: ViT, pixels: Tensor, labels: Tensor | None) -> Tensor:
    """A stage-1 loss, which needs no labels: masked pixels through a decoder that is not part of the student."""
    assert labels is None
    torch.manual_seed(0)
    mae = MAE(vit, DecoderShape(width=16, depth=1, heads=2), loss_kind="norm-pixel", mean=(0.0,) * 3, std=(1.0,) * 3)
    keep = make_keep(len(pixels), vit.shape.grid, 0.75, "random", torch.Generator().manual_seed(0))
    return mae.loss(pixels, keep)


def run(student: Student, **changes: Any) -> Student:
    known = {"batches": labelled, "loss": cross_entropy, "heal": None, "width_multiple": 8}
    options = {k: changes.pop(k, v) for k, v in known.items()}
    return prune(student, PrunePlan(**changes), **options)


@pytest.mark.parametrize("criterion", ["taylor", "magnitude"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("keep_macs", [0.85, 0.6])
def test_meets_the_goal_and_stays_an_ordinary_student(
    rough_student: Make, tmp_path: Path, criterion: str, steps: int, keep_macs: float
) -> None:
    student = rough_student(cls_token=True)
    small = run(student, criterion=criterion, steps=steps, keep_macs=keep_macs)
    old, new = student.vit.shape, small.vit.shape
    slack = 16 * 32 * 16 + 16 * 32  # one multiple of 8 units on 17 tokens
    assert keep_macs * count_macs(old) - slack <= count_macs(new) <= keep_macs * count_macs(old)
    assert replace(new, heads=old.heads, mlp=old.mlp) == old, "only heads and mlp may change"
    assert (small.pixel, small.labels) == (student.pixel, student.labels)
    small.save(tmp_path / "s.safetensors")
    loaded = load_student(tmp_path / "s.safetensors")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.vit(x)[0], small.vit(x)[0])
    assert loaded.history == small.history


def test_input_is_not_changed(rough_student: Make) -> None:
    student = rough_student()
    before = {k: v.clone() for k, v in student.vit.state_dict().items()}
    shape, history = student.vit.shape, student.history
    healed = []

    def heal(smaller: Student, step: int) -> Student:
        with torch.no_grad():
            for p in smaller.vit.parameters():
                p.mul_(0.5)  # a healer may train in place: the student it gets is its own
        healed.append(step)
        return smaller

    run(student, heal=heal)
    assert healed == [1, 2, 3]
    assert (student.vit.shape, student.history) == (shape, history)
    assert all(torch.equal(v, before[k]) for k, v in student.vit.state_dict().items())
    assert all(p.grad is None for p in student.vit.parameters())


def test_history_tells_what_was_done(rough_student: Make) -> None:
    student = rough_student()

    def heal(smaller: Student, step: int) -> Student:
        return replace(smaller, history=(*smaller.history, Step(stage="finetune", scores={"step": step})))

    small = run(student, heal=heal, keep_macs=0.7, steps=2)
    assert [s.stage for s in small.history] == ["distill", "prune", "finetune", "finetune"]
    step = small.history[1]
    shape = small.vit.shape
    assert (step.plan["keep_macs"], step.plan["criterion"], step.plan["width_multiple"]) == (0.7, "taylor", 8)
    assert step.scores["macs_before"] == count_macs(student.vit.shape)
    assert step.scores["macs_after"] == count_macs(shape)
    assert (step.scores["heads"], step.scores["mlp"]) == (list(shape.heads), list(shape.mlp))
    assert step.scores["params_after"] == sum(p.numel() for p in small.vit.parameters())
    assert set(step.tools) == {"torch", "torch-pruning"}
    assert msgspec.json.decode(msgspec.json.encode(step), type=Step) == step


def test_every_step_is_a_part_of_the_way(rough_student: Make) -> None:
    student = rough_student()
    total = count_macs(student.vit.shape)
    parts = []

    def heal(smaller: Student, step: int) -> Student:
        parts.append(count_macs(smaller.vit.shape) / total)
        return smaller

    run(student, heal=heal, keep_macs=0.7, steps=3)
    assert parts == pytest.approx([0.9, 0.8, 0.7], abs=0.04)
    assert [part <= goal for part, goal in zip(parts, (0.9, 0.8, 0.7), strict=True)] == [True] * 3


def test_a_pruned_student_can_be_pruned_again(rough_student: Make) -> None:
    once = run(rough_student(), keep_macs=0.8, steps=2)
    twice = run(once, keep_macs=0.8, steps=2)
    assert count_macs(twice.vit.shape) <= 0.8 * count_macs(once.vit.shape)
    assert [s.stage for s in twice.history] == ["distill", "prune", "prune"]


@pytest.mark.parametrize("loss", [mae_loss, lambda v, x, _: v(x)[1].square().mean()], ids=["mae", "embedding"])
def test_unlabelled_students_without_a_head(rough_student: Make, loss: Any) -> None:
    small = run(rough_student(classes=0), batches=unlabelled, loss=loss, keep_macs=0.7)
    assert small.vit(torch.zeros(1, 3, 32, 32))[0] is None
    assert small.vit.shape.heads != (4, 4, 4)


def plant_dead(student: Student, heads: tuple[tuple[int, int], ...], units: dict[int, list[int]]) -> None:
    """Zero whole heads (block, head) and MLP units so that they cannot matter."""
    with torch.no_grad():
        for i, head in heads:
            attn, rows = student.vit.blocks[i].attn, slice(8 * head, 8 * head + 8)
            attn.proj.weight[:, rows] = 0
            for part in range(3):
                attn.qkv.weight[32 * part :][rows] = 0
                attn.qkv.bias[32 * part :][rows] = 0
        for i, dead in units.items():
            mlp = student.vit.blocks[i].mlp
            mlp.fc1.weight[dead], mlp.fc1.bias[dead], mlp.fc2.weight[:, dead] = 0, 0, 0


@pytest.mark.parametrize("criterion", ["taylor", "magnitude"])
def test_dead_heads_and_units_are_the_ones_that_go(rough_student: Make, criterion: str) -> None:
    student = rough_student()
    plant_dead(student, ((0, 2), (1, 0), (1, 3)), {1: list(range(5, 21)), 2: list(range(0, 32, 4))})
    dead = replace(student.vit.shape, heads=(3, 2, 4), mlp=(64, 48, 56))
    small = run(student, criterion=criterion, steps=1, keep_macs=count_macs(dead) / count_macs(student.vit.shape))
    assert small.vit.shape == dead
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(small.vit(x)[0], student.vit(x)[0], rtol=1e-5, atol=1e-5)


def test_deterministic(rough_student: Make) -> None:
    def heal(smaller: Student, step: int) -> Student:
        with torch.no_grad():
            for p in smaller.vit.parameters():
                p.add_(0.01 * torch.randn_like(p))
        return smaller

    results = []
    for _ in range(2):
        student = rough_student()
        torch.manual_seed(3)
        results.append(run(student, heal=heal).vit)
    assert results[0].shape == results[1].shape
    pairs = zip(results[0].parameters(), results[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_pruning_draws_no_random_numbers(rough_student: Make) -> None:
    student = rough_student()
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    run(student)
    assert torch.equal(torch.rand(1), want)


def test_keep_all_is_off(rough_student: Make) -> None:
    student = rough_student()
    assert run(student, keep_macs=1.0) is student


def test_tells_its_progress(rough_student: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="edgemae.prune"):
        run(rough_student(), steps=2)
    lines = [r.message for r in caplog.records]
    assert len(lines) == 2
    assert lines[1].startswith("step 2/2: 0.")
    assert "heads (" in lines[1]


WRONG: list[Any] = [
    pytest.param({"criterion": "tailor"}, "Did you mean 'taylor'", id="criterion"),
    pytest.param({"keep_macs": 0.1}, "at least 0.", id="below the floor"),
    pytest.param({"width_multiple": 0}, "width multiple is 0", id="no multiple"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_plans_are_refused_before_any_work(rough_student: Make, changes: dict[str, Any], message: str) -> None:
    def none() -> Iterable[Batch]:
        raise AssertionError("images were read")

    with pytest.raises(PlanError) as caught:
        run(rough_student(), batches=none, **changes)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_no_images_is_a_data_error(rough_student: Make) -> None:
    with pytest.raises(DataError, match="no batch of images"):
        run(rough_student(), batches=list)


def test_a_healer_that_changes_the_shape_is_a_bug(rough_student: Make) -> None:
    student = rough_student()
    with pytest.raises(InternalError, match="healing changed heads"):
        run(student, heal=lambda smaller, step: student)


# ---------------------------------------------------------------- a trained model


@pytest.fixture(scope="module")
def digits() -> tuple[Student, Tensor, Tensor, Tensor, Tensor]:
    """Return a tiny ViT trained for a few seconds on two thirds of the digits, with both parts of the data."""
    raw = load_digits()
    x = F.interpolate(torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16, size=(16, 16), mode="bilinear")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = ((x - 0.3) / 0.35)[order], torch.tensor(raw.target)[order]
    torch.manual_seed(0)
    vit = ViT(
        ViTShape.uniform(image_px=16, patch_px=4, width=48, depth=3, heads=4, head_dim=16, classes=10, channels=1)
    )
    optimizer = torch.optim.AdamW(vit.parameters(), lr=2e-3, weight_decay=0.05)
    for i in range(220):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, i / 30, (220 - i) / 110)
        b = torch.randint(1200, (64,))
        loss = F.cross_entropy(vit(x[:1200][b])[0], y[:1200][b])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pixel = PixelContract(image_px=16, channels=1, color="GRAY", mean=(0.3,), std=(0.35,))
    return Student(vit.eval(), pixel, tuple("0123456789")), x[:1200], y[:1200], x[1200:], y[1200:]


@torch.no_grad()
def top1_pts(student: Student, x: Tensor, y: Tensor) -> float:
    return 100 * (student.vit(x)[0].argmax(1) == y).float().mean().item()


def test_a_small_cut_of_a_trained_model_costs_little(digits: tuple[Student, Tensor, Tensor, Tensor, Tensor]) -> None:
    student, x, y, test_x, test_y = digits

    def batches() -> Iterable[Batch]:
        return zip(x.split(64), y.split(64), strict=True)

    before = top1_pts(student, test_x, test_y)
    small = prune(student, PrunePlan(keep_macs=0.85), width_multiple=16, batches=batches, loss=cross_entropy, heal=None)
    after = top1_pts(small, test_x, test_y)
    assert before >= 90
    assert after >= before - 3

    # The same number of heads and units of each block, drawn at random, costs more: the scores carry information.
    shape, drops = student.vit.shape, []
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        noise = Scores(*(tuple(torch.rand(n, generator=g) for n in sizes) for sizes in (shape.heads, shape.mlp)))
        blind = replace(student, vit=cut(student.vit, choose(noise, shape, 0.85, 16)))
        drops.append(before - top1_pts(blind, test_x, test_y))
    assert before - after < sum(drops) / len(drops)
