"""Tables and bars of text that others wrote: printable, and not a markup of rich."""

from __future__ import annotations

import io

import pytest
from rich.table import Table
from rich.text import Text

from edgemae.terminal.console import PrintableConsole


@pytest.mark.parametrize("colour", [False, True])
def test_labels_of_strangers_are_text(colour: bool) -> None:
    file = io.StringIO()
    console = PrintableConsole(file=file, force_terminal=colour, color_system="truecolor" if colour else None, width=80)
    table = Table(title="[link=x]title\x9d[/]")
    table.add_column("a\x1b]0;owned\x07")
    table.add_row(Text("[red]\u202ered\x9b31m", style="bold"))
    table.add_row("[blink]:smile:\x1b[2J")
    console.print(table)
    console.print("[red]\x1b[31m")
    text = file.getvalue()
    assert all(shown in text for shown in (r"a\x1b]0;owned\x07", r"[red]\u202ered", r"[blink]:smile:\x1b[2J"))
    assert r"[link=x]title\x9d[/]" in text
    assert not {"\x07", "\u202e", "\x9b"} & set(text)
    assert ("\x1b" in text) == colour  # rich's own colours
