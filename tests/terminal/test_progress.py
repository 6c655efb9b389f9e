"""Progress on a terminal and elsewhere, seen from outside as a user or a log file sees it."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edgemae.terminal.progress as module
from edgemae.terminal.progress import Progress, progress

SCRIPT = """
import logging, sys
import edgemae.terminal.progress as module
from edgemae.cli.output import start_logging

start_logging(False)
module.LINE_EVERY_S = 0.0
with module.progress("training", 3) as shown:
    for i in range(3):
        shown.advance(loss=0.5 / (i + 1), data_wait_pct=12.5)
print("a result")
"""


def test_elsewhere_lines_are_plain_and_timed() -> None:
    root = Path(module.__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout == "a result\n"
    lines = ran.stderr.splitlines()
    assert len(lines) == 4
    for k, line in enumerate(lines[:3]):
        assert re.fullmatch(
            rf"\d\d:\d\d:\d\d INFO training {k + 1}/3  loss [\d.]+  data_wait_pct 12.5  \d+ s left", line
        )
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO training done: loss 0.1667  data_wait_pct 12.5 in [\d.]+ s", lines[3])
    assert "\x1b" not in ran.stderr
    assert "\r" not in ran.stderr


def test_on_a_terminal_a_bar_comes_and_goes() -> None:
    root = Path(module.__file__).parents[2]
    ours, theirs = pty.openpty()
    where = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm", "COLUMNS": "120"}
    script = SCRIPT.replace("shown.advance(", "shown._bar.refresh(); shown.advance(")
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=theirs, text=True, cwd=root, env=where
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # Linux: the other side has closed
                break
        assert process.stdout is not None
        assert process.stdout.read() == "a result\n"
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert "training" in text
    assert "2/3" in text
    assert "s left" not in text  # no lines beside the bar
    assert text.rstrip().splitlines()[-1].strip().endswith("s")
    assert "training done: loss 0.1667" in text


def test_lines_are_rare(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "edgemae")
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress("x", 100, done=40) as shown:
        for _ in range(60):
            clock[0] += 1.0
            shown.advance()
    assert [r.message for r in caplog.records] == [
        "x 55/100    45 s left",
        "x 70/100    30 s left",
        "x 85/100    15 s left",
        "x 100/100    0 s left",
        "x done: 100 in 60.0 s",
    ]


def test_the_rate_counts_what_this_process_did(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    shown = Progress("x", 100, done=50)
    clock[0] = 4.0
    shown.advance(8)
    assert shown.rate == 2.0


def test_an_interruption_is_not_called_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgemae")

    def work() -> None:
        with progress("x", 9) as shown:
            shown.advance(loss=2.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(caplog.messages) == 1
    assert re.fullmatch(r"x stopped at 1 of 9: loss 2 in \d\.\d s", caplog.messages[0])
