"""The look of every plot: pages, inks, axes and PNG bytes, light and dark. Imports matplotlib only when it draws."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 200  # a 6 inch plot stays sharp on a phone and in print
_LIGHT = {"page": "#ffffff", "ink": "#1f2430", "soft": "#5b6472", "grid": "#e3e6eb"}
_DARK = {"page": "#171b22", "ink": "#e8eaee", "soft": "#a3abb8", "grid": "#2f3642"}
# Blue, vermilion, green, purple, orange; the dark set is the same hues, lighter: all reach 3:1 against their page.
_LIGHT_COLORS = ("#0072b2", "#d55e00", "#007f5f", "#a8548a", "#8a6d00")
_DARK_COLORS = ("#56b4e9", "#ff8a3d", "#2fc79a", "#e39bc6", "#f0c84b")


def theme(dark: bool) -> tuple[dict[str, str], tuple[str, ...]]:
    return (_DARK, _DARK_COLORS) if dark else (_LIGHT, _LIGHT_COLORS)


def figure(width_in: float, height_in: float, dark: bool) -> Figure:
    """Return an empty figure that lives outside of pyplot: no global state, no window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(width_in, height_in), dpi=_DPI, facecolor=theme(dark)[0]["page"], layout="constrained")
    FigureCanvasAgg(sheet)
    return sheet


def png(sheet: Figure) -> bytes:
    """Return the figure as PNG bytes, the same for the same figure."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A class name may be in a script that the bundled font lacks: it shows as boxes, and in full in the tables.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        sheet.savefig(buffer, format="png", facecolor=sheet.get_facecolor(), metadata={"Software": None})
    return buffer.getvalue()


def style(axes: Axes, dark: bool, *, x: str, y: str, grid: Literal["both", "x", "y"] = "y") -> None:
    """Draw quiet axes: labels with units, thin grid, no box."""
    colors = theme(dark)[0]
    axes.set_facecolor(colors["page"])
    axes.set_xlabel(x, color=colors["ink"], fontsize=10)
    axes.set_ylabel(y, color=colors["ink"], fontsize=10)
    axes.tick_params(colors=colors["soft"], labelsize=9, length=0)
    axes.grid(True, axis=grid, color=colors["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colors["soft"])


def legend(axes: Axes, dark: bool, **place: Any) -> None:
    axes.legend(frameon=False, fontsize=9, labelcolor=theme(dark)[0]["ink"], **place)


def plain_log(axis: Any) -> None:
    """Write 0.5, 1, 2 on a logarithmic axis, not powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
