"""Cut heads and MLP units out of a ViT. The only place that calls torch_pruning (DepGraph, Fang et al. 2023)."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from edgemae.model.vit import ViT
from edgemae.prune.budget import Keep
from edgemae.spec.errors import InternalError


def cut(vit: ViT, keep: Keep) -> ViT:
    """Return a smaller copy with only the heads and units of `keep`; width, head_dim and depth stay.

    head_dim never changes, so neither does the softmax scale 1/sqrt(head_dim): cutting 64 -> 29 dimensions with a
    stale scale moves outputs by 47 %. Raises InternalError when the traced groups are not what attention is.
    """
    vit = copy.deepcopy(vit).eval()
    trainable = {name: p.requires_grad for name, p in vit.named_parameters()}
    graph = _trace(vit)
    for block, heads, units in zip(vit.blocks, keep.heads, keep.units, strict=True):
        attn, mlp = block.attn, block.mlp
        columns = _columns(_absent(heads, attn.heads), attn.head_dim)
        inner = attn.heads * attn.head_dim
        rows = [part * inner + column for part in range(3) for column in columns]  # q heads, k heads, v heads
        _remove(graph, (attn.qkv, rows), (attn.proj, columns))
        attn.heads = len(heads)
        gone = _absent(units, mlp.fc1.out_features)
        _remove(graph, (mlp.fc1, gone), (mlp.fc2, gone))
    vit.shape = replace(vit.shape, heads=tuple(len(h) for h in keep.heads), mlp=tuple(len(u) for u in keep.units))
    for name, p in vit.named_parameters():  # torch_pruning makes every parameter that it touches trainable
        p.requires_grad_(trainable[name])
    return vit


def _absent(kept: tuple[int, ...], size: int) -> list[int]:
    return sorted(set(range(size)) - set(kept))


def _columns(heads: list[int], head_dim: int) -> list[int]:
    return [head * head_dim + i for head in heads for i in range(head_dim)]


def _trace(vit: ViT) -> Any:
    """Return the dependency graph of a ViT, traced by autograd on one black image."""
    import torch_pruning as tp

    shape, like = vit.shape, vit.patch_embed.weight
    vit.requires_grad_(True)  # layers without gradients are invisible to the trace
    pixels = torch.zeros(1, shape.channels, shape.image_px, shape.image_px, device=like.device, dtype=like.dtype)
    # Every container is a fresh one: torch_pruning's mutable defaults would carry this model into the next call.
    with torch.enable_grad():
        return tp.DependencyGraph().build_dependency(
            vit,
            (pixels,),
            output_transform=lambda out: out[1] if out[0] is None else out[0],
            unwrapped_parameters=[(p, 2) for p in (vit.cls, vit.pos) if p is not None],
            customized_pruners={},
            ignored_layers=[],
            ignored_params=[],
        )


def _remove(graph: Any, source: tuple[nn.Linear, list[int]], sink: tuple[nn.Linear, list[int]]) -> None:
    """Remove output rows of one Linear and, coupled to them by the graph, input columns of the other."""
    if not source[1]:
        return
    import torch_pruning as tp

    group = graph.get_pruning_group(source[0], tp.prune_linear_out_channels, source[1])
    # The reshape between qkv and proj is traced, not declared: what comes out is compared with what attention is.
    found = {
        (dep.target.module, graph.is_out_channel_pruning_fn(dep.handler)): sorted(indices)
        for dep, indices in group
        if isinstance(dep.target.module, (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.Parameter))
    }
    if found != {(source[0], True): source[1], (sink[0], False): sink[1]}:
        raise InternalError(
            f"torch_pruning couples other weights than expected: {group}",
            expected="rows of one Linear with the matching columns of the next",
            fix="report this with the version of torch-pruning; 1.6.1 is known to work",
        )
    group.prune(record_history=False)
