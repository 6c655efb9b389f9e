"""Learning rates and parameter groups against values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from edgemae.model.mae import MAE, DecoderShape
from edgemae.model.vit import ViT
from edgemae.train.schedule import layer_decay_groups, param_groups, rate_at


def test_rate_warms_up_and_falls_along_a_cosine() -> None:
    rates = [rate_at(step, 10, 2.0, 0.2) for step in range(10)]
    assert rates[:3] == pytest.approx([1.0, 2.0, 2.0])
    assert rates[6] == pytest.approx(1.0)  # halfway between step 2 and step 10
    assert rates[9] == pytest.approx(1 + math.cos(math.pi * 7 / 8))
    assert rates[2:] == sorted(rates[2:], reverse=True)


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_rate_stays_between_zero_and_the_peak(steps: int, warmup_fraction: float) -> None:
    rates = [rate_at(step, steps, 3.0, warmup_fraction) for step in range(steps)]
    assert all(0 < rate <= 3.0 for rate in rates)
    assert max(rates) == pytest.approx(3.0)


def test_vectors_and_tokens_are_not_decayed(tiny_vit: Callable[..., ViT]) -> None:
    vit = tiny_vit(cls_token=True, learned_pos=True)
    mae = MAE(vit, DecoderShape(16, 1, 2), loss_kind="pixel", mean=(0.5,) * 3, std=(0.5,) * 3)
    mae.encoder.blocks[0].requires_grad_(False)
    decay, plain = param_groups(mae, 0.07)
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.07, 0.0)
    names = {id(p): name for name, p in mae.named_parameters()}
    decayed = {names[id(p)] for p in decay["params"]}
    spared = {names[id(p)] for p in plain["params"]}
    assert {"encoder.patch_embed.weight", "encoder.head.weight", "decoder.pred.weight"} <= decayed
    assert {"encoder.cls", "encoder.pos", "decoder.mask_token", "encoder.norm.weight", "decoder.pred.bias"} <= spared
    assert not decayed & spared
    assert decayed | spared == {name for name, p in mae.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("encoder.blocks.0", "decoder.pos")) for name in decayed | spared)


def test_deeper_layers_learn_faster(tiny_vit: Callable[..., ViT]) -> None:
    vit = tiny_vit(cls_token=True)
    groups = layer_decay_groups(vit, 0.05, 0.5)
    scale = {id(p): g["scale"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    named = dict(vit.named_parameters())
    assert scale[id(named["patch_embed.weight"])] == scale[id(named["cls"])] == 0.125  # three layers from the top
    assert scale[id(named["blocks.0.attn.qkv.weight"])] == scale[id(named["blocks.0.norm1.bias"])] == 0.25
    assert scale[id(named["blocks.1.mlp.fc2.weight"])] == 0.5
    assert scale[id(named["norm.weight"])] == scale[id(named["head.weight"])] == scale[id(named["head.bias"])] == 1.0
    assert decay[id(named["blocks.0.attn.qkv.weight"])] == 0.05
    assert decay[id(named["blocks.0.attn.qkv.bias"])] == decay[id(named["cls"])] == decay[id(named["norm.weight"])] == 0
    assert len(scale) == sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in named.values())
    assert id(named["pos"]) not in scale  # fixed


def test_an_optimiser_takes_the_groups(tiny_vit: Callable[..., ViT]) -> None:
    optimizer = torch.optim.AdamW(layer_decay_groups(tiny_vit(), 0.05, 0.5), lr=0.0)
    assert {group["scale"] for group in optimizer.param_groups} == {0.125, 0.25, 0.5, 1.0}
