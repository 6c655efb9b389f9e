"""Pruning: take whole attention heads and MLP units out of a student, and heal it in between."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

from edgemae.model.student import Student
from edgemae.model.vit import count_macs, count_params
from edgemae.prune.budget import check_budget, choose
from edgemae.prune.criteria import CRITERIA, Batches, Loss, Stats, find_criterion, score
from edgemae.prune.cut import cut
from edgemae.spec.errors import InternalError
from edgemae.spec.graph import Step
from edgemae.spec.plan_loading import plan_tree
from edgemae.spec.plan_schema import PrunePlan

__all__ = ["CRITERIA", "prune"]

log = logging.getLogger("edgemae.prune")

Heal = Callable[[Student, int], Student]


def prune(
    student: Student, plan: PrunePlan, *, width_multiple: int, batches: Batches, loss: Loss, heal: Heal | None
) -> Student:
    """Return a student with at most `plan.keep_macs` of the MACs, cut and healed in `plan.steps` equal steps.

    `batches()` yields (pixels, labels or None); the Taylor criterion differentiates `loss(vit, pixels, labels)`;
    `heal(student, step)`, counted from 1, trains a cut student and returns it (None: no healing). Embedding width,
    head_dim and depth stay. The input is not changed; with `keep_macs = 1.0` it is the result.
    Raises PlanError for an unknown criterion and for a budget below the floor, before anything is computed.
    """
    find_criterion(plan.criterion)
    check_budget(student.vit.shape, plan.keep_macs, width_multiple)
    if plan.keep_macs >= 1:
        log.info("keep_macs is %g: nothing to prune", plan.keep_macs)
        return student
    total = count_macs(student.vit.shape)
    current = student
    for step in range(1, plan.steps + 1):
        goal = round(total * (1 - (1 - plan.keep_macs) * step / plan.steps))
        smaller = _cut_to(current, goal, plan, width_multiple, batches, loss)
        if smaller is None:
            log.info("step %d/%d: already within %.3f MMACs", step, plan.steps, goal / 1e6)
            continue
        shape = smaller.vit.shape
        log.info(
            "step %d/%d: %.3f -> %.3f MMACs (goal %.3f), heads %s, mlp %s", step, plan.steps,
            count_macs(current.vit.shape) / 1e6, count_macs(shape) / 1e6, goal / 1e6, shape.heads, shape.mlp,
        )  # fmt: skip
        current = smaller if heal is None else _healed(heal, smaller, step)
    record = _record(student, current, plan, width_multiple)
    healing = current.history[len(student.history) :]
    return replace(current, history=(*student.history, record, *healing))


def _cut_to(
    student: Student, goal_macs: int, plan: PrunePlan, width_multiple: int, batches: Batches, loss: Loss
) -> Student | None:
    """Return the student after one cut, None when it already meets the goal."""
    macs = count_macs(student.vit.shape)
    if macs <= goal_macs:
        return None
    stats = Stats(student.vit, batches, loss, plan.score_batches)
    keep = choose(score(student.vit, plan.criterion, stats), student.vit.shape, goal_macs / macs, width_multiple)
    return replace(student, vit=cut(student.vit, keep), scales=None)


def _healed(heal: Heal, student: Student, step: int) -> Student:
    want = student.vit.shape
    healed = heal(student, step)
    got = healed.vit.shape
    if (got.heads, got.mlp) != (want.heads, want.mlp):
        raise InternalError(
            f"healing changed heads and mlp from {want.heads}, {want.mlp} to {got.heads}, {got.mlp}",
            expected="a student of the same shape",
            fix="report this with the plan that was used",
        )
    return healed


def _record(before: Student, after: Student, plan: PrunePlan, width_multiple: int) -> Step:
    shape = after.vit.shape
    return Step(
        stage="prune",
        plan={**plan_tree(plan), "width_multiple": width_multiple},
        scores={
            "macs_before": count_macs(before.vit.shape),
            "macs_after": count_macs(shape),
            "params_before": count_params(before.vit),
            "params_after": count_params(after.vit),
            "heads": list(shape.heads),
            "mlp": list(shape.mlp),
        },
        tools={name: version(name) for name in ("torch", "torch-pruning")},
    )
