"""Plots as PNG bytes, in a light and a dark version. Colours: Okabe and Ito (2008), distinct for colour-blind readers.

Colour never stands alone: engines differ in colour and label, precisions in marker, losses in line style.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemae.evaluation.accuracy import calibration_bins, ece
from edgemae.evaluation.gates import shipped_stages, stage_of
from edgemae.evaluation.report.plot_style import figure, legend, plain_log, png, style, theme
from edgemae.evaluation.report.tables import confidence_text, percent
from edgemae.spec.errors import InternalError
from edgemae.spec.report import EngineLatency, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]
Curves = Mapping[str, Sequence[Mapping[str, float]]]

_MARKERS = {"int8": "o", "fp16": "D", "fp32": "s"}
_VALIDATION = ("validation", "top1", "accuracy")  # shares 0..1 among the columns of a curve; the rest are losses
_NOT_DRAWN = ("epoch", "step", "lr", "seconds")


def accuracy_latency(report: Report, dark: bool = False) -> bytes | None:
    """Return p50 latency against accuracy for every engine, or None when no engine has an accuracy.

    Bars: the Wilson interval of top-1 upwards and downwards, p50 to p90 to the right. A hollow marker takes the top-1
    of its stage, since that engine file was not scored itself. Without labels the vertical axis is agreement.
    """
    labelled = any(stage.top1 is not None for stage in report.stages)
    points = [(engine, *place) for engine in report.engines if (place := _accuracy_of(engine, report, labelled))]
    points.sort(key=lambda point: not point[0].chosen)
    if not points:
        return None
    colors, hues = theme(dark)
    sheet = figure(5.2, 4.2, dark)
    axes = sheet.add_subplot()
    names = list(dict.fromkeys(engine.engine for engine, *_ in points))
    drawn: set[bool] = set()
    for engine, share, low, high, own in points:
        hue, p50, percent = hues[names.index(engine.engine) % len(hues)], engine.p50_ms, 100 * share
        if low is not None and high is not None and (engine.precision == "int8") not in drawn:
            drawn.add(engine.precision == "int8")  # engines of one stage share its interval: one line each is enough
            axes.plot([p50, p50], [100 * low, 100 * high], color=hue, linewidth=1.4, alpha=0.5)
        if engine.p90_ms is not None:
            axes.plot([p50, engine.p90_ms], [percent, percent], color=hue, linewidth=1.2, alpha=0.8)
        look: dict[str, Any] = {"marker": _MARKERS.get(engine.precision, "^"), "color": hue, "zorder": 4}
        axes.plot(
            p50, percent, **look, markersize=8, markerfacecolor=hue if own else colors["page"], markeredgewidth=1.8
        )
        if engine.chosen:
            axes.plot(p50, percent, marker="o", color=colors["ink"], markersize=17, markerfacecolor="none", zorder=5)
    y = f"top-1 (%), with {confidence_text(report)} interval" if labelled else "agreement with the float student (%)"
    style(axes, dark, x="latency (ms): p50, line to p90", y=y, grid="both")
    _milliseconds(axes, [value for engine, *_ in points for value in (engine.p50_ms, engine.p90_ms) if value])
    for gate in report.gates:
        if gate.gate == "p90_ms":
            _limit(axes, gate.limit, dark)
    _label_points(axes, [(engine, 100 * share) for engine, share, *_ in points], dark)
    return png(sheet)


def _accuracy_of(
    engine: EngineLatency, report: Report, labelled: bool
) -> tuple[float, float | None, float | None, bool] | None:
    """Return (share, low, high, whether it is this engine file's own) or None when nothing is known."""
    stage = stage_of(engine, report.stages)
    if not labelled:
        share = 1.0 if stage and stage.stage == "student" else stage.agreement if stage else None
        return None if share is None else (share, None, None, True)
    if engine.top1 is not None and (stage is None or engine.top1 != stage.top1):
        return engine.top1, None, None, True
    if stage is None or stage.top1 is None:
        return None
    return stage.top1, stage.top1_low, stage.top1_high, engine.top1 is not None


def _milliseconds(axes: Axes, values: list[float]) -> None:
    """Scale the latency axis: logarithmic, with plain numbers, when the slowest is over four times the fastest."""
    low, high = min(values), max(values)
    if high <= 4 * low:
        axes.set_xlim(0, high * 1.25)
        return
    axes.set_xscale("log")
    axes.set_xlim(low / 1.5, high * 1.6)
    plain_log(axes.xaxis)


def _limit(axes: Axes, limit_ms: float, dark: bool) -> None:
    """Draw a latency limit as a line; one that lies outside of the axis is written in the corner on its side."""
    soft, (low, high) = theme(dark)[0]["soft"], axes.get_xlim()
    text = f"limit p90 {limit_ms:g} ms"
    if low <= limit_ms <= high:
        axes.axvline(limit_ms, color=soft, linestyle=(0, (5, 3)), linewidth=1.2)
        spot: dict[str, Any] = {"xy": (limit_ms, 0.0), "xycoords": ("data", "axes fraction"), "xytext": (4, 5)}
        axes.annotate(text, **spot, textcoords="offset points", color=soft, fontsize=9)
        return
    right = limit_ms > high
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "right" if right else "left", "va": "bottom"}
    axes.text(0.99 if right else 0.01, 0.01, f"{text} →" if right else f"← {text}", color=soft, fontsize=9, **place)


def _label_points(axes: Axes, points: list[tuple[EngineLatency, float]], dark: bool) -> None:
    """Write a name beside every point, at the first of a few places where it covers no other name and no point."""
    axes.figure.canvas.draw()  # positions are known only after the layout
    centres = [axes.transData.transform((engine.p50_ms, y)) for engine, y in points]
    boxes = [(x - 18, y - 18, x + 18, y + 18) for x, y in centres]
    frame = axes.get_window_extent()
    offsets = [(0, sign * step) for step in (15, 27, 39, 51, 63) for sign in (1, -1)]
    colors = theme(dark)[0]
    for engine, y in points:
        weight = "bold" if engine.chosen else "normal"
        name = f"{engine.engine} {engine.precision}" + (f"\n{engine.scheme}" if engine.scheme else "")
        place: dict[str, Any] = {"xytext": offsets[0], "textcoords": "offset points"}
        note = axes.annotate(name, (engine.p50_ms, y), **place, color=colors["ink"], fontsize=9)
        note.set(fontweight=weight, ha="center", va="center", linespacing=1.05)
        note.set_bbox({"facecolor": colors["page"], "edgecolor": "none", "alpha": 0.85, "pad": 0.6})
        for offset in offsets:
            note.set_position(offset)
            extent = note.get_window_extent()
            box = (extent.x0, extent.y0, extent.x1, extent.y1)
            inside = box[1] > frame.y0 and box[3] < frame.y1 + 20
            if inside and not any(_overlap(box, other) for other in boxes):
                break
        boxes.append(box)
        if abs(offset[1]) > 30:  # too far away to be read as this point's name without a line
            ends: dict[str, Any] = {
                "xytext": (0, offset[1] - math.copysign(9, offset[1])),
                "textcoords": "offset points",
            }
            line: dict[str, Any] = {
                "arrowstyle": "-",
                "color": colors["soft"],
                "linewidth": 0.8,
                "shrinkA": 0,
                "shrinkB": 5,
                "zorder": 2,
            }
            axes.annotate("", (engine.p50_ms, y), **ends, arrowprops=line)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def loss_curves(curves: Curves, dark: bool = False) -> bytes | None:
    """Return one panel a stage: mean losses of each epoch and, below, validation top-1 where it was measured."""
    stages = [(name, rows) for name, rows in curves.items() if rows]
    if not stages:
        return None
    columns = min(2, len(stages))
    lines = math.ceil(len(stages) / columns)
    sheet = figure(4.2 * columns, 3.3 * lines, dark)
    parts = np.atleast_1d(sheet.subfigures(lines, columns, squeeze=False)).ravel()
    for part, (name, rows) in zip(parts, stages, strict=False):
        part.set_facecolor(theme(dark)[0]["page"])
        _curve_panel(part, name, rows, dark)
    return png(sheet)


def _curve_panel(part: Any, name: str, rows: Sequence[Mapping[str, float]], dark: bool) -> None:
    colors, hues = theme(dark)
    keys = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    losses = [key for key in keys if key not in (*_VALIDATION, *_NOT_DRAWN)]
    checks = [key for key in keys if key in _VALIDATION]
    shape: dict[str, Any] = {"nrows": 2, "sharex": True, "height_ratios": (2, 1)} if checks and losses else {"nrows": 1}
    panels = np.atleast_1d(part.subplots(**shape))
    panels[0].set_title(name, color=colors["ink"], fontsize=11, loc="left", fontweight="bold")
    for axes, drawn, factor, label in ((panels[0], losses, 1, "loss"), (panels[-1], checks, 100, "top-1 (%)")):
        if not drawn:
            continue
        values = []
        for i, key in enumerate(drawn):
            x = [row.get("epoch", at + 1) for at, row in enumerate(rows) if key in row]
            y = [factor * row[key] for row in rows if key in row]
            values += y
            dashes = ("-", "--", "-.", ":")[i % 4]
            axes.plot(x, y, dashes, color=hues[i % len(hues)], linewidth=1.8, label=key)
            if len(y) < 13:
                axes.plot(x, y, "o", color=hues[i % len(hues)], markersize=3.5)
        style(axes, dark, x="epoch" if axes is panels[-1] else "", y=label)
        if factor == 1 and min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
            plain_log(axes.yaxis)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(drawn) > 1:
            legend(axes, dark)


def image_grid(rows: Sequence[tuple[Array, Array, Array]], dark: bool = False) -> bytes:
    """Return rows of (original, masked, reconstructed), each (H, W, 3), (H, W, 1) or (H, W) in 0..1."""
    if not rows:
        raise InternalError("no images", expected="at least one row", fix="report this as a bug")
    groups = 2 if len(rows) >= 4 else 1  # two sets side by side keep the figure wide rather than endless
    lines = math.ceil(len(rows) / groups)
    sheet = figure(3.2 * groups, 1.06 * lines + 0.22, dark)
    layout: Any = sheet.get_layout_engine()
    layout.set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    ink = theme(dark)[0]["ink"]
    # One narrow empty column between two groups.
    widths = [1, 1, 1] + [0.12, 1, 1, 1] * (groups - 1)
    grid = sheet.subplots(lines, len(widths), width_ratios=widths, squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    for i, row in enumerate(rows):
        line, group = i % lines, i // lines
        for j, (name, image) in enumerate(zip(("original", "masked", "reconstructed"), row, strict=True)):
            axes = grid[line, 4 * group + j]
            flat = np.clip(np.asarray(image, np.float64), 0, 1)
            flat = flat[..., 0] if flat.ndim == 3 and flat.shape[2] == 1 else flat
            axes.imshow(flat, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if line == 0:
                axes.set_title(name, color=ink, fontsize=9)
    return png(sheet)


def per_class(report: Report, dark: bool = False) -> bytes | None:
    """Return for each class its accuracy in the float student and in what ships, or None without both."""
    before = next((stage for stage in report.stages if stage.stage == "student"), None)
    after = next(reversed(shipped_stages(report.stages, report.engines)), None)
    if before is None or after is None or before is after or not before.per_class or not after.per_class:
        return None
    names = sorted(set(before.per_class) & set(after.per_class), key=lambda k: (before.per_class[k], k))
    colors, hues = theme(dark)
    sheet = figure(5.2, 1.0 + 0.3 * len(names), dark)
    axes = sheet.add_subplot()
    for y, name in enumerate(names):
        old, new = 100 * before.per_class[name], 100 * after.per_class[name]
        hue = hues[1] if new < old else hues[0] if new > old else colors["soft"]
        axes.plot([old, new], [y, y], color=hue, linewidth=3, alpha=0.6, solid_capstyle="butt")
        axes.plot(old, y, "o", markersize=7, markerfacecolor=colors["page"], color=colors["soft"], markeredgewidth=1.6)
        axes.plot(new, y, "<" if new < old else ">" if new > old else "o", markersize=7.5, color=hue)
    axes.set_yticks(range(len(names)), [_short(name) for name in names], parse_math=False)
    axes.set_ylim(-0.7, len(names) - 0.3)
    style(axes, dark, x="correct (% of the class): hollow = float student, filled = " + after.stage, y="")
    return png(sheet)


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def reliability(panels: Sequence[tuple[str, Array, Array]], dark: bool = False) -> bytes:
    """Return reliability diagrams (Guo et al. 2017, figure 1) of (name, logits (N, K), labels (N,)) panels."""
    colors, hues = theme(dark)
    sheet = figure(3.1 * len(panels), 3.4, dark)
    bins = 15
    middle = (np.arange(bins) + 0.5) / bins
    for i, (name, logits, labels) in enumerate(panels):
        count, confidence, accuracy = calibration_bins(logits, labels, bins)
        used = count > 0
        axes = sheet.add_subplot(1, len(panels), i + 1)
        # A bin's strength is its share of the images: a bar of three images must not look like a finding.
        alpha = 0.25 + 0.75 * count / count.max()
        for x, height, a in zip(middle[used], accuracy[used], alpha[used], strict=True):
            axes.bar(x, height, 0.9 / bins, color=hues[0], alpha=float(a))
        axes.plot([0, 1], [0, 1], "--", color=colors["soft"], linewidth=1.2)
        axes.plot(confidence[used], accuracy[used], "o", color=hues[1], markersize=4)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
        title = f"{name}: ECE {percent(ece(logits, labels, bins))}, n = {len(labels)}"
        axes.set_title(title, color=colors["ink"], fontsize=10, loc="left", parse_math=False)
        style(axes, dark, x="confidence", y="accuracy" if i == 0 else "")
    return png(sheet)
