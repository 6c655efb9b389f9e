"""A stream on a terminal: what it sees, how fresh and how fast, and what went wrong, redrawn in place."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from edgemae.device.model import Result
from edgemae.device.stream_result import StreamResult
from edgemae.terminal.console import PrintableConsole
from edgemae.viewer.live_stats import AT_LEAST, ROWS, LiveStats, StatsCollector

REDRAWS_PER_S = 4
BAR, GRAPH = 28, 60  # columns
LEVELS = "▁▂▃▄▅▆▇█"
ROW_NAMES = {"age": "age of a result", "pre": "preprocess", "infer": "inference", "post": "postprocess"}
COLOURS = {"live": "green", "ended": "blue", "closed": "blue", "failed": "red"}  # any other state: yellow


class Terminal:
    """Redraw the figures four times a second, from a thread of its own: also while no frame comes."""

    def __init__(self, stats: StatsCollector, console: Console | None = None) -> None:
        self._stats = stats
        self._console = console or PrintableConsole()
        self._live = Live(
            get_renderable=lambda: render(stats.now()), console=self._console, refresh_per_second=REDRAWS_PER_S,
            redirect_stdout=False,
        )  # fmt: skip
        self._handlers: list[logging.StreamHandler] = []

    def show(self, seen: StreamResult[Result]) -> bool:
        return True

    def __enter__(self) -> Terminal:
        self._live.start(refresh=True)
        # Log lines go above the panel instead of through it. rich has put itself in the place of sys.stderr.
        if self._console.is_terminal:
            found = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
            self._handlers = [
                h for h in found if sys.__stderr__ and stream_of(h) is sys.__stderr__ and sys.__stderr__.isatty()
            ]
        self._send_to(sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._send_to(sys.stderr)

    def _send_to(self, stream: object) -> None:
        for handler in self._handlers:
            handler.setStream(stream)


def stream_of(handler: logging.StreamHandler) -> object:
    """Return where a handler writes in the end."""
    return getattr(handler.stream, "rich_proxied_file", handler.stream)


def render(stats: LiveStats) -> RenderableType:
    """Return the panel of one moment."""
    colour = COLOURS.get(stats.state, "yellow")
    state = Text.assemble(("● ", colour), (stats.state, f"bold {colour}"))
    head = Table.grid(expand=True)
    head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    head.add_column(justify="right", no_wrap=True)
    minutes, seconds = divmod(int(stats.seconds), 60)
    head.add_row(Text.assemble((stats.source, "bold"), (f"  {stats.policy}  {minutes}:{seconds:02d}", "dim")), state)
    parts: Sequence[RenderableType] = (
        head, Text(), _prediction(stats), Text(), _table(stats), Text(), _graph(stats), Text(), _counts(stats),
    )  # fmt: skip
    return Panel(
        Group(*parts), title=Text(stats.title, "bold"), title_align="left", subtitle=Text("Ctrl-C ends", "dim"),
        subtitle_align="right", padding=(1, 2), border_style="dim", width=88,
    )  # fmt: skip


def _prediction(stats: LiveStats) -> RenderableType:
    if not stats.answer:
        return Text("no answer yet" if not stats.frame else "an embedding: this model has no labels", "dim")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, max_width=24, overflow="ellipsis")
    table.add_column(width=BAR)
    table.add_column(justify="right", width=7)
    for i, (label, share) in enumerate(stats.answer):
        filled = round(share * BAR)
        style = "bold cyan" if i == 0 else "dim"
        bar = Text.assemble(("━" * filled, style), ("━" * (BAR - filled), "grey23"))
        table.add_row(Text(label, style), bar, Text(f"{100 * share:.1f} %", style))
    return table


def _table(stats: LiveStats) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(Text(f"{stats.fps:.1f} results/s", "bold"), no_wrap=True)
    for name in AT_LEAST:
        table.add_column(Text(name, "dim"), justify="right", width=16)
    for row in ROWS:
        style = "bold" if row == "age" else ""
        cells = (_cell(stats.percentile(row, name), least) for name, least in AT_LEAST.items())
        table.add_row(Text(ROW_NAMES[row], style), *cells, style=style)
    return table


def _cell(ms: float | None, least: int) -> Text:
    return Text(f"needs {least}", "dim not bold") if ms is None else Text(f"{ms:.1f} ms")


def _graph(stats: LiveStats) -> RenderableType:
    ages = stats.ages_ms[-GRAPH:]
    if not ages:
        return Text("age  –", "dim")
    top = max(ages) or 1.0
    blocks = "".join(LEVELS[min(int(age / top * len(LEVELS)), len(LEVELS) - 1)] for age in ages)
    return Text.assemble(("age  ", "dim"), (blocks, "cyan"), (f"  up to {top:.0f} ms", "dim"))


def _counts(stats: LiveStats) -> RenderableType:
    parts: list[tuple[str, str]] = []
    for name, count in stats.counts.items():
        parts += [
            (f"{count:,}", "bold" if name in ("captured", "seen", "dropped") else "yellow bold"),
            (f" {name}   ", "dim"),
        ]
    return Text.assemble(*parts)
