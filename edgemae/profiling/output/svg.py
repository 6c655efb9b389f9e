"""Charts as inline SVG, from numbers and nothing else: a device has no plotting library, and a page loads nothing.

Colours are CSS variables of the page (`--ink`, `--soft`, `--line`, `--a` to `--e`), so light and dark are one drawing.
Colour never stands alone: marks differ in shape or carry a label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 42
HUES = ("a", "b", "c", "d", "e")


@dataclass
class Chart:
    """Collect the marks of one chart; data coordinates in, SVG out. Logarithmic axes need values above 0."""

    title: str  # read by screen readers
    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    height: int = HEIGHT
    left: int = LEFT
    named_rows: bool = False  # the vertical axis has names and no numbers
    _marks: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a point in the drawing."""
        across = _share(x, *self.x, self.log_x)
        up = _share(y, *self.y, self.log_y)
        return (
            round(self.left + across * (WIDTH - self.left - RIGHT), 1),
            round(self.height - BOTTOM - up * (self.height - TOP - BOTTOM), 1),
        )

    def bars(self, edges: ArrayLike, heights: ArrayLike, hue: str = "a") -> None:
        """Draw one bar between each pair of edges."""
        edges, heights = np.asarray(edges, float), np.asarray(heights, float)
        for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
            if height > 0:
                self.box(left, right, self.y[0], height, hue)

    def box(self, x0: float, x1: float, y0: float, y1: float, hue: str, tip: str = "") -> None:
        (left, low), (right, high) = self.at(x0, y0), self.at(x1, y1)
        inside = f"<title>{escape(tip)}</title>" if tip else ""
        width, height = max(right - left - 0.5, 0.5), max(low - high, 0.5)
        self._marks.append(
            f'<rect x="{left}" y="{high}" width="{width:.1f}" height="{height:.1f}" class="fill-{hue}">{inside}</rect>'
        )

    def dots(self, x: ArrayLike, y: ArrayLike, hue: str = "a", radius: float = 1.6, tips: Sequence[str] = ()) -> None:
        """Draw points; without tips all of them are one path, which keeps thousands small."""
        places = [self.at(a, b) for a, b in zip(np.asarray(x, float), np.asarray(y, float), strict=True)]
        if tips:
            self._marks += [
                f'<circle cx="{a}" cy="{b}" r="{radius}" class="fill-{hue}"><title>{escape(tip)}</title></circle>'
                for (a, b), tip in zip(places, tips, strict=True)
            ]
        elif places:
            path = "".join(f"M{a} {b}h0" for a, b in places)
            self._marks.append(f'<path d="{path}" class="line-{hue} round" stroke-width="{2 * radius}"/>')

    def crosses(self, x: ArrayLike, y: ArrayLike, hue: str = "b", arm: float = 2.5) -> None:
        places = [self.at(a, b) for a, b in zip(np.asarray(x, float), np.asarray(y, float), strict=True)]
        lines = (
            f"M{a - arm:.1f} {b - arm:.1f}l{2 * arm} {2 * arm}m0 {-2 * arm}l{-2 * arm} {2 * arm}" for a, b in places
        )
        if places:
            self._marks.append(f'<path d="{"".join(lines)}" class="line-{hue}" stroke-width="1.2"/>')

    def line(self, x: ArrayLike, y: ArrayLike, hue: str = "a", dashed: bool = False, width: float = 1.6) -> None:
        places = [self.at(a, b) for a, b in zip(np.asarray(x, float), np.asarray(y, float), strict=True)]
        path = "M" + "L".join(f"{a} {b}" for a, b in places)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._marks.append(f'<path d="{path}" class="line-{hue}" stroke-width="{width}"{dash}/>')

    def upright(self, x: float, label: str, hue: str = "soft", row: int = 0) -> None:
        """Draw a labelled vertical line over the whole height; `row` moves the label down, away from its neighbour."""
        (at, low), (_, high) = self.at(x, self.y[0]), self.at(x, self.y[1])
        self._marks.append(
            f'<path d="M{at} {low}V{high}" class="line-{hue}" stroke-width="1.2" stroke-dasharray="4 3"/>'
        )
        side, anchor = (-5, "end") if at > WIDTH - 130 else (5, "start")
        self.text(at + side, high + 12 + 15 * row, label, anchor)

    def text(self, left: float, top: float, label: str, anchor: str = "start", kind: str = "note") -> None:
        """Write at a place of the drawing (not of the data)."""
        self._marks.append(
            f'<text x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}" class="{kind}">{escape(label)}</text>'
        )

    def svg(self) -> str:
        """Return the drawing."""
        frame = "".join(self._grid())
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(self.title)}">'
            f"{frame}{''.join(self._marks)}</svg>"
        )

    def _grid(self) -> list[str]:
        floor, right = self.height - BOTTOM, WIDTH - RIGHT
        parts = []
        for value in ticks(*self.x, self.log_x):
            at = self.at(value, self.y[0])[0]
            parts.append(f'<text x="{at}" y="{floor + 16}" text-anchor="middle" class="tick">{number(value)}</text>')
        for value in () if self.named_rows else ticks(*self.y, self.log_y):
            at = self.at(self.x[0], value)[1]
            parts.append(f'<path d="M{self.left} {at}H{right}" class="grid"/>')
            parts.append(
                f'<text x="{self.left - 8}" y="{at + 4}" text-anchor="end" class="tick">{number(value)}</text>'
            )
        parts.append(f'<path d="M{self.left} {floor}H{right}" class="axis"/>')
        middle = (self.left + right) / 2
        parts.append(
            f'<text x="{middle}" y="{self.height - 6}" text-anchor="middle" class="label">{escape(self.x_label)}</text>'
        )
        if self.y_label:
            turn = (TOP + floor) / 2
            parts.append(
                f'<text x="14" y="{turn}" text-anchor="middle" transform="rotate(-90 14 {turn})" class="label">'
                f"{escape(self.y_label)}</text>"
            )
        return parts


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Return round values within an interval: 4 to 9 of them, or 1, 2, 5 of each power of ten."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**p for p in powers for m in (1, 2, 5)]
        kept = [v for v in found if low <= v <= high * 1.0001]
        return kept if len(kept) <= 9 else [v for v in kept if math.log10(v) % 1 < 1e-9]
    raw = (high - low) / 6 or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Return a short number: 0.05, 12, 1,500."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def spread(values: ArrayLike, most: float = 99.5) -> tuple[float, float]:
    """Return limits that show all but the slowest of some values, with a margin."""
    data: NDArray[np.float64] = np.asarray(values, float)
    low, high = float(data.min()), float(np.percentile(data, most))
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return max(low - margin, 0.0), high + margin


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Return a line of (hue, name) below a chart."""
    shown = (f'<span><i class="key bg-{hue}"></i>{escape(name)}</span>' for hue, name in entries)
    return f'<p class="legend">{"".join(shown)}</p>'


def _share(value: float, low: float, high: float, log: bool) -> float:
    if log:
        value, low, high = (math.log10(max(v, 1e-12)) for v in (value, low, high))
    return min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)
