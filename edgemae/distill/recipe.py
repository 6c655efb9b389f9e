"""What every recipe of stage 1 is: a module of all that is trained, what it asks of the teacher, and its loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from edgemae.data.loader import Batch
from edgemae.distill.frozen_teacher import FrozenTeacher, TeacherConfig
from edgemae.distill.teacher_cache import TeacherCache
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import DistillPlan
from edgemae.train.step_context import StepContext


class Recipe(nn.Module):
    """Train `student` by what `view` shows of a teacher."""

    needs_head: ClassVar[bool] = False  # learns from the teacher's logits
    from_finetuned: ClassVar[bool] = False  # learns from the fine-tuned teacher, where there is one
    all_used: ClassVar[bool] = True  # every parameter gets a gradient in every step
    whole_views: ClassVar[bool] = True  # the teacher sees whole views, so what it says of them can be kept

    def __init__(self, student: ViT, teacher: Teacher, pixel: PixelContract, plan: DistillPlan) -> None:
        super().__init__()
        self.student, self.plan = student, plan
        self.cache: TeacherCache | None = None  # lent while views repeat
        config = self.teacher_config(student, teacher)
        # In a list, so that it is not a part of what is trained or saved.
        self._view = [FrozenTeacher(teacher, pixel, TeacherConfig(config.grid, config.blocks, plan.bf16))]

    @property
    def view(self) -> FrozenTeacher:
        return self._view[0]

    def teacher_config(self, student: ViT, teacher: Teacher) -> TeacherConfig:
        """Return how the teacher is run."""
        return TeacherConfig()

    def teacher_targets(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Return what the teacher says of a batch, and which patches are visible where not all are."""
        raise NotImplementedError

    def forward(self, batch: Batch, targets: dict[str, Tensor], drop: Tensor | None = None) -> dict[str, Tensor]:
        """Return named, weighted loss terms of the student against the `targets`; `drop` as in `ViT.encode`."""
        raise NotImplementedError

    def drop(self, context: StepContext) -> Tensor | None:
        """Return the stochastic depth of a step."""
        return context.drop_path(self.student.shape.depth, self.plan.drop_path)

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Return the loss terms of one step."""
        targets = self.teacher_targets(batch, context)
        return self(batch, targets, self.drop(context))

    def cached(self, name: str, batch: Batch, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what the teacher says of a batch, from disk where views repeat."""
        self.view.settle(batch.pixels.device)  # also where nothing is asked of it: its weights may still be used
        return compute(batch.pixels) if self.cache is None else self.cache.cached(name, batch, compute)
