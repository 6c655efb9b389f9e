"""The sandwich rule: how the sub-networks of an elastic student are trained along, in both stages.

Each step trains the largest, some that are drawn, and the smallest. Only the largest is regularised. Trained along in
stage 2 alone, five of eight sub-networks lost 1.5 to 4.7 points of top-1 on photos, and at most 0.8 in both.

Sources: Yu & Huang 2019 (sandwich rule, in-place distillation), Yu et al. 2020 (BigNAS: what is regularised).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

from torch import Tensor
from torch.func import functional_call

from edgemae.data.loader import Batch
from edgemae.distill.elastic import Space, plain, run_at, shrink, slices
from edgemae.distill.recipe import Recipe
from edgemae.distill.supervised import AGREEMENT, DRAWN, SMALLEST, Inner, Learn
from edgemae.model.vit import ViT, ViTShape
from edgemae.spec.plan_schema import ElasticPlan
from edgemae.train.losses import distillation
from edgemae.train.step_context import StepContext


def sub_networks(space: Space, plan: ElasticPlan) -> dict[str, object]:
    """Return which sub-networks are trained along, and how many in a step."""
    return space.as_dict() | {"samples": plan.samples}


def in_stage_one(recipe: Recipe, space: Space, plan: ElasticPlan) -> Callable[[Batch, StepContext], dict[str, Tensor]]:
    """Return the step of a recipe in which sub-networks learn from the teacher what the largest does.

    All see images of the full size and the same patches of them, so the teacher is asked once.
    """
    whole = space.full_size_images

    def step(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        targets = recipe.teacher_targets(batch, context)
        found = recipe(batch, targets, recipe.drop(context))
        for kind, shape in _along(whole, plan.samples, context):
            weights = {f"student.{name}": value for name, value in slices(recipe.student, shape).items()}
            _add(found, kind, functional_call(_holding(recipe, plain(shape)), weights, (batch, targets)))
        return found

    return step


def in_stage_two(vit: ViT, space: Space, plan: ElasticPlan) -> Inner:
    """Return what `train_classifier` adds: the terms of sub-networks, at their own size of image.

    They learn what the largest learns and, to `plan.largest_weight`, what it says. Its word alone holds all of them
    back while it knows little: 58 % in place of 84 % for the largest on digits, in 224 steps.
    """
    share = plan.largest_weight

    def terms(pixels: Tensor, largest: Tensor, learn: Learn, context: StepContext) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for kind, shape in _along(space, plan.samples, context):
            logits, _ = run_at(vit, shape, shrink(pixels, shape.image_px))
            assert logits is not None
            learnt = learn(logits) if share < 1 else {}
            _add(found, kind, {name: (1 - share) * term for name, term in learnt.items()})
            if share > 0:
                found[AGREEMENT] = found.get(AGREEMENT, 0.0) + share * distillation(logits, largest, 1.0)
        return found

    return terms


def _along(space: Space, samples: int, context: StepContext) -> Iterator[tuple[str, ViTShape]]:
    """Yield the sub-networks of a step, each with its kind."""
    for _ in range(samples):
        yield DRAWN, space.draw(context)
    yield SMALLEST, space.shapes[0]


def _add(found: dict[str, Tensor], kind: str, terms: dict[str, Tensor]) -> None:
    """Add terms to the sums of their kind."""
    for name, term in terms.items():
        found[f"{kind} {name}"] = found.get(f"{kind} {name}", 0.0) + term


def _holding(recipe: Recipe, student: ViT) -> Recipe:
    """Return the recipe with another student; it shares all the rest."""
    other = copy.copy(recipe)
    other._modules = recipe._modules | {"student": student}
    return other
