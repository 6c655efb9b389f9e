"""Plain logit distillation (Hinton et al. 2015): the baseline that every other recipe has to beat.

Needs a teacher with a classification head; labels are not used here, so unlabelled images take part.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgemae.data.loader import Batch
from edgemae.distill.losses import distillation
from edgemae.distill.moment import Moment
from edgemae.distill.view import TeacherView
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT
from edgemae.spec.graph import PixelContract
from edgemae.spec.sections import DistillPlan


class Logit(nn.Module):
    """Train `student` (with a head) to give the teacher's logits on whole pictures."""

    needs_head = True
    all_used = True

    def __init__(self, student: ViT, teacher: Teacher, pixel: PixelContract, plan: DistillPlan) -> None:
        super().__init__()
        self.student, self.plan = student, plan
        self.view = [TeacherView(teacher, pixel)]

    def student_taps(self, pixels: Tensor) -> dict[str, Tensor]:
        logits, _ = self.student(pixels)
        return {"logits": logits}

    def teacher_taps(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"logits": self.view[0].logits(pixels)}

    def loss(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logit": distillation(student["logits"], teacher["logits"], self.plan.finetune.teacher_temperature)}

    def step(self, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        return self.loss(self.student_taps(batch.pixels), self.teacher_taps(batch.pixels))
