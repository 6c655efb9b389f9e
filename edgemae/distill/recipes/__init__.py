"""Recipes of distillation stage 1: one file and one line each. See `edgemae.distill.recipe` for what a recipe is.

What they are worth beside each other: `tools/results/distill.json`, and its table in docs/benchmarks.md.
"""

from __future__ import annotations

from edgemae.distill.masking import masking
from edgemae.distill.recipe import Recipe
from edgemae.distill.recipes import feature, logit, relation, relation_full
from edgemae.model.teacher import Teacher
from edgemae.spec.errors import DataError, PlanError, check_named
from edgemae.spec.plan_schema import DistillPlan

RECIPES: dict[str, type[Recipe]] = {
    "feature": feature.Feature,
    "logit": logit.Logit,
    "relation": relation.Relation,
    "relation-full": relation_full.RelationFull,
}


def choose_recipe(d: DistillPlan, teacher: Teacher, finetuned: Teacher | None) -> tuple[type[Recipe], Teacher]:
    """Return the plan's recipe and the teacher that it learns from: `teacher` as given, or the `finetuned` one.

    Raises PlanError for names and combinations that cannot work, DataError without the fine-tuned teacher that it
    needs.
    """
    masking(d, "distill")
    check_named("distill.recipe", d.recipe, RECIPES)
    check_named("distill.learn_from", d.learn_from, ("auto", "pretrained", "finetuned"))
    recipe = RECIPES[d.recipe]
    if d.views and not recipe.whole_views:
        raise PlanError(
            f"distill.views is {d.views}, and recipe '{d.recipe}' shows the teacher other patches in every step",
            expected="0, because nothing repeats that could be kept",
            fix="leave distill.views out, or use --set distill.recipe=relation-full",
        )
    if recipe.needs_head and d.learn_from == "pretrained":
        raise PlanError(
            f"recipe '{d.recipe}' learns from a fine-tuned teacher's logits, and distill.learn_from is 'pretrained'",
            expected="distill.learn_from=auto or finetuned",
            fix="leave distill.learn_from out, or use --set distill.recipe=feature",
        )
    wants_finetuned = recipe.needs_head or d.learn_from == "finetuned"
    if wants_finetuned and finetuned is None:
        raise DataError(
            f"recipe '{d.recipe}'{'' if recipe.needs_head else ' with distill.learn_from=finetuned'} learns from a "
            "teacher with a classification head, and this one has none",
            expected="a fine-tuned teacher, or labelled images to fine-tune it with",
            fix=("use --set distill.recipe=relation" if recipe.needs_head else "leave distill.learn_from=finetuned out")
            + ", or pass class folders",
        )
    takes_it = wants_finetuned or (recipe.from_finetuned and d.learn_from == "auto")
    return recipe, finetuned if takes_it and finetuned is not None else teacher
