"""Which patches a step hides: a ratio and a pattern that may change over a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from edgemae.model.mae import MASKS, keep_count
from edgemae.spec.errors import PlanError, nearest
from edgemae.spec.plan_schema import DistillPlan, PretrainPlan
from edgemae.train.step_context import StepContext

ATTENTION = "attention"
AttentionOf = Callable[[Tensor], Tensor]  # pixels (B, C, H, W) -> attention that every patch receives (B, N)


@dataclass(frozen=True)
class Masking:
    """Hide patches. `patterns` take equal parts of the training; the ratio moves from `first` to `last`."""

    patterns: tuple[str, ...]
    first: float
    last: float

    def keep(self, pixels: Tensor, grid: int, context: StepContext, attention_of: AttentionOf) -> Tensor:
        """Return sorted indices (B, K) of visible patches; `attention_of` is asked only by the pattern `attention`."""
        ratio = self.first + (self.last - self.first) * context.done
        pattern = self.patterns[min(int(context.done * len(self.patterns)), len(self.patterns) - 1)]
        if pattern != ATTENTION:
            return context.keep(grid, ratio, pattern)
        return hide_attended(attention_of(pixels), keep_count(grid * grid, ratio), context)


def hide_attended(attention: Tensor, visible: int, context: StepContext) -> Tensor:
    """Return sorted indices (B, K) of visible patches, those that get much attention being hidden more often.

    Patches are drawn to be hidden one after the other, each with a chance in proportion to its attention (B, N): hiding
    what is attended makes the task harder (AttMask, Kakogeorgiou et al. 2022), and chance keeps every patch in play.
    """
    # Gumbel noise on log-weights: the order is that of drawing without replacement (Efraimidis & Spirakis 2006).
    noise = -(-context.rand(attention.shape[1]).clamp_min(1e-9).log()).log()
    order = attention.clamp_min(1e-9).log() + noise
    return order.argsort(dim=1)[:, :visible].sort(dim=1).values


def masking(plan: PretrainPlan | DistillPlan, table: str, patches: int = 0, least: int = 1) -> Masking:
    """Return the masking of a plan's table. Raises PlanError for an unknown pattern or an impossible ratio.

    With the number of `patches` also for a ratio that hides none of them, or leaves fewer than `least` visible.
    """
    patterns = tuple(part.strip() for part in plan.mask.split(">"))
    known = [*MASKS, ATTENTION]
    for pattern in patterns:
        if pattern not in known:
            raise PlanError(
                f"{table}.mask is '{plan.mask}'.{nearest(pattern, known)}",
                expected=f"one of {', '.join(known)}, or several of them as in 'grid>random'",
                fix=f"pass --set {table}.mask=random",
            )
    last = plan.mask_ratio_end or plan.mask_ratio
    if not 0 < last < 1:
        raise PlanError(
            f"{table}.mask_ratio_end is {plan.mask_ratio_end}",
            expected="between 0 and 1, or 0 to keep the ratio as it is",
            fix=f"pass --set {table}.mask_ratio_end=0",
        )
    if patches:
        _check_counts(table, patches, least, plan.mask_ratio, last)
    return Masking(patterns, plan.mask_ratio, last)


def _check_counts(table: str, patches: int, least: int, *ratios: float) -> None:
    visible = [keep_count(patches, ratio) for ratio in ratios]
    smaller = "make patches smaller, with --set student.patch_px=... (or teacher.patch_px, where that is pretrained)"
    if max(visible) >= patches:
        raise PlanError(
            f"{table}.mask_ratio hides no patch of {patches}",
            expected="some patches to hide and some to see",
            fix=smaller,
        )
    if min(visible) < least:
        raise PlanError(
            f"{table}.mask_ratio leaves {min(visible)} of {patches} patches visible",
            expected=f"{least} or more: one patch alone has no relation that could be learnt",
            fix=f"pass --set {table}.mask_ratio=0.75" if patches >= 4 * least else smaller,
        )
