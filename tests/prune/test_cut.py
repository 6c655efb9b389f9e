from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from edgemae.model.student import Student, load_student
from edgemae.model.vit import ViT, ViTShape
from edgemae.prune.budget import Keep
from edgemae.prune.cut import cut
from edgemae.spec.errors import InternalError

Make = Callable[..., ViT]

VARIANTS: list[Any] = [
    pytest.param({}, id="mean"),
    pytest.param({"cls_token": True, "pool": "cls", "norm_after_pool": False}, id="cls"),
    pytest.param({"cls_token": True}, id="cls token, mean pool"),
    pytest.param({"cls_token": True, "learned_pos": True}, id="learned positions"),
    pytest.param({"norm_after_pool": False}, id="norm before pool"),
    pytest.param({"classes": 0}, id="no head"),
    pytest.param({"classes": 1, "channels": 1}, id="one class, gray"),
    pytest.param({"head_dim": 16}, id="heads x head_dim is not the width"),
    pytest.param({"head_dim": 4, "heads": (3, 5, 2)}, id="uneven heads"),
    pytest.param({"mlp": (32, 96, 24)}, id="mlp as wide as the model or qkv"),
    pytest.param({"image_px": 16, "patch_px": 8}, id="as many tokens as heads"),
]


def random_keep(shape: ViTShape, seed: int) -> Keep:
    """Return a choice that leaves out something of most blocks, and nothing of some."""
    g = torch.Generator().manual_seed(seed)

    def some(n: int) -> tuple[int, ...]:
        stay = int(torch.randint(1, n + 1, (), generator=g))
        return tuple(sorted(torch.randperm(n, generator=g)[:stay].tolist()))

    return Keep(tuple(some(n) for n in shape.heads), tuple(some(n) for n in shape.mlp))


def masked(vit: ViT, keep: Keep) -> ViT:
    """Return a copy of the same size in which the removed heads and units contribute nothing."""
    copy = ViT(vit.shape)
    copy.load_state_dict(vit.state_dict())

    def absent(kept: Sequence[int], size: int) -> list[int]:
        return [i for i in range(size) if i not in kept]

    with torch.no_grad():
        for i, block in enumerate(copy.blocks):
            per_head = block.attn.proj.weight.view(vit.shape.width, vit.shape.heads[i], vit.shape.head_dim)
            per_head[:, absent(keep.heads[i], vit.shape.heads[i])] = 0
            block.mlp.fc2.weight[:, absent(keep.units[i], vit.shape.mlp[i])] = 0
    return copy.eval()


@torch.no_grad()
def outputs(vit: ViT) -> torch.Tensor:
    shape = vit.shape
    x = torch.randn(4, shape.channels, shape.image_px, shape.image_px, generator=torch.Generator().manual_seed(9))
    logits, embedding = vit(x)
    return embedding if logits is None else torch.cat([logits, embedding], dim=1)


@pytest.mark.parametrize("changes", VARIANTS)
def test_equals_the_masked_original(changes: dict[str, Any], rough_vit: Make) -> None:
    for seed in range(3):
        vit = rough_vit(seed, **changes)
        keep = random_keep(vit.shape, seed)
        small = cut(vit, keep)
        assert small.shape == keep.shape(vit.shape)
        torch.testing.assert_close(outputs(small), outputs(masked(vit, keep)), rtol=1e-5, atol=1e-5)
        if small.shape != vit.shape:
            assert (outputs(small) - outputs(vit)).abs().max() > 1e-3, "the mask did nothing: this proves nothing"


def test_deep_and_cut_again(rough_vit: Make) -> None:
    vit = rough_vit(heads=(4,) * 12, mlp=(64,) * 12)
    for seed in range(3):
        keep = random_keep(vit.shape, seed)
        small = cut(vit, keep)
        torch.testing.assert_close(outputs(small), outputs(masked(vit, keep)), rtol=1e-5, atol=1e-5)
        vit = small


def test_keeping_everything_changes_nothing(rough_vit: Make) -> None:
    vit = rough_vit()
    same = cut(vit, Keep(((0, 1, 2, 3),) * 3, (tuple(range(64)),) * 3))
    assert same.shape == vit.shape
    assert torch.equal(outputs(same), outputs(vit))


def test_module_sizes_agree_with_the_shape(rough_vit: Make) -> None:
    small = cut(rough_vit(), Keep(((0, 2), (3,), (0, 1, 2, 3)), (tuple(range(16)), tuple(range(64)), (5, 7))))
    assert (small.shape.heads, small.shape.mlp) == ((2, 1, 4), (16, 64, 2))
    for block, heads, mlp in zip(small.blocks, small.shape.heads, small.shape.mlp, strict=True):
        assert block.attn.heads == heads
        assert (block.attn.head_dim, block.attn.scale) == (8, 8**-0.5), "head_dim is never cut, so the scale is right"
        assert (block.attn.qkv.in_features, block.attn.qkv.out_features) == (32, 3 * heads * 8)
        assert (block.attn.proj.in_features, block.attn.proj.out_features) == (heads * 8, 32)
        assert (block.mlp.fc1.out_features, block.mlp.fc2.in_features) == (mlp, mlp)
    ViT(small.shape).load_state_dict(small.state_dict())  # strict: every tensor has the size that the shape says


def test_input_is_not_changed_and_flags_survive(rough_vit: Make) -> None:
    vit = rough_vit().train()
    vit.blocks[0].mlp.fc1.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in vit.state_dict().items()}
    flags = {name: p.requires_grad for name, p in vit.named_parameters()}
    shape = vit.shape
    small = cut(vit, random_keep(shape, 1))
    assert vit.shape == shape
    assert vit.training
    assert [b.attn.heads for b in vit.blocks] == list(shape.heads)
    assert all(torch.equal(v, before[k]) for k, v in vit.state_dict().items())
    for model in (vit, small):
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    shared = {p.data_ptr() for p in vit.parameters()} & {p.data_ptr() for p in small.parameters()}
    assert not shared


def test_works_for_frozen_models_under_no_grad(rough_vit: Make) -> None:
    vit = rough_vit(cls_token=True).requires_grad_(False)
    keep = random_keep(vit.shape, 0)
    with torch.no_grad():
        small = cut(vit, keep)
    torch.testing.assert_close(outputs(small), outputs(masked(vit, keep)), rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in small.parameters())


def test_survives_save_and_load(rough_student: Callable[..., Student], tmp_path: Path) -> None:
    student = rough_student()
    small = Student(cut(student.vit, random_keep(student.vit.shape, 2)), student.pixel, student.labels)
    small.save(tmp_path / "s.safetensors")
    loaded = load_student(tmp_path / "s.safetensors")
    assert loaded.vit.shape == small.vit.shape
    assert torch.equal(outputs(loaded.vit), outputs(small.vit))


def test_nothing_of_a_model_stays_behind_in_torch_pruning(rough_vit: Make) -> None:
    """Its functions have mutable default arguments (`num_heads=dict()`, `ignored_layers=[]`) that can hold modules."""
    import torch_pruning as tp

    def modules_held() -> dict[str, int]:
        owners = [tp.DependencyGraph, tp.pruner.BasePruner, tp.pruner.MagnitudePruner]
        functions = [(f"{o.__name__}.{n}", f) for o in owners for n, f in inspect.getmembers(o, inspect.isfunction)]
        return {
            f"{name}({p.name})": sum(isinstance(held, torch.nn.Module) for held in p.default)
            for name, f in functions
            for p in inspect.signature(f).parameters.values()
            if isinstance(p.default, dict | list | set)
        }

    before = modules_held()
    assert "DependencyGraph.get_all_groups(ignored_layers)" in before, "the walk over defaults finds none any more"
    vit = rough_vit()
    small = cut(vit, random_keep(vit.shape, 0))
    refs = [weakref.ref(vit), weakref.ref(small), weakref.ref(small.blocks[0].attn.qkv)]
    assert modules_held() == before
    assert set(before.values()) == {0}
    del vit, small
    gc.collect()
    assert [r() for r in refs] == [None] * 3


def test_unexpected_coupling_is_refused(rough_vit: Make) -> None:
    """A shared Linear couples two blocks: cutting one would break the other."""
    vit = rough_vit()
    vit.blocks[1].mlp.fc2 = vit.blocks[0].mlp.fc2
    keep = Keep(((0, 1, 2, 3),) * 3, (tuple(range(16)), tuple(range(64)), tuple(range(64))))
    with pytest.raises(InternalError, match="couples other weights"):
        cut(vit, keep)
