"""The examination as a table for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from edgemae.doctor.finding import Finding, combined_state

if TYPE_CHECKING:
    from rich.console import RenderableType

MARKS = {"green": "✓", "yellow": "!", "red": "✗", "grey": "·"}
PLAIN = {"green": "+", "yellow": "!", "red": "X", "grey": "-"}  # where the terminal knows no more than ASCII
STYLES = {"green": "green", "yellow": "yellow", "red": "bold red", "grey": "dim"}
NAME_CHARS = 36  # of an address or a path: its end says most
VERDICTS = {"green": "Everything is in order.", "yellow": "It runs; {yellow} to look at.",
            "red": "{red} in the way: mend the red ones first.", "grey": "Nothing was looked at."}  # fmt: skip


def table(findings: Sequence[Finding]) -> RenderableType:
    """Return the page: one line a finding, its fix below where there is one, and a last line that sums up."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    unicode = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
    marks, arrow = (MARKS, "→") if unicode else (PLAIN, ">")
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(min_width=12, no_wrap=True)
    grid.add_column(ratio=1, overflow="fold")
    for area, rows in groupby(findings, key=lambda finding: finding.area):
        grid.add_row("", Text(area, style="bold"), "")
        for row in rows:
            style = STYLES[row.state]
            quiet = style if row.state == "grey" else ""
            grid.add_row(Text(f"  {marks[row.state]}", style=style), Text(_short(row.name), style=quiet),
                         Text(row.found, style=style if row.state == "red" else quiet))  # fmt: skip
            if row.fix:
                grid.add_row("", "", Text(f"{arrow} {row.fix}", style="dim" if row.state == "grey" else "cyan"))
    return Group(grid, "", Text(sum_up(findings), style=STYLES[combined_state(findings)]))


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARS else f"…{name[1 - NAME_CHARS :]}"


def sum_up(findings: Sequence[Finding]) -> str:
    """Return one sentence on all findings."""
    counts = {state: sum(f.state == state for f in findings) for state in ("red", "yellow")}
    words = {state: f"{n} thing{'s' * (n != 1)}" for state, n in counts.items()}
    return VERDICTS[combined_state(findings)].format(**words)
