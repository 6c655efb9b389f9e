"""Recipes of distillation stage 1: one file and one line each. A recipe is a module of what is trained, with
`student_taps(pixels, ...)`, `teacher_taps(pixels, ...)` and `loss(student_taps, teacher_taps, ...)`.
"""

from edgemae.distill.recipes import logit, relation

RECIPES: dict[str, type[logit.Logit] | type[relation.Relation]] = {
    "logit": logit.Logit,
    "relation": relation.Relation,
}
