"""The encoder: positions, attention, pooling, sizes and costs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgemae.model.vit import (
    LAYER_NORM_EPS,
    PLAIN_LOGITS,
    PLAIN_TOKENS,
    Attention,
    Block,
    ViT,
    ViTShape,
    count_macs,
    count_params,
    resample_position,
    sincos_position,
    with_head,
)


def test_sincos_layout_is_sin_w_cos_w_sin_h_cos_h() -> None:
    pos = sincos_position(16, 3, cls_token=True)[0]
    assert pos.shape == (10, 16)
    assert not pos[0].any()  # the class token's row
    row, column = 2, 1
    omega = [10000 ** -(i / 4) for i in range(4)]
    expected = [f(p * w) for p in (column, row) for f in (math.sin, math.cos) for w in omega]
    assert torch.allclose(pos[1 + row * 3 + column], torch.tensor(expected), atol=1e-6)


def test_layer_norm_epsilon_survives_fp16(tiny) -> None:
    norms = [m for m in tiny(classes=3).modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 5
    assert {m.eps for m in norms} == {LAYER_NORM_EPS}
    assert torch.tensor(LAYER_NORM_EPS).half() > 0
    assert torch.tensor(1e-12).half() == 0  # what other libraries write, and why we do not


def test_fused_qkv_equals_three_projections_and_their_int8_scales(tiny, generator) -> None:
    attn = tiny().blocks[0].attn
    x = torch.randn(2, 5, 32, generator=generator)
    q, k, v = (F.linear(x, w, b) for w, b in zip(attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3), strict=True))
    heads = [t.reshape(2, 5, 4, 8).transpose(1, 2) for t in (q, k, v)]
    for ours, split in zip(attn.split(x), heads, strict=True):
        assert torch.allclose(ours, split, atol=1e-6)
    y = (heads[0] @ heads[1].transpose(-2, -1) / math.sqrt(8)).softmax(-1) @ heads[2]
    assert torch.allclose(attn(x), attn.proj(y.transpose(1, 2).reshape(2, 5, 32)), atol=1e-5)
    scale = attn.qkv.weight.abs().amax(1) / 127  # one int8 scale an output channel: no matter how they are grouped
    assert torch.equal(scale, torch.cat([w.abs().amax(1) / 127 for w in attn.qkv.weight.chunk(3)]))


@pytest.mark.parametrize(("heads", "head_dim"), [(4, 8), (3, 8), (1, 24), (2, 4)])
def test_attention_is_scaled_by_the_heads_own_width(heads: int, head_dim: int, generator) -> None:
    attn = Attention(32, heads, head_dim)
    x = torch.randn(2, 7, 32, generator=generator) * 3
    assert attn.scale == head_dim**-0.5  # also when heads x head_dim is not the width
    q, k, v = attn.split(x)
    logits = q @ k.transpose(-2, -1) / math.sqrt(head_dim)
    assert torch.allclose(attn.logits(x), logits, atol=1e-4)
    y = (logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 7, heads * head_dim)
    assert torch.allclose(attn(x), attn.proj(y), atol=1e-5)


@pytest.mark.parametrize(("tokens", "logits"), [(7, PLAIN_LOGITS), (PLAIN_TOKENS + 1, PLAIN_LOGITS), (7, 97)])
def test_in_bf16_a_processor_takes_plain_products_up_to_a_size(
    tokens: int, logits: int, generator, monkeypatch
) -> None:
    monkeypatch.setattr("edgemae.model.vit.PLAIN_LOGITS", logits)
    attn, x = Attention(32, 2, 16), torch.randn(1, tokens, 32, generator=generator)
    wanted, fused = attn(x), F.scaled_dot_product_attention
    calls: list[int] = []
    monkeypatch.setattr(
        "edgemae.model.vit.F.scaled_dot_product_attention", lambda *args, **kw: (calls.append(1), fused(*args, **kw))[1]
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = attn(x)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), wanted, atol=0.02)
    few = tokens <= PLAIN_TOKENS and 2 * tokens**2 <= logits
    assert len(calls) == (not few)
    attn(x)
    assert len(calls) == 1 + (not few)  # fp32 is as fast fused


@pytest.mark.parametrize("norm_after_pool", [True, False])
def test_mean_pooling_leaves_the_class_token_out(tiny, generator, norm_after_pool: bool) -> None:
    vit = tiny(cls_token=True, norm_after_pool=norm_after_pool)
    tokens = torch.randn(2, 17, 32, generator=generator)
    other = tokens.clone()
    other[:, 0] += 100
    assert torch.equal(vit.pool(tokens), vit.pool(other))
    by_hand = vit.norm(tokens[:, 1:].mean(1)) if norm_after_pool else vit.norm(tokens)[:, 1:].mean(1)
    assert torch.allclose(vit.pool(tokens), by_hand, atol=1e-6)


def test_cls_pooling_reads_the_class_token_alone(tiny, generator) -> None:
    vit = tiny(cls_token=True, pool="cls", norm_after_pool=False)
    tokens = torch.randn(2, 17, 32, generator=generator)
    other = tokens.clone()
    other[:, 1:] += 100
    assert torch.equal(vit.pool(tokens), vit.pool(other))


def test_all_patches_kept_in_order_is_the_plain_encoder(tiny, pixels) -> None:
    vit = tiny(cls_token=True)
    everything = torch.arange(16).expand(3, -1)
    assert torch.allclose(vit.encode(pixels, everything), vit.encode(pixels), atol=1e-5)  # a product, a convolution
    few = vit.encode(pixels, everything, blocks=1)
    assert torch.allclose(vit.blocks[1](few), vit.encode(pixels), atol=1e-5)


def test_hidden_patches_cannot_be_seen(tiny, pixels) -> None:
    vit = tiny()
    keep = torch.tensor([[0, 5, 10]] * 3)
    changed = pixels.clone()
    changed[:, :, 24:, :8] = 9.0  # patch 12
    assert torch.equal(vit.encode(pixels, keep), vit.encode(changed, keep))
    assert not torch.equal(vit.encode(pixels), vit.encode(changed))


def test_bf16_stays_finite_where_fp16_overflows(tiny, pixels) -> None:
    vit = tiny()
    for block in vit.blocks:
        block.mlp.fc2.weight.data *= 1e5  # residuals beyond fp16's 65504, as trained ViTs reach them
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(vit(pixels)[1]).all()
    assert vit.encode(pixels).abs().max() > 65504
    assert not torch.isfinite(vit.encode(pixels).half()).all()


@pytest.mark.parametrize(
    "changes",
    [{"classes": 5}, {"cls_token": True}, {"heads": (3, 1), "mlp": (40, 8), "classes": 7, "channels": 1}],
)
def test_count_macs_equals_a_count_by_hooks(tiny, changes: dict) -> None:
    vit = tiny(**changes)
    seen = 0

    def linear(module: nn.Module, args: tuple, out: torch.Tensor) -> None:
        nonlocal seen
        seen += out.numel() * module.weight[0].numel()

    def attention(module: nn.Module, args: tuple, out: torch.Tensor) -> None:
        nonlocal seen
        n = args[0].shape[1]
        seen += n * n * module.proj.in_features * 2  # q x k, and the weights x v

    for module in vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(linear)
        elif isinstance(module, Attention):
            module.register_forward_hook(attention)
    vit(torch.zeros(1, vit.shape.channels, 32, 32))
    assert count_macs(vit.shape) == seen


def test_count_macs_of_vit_base_is_the_published_figure() -> None:
    shape = ViTShape.uniform(image_px=224, patch_px=16, width=768, depth=12, heads=12, classes=1000, cls_token=True)
    assert count_macs(shape) / 1e9 == pytest.approx(17.6, abs=0.05)


def test_count_params_counts_every_stored_value(tiny) -> None:
    vit = tiny(classes=3, cls_token=True)
    assert count_params(vit) == sum(v.numel() for v in vit.state_dict().values())


@pytest.mark.parametrize("learned", [False, True])
def test_with_head_at_another_resolution(tiny, learned: bool) -> None:
    vit = tiny(cls_token=True, norm_after_pool=False, learned_pos=learned)
    before = {k: v.clone() for k, v in vit.state_dict().items()}
    new = with_head(vit, 5, image_px=48)
    assert (new.shape.image_px, new.shape.classes, new.shape.norm_after_pool) == (48, 5, True)
    expected = resample_position(vit.pos.data, 6, True) if learned else sincos_position(32, 6, True)
    assert torch.equal(new.pos.data, expected)
    assert new.pos.requires_grad is learned
    assert torch.equal(new.norm.weight, torch.ones(32))  # behind the pool it is another norm: fresh
    for name in ("cls", "patch_embed.weight", "blocks.1.mlp.fc2.bias"):
        assert torch.equal(new.get_parameter(name), vit.get_parameter(name))
    assert all(torch.equal(v, before[k]) for k, v in vit.state_dict().items())
    assert new(torch.zeros(1, 3, 48, 48))[0].shape == (1, 5)


def test_with_head_keeps_a_norm_that_is_behind_the_pool_already(tiny) -> None:
    vit = tiny(norm_after_pool=True)
    assert torch.equal(with_head(vit, 2).norm.weight, vit.norm.weight)
    assert with_head(tiny(classes=4), 0).head is None


def test_resampling_keeps_the_class_row_and_a_ramp() -> None:
    ramp = torch.arange(4.0).repeat(4)[None, :, None].expand(1, 16, 8)  # value = column
    pos = torch.cat([torch.full((1, 1, 8), 7.0), ramp], dim=1)
    assert resample_position(pos, 4, True) is pos
    grown = resample_position(pos, 8, True)
    assert torch.equal(grown[:, 0], pos[:, 0])
    inner = grown[0, 1:, 0].reshape(8, 8)[4, 2:6]
    assert torch.allclose(inner, torch.tensor([0.75, 1.25, 1.75, 2.25]), atol=0.1)


def test_branches_of_a_block_are_scaled_image_by_image() -> None:
    block, x = Block(32, 2, 16, 64), torch.randn(3, 5, 32)
    drop = torch.tensor([[1.0, 1.0], [0.0, 0.0], [2.0, 0.0]])
    seen = block(x, drop)
    torch.testing.assert_close(seen[0], block(x)[0])
    assert torch.equal(seen[1], x[1])
    torch.testing.assert_close(seen[2], x[2] + 2 * block.attn(block.norm1(x))[2])


def test_shapes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="2 blocks"):
        ViTShape(image_px=32, patch_px=8, width=32, heads=(1, 1), head_dim=8, mlp=(8,))
    with pytest.raises(ValueError, match="cls_token"):
        ViTShape(image_px=32, patch_px=8, width=32, heads=(1,), head_dim=8, mlp=(8,), pool="cls")


def test_pruned_shapes_are_ordinary_ones(tiny, pixels) -> None:
    shape = ViTShape(**tiny(heads=(3, 1), mlp=(40, 8)).shape.as_dict())
    assert (shape.heads, shape.head_dim, shape.mlp) == ((3, 1), 8, (40, 8))
    assert ViT(shape)(pixels)[1].shape == (3, 32)
