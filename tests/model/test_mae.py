"""Masking, patches, the losses, and pictures of what was reconstructed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgemae.model.mae import (
    MAE,
    MASKS,
    DecoderShape,
    hidden_index,
    hidden_mask,
    keep_count,
    make_keep,
    patch_stats,
    patchify,
    unpatchify,
)
from edgemae.model.vit import take_patches
from edgemae.spec.graph import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture
def make_mae(tiny):
    def make(loss_kind: str = "norm-pixel", **changes) -> MAE:
        vit = tiny(norm_after_pool=False, **changes)
        channels = vit.shape.channels
        mean, std = IMAGENET_MEAN[:channels], IMAGENET_STD[:channels]
        return MAE(vit, DecoderShape(16, 1, 2), loss_kind=loss_kind, mean=mean, std=std).eval()

    return make


@pytest.fixture
def keep(generator) -> Tensor:
    return make_keep(3, 4, 0.75, "random", generator)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("patches", "ratio", "kept"), [(196, 0.75, 49), (16, 0.75, 4), (196, 0.9, 19), (16, 0.99, 1)])
def test_keep_count(patches: int, ratio: float, kept: int) -> None:
    assert keep_count(patches, ratio) == kept


@pytest.mark.parametrize("pattern", sorted(MASKS))
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75, 0.9])
def test_every_pattern_hides_the_exact_share_and_repeats_with_its_seed(pattern: str, ratio: float) -> None:
    keep = make_keep(8, 6, ratio, pattern, seeded(1))
    assert keep.shape == (8, keep_count(36, ratio))
    assert (keep[:, 1:] > keep[:, :-1]).all()  # sorted, none twice
    assert keep.min() >= 0
    assert keep.max() < 36
    assert torch.equal(keep, make_keep(8, 6, ratio, pattern, seeded(1)))
    assert not torch.equal(keep, make_keep(8, 6, ratio, pattern, seeded(2)))
    assert hidden_mask(keep, 36).sum() == 8 * (36 - keep_count(36, ratio))


def test_random_masks_hide_every_patch_equally_often() -> None:
    share = hidden_mask(make_keep(4000, 4, 0.75, "random", seeded(0)), 16).mean(0)
    assert (share - 0.75).abs().max() < 0.04  # 5 standard errors


def test_block_masks_are_clumped() -> None:
    def neighbours(pattern: str) -> float:
        hidden = hidden_mask(make_keep(200, 8, 0.5, pattern, seeded(0)), 64).reshape(-1, 8, 8)
        return float((hidden[:, 1:] * hidden[:, :-1]).mean() + (hidden[:, :, 1:] * hidden[:, :, :-1]).mean())

    assert neighbours("block") > 1.4 * neighbours("random")


def test_grid_masks_keep_one_patch_of_every_two_by_two() -> None:
    seen = 1 - hidden_mask(make_keep(20, 8, 0.75, "grid", seeded(0)), 64).reshape(20, 4, 2, 4, 2)
    assert (seen.sum((2, 4)) == 1).all()
    assert len({tuple(k.tolist()) for k in make_keep(20, 8, 0.75, "grid", seeded(0))}) == 4  # all offsets occur


@pytest.mark.parametrize("channels", [1, 3])
def test_patchify_and_back(channels: int, generator) -> None:
    x = torch.randn(2, channels, 24, 24, generator=generator)
    patches = patchify(x, 8)
    assert patches.shape == (2, 9, 64 * channels)
    assert torch.equal(unpatchify(patches, 8, channels), x)
    # Patch 5 is row 1, column 2; inside, rows then columns then channels.
    assert torch.equal(patches[0, 5], x[0, :, 8:16, 16:24].permute(1, 2, 0).flatten())


def test_norm_pixel_loss_is_the_mean_over_hidden_patches(make_mae, pixels, keep) -> None:
    mae = make_mae()
    patches = patchify(pixels, 8)
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6) ** 0.5
    pred = mae(pixels, keep)
    error = ((pred - target) ** 2).mean(-1)
    hidden = hidden_mask(keep, 16).bool()
    assert torch.allclose(mae.loss(pixels, keep), error[hidden].mean(), rtol=1e-5)
    perfect = torch.where(hidden[:, :, None], target, torch.full_like(target, 50.0))
    assert mae.patch_loss(perfect, pixels, keep) < 1e-10  # what is visible is not scored


@pytest.mark.parametrize("cls_token", [False, True])
def test_hidden_predictions_are_those_of_all_patches(make_mae, pixels, keep, cls_token: bool) -> None:
    mae = make_mae(cls_token=cls_token)
    tokens = mae.encoder.norm(mae.encoder.encode(pixels, keep))
    hidden = hidden_index(keep, 16)
    assert sorted([*hidden[0].tolist(), *keep[0].tolist()]) == list(range(16))
    wanted = mae(pixels, keep).gather(1, hidden[:, :, None].expand(-1, -1, 192))
    assert torch.allclose(mae.decoder(tokens, keep, hidden_only=True), wanted, atol=1e-6)


def test_cut_patches_are_those_of_the_whole_grid(pixels) -> None:
    index = torch.tensor([[5, 0], [15, 3], [6, 9]])
    taken = take_patches(pixels, index, 8).permute(0, 1, 3, 4, 2).flatten(2)
    assert torch.equal(taken, patchify(pixels, 8).gather(1, index[:, :, None].expand(-1, -1, 192)))


def test_flat_patches_do_not_divide_by_zero(make_mae, keep) -> None:
    assert torch.isfinite(make_mae().loss(torch.zeros(3, 3, 32, 32), keep))
    assert torch.allclose(patch_stats(torch.ones(1, 1, 9))[1], torch.tensor(1e-3))


def test_bce_scores_against_pixels_in_zero_to_one(make_mae, keep, generator) -> None:
    mae = make_mae("bce", channels=1)
    picture = (torch.rand(3, 1, 32, 32, generator=generator) > 0.5).float()
    pixels = (picture - IMAGENET_MEAN[0]) / IMAGENET_STD[0]
    pred = torch.randn(3, 16, 64, generator=generator)
    hidden = hidden_mask(keep, 16).bool()
    expected = F.binary_cross_entropy_with_logits(pred[hidden], patchify(picture, 8)[hidden])
    assert torch.allclose(mae.patch_loss(pred, pixels, keep), expected, rtol=1e-4)
    assert mae.patch_loss((patchify(picture, 8) - 0.5) * 60, pixels, keep) < 1e-6


def test_loss_kinds_are_three(tiny) -> None:
    with pytest.raises(ValueError, match="l1"):
        MAE(tiny(), DecoderShape(16, 1, 2), loss_kind="l1", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def test_predictions_depend_on_visible_patches_only(make_mae, pixels) -> None:
    keep = torch.tensor([[0, 3, 9]] * 3)
    changed = pixels.clone()
    changed[:, :, 24:, 24:] += 5  # patch 15 is hidden
    mae = make_mae(cls_token=True)
    assert torch.equal(mae(pixels, keep), mae(changed, keep))
    assert not mae.decoder.pos.requires_grad


def test_predictions_are_in_picture_order_whatever_the_order_of_keep(make_mae, pixels) -> None:
    mae = make_mae(cls_token=True)
    keep = torch.tensor([[1, 4, 11, 14]] * 3)
    assert torch.allclose(mae(pixels, keep), mae(pixels, keep[:, [2, 0, 3, 1]]), atol=1e-5)


@pytest.mark.parametrize("loss_kind", ["norm-pixel", "pixel", "bce"])
def test_a_perfect_prediction_reproduces_the_picture(make_mae, keep, generator, loss_kind: str) -> None:
    mae = make_mae(loss_kind)
    picture = torch.rand(3, 3, 32, 32, generator=generator) * 0.8 + 0.1
    pixels = (picture - mae.mean) / mae.std
    patches = patchify(pixels, 8)
    mean, scale = patch_stats(patches)
    perfect = {
        "norm-pixel": (patches - mean) / scale,
        "pixel": patches,
        "bce": patchify(picture.logit(), 8),
    }
    mae.forward = lambda pixels, keep: perfect[loss_kind]
    assert mae.patch_loss(perfect[loss_kind], pixels, keep) < (0.7 if loss_kind == "bce" else 1e-10)
    masked, rebuilt = mae.reconstruct(pixels, keep)
    assert torch.allclose(rebuilt, picture, atol=1e-5)
    hidden = unpatchify(hidden_mask(keep, 16)[:, :, None].expand(-1, -1, 192), 8, 3).bool()
    assert (masked[hidden] == 0.5).all()
    assert torch.allclose(masked[~hidden], picture[~hidden], atol=1e-6)


def test_visible_patches_are_the_originals_however_wrong_the_prediction(make_mae, keep, generator) -> None:
    mae = make_mae()
    picture = torch.rand(3, 3, 32, 32, generator=generator)
    mae.forward = lambda pixels, keep: torch.full((3, 16, 192), 1e3)
    rebuilt = mae.reconstruct((picture - mae.mean) / mae.std, keep)[1]
    hidden = unpatchify(hidden_mask(keep, 16)[:, :, None].expand(-1, -1, 192), 8, 3).bool()
    assert torch.allclose(rebuilt[~hidden], picture[~hidden], atol=1e-5)
    assert (rebuilt[hidden] == 1).all()  # out of range is clipped, not wrapped


def test_an_mae_learns(make_mae, generator) -> None:
    mae = make_mae("pixel").train()
    pixels = torch.randn(8, 3, 1, 1, generator=generator).expand(8, 3, 32, 32)  # one colour a picture
    optimizer = torch.optim.AdamW([p for p in mae.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(60):
        loss = mae.loss(pixels, make_keep(8, 4, 0.75, "random", generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])
