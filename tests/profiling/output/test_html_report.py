"""The page of a profile: everything that was measured is on it, it asks the network for nothing, a browser draws it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from edgemae.profiling.output.html_report import page
from edgemae.profiling.output.svg import Chart, spread, ticks
from edgemae.profiling.records import Series
from edgemae.profiling.timing.interference import Interference
from tests.support.browser import CHROMIUM, QUIET, strangers, watched
from tests.support.profiles import full_profile

QUIET_WINDOW = Interference(
    verdict="TRUSTED", reasons=(), clean_fraction=1.0, switched_runs=0, slow_canaries=0, others_share=None,
    steal_share=None, spread=0.0, window_s=3.0,
)  # fmt: skip


def test_everything_measured_is_on_the_page() -> None:
    text = page(full_profile())
    for message in (
        "cam &amp; co", "others used 8% &lt;of&gt; the processors", 'class="verdict NOISY"', "p99&lt;33ms", "missed",
        "needs 5296 runs", "61.5 mJ", "package-0", "4.2 W at rest", "not throttled", "nvpmodel 2",
        "0.8 %", "2 %", "24.8 frames/s", "9.1 ms", "of the runs clean", "40 switched out",
        "median of the clean ones 4.980 ms", "Not on this machine: cpu pressure (PSI)",
        "What the machine did meanwhile", "others on the processors",
        "91% of a watched inference", "torch eager 2.13.0 fp32", "first inference",
        "Not on this machine: ina3221", "no slowing of more than 2 % shown",
        "1.200 times as fast as student", "int8 78 GMAC/s", "blocks.0.mlp.fc1", "0.8 %", "A processor",
        "How long calls take", "When it was disturbed", "Where a call spends its time", "Layer by layer",
    ):  # fmt: skip
        assert message in text, message
    assert text.count("<svg") == 7


def test_nothing_on_the_page_names_another_place() -> None:
    text = page(full_profile())
    assert not re.findall(r"https?://|//[\w.]+\.\w|@import|url\(|<script|<link|<img|<iframe|srcset|\bon\w+=", text)
    assert "http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"" in text


def test_what_was_not_measured_leaves_no_hole() -> None:
    bare = msgspec.structs.replace(
        full_profile(), start=None, throughput=None, camera=None, early_stopping=(), slo=(), baseline=None, layers=None,
        power=None, soak=None, series=Series(), stages={}, interference=QUIET_WINDOW,
    )  # fmt: skip
    text = page(bare)
    assert "<svg" not in text
    assert "None" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)
    assert list(re.findall(r"<h2>(.*?)</h2>", text)) == ["Evidence", "Machine"]


@pytest.mark.parametrize("verdict", ["TRUSTED", "NOISY", "INVALID"])
def test_the_verdict_is_the_first_thing_said(verdict: str) -> None:
    text = page(full_profile(verdict=verdict))
    assert text.index(f">{verdict}<") < text.index('class="tiles"')


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0.0, 6.0, False, [0, 1, 2, 3, 4, 5, 6]),
        (4.6, 10.1, False, [5, 6, 7, 8, 9, 10]),
        (0.98, 1.02, False, [0.98, 0.99, 1.0, 1.01, 1.02]),
        (0.5, 60.0, True, [0.5, 1, 2, 5, 10, 20, 50]),
        (0.001, 1000.0, True, [0.001, 0.01, 0.1, 1, 10, 100, 1000]),
    ],
)
def test_ticks_are_round(low: float, high: float, log: bool, expected: list[float]) -> None:
    assert ticks(low, high, log) == pytest.approx(expected)


def test_points_lie_where_their_values_say() -> None:
    chart = Chart("a chart", (0.0, 10.0), (0.0, 4.0), "x", "y")
    (left, low), (right, high), (middle, _) = chart.at(0, 0), chart.at(10, 4), chart.at(5, 0)
    assert left < middle < right
    assert middle == pytest.approx((left + right) / 2)
    assert high < low  # pictures count downwards
    assert chart.at(99, 0)[0] == right  # what lies outside stays at the edge
    low_ms, high_ms = spread([1.0] * 999 + [500.0])
    assert low_ms < 1.0 < high_ms < 2.0


# ---------------------------------------------------------------- in a browser


def drawn(text: str, folder: Path) -> tuple[np.ndarray, set[str]]:
    """Return a browser's picture of a page, and the hosts that it asked besides the page's and its own errands'."""
    assert CHROMIUM is not None
    with watched(text) as (proxy, asked):
        command = [
            CHROMIUM, *QUIET, f"--proxy-server={proxy}", f"--user-data-dir={folder / 'user'}",
            "--window-size=1100,4400", f"--screenshot={folder / 'page.png'}", "http://page.test/profile.html",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    picture = cv2.imread(str(folder / "page.png"))
    assert picture is not None
    return picture, strangers(asked)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; continuous integration installs it")
def test_a_browser_draws_it_and_asks_for_nothing(tmp_path: Path) -> None:
    picture, asked = drawn(page(full_profile()), tmp_path)
    assert not asked
    assert picture.shape[:2] == (4400, 1100)
    blue = (np.abs(picture.astype(int) - (178, 114, 0)).max(axis=2) < 6).sum()
    assert blue > 20_000  # bars, dots and stages in #0072b2
    assert (picture[:400] < 100).any()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; continuous integration installs it")
def test_a_page_that_asks_would_be_caught(tmp_path: Path) -> None:
    leaky = (
        "<html><head><link rel='stylesheet' href='http://fonts.googleapis.com/css?family=Inter'></head>"
        "<body><img src='http://elsewhere.test/pixel.png'><img src='https://safe.test/pixel.png'></body></html>"
    )
    assert drawn(leaky, tmp_path)[1] == {"fonts.googleapis.com", "elsewhere.test", "safe.test"}
