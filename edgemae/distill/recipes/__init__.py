"""Recipes of distillation stage 1: one file and one line each. See `edgemae.distill.recipe` for what a recipe is."""

from edgemae.distill.recipe import Recipe
from edgemae.distill.recipes import feature, logit, relation, relation_full

RECIPES: dict[str, type[Recipe]] = {
    "feature": feature.Feature,
    "logit": logit.Logit,
    "relation": relation.Relation,
    "relation-full": relation_full.RelationFull,
}
