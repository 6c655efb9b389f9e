"""A browser without a window, and a proxy that sees everything it asks for."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OWN_ERRANDS = {  # hosts that a browser asks whatever the page is: its updates, its clock, its account
    f"{host}.{domain}" for domain in ("google.com", "googleapis.com")
    for host in ("accounts", "android.clients", "clients1", "clients2", "clients4", "content-autofill", "mtalk",
                 "optimizationguide-pa", "safebrowsing", "update", "www")
}  # fmt: skip
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
)  # fmt: skip


def strangers(asked: list[str]) -> set[str]:
    """Return the hosts that a browser asked besides the page's and those of its own errands."""
    hosts = {path.partition("://")[2].partition("/")[0] or path.rpartition(":")[0] for path in asked}
    return hosts - {"page.test"} - OWN_ERRANDS


@contextmanager
def watched(text: str) -> Iterator[tuple[str, list[str]]]:
    """Serve a page through a proxy that sees everything a browser asks for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = text.encode() if self.path.startswith("http://page.test/profile") else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_CONNECT(self) -> None:
            asked.append(self.path)
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
