"""The terminal shows it all, within its width, and is left as it was."""

from __future__ import annotations

import io

from rich.console import Console

from edgemae.viewer.live_stats import StatsCollector
from edgemae.viewer.terminal import Terminal
from tests.viewer.samples import IMAGE, seen, text


def test_everything_is_on_the_terminal(stats: StatsCollector) -> None:
    assert "no answer yet" in text(stats)
    for i in range(9):
        stats.note(seen(IMAGE, i))
    output = text(stats)
    for word in (
        "shapes · openvino int8", "clip.avi", "every", "Müller", "75.0 %", "circle", "3 captured", "3 seen",
        "0 dropped", "inference", "age of a result", "Ctrl-C ends", "needs 44",
    ):  # fmt: skip
        assert word in output, word
    assert "withheld" not in output  # what did not happen takes no room
    stats.note(seen(IMAGE, topk=[]))
    assert "an embedding" in text(stats)
    assert all(len(line) <= 40 for line in text(stats, 40).splitlines())


def test_a_terminal_is_redrawn_and_left_as_it_was(stats: StatsCollector) -> None:
    out = io.StringIO()
    with Terminal(stats, Console(file=out, force_terminal=True, width=90)) as view:
        stats.note(seen(IMAGE))
        assert view.show(seen(IMAGE))
    output = out.getvalue()
    assert "Müller" in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")  # the cursor is back
