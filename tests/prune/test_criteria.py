from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgemae.model.vit import ViT
from edgemae.prune import criteria
from edgemae.prune.criteria import CRITERIA, Group, Stats, find_criterion, groups_of, magnitude, score, taylor
from edgemae.spec.errors import DataError, PlanError

Make = Callable[..., ViT]


def labelled() -> Iterable[tuple[Tensor, Tensor | None]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 32, 32, generator=g), torch.randint(5, (8,), generator=g)) for _ in range(4)]


def cross_entropy(vit: ViT, pixels: Tensor, labels: Tensor | None) -> Tensor:
    logits = vit(pixels)[0]
    assert logits is not None
    assert labels is not None
    return F.cross_entropy(logits, labels)


def test_keys_are_the_criteria_of_the_module() -> None:
    """A criterion is a public function whose first two arguments are (group, stats)."""
    import inspect

    found = {
        name
        for name, f in inspect.getmembers(criteria, inspect.isfunction)
        if f.__module__ == criteria.__name__ and list(inspect.signature(f).parameters) == ["group", "stats"]
    }
    assert found == set(CRITERIA)
    assert all(f.__name__ == name for name, f in CRITERIA.items())


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_gives_one_finite_value_a_structure(name: str, rough_vit: Make) -> None:
    vit = rough_vit(heads=(4, 1, 3), mlp=(64, 16, 40))
    stats = Stats(vit, labelled, cross_entropy, 2)
    for group in groups_of(vit.shape):
        values = CRITERIA[name](group, stats)
        assert values.shape == (group.size,)
        assert bool(torch.isfinite(values).all())
        assert bool((values >= 0).all())


def test_rows_belong_to_the_head_that_they_compute(rough_vit: Make) -> None:
    """Only the head whose q, k, v rows and proj columns are non-zero has a score, for each head in turn."""
    for head in range(4):
        vit = rough_vit()
        attn = vit.blocks[1].attn
        mask = torch.zeros(4, 8)
        mask[head] = 1
        with torch.no_grad():
            attn.qkv.weight *= mask.flatten().repeat(3)[:, None]
            attn.qkv.bias *= mask.flatten().repeat(3)
            attn.proj.weight *= mask.flatten()
        values = magnitude(Group("heads", 1, 4), Stats(vit, labelled, cross_entropy, 1))
        assert [i for i, v in enumerate(values) if v > 0] == [head]


def test_magnitude_is_the_norm_of_all_coupled_weights(rough_vit: Make) -> None:
    vit = rough_vit()
    mlp = vit.blocks[2].mlp
    want = (mlp.fc1.weight.square().sum(1) + mlp.fc1.bias.square() + mlp.fc2.weight.square().sum(0)).sqrt()
    got = magnitude(Group("units", 2, 64), Stats(vit, labelled, cross_entropy, 1))
    torch.testing.assert_close(got, want.detach())


def test_taylor_is_the_sum_of_w_times_grad_over_batches(rough_vit: Make) -> None:
    vit = rough_vit()
    want = torch.zeros(64)
    for pixels, labels in list(labelled())[:3]:
        vit.zero_grad()
        cross_entropy(vit, pixels, labels).backward()
        mlp = vit.blocks[0].mlp
        parts = [(p.detach() * p.grad).abs() for p in (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight)]
        want += parts[0].sum(1) + parts[1] + parts[2].sum(0)
    got = taylor(Group("units", 0, 64), Stats(vit, labelled, cross_entropy, 3))
    torch.testing.assert_close(got, want)


def test_limit_is_the_number_of_batches_read(rough_vit: Make) -> None:
    read = []

    def endless() -> Iterable[tuple[Tensor, Tensor | None]]:
        while True:
            read.append(1)
            yield torch.randn(2, 3, 32, 32), torch.tensor([0, 1])

    _ = Stats(rough_vit(), endless, cross_entropy, 3).saliency
    assert len(read) == 3


def test_magnitude_reads_no_images(rough_vit: Make) -> None:
    def none() -> Iterable[tuple[Tensor, Tensor | None]]:
        raise AssertionError("images were read")

    score(rough_vit(), "magnitude", Stats(rough_vit(), none, cross_entropy, 3))


def test_scoring_leaves_the_model_alone(rough_vit: Make) -> None:
    vit = rough_vit().train()
    vit.head.weight.requires_grad_(False)  # type: ignore[union-attr]
    before = {k: v.clone() for k, v in vit.state_dict().items()}
    flags = [p.requires_grad for p in vit.parameters()]
    _ = Stats(vit, labelled, cross_entropy, 2).saliency
    assert all(torch.equal(v, before[k]) for k, v in vit.state_dict().items())
    assert [p.requires_grad for p in vit.parameters()] == flags
    assert all(p.grad is None for p in vit.parameters())
    assert vit.training


def test_frozen_students_and_no_grad_callers_are_scored_too(rough_vit: Make) -> None:
    vit = rough_vit()
    want = Stats(vit, labelled, cross_entropy, 2).saliency["blocks.0.mlp.fc1.weight"]
    vit.requires_grad_(False)
    with torch.no_grad():
        got = Stats(vit, labelled, cross_entropy, 2).saliency["blocks.0.mlp.fc1.weight"]
    torch.testing.assert_close(got, want)


def test_each_kind_is_scaled_to_a_mean_of_one(rough_vit: Make) -> None:
    vit = rough_vit(heads=(4, 2, 3), mlp=(64, 32, 40))
    stats = Stats(vit, labelled, cross_entropy, 2)
    scores = score(vit, "taylor", stats)
    for kind, parts in (("heads", scores.heads), ("units", scores.units)):
        assert torch.cat(parts).mean().item() == pytest.approx(1, rel=1e-5)
        raw = torch.cat([taylor(g, stats) for g in groups_of(vit.shape) if g.kind == kind])
        assert torch.equal(raw.argsort(), torch.cat(parts).argsort()), "the order within a kind must not change"


def test_a_loss_that_stops_early_is_reported(rough_vit: Make, caplog: pytest.LogCaptureFixture) -> None:
    vit = rough_vit()
    stats = Stats(vit, labelled, lambda v, x, _: v.encode(x, blocks=2).square().mean(), 1)
    with caplog.at_level(logging.WARNING, logger="edgemae.prune"):
        scores = score(vit, "taylor", stats)
    assert [r.message for r in caplog.records] == [
        f"block 2: every score of its {kind} is zero; the loss does not reach it" for kind in ("heads", "units")
    ]
    assert not bool(scores.units[2].any())
    assert bool(scores.units[1].all())


def test_no_images_is_a_data_error(rough_vit: Make) -> None:
    with pytest.raises(DataError, match="no batch of images"):
        _ = Stats(rough_vit(), list, cross_entropy, 2).saliency


def test_a_loss_that_is_not_finite_is_a_data_error(rough_vit: Make) -> None:
    stats = Stats(rough_vit(), labelled, lambda v, x, y: cross_entropy(v, x, y) * float("nan"), 2)
    with pytest.raises(DataError, match="scoring batch 1 is nan"):
        _ = stats.saliency


def test_unknown_criterion_names_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"unknown pruning criterion 'tailor'.*Did you mean 'taylor'\?"):
        find_criterion("tailor")
