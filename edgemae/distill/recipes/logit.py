"""Plain logit distillation (Hinton et al. 2015): the baseline that every other recipe has to beat.

Needs a teacher with a classification head; labels are not used here, so unlabelled images take part.
"""

from __future__ import annotations

from torch import Tensor

from edgemae.data.loader import Batch
from edgemae.distill.recipe import Recipe
from edgemae.train.losses import distillation
from edgemae.train.step_context import StepContext


class Logit(Recipe):
    """Train `student` (with a head) to give the teacher's logits on whole images."""

    needs_head = True

    def teacher_targets(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        return {"logits": self.cached("logits", batch, self.view.logits)}

    def forward(self, batch: Batch, targets: dict[str, Tensor], drop: Tensor | None = None) -> dict[str, Tensor]:
        logits, _ = self.student(batch.pixels, drop=drop)
        return {"logit": distillation(logits, targets["logits"], self.plan.finetune.teacher_temperature)}
