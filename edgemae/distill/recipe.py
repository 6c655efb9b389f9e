"""What every recipe of stage 1 is: a module of all that is trained, what it asks of the teacher, and its loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from edgemae.data.loader import Batch
from edgemae.distill.frozen_teacher import Depth, TeacherView
from edgemae.distill.teacher_cache import TeacherCache
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import DistillPlan
from edgemae.train.step_context import Moment


class Recipe(nn.Module):
    """Train `student` by what `view` shows of a teacher."""

    needs_head: ClassVar[bool] = False  # learns from the teacher's logits
    from_tuned: ClassVar[bool] = False  # learns from the fine-tuned teacher, where there is one
    all_used: ClassVar[bool] = True  # every parameter gets a gradient in every step
    whole_views: ClassVar[bool] = True  # the teacher sees whole views, so what it says of them can be kept

    def __init__(self, student: ViT, teacher: Teacher, pixel: PixelContract, plan: DistillPlan) -> None:
        super().__init__()
        self.student, self.plan = student, plan
        self.cache: TeacherCache | None = None  # lent while views repeat
        depth = self.depth(student, teacher)
        # In a list, so that it is not a part of what is trained or saved.
        self._view = [TeacherView(teacher, pixel, Depth(depth.grid, depth.blocks, plan.bf16))]

    @property
    def view(self) -> TeacherView:
        return self._view[0]

    def depth(self, student: ViT, teacher: Teacher) -> Depth:
        """Return how the teacher is run."""
        return Depth()

    def see(self, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """Return what the teacher says of a batch, and which patches are visible where not all are."""
        raise NotImplementedError

    def forward(self, batch: Batch, seen: dict[str, Tensor], drop: Tensor | None = None) -> dict[str, Tensor]:
        """Return named, weighted loss terms of the student against what was `seen`; `drop` as in `ViT.encode`."""
        raise NotImplementedError

    def drop(self, moment: Moment) -> Tensor | None:
        """Return the stochastic depth of a step."""
        return moment.drop_path(self.student.shape.depth, self.plan.drop_path)

    def step(self, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """Return the loss terms of one step."""
        seen = self.see(batch, moment)
        return self(batch, seen, self.drop(moment))

    def recall(self, name: str, batch: Batch, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what the teacher says of a batch, from disk where views repeat."""
        self.view.settle(batch.pixels.device)  # also where nothing is asked of it: its weights may still be used
        return compute(batch.pixels) if self.cache is None else self.cache.recall(name, batch, compute)
