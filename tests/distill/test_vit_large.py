"""The case that the product is named for, at its real size: a ViT-Large/16 at 224 px teaches a ViT-Tiny/16.

The other recipes at this size: `tools/bench_train.py --only-large`.
"""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from edgemae.data.loader import Batch
from edgemae.distill.recipes.relation import Relation
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT, ViTShape
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import DistillPlan
from edgemae.train.schedule import param_groups
from edgemae.train.step_context import whole

PIXEL = PixelContract(image_px=224)


def vit(width: int, depth: int, heads: int) -> ViT:
    return ViT(ViTShape.uniform(image_px=224, patch_px=16, width=width, depth=depth, heads=heads, cls_token=True))


@pytest.mark.slow
def test_a_large_teacher_takes_a_tiny_student_one_step_further() -> None:
    torch.manual_seed(0)
    recipe = Relation(vit(192, 12, 3), Teacher(vit(1024, 24, 16).eval(), PIXEL), PIXEL, DistillPlan())
    assert recipe.view.vit.shape.depth == 18  # three quarters of the teacher
    optimizer = torch.optim.AdamW(param_groups(recipe, 0.05), lr=1e-3)
    before = {name: p.detach().clone() for name, p in recipe.student.named_parameters()}
    recipe.view.settle(torch.device("cpu"))  # where the processor multiplies bf16, its weights become that
    frozen = [p.detach().double().sum() for p in recipe.view.vit.parameters()]
    batch = Batch(torch.randn(2, 3, 224, 224), torch.full((2,), -1), torch.arange(2))
    terms = recipe.step(batch, whole(2, torch.Generator().manual_seed(1)))
    sum(terms.values()).backward()
    optimizer.step()
    still = {name for name, p in recipe.student.named_parameters() if torch.equal(before[name], p)}
    assert all(torch.isfinite(value) for value in terms.values())
    assert still == {"pos", "norm.weight", "norm.bias"}  # fixed, and what comes after the last block
    assert [p.detach().double().sum() for p in recipe.view.vit.parameters()] == frozen
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    assert peak_gib < 24  # 2.5 when this was written
