"""A plain vision transformer (Dosovitskiy et al. 2021) whose shape is explicit in every layer.

Shape letters: B batch, C channels, N tokens, D width, P patch, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6  # 1e-12 (the default of some libraries) underflows to zero in fp16
MOST_BLOCKS = 1024  # a header of a file may claim any number
PLAIN_TOKENS = 1024  # up to which attention is taken in plain products, on a processor in bf16
PLAIN_LOGITS = 1 << 26  # and up to how many of all images and heads: 128 MiB that each block keeps for its gradient


@dataclass(frozen=True)
class ViTShape:
    """State every size of a ViT. `heads` and `mlp` hold one number a block, so pruned models are ordinary ones."""

    image_px: int
    patch_px: int
    width: int
    heads: tuple[int, ...]
    head_dim: int
    mlp: tuple[int, ...]
    channels: int = 3
    classes: int = 0
    cls_token: bool = False
    pool: str = "mean"  # mean (without cls) | cls
    norm_after_pool: bool = True  # False: LayerNorm on all tokens, then pooling
    learned_pos: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))
        object.__setattr__(self, "mlp", tuple(self.mlp))
        if len(self.heads) != len(self.mlp):
            raise ValueError(f"heads has {len(self.heads)} blocks, mlp has {len(self.mlp)}")
        sizes = (self.image_px, self.patch_px, self.width, self.head_dim, self.channels, *self.heads, *self.mlp)
        if any(type(size) is not int or size < 1 for size in sizes) or type(self.classes) is not int:
            raise ValueError(f"sizes {sizes} and {self.classes} classes are not all numbers above 0")
        if len(self.heads) > MOST_BLOCKS:
            raise ValueError(f"{len(self.heads)} blocks, at most {MOST_BLOCKS}")
        if self.classes < 0 or self.image_px % self.patch_px or not self.heads:
            raise ValueError(f"{self.classes} classes, patches of {self.patch_px} in {self.image_px} px, or no block")
        if self.pool not in ("mean", "cls") or not all(
            type(flag) is bool for flag in (self.cls_token, self.norm_after_pool, self.learned_pos)
        ):
            raise ValueError(f"pool is {self.pool!r}, or a flag is neither true nor false")
        if self.pool == "cls" and not self.cls_token:
            raise ValueError("pool='cls' needs cls_token=True")

    @classmethod
    def uniform(
        cls, *, image_px: int, patch_px: int, width: int, depth: int, heads: int, head_dim: int = 0,
        mlp_ratio: float = 4.0, **rest: Any,
    ) -> ViTShape:  # fmt: skip
        """Return a shape whose blocks are all alike; head_dim 0 means width // heads."""
        return cls(
            image_px=image_px, patch_px=patch_px, width=width, heads=(heads,) * depth,
            head_dim=head_dim or width // heads, mlp=(round(width * mlp_ratio),) * depth, **rest,
        )  # fmt: skip

    @property
    def depth(self) -> int:
        return len(self.heads)

    @property
    def grid(self) -> int:
        return self.image_px // self.patch_px

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def tokens(self) -> int:
        return self.patches + int(self.cls_token)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def sincos_position(width: int, grid: int, cls_token: bool, span: int = 0) -> Tensor:
    """Return fixed 2-D sine-cosine positions (1, N, D), laid out [sin_w | cos_w | sin_h | cos_h]; the cls row is zero.

    The horizontal half comes first, as in the MAE reference weights (He et al. 2022). With a `span` the `grid` patches
    lie evenly over an image of `span` finer ones, in whose units they are counted.
    """
    quarter = width // 4
    omega = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    axis = (torch.arange(grid, dtype=torch.float64) + 0.5) * ((span or grid) / grid) - 0.5
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    parts = [f(p.reshape(-1, 1) * omega) for p in (column, row) for f in (torch.sin, torch.cos)]
    position = torch.cat(parts, dim=1)
    if cls_token:
        position = torch.cat([torch.zeros(1, width, dtype=torch.float64), position])
    return position.float()[None]


def resample_position(position: Tensor, grid: int, cls_token: bool) -> Tensor:
    """Resize learned positions (1, N, D) to another square grid: bicubic, cls row kept (ViT paper, section 3.2)."""
    head, body = (position[:, :1], position[:, 1:]) if cls_token else (position[:, :0], position)
    old = math.isqrt(body.shape[1])
    if old == grid:
        return position
    body = body.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    body = F.interpolate(body, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([head, body.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def take_patches(pixels: Tensor, index: Tensor, patch_px: int) -> Tensor:
    """Return the patches of (B, C, H, W) that `index` (B, K) names, row by row of the grid, as (B, K, C, P, P).

    One copy of those patches only: at 224 px and a quarter of the patches 5 times as fast as to cut all and to gather.
    """
    b, c, h, w = pixels.shape
    p = patch_px
    grid = pixels.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
    image = torch.arange(b, device=pixels.device)[:, None]
    return grid[image, index // (w // p), index % (w // p)]


class Attention(nn.Module):
    """Multi-head self-attention with one fused qkv projection."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.scale = head_dim**-0.5
        self.softmaxed = True  # False for a probe, whose logits themselves are compared with another model's
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v, each (B, heads, N, head_dim)."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def logits(self, x: Tensor) -> Tensor:
        """Return scaled attention logits before the softmax, (B, heads, N, N)."""
        b, n, _ = x.shape
        rows = 2 * self.heads * self.head_dim  # of the projection: values are not asked for
        qk = F.linear(x, self.qkv.weight[:rows], self.qkv.bias[:rows])
        q, k = qk.reshape(b, n, 2, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return (q * self.scale) @ k.transpose(-2, -1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.split(x)
        # torch's fused kernel for processors is slow in bf16: forward and backward of 64 images of 64 tokens took 41 ms
        # on one core with AVX512-bf16, the plain products 6, fp32 15. From some 1,000 tokens on they are no faster.
        slow = q.dtype == torch.bfloat16 and q.device.type == "cpu"
        if slow and n <= PLAIN_TOKENS and b * self.heads * n * n <= PLAIN_LOGITS:
            y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(y.transpose(1, 2).reshape(b, n, self.heads * self.head_dim))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block. `drop` (B, 2) scales both branches by image: stochastic depth (Huang et al. 2016)."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, heads, head_dim)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor, drop: Tensor | None = None) -> Tensor:
        if drop is None:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = x + drop[:, 0, None, None] * self.attn(self.norm1(x))
        return x + drop[:, 1, None, None] * self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Encode (B, C, H, W) pixels; `forward` returns (logits, embedding), logits None without a head."""

    blocks: Sequence[Block]  # a ModuleList, which has no element type

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = nn.Conv2d(shape.channels, shape.width, shape.patch_px, shape.patch_px)
        self.cls = nn.Parameter(torch.zeros(1, 1, shape.width)) if shape.cls_token else None
        self.pos = nn.Parameter(
            sincos_position(shape.width, shape.grid, shape.cls_token), requires_grad=shape.learned_pos
        )
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            Block(shape.width, heads, shape.head_dim, hidden)
            for heads, hidden in zip(shape.heads, shape.mlp, strict=True)
        )
        self.norm = nn.LayerNorm(shape.width, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(shape.width, shape.classes) if shape.classes else None
        self.apply(init_weights)
        # Like a Linear over the flattened patch (He et al. 2022, appendix A.1).
        nn.init.xavier_uniform_(self.patch_embed.weight.view(shape.width, -1))
        if self.cls is not None:
            nn.init.normal_(self.cls, std=0.02)

    def embed(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return position-encoded tokens (B, N, D), cls first; `keep` (B, K) selects patches by index."""
        skip = int(self.cls is not None)
        if keep is None:
            x = self.patch_embed(pixels).flatten(2).transpose(1, 2) + self.pos[:, skip:]
        else:  # the same convolution, of the visible patches only
            patches = take_patches(pixels, keep, self.shape.patch_px).flatten(2)
            x = F.linear(patches, self.patch_embed.weight.flatten(1), self.patch_embed.bias) + self.pos[0, skip:][keep]
        if self.cls is not None:
            x = torch.cat([(self.cls + self.pos[:, :1]).expand(x.shape[0], -1, -1), x], dim=1)
        return x

    def encode(
        self, pixels: Tensor, keep: Tensor | None = None, blocks: int | None = None, drop: Tensor | None = None
    ) -> Tensor:
        """Return tokens (B, N, D) after the first `blocks` blocks (all by default), before the final norm.

        `drop` (B, depth, 2) scales the branches of every block.
        """
        x = self.embed(pixels, keep)
        for i, block in enumerate(self.blocks[:blocks]):
            x = block(x, None if drop is None else drop[:, i])
        return x

    def pool(self, x: Tensor) -> Tensor:
        """Return the embedding (B, D) of tokens from `encode`: normalised and pooled, patches only for the mean."""
        if not self.shape.norm_after_pool:
            x = self.norm(x)
        x = x[:, 0] if self.shape.pool == "cls" else x[:, int(self.shape.cls_token) :].mean(dim=1)
        return self.norm(x) if self.shape.norm_after_pool else x

    def patch_tokens(self, pixels: Tensor) -> Tensor:
        """Return what a mean pool averages: the patches behind the last block (B, grid * grid, D), row by row."""
        x = self.encode(pixels)
        x = x if self.shape.norm_after_pool else self.norm(x)
        return x[:, int(self.cls is not None) :]

    def forward(
        self, pixels: Tensor, keep: Tensor | None = None, drop: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        embedding = self.pool(self.encode(pixels, keep, drop=drop))
        return (None if self.head is None else self.head(embedding)), embedding


def init_weights(module: nn.Module) -> None:
    """Initialise as MAE does: Xavier-uniform linears, zero biases, unit LayerNorms."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def with_head(vit: ViT, classes: int, *, image_px: int | None = None) -> ViT:
    """Return a copy for classification: fresh head and fresh post-pool norm, optionally at another resolution.

    Mean pooling moves the norm behind the pool, with new weights (as MAE's fine-tuning does); sincos positions are
    recomputed for another grid, learned ones resampled.
    """
    mean = vit.shape.pool == "mean"
    shape = replace(vit.shape, classes=classes, image_px=image_px or vit.shape.image_px)
    shape = replace(shape, norm_after_pool=True) if mean else shape
    new = ViT(shape)
    state = {k: v for k, v in vit.state_dict().items() if not k.startswith("head.")}
    if mean and not vit.shape.norm_after_pool:
        state = {k: v for k, v in state.items() if not k.startswith("norm.")}
    state["pos"] = resample_position(vit.pos.data, shape.grid, shape.cls_token) if shape.learned_pos else new.pos.data
    new.load_state_dict(state, strict=False)
    if new.head is not None:
        nn.init.trunc_normal_(new.head.weight, std=0.01)
    return new


def count_params(vit: ViT) -> int:
    """Return the number of stored values, positions included."""
    return sum(p.numel() for p in vit.parameters())


def count_macs(shape: ViTShape) -> int:
    """Return multiply-accumulates of one image: patch embedding, linears, both attention products, head."""
    n, d = shape.tokens, shape.width
    macs = shape.patches * shape.channels * shape.patch_px**2 * d + d * shape.classes
    for heads, hidden in zip(shape.heads, shape.mlp, strict=True):
        inner = heads * shape.head_dim
        macs += n * d * (4 * inner + 2 * hidden) + 2 * n * n * inner
    return macs
