"""What a checkpoint must agree with, and blocks that are compiled while they train."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgemae.data.image_set import ImageSet
from edgemae.data.loader import Batch, Loader
from edgemae.model.vit import ViT, ViTShape
from edgemae.spec.errors import CheckpointError
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import ScalePlan
from edgemae.train.job import Job
from edgemae.train.loop import fit
from edgemae.train.schedule import param_groups
from edgemae.train.step_context import StepContext
from tests.support.toy_job import PIXEL, interrupted


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 5}, "epochs 4, not 5"),
        ({"seed": 3}, "seed 0, not 3"),
        ({"name": "other"}, "name 'toy', not 'other'"),
        ({"checkpoint_identity": {"mixup": 0.8}}, "mixup None, not 0.8"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(
    job_with: Callable[..., Job], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    path = tmp_path / "train.ckpt"
    fit(job_with(checkpoint=path))
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="another training") as caught:
        fit(job_with(checkpoint=path, **changes))
    assert named in caught.value.what
    assert path.read_bytes() == before


def test_a_checkpoint_that_does_not_say_whose_it_is_is_refused(job_with: Callable[..., Job], tmp_path: Path) -> None:
    path = tmp_path / "train.ckpt"
    fit(job_with(checkpoint=path))
    state = torch.load(path, weights_only=True)
    del state["job"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="another training"):
        fit(job_with(checkpoint=path))


def test_a_checkpoint_for_other_images_is_refused(
    job_with: Callable[..., Job], tmp_path: Path, pictures: ImageSet
) -> None:
    fit(job_with(checkpoint=tmp_path / "train.ckpt"))
    fewer = Loader(pictures.pick(range(23)), PIXEL, 8)
    with pytest.raises(CheckpointError, match="images '"):
        fit(job_with(checkpoint=tmp_path / "train.ckpt", loader=fewer))


def test_files_that_were_renamed_are_other_images_to_go_on_with(
    job_with: Callable[..., Job], tmp_path: Path, pictures: ImageSet
) -> None:
    """Which image a step sees goes by its place in the folder."""
    interrupted(job_with(checkpoint=tmp_path / "train.ckpt"), after=3)
    renamed = pictures.pick([*range(12, 24), *range(12)])
    assert renamed.fingerprint == pictures.fingerprint
    with pytest.raises(CheckpointError, match="order of images '"):
        fit(job_with(checkpoint=tmp_path / "train.ckpt", loader=Loader(renamed, PIXEL, 8)))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks, and hides its own warning where it can
def test_compiled_blocks_train_as_others(pictures: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as the compiler has traced them: to make machine code of them would take minutes."""
    traced = []

    def backend(graph: Any, inputs: list[Tensor]) -> Any:
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        vit = ViT(ViTShape.uniform(image_px=16, patch_px=8, width=16, depth=2, heads=2))

        def loss(batch: Batch, context: StepContext, vit: ViT = vit) -> dict[str, Tensor]:
            return {"near": vit(batch.pixels, drop=context.drop_path(2, 0.1))[1].square().mean()}

        fit(Job(
            name="compiled", module=vit, groups=param_groups(vit, 0.05), loss=loss, epochs=2, lr=0.01, seed=0,
            loader=Loader(pictures, PixelContract(image_px=16), 8), warmup_fraction=0.1, bf16=False,
            scale=ScalePlan(compile=on),
        ))  # fmt: skip
        assert bool(traced) is on
        found.append(vit.state_dict())
        assert all(block._compiled_call_impl is None for block in vit.blocks)  # what is returned is plain again
    assert all((found[0][name] - value).abs().max() < 1e-6 for name, value in found[1].items())
