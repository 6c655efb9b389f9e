"""Budget: which heads and MLP units stay, so that a ViT meets a MACs goal."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from edgemae.model.vit import ViTShape, count_macs
from edgemae.spec.errors import PlanError


class Scores(NamedTuple):
    """Hold one value for each head and each MLP unit, comparable across kinds and blocks. Higher = keep."""

    heads: tuple[Tensor, ...]  # one (heads,) for each block
    units: tuple[Tensor, ...]  # one (mlp,) for each block


class Keep(NamedTuple):
    """Hold sorted indices of what stays, for each block."""

    heads: tuple[tuple[int, ...], ...]
    units: tuple[tuple[int, ...], ...]

    def shape(self, shape: ViTShape) -> ViTShape:
        """Return `shape` with only what stays."""
        return replace(shape, heads=tuple(map(len, self.heads)), mlp=tuple(map(len, self.units)))


@dataclass(frozen=True)
class _Piece:
    """The smallest thing that can go: one head, or `width_multiple` MLP units of one block."""

    kind: str
    layer: int
    members: tuple[int, ...]
    score: float
    macs: int


def choose(scores: Scores, shape: ViTShape, keep_macs: float, width_multiple: int) -> Keep:
    """Return what stays so that at most `keep_macs` (a part of 1) of the multiply-accumulates of `shape` remain.

    The least valued pieces go until the goal is met; then the best of those that still fit come back, so that a head
    that was too big a bite does not cost units too. Less MACs asked for never leaves more. Each block keeps a head and
    `width_multiple` units, and its remaining MLP is a multiple of `width_multiple` (a smaller MLP is left alone).
    Raises PlanError when the goal is below that floor.
    """
    if keep_macs >= 1:
        return Keep(tuple(tuple(range(n)) for n in shape.heads), tuple(tuple(range(n)) for n in shape.mlp))
    check_budget(shape, keep_macs, width_multiple)
    total = count_macs(shape)
    goal = round(keep_macs * total)
    pieces, odd = _pieces(scores, shape, width_multiple)
    left = total - sum(piece.macs for piece in odd)
    gone = []
    for piece in sorted(pieces, key=lambda p: p.score):  # stable: ties go in the order of blocks
        if left <= goal:
            break
        gone.append(piece)
        left -= piece.macs
    for piece in reversed(gone.copy()):
        if left + piece.macs <= goal:
            gone.remove(piece)
            left += piece.macs
    removed: dict[tuple[str, int], set[int]] = {}
    for piece in (*odd, *gone):
        removed.setdefault((piece.kind, piece.layer), set()).update(piece.members)

    def stay(kind: str, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(sorted(set(range(n)) - removed.get((kind, i), set()))) for i, n in enumerate(sizes))

    return Keep(stay("heads", shape.heads), stay("units", shape.mlp))


def check_budget(shape: ViTShape, keep_macs: float, width_multiple: int) -> None:
    """Refuse a goal that no pruning can meet: a PlanError that names the floor."""
    if width_multiple < 1:
        raise PlanError(
            f"width multiple is {width_multiple}", expected=">= 1", fix="correct width_multiple in the target's TOML"
        )
    small = replace(shape, heads=(1,) * shape.depth, mlp=tuple(min(n, width_multiple) for n in shape.mlp))
    floor, total = count_macs(small), count_macs(shape)
    if round(keep_macs * total) < floor:
        least = math.ceil(1000 * floor / total) / 1000
        raise PlanError(
            f"prune.keep_macs is {keep_macs:.3g}: {keep_macs * total / 1e6:.2f} of {total / 1e6:.2f} MMACs",
            expected=f"at least {least:.3f}: one head and {width_multiple} MLP units in each of {shape.depth} blocks, "
            f"with the embedding width untouched, need {floor / 1e6:.2f} MMACs",
            fix=f"pass --set prune.keep_macs={least:.3f} or more, or distil a narrower or shallower student",
        )


def _pieces(scores: Scores, shape: ViTShape, width_multiple: int) -> tuple[list[_Piece], list[_Piece]]:
    """Return (pieces that may go, odd units that must go so that each MLP is a multiple)."""
    head_macs = _step(shape, heads=1)
    pieces, odd = [], []
    for i in range(shape.depth):
        order = scores.heads[i].argsort(stable=True).tolist()
        pieces += [_Piece("heads", i, (h,), float(scores.heads[i][h]), head_macs) for h in order[:-1]]
        order = scores.units[i].argsort(stable=True).tolist()
        rest = len(order) % width_multiple if len(order) > width_multiple else 0
        if rest:
            odd.append(_Piece("units", i, tuple(order[:rest]), 0.0, _step(shape, units=rest)))
        for start in range(rest, len(order) - width_multiple, width_multiple):
            members = tuple(order[start : start + width_multiple])
            value = float(scores.units[i][list(members)].mean())
            pieces.append(_Piece("units", i, members, value, _step(shape, units=width_multiple)))
    return pieces, odd


def _step(shape: ViTShape, heads: int = 0, units: int = 0) -> int:
    """Return the MACs of some heads or units of one block."""
    more = replace(shape, heads=(shape.heads[0] + heads, *shape.heads[1:]), mlp=(shape.mlp[0] + units, *shape.mlp[1:]))
    return count_macs(more) - count_macs(shape)
