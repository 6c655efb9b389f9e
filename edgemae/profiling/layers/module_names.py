"""Modules: which part of the student an operator of an engine's graph belongs to.

Linears, norms and the patch embedding keep the student's names through export, quantization and both CPU engines; what
the engines fuse carries the names of its parts. Operators without weights (Softmax, Gelu, Add) are told by their place:
between two named ones, in the order of execution.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Names of edgemae's ViT; `logits` and `embedding` are the outputs, and OpenVINO names their last operators so.
_LEAVES = r"blocks\.\d+(?:\.(?:norm[12]|attn(?:\.(?:qkv|proj))?|mlp(?:\.fc[12])?))?|patch_embed|norm|head"
_NAMED = re.compile(rf"(?<![\w.])({_LEAVES}|logits|embedding)(?![A-Za-z0-9])")
_OUTPUTS = {"logits": "head", "embedding": "norm"}
_NORM_BEFORE = {"attn": "norm1", "mlp": "norm2"}


def module_of(names: str) -> str:
    """Return the student's module that one or more names of an engine's operator speak of, "" for none.

    A name of a leaf beats those of its parents: a residual Add that is fused into a norm counts as the norm.
    """
    found = list(dict.fromkeys(_OUTPUTS.get(name, name) for name in _NAMED.findall(names)))
    leaves = [name for name in found if not any(other.startswith(f"{name}.") for other in found)]
    if len(leaves) < 2:
        return "".join(leaves)
    return _shared(leaves[0], leaves[-1]) or leaves[-1]


def modules_of(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return the module of each (name, names that were fused, kind), in the order of execution; "" where nothing tells.

    The name comes first: OpenVINO fuses the quantizer of fc2 into fc1, which is where the time goes.
    """
    named = [module_of(name) or module_of(fused) for name, fused, _ in rows]
    before, after = _carried(named), _carried(named[::-1])[::-1]
    return [
        name or _between(a, b, "norm" in kind.lower() or kind == "MVN")
        for name, a, b, (_, _, kind) in zip(named, before, after, rows, strict=True)
    ]


def _between(before: str, after: str, is_norm: bool) -> str:
    """Return the module of an operator between two named ones; "" when the graph names nothing at all."""
    parts = after.split(".")
    if is_norm and (before or after):
        if parts[0] != "blocks":
            return "norm"
        if len(parts) > 2:
            return ".".join([*parts[:2], _NORM_BEFORE.get(parts[2], parts[2])])
    if not before:
        return "patch_embed" if after else ""
    # Past the end of a block or of the embedding it is still theirs: a residual Add, a Reshape to tokens.
    return _shared(before, after) or ".".join(before.split(".")[:2])


def _shared(a: str, b: str) -> str:
    """Return the innermost module that holds both, "" when that is no part of a block."""
    both = []
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        both.append(x)
    return ".".join(both) if len(both) > 1 or a == b else ""


def _carried(names: list[str]) -> list[str]:
    """Return, for each place, the last name that is not empty up to there."""
    carried, last = [], ""
    for name in names:
        last = name or last
        carried.append(last)
    return carried
