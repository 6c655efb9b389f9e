"""A page on this machine alone: the live image, the answer, how fresh and how fast, and what went wrong.

It listens on the loopback address only; from elsewhere, `ssh -L 8765:127.0.0.1:8765 device` brings it over. Requests
that name another host are refused, so that no page of somebody else can reach it through a name of its own.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import select
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseServer
from typing import Any

import cv2
import msgspec

from edgemae.device.model import Result
from edgemae.device.stream_result import StreamResult
from edgemae.profiling.output.html_report import STYLE
from edgemae.spec.errors import InputError
from edgemae.viewer import overlay
from edgemae.viewer.live_stats import AT_LEAST, StatsCollector

log = logging.getLogger(__name__)
ADDRESS = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")
QUALITY = 80
TIMEOUT_S = 2.0  # of a browser that has stopped reading
LOOK_S = 1.0  # how often a browser that waits is looked after
MOST_BROWSERS = 8  # each has a thread of its own
BOUNDARY = b"frame"


class Web:
    """Serve the newest result to every browser at its own speed; nothing is encoded while none is watching."""

    def __init__(self, port: int, stats: StatsCollector) -> None:
        self._stats, self._nonce = stats, secrets.token_urlsafe(16)
        self._changed, self._encoding = threading.Condition(), threading.Lock()
        self._seen: StreamResult[Result] | None = None
        self._number, self._encoded = 0, (0, b"")
        self._watching, self.closed = 0, False
        try:
            self._server = _Server((ADDRESS, port), self)
        except OSError as error:
            raise InputError(
                f"port {port} of {ADDRESS} cannot be used: {error.strerror}",
                expected="a port that is free, or 0 for any",
                fix="pass another --port",
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="edgemae-web", daemon=True)

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self._server.server_port}/"

    def show(self, seen: StreamResult[Result]) -> bool:
        with self._changed:
            self._seen, self._number = seen, self._number + 1
            self._changed.notify_all()
        return True

    def __enter__(self) -> Web:
        self._thread.start()
        sys.stderr.write(f"watch at {self.url}\n")
        sys.stderr.flush()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.hang_up()
        self._server.server_close()  # waits for the browsers' threads, which see `closed`
        self._thread.join()

    # From here on: the browsers' threads.

    def page(self) -> bytes:
        words = {
            "{style}": STYLE.read_text(),
            "{nonce}": self._nonce,
            "{least}": msgspec.json.encode(AT_LEAST).decode(),
        }
        text = PAGE.read_text()
        for word, value in words.items():
            text = text.replace(word, value)
        return text.encode()

    def policy(self) -> str:
        """Return what the page may load: its own image and figures, nothing else."""
        own = f"script-src 'nonce-{self._nonce}'; style-src 'unsafe-inline'; img-src 'self'; connect-src 'self'"
        return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

    def stats_json(self) -> bytes:
        return msgspec.json.encode(self._stats.now())

    def enter(self) -> bool:
        """Take one of the places for those who watch; False when all are taken."""
        with self._changed:
            if self._watching == MOST_BROWSERS:
                return False
            self._watching += 1
            return True

    def leave(self) -> None:
        with self._changed:
            self._watching -= 1

    def next_jpeg(self, after: int, is_gone: Callable[[], bool]) -> tuple[int, bytes] | None:
        """Wait for an image newer than number `after`; return its number and it as JPEG.

        None at the end, or when the browser `is_gone`: while the source is away no write would tell.
        """
        with self._changed:
            while not (self.closed or self._number > after):
                if not self._changed.wait(LOOK_S) and is_gone():
                    return None
            number, seen = self._number, self._seen
            if self.closed or seen is None:
                return None
        with self._encoding:  # the first browser encodes for all; the stream does not wait for it
            if self._encoded[0] < number:
                image = overlay.draw(seen, self._stats.fps)
                data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
                self._encoded = (number, data.tobytes())
            return self._encoded


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # or closing would not wait for them
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], web: Web) -> None:
        self.web = web
        self._browsers: set[socket.socket] = set()
        super().__init__(address, _Browser)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._browsers.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._browsers.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End all connections: one that sends a byte a second would keep its thread, and us, for hours."""
        for browser in list(self._browsers):
            with contextlib.suppress(OSError):  # it is gone already
                browser.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a browser went away: %s", sys.exc_info()[1])


class _Browser(BaseHTTPRequestHandler):
    """Answer one request."""

    timeout = TIMEOUT_S
    server: BaseServer

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        web, path = self.server.web, self.path.partition("?")[0]
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in (ADDRESS, "localhost"):
            self.send_error(403, "only for this machine")
        elif self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):  # a page of somebody else
            self.send_error(403, "only for its own page")
        elif path == "/":
            self._send(web.page(), "text/html; charset=utf-8")
        elif path == "/stats.json":
            self._send(web.stats_json(), "application/json")
        elif path == "/live.mjpg":
            self._stream(web)
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gave it
        log.debug(format, *args)

    def end_headers(self) -> None:
        assert isinstance(self.server, _Server)
        self.send_header("Content-Security-Policy", self.server.web.policy())
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        super().end_headers()

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _is_gone(self) -> bool:
        """Tell whether the browser has closed its side: it sends nothing after its request."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _stream(self, web: Web) -> None:
        """Send images, always the newest, until the browser or the run ends."""
        if not web.enter():
            self.send_error(503, f"{MOST_BROWSERS} browsers are watching already")
            return
        try:
            self.send_response(200)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY.decode()}")
            self.end_headers()
            number = 0
            while (found := web.next_jpeg(number, self._is_gone)) is not None:
                number, data = found
                head = b"--%s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % (BOUNDARY, len(data))
                self.wfile.write(head + data + b"\r\n")
        finally:
            web.leave()
