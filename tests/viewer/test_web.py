"""The page: for this machine alone, never old, nothing left behind, and a browser shows it without asking elsewhere."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgemae.spec.errors import InputError
from edgemae.viewer import web as room
from edgemae.viewer.live_stats import StatsCollector
from edgemae.viewer.web import MOST_BROWSERS, Web
from tests.support.browser import CHROMIUM, QUIET, strangers, watched
from tests.viewer import samples
from tests.viewer.samples import clip, seen

MAGENTA = (200, 0, 200)


@pytest.fixture
def stats(tmp_path: Path) -> Iterator[StatsCollector]:
    results, found = samples.watched(clip(tmp_path / "clip.avi", 60, fps=1), realtime=True)
    with results:  # which stays live for a minute
        found.note(next(results))
        yield found


@pytest.fixture
def web(stats: StatsCollector) -> Iterator[Web]:
    with Web(0, stats) as view:
        yield view


def image(value: int = 0) -> np.ndarray:
    frame = np.full((360, 480, 3), MAGENTA, np.uint8)
    frame[:60, 240:] = value
    return frame


@contextmanager
def asked(web: Web, path: str, host: str | None = None) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", web._server.server_port, timeout=10)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    response = connection.getresponse()
    try:
        yield response
    finally:
        response.close()
        connection.close()


def next_jpeg(response: http.client.HTTPResponse) -> np.ndarray:
    assert response.readline() == b"--frame\r\n"
    assert response.readline() == b"Content-Type: image/jpeg\r\n"
    size = int(response.readline().split(b":")[1])
    assert response.readline() == b"\r\n"
    data = response.read(size)
    assert response.readline() == b"\r\n"
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_the_page_may_load_nothing_but_itself(web: Web) -> None:
    with asked(web, "/") as response:
        text, policy = response.read().decode(), response.headers["Content-Security-Policy"]
    assert response.status == 200
    assert policy.startswith("default-src 'none'; script-src 'nonce-")
    assert f'nonce="{web._nonce}"' in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert "innerHTML" not in text  # labels are text, whatever they hold
    with asked(web, "/stats.json") as response:
        row = json.loads(response.read())
    assert row["title"] == "shapes · openvino int8"
    assert row["answer"][0] == ["<b>Müller</b>", 0.75]
    assert row["summaries"]["age"] is None  # of one result
    with asked(web, "/nothing") as response:
        assert response.status == 404


@pytest.mark.parametrize(
    ("host", "status"), [("evil.test", 403), ("evil.test:80", 403), ("localhost:1", 200), ("127.0.0.1", 200), ("", 403)]
)
def test_only_this_machine_by_its_own_name(web: Web, host: str, status: int) -> None:
    """A page of somebody else can point a name of its own here; its requests carry that name."""
    assert web._server.server_address[0] == "127.0.0.1"
    with asked(web, "/stats.json", host) as response:
        assert response.status == status


@pytest.mark.parametrize(
    ("site", "status"), [("same-origin", 200), ("none", 200), ("cross-site", 403), ("same-site", 403)]
)
def test_a_page_of_somebody_else_cannot_show_it(web: Web, site: str, status: int) -> None:
    """Nor take the places of those who watch: an <img> of a foreign page names its site, and reads no image."""
    for path in ("/", "/stats.json", "/live.mjpg"):
        connection = http.client.HTTPConnection("127.0.0.1", web._server.server_port, timeout=10)
        connection.request("GET", path, headers={"Sec-Fetch-Site": site})
        response = connection.getresponse()
        assert response.status == status, path
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        connection.close()


def test_a_browser_that_sends_a_byte_a_second_does_not_hold_up_the_end(stats: StatsCollector) -> None:
    with Web(0, stats) as web:
        slow = [socket.create_connection(("127.0.0.1", web._server.server_port)) for _ in range(3)]
        for connection in slow:
            connection.sendall(b"GET / HTTP/1.1\r\nHo")
        time.sleep(0.3)
        start = time.monotonic()
    assert time.monotonic() - start < 2.0
    for connection in slow:
        connection.close()


LAG = 60


def test_a_browser_that_lags_gets_the_newest_image(web: Web) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (360, 480, 3), np.uint8)
    web.show(seen(image(0)))
    with asked(web, "/live.mjpg") as response:
        assert response.headers["Content-Type"].startswith("multipart/x-mixed-replace")
        assert next_jpeg(response)[20, 400].max() < 40
        for number in range(LAG):
            web.show(seen(noise if number < LAG - 1 else image(230)))
        count = 1
        while next_jpeg(response)[10:50, 300:460].std() > 20:  # noise
            count += 1
        assert count < LAG


def test_the_ninth_browser_is_told_so_and_nothing_is_encoded_for_nobody(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.overlay, "draw", lambda *_: pytest.fail("encoded for nobody"))
    web.show(seen(image()))
    web._watching = MOST_BROWSERS
    with asked(web, "/live.mjpg") as response:
        assert response.status == 503
    web._watching = 0


def test_browsers_that_left_give_their_place_back_though_no_image_comes(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LOOK_S", 0.05)
    web.show(seen(image()))
    for _ in range(MOST_BROWSERS):
        with asked(web, "/live.mjpg") as response:
            next_jpeg(response)
    end = time.monotonic() + 10
    while web._watching and time.monotonic() < end:
        time.sleep(0.02)
    assert web._watching == 0
    with asked(web, "/live.mjpg") as response:
        next_jpeg(response)
        time.sleep(0.3)
        assert web._watching == 1  # who waits is not sent away


def test_closing_leaves_no_thread_though_browsers_watch_or_sleep(stats: StatsCollector) -> None:
    before = set(threading.enumerate())
    silent = socket.socket()
    with Web(0, stats) as web:
        web.show(seen(image()))
        silent.connect(("127.0.0.1", web._server.server_port))  # says nothing
        with asked(web, "/live.mjpg") as response:
            next_jpeg(response)
            start = time.monotonic()
            web.__exit__()
        assert time.monotonic() - start < 20
        assert set(threading.enumerate()) == before
    silent.close()


def test_a_port_that_is_taken_is_named(web: Web, stats: StatsCollector) -> None:
    port = web._server.server_port
    with pytest.raises(InputError, match=rf"{port} .*127\.0\.0\.1"):
        Web(port, stats)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; continuous integration installs it")
def test_a_browser_shows_it_all_and_asks_nobody_else(web: Web, stats: StatsCollector, tmp_path: Path) -> None:
    over = threading.Event()

    def run() -> None:
        number = 0
        while not over.wait(0.05):
            number += 1
            item = seen(image(), number)
            stats.note(item)
            web.show(item)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with watched("") as (proxy, outside):  # loopback goes past the proxy, everything else through it
            command = [
                str(CHROMIUM), *QUIET, f"--proxy-server={proxy}", f"--user-data-dir={tmp_path / 'user'}",
                "--window-size=1100,1100", "--virtual-time-budget=3000", f"--screenshot={tmp_path / 'page.png'}",
                web.url,
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True, timeout=120)
    finally:
        over.set()
        thread.join()
    assert not strangers(outside)
    shot = cv2.imread(str(tmp_path / "page.png"))
    assert shot is not None

    def near(colour: tuple[int, int, int]) -> int:
        return int((np.abs(shot.astype(int) - colour).max(axis=2) < 12).sum())

    assert near(MAGENTA) > 50_000  # the live image
    assert near((178, 114, 0)) > 1_500  # bars of the answer and the line of ages, in #0072b2
    assert near((234, 243, 220)) > 1_000  # "live", on the green of #dcf3ea
