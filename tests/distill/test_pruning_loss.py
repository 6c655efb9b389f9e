"""What pruning scores by: labels, a teacher's logits, or one direction of the embedding; and images as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from edgemae.data.image_set import ImageSet
from edgemae.distill.pruning_loss import pruning_batches, pruning_loss
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import Plan
from edgemae.train.losses import distillation

MakeViT = Callable[..., ViT]
PIXEL = PixelContract(image_px=32)
PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize("head", [True, False])
def test_a_teacher_with_a_head_adds_its_logits(
    tiny_vit: MakeViT, teacher_with: Callable[..., Teacher], head: bool
) -> None:
    vit, teacher = tiny_vit(classes=2), teacher_with(labels=("a", "b") if head else ())
    student = Student(vit, PIXEL, ("a", "b"))
    logits, _ = vit(PIXELS)
    expected = F.cross_entropy(logits, LABELS)
    assert torch.equal(pruning_loss(student, None)(vit, PIXELS, LABELS), expected)
    if head:
        said, _ = teacher.vit(PIXELS)
        expected = expected + distillation(logits, said, 1.0)
    torch.testing.assert_close(pruning_loss(student, teacher)(vit, PIXELS, LABELS), expected)


def test_batches_are_counted_and_carry_labels_where_there_are_any(
    tiny_vit: MakeViT, pictures: ImageSet, plan_with: Callable[..., Plan]
) -> None:
    student, plan = Student(tiny_vit(classes=2), PIXEL, ("blue", "red")), plan_with(prune__score_batches=1)
    ((pixels, labels),) = pruning_batches(pictures, student, plan)
    assert pixels.shape == (24, 3, 32, 32)
    assert labels is not None
    assert sorted(labels.tolist()) == [0] * 12 + [1] * 12
    ((_, none),) = pruning_batches(pictures.unlabelled(), student, plan)
    assert none is None
    assert list(pruning_batches(pictures, student, plan_with(prune__score_batches=5)))[1:] == []


def test_without_labels_the_score_of_what_to_prune_reaches_every_block(tiny_vit: MakeViT) -> None:
    """The size of an embedding behind a LayerNorm hardly depends on anything; one direction of it does."""
    vit = tiny_vit(classes=0)
    student = Student(vit, PIXEL)

    def reach(loss: torch.Tensor) -> float:
        parameters = [p for name, p in vit.named_parameters() if name.startswith("blocks.0") and p.requires_grad]
        return float(torch.stack([g.norm() for g in torch.autograd.grad(loss, parameters)]).norm())

    scored = reach(pruning_loss(student, None)(vit, PIXELS, None))
    size = reach(vit(PIXELS)[1].square().mean() / 2)
    assert scored > 10 * size
