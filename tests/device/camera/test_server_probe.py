"""What a server says of itself, asked by the probe."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable

import pytest

from edgemae.device.camera import server_probe
from tests.support.stream_servers import MjpegServer, RtspServer, Server

SERVERS = [RtspServer, MjpegServer]


@pytest.mark.parametrize("kind", ["basic", "digest"])
@pytest.mark.parametrize("make", SERVERS)
def test_a_login_is_tried_and_a_wrong_one_told(make: Callable[..., Server], kind: str) -> None:
    with make(login=(kind, "me", "s3cret")) as server:
        assert server_probe.ask(server.url).kind == "codec"  # let in, and it offers a stream
        assert server_probe.ask(server.url.replace("s3cret", "wrong")).kind == "auth"
        assert server_probe.ask(server.url.replace("me:s3cret@", "")).kind == "auth"
        assert server_probe.ask(server.url.replace("/live", "/nope")).kind == "not-found"


@pytest.mark.parametrize("make", SERVERS)
def test_other_answers(make: Callable[..., Server]) -> None:
    with make() as server:
        for status, kind in ((403, "auth"), (404, "not-found"), (410, "not-found"), (500, "other"), (503, "other")):
            server.status = status
            assert server_probe.ask(server.url).kind == kind
        server.status = 0
        assert server_probe.check_port(server.url).kind == ""
        address = server.url
        server.freeze(deaf=True)
        start = time.monotonic()
        assert server_probe.ask(address, 0.2).kind == "timeout"
        assert time.monotonic() - start < 5
    assert server_probe.ask(address).kind == server_probe.check_port(address).kind == "refused"


def answer_once(text: bytes) -> str:
    """Return the port of a server that answers every connection with the same bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(text)

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("scheme", "text", "kind"),
    [
        ("rtsp", b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>", "codec"),
        ("rtsp", b"SSH-2.0-OpenSSH_9\r\n\r\n", "unreachable"),
        ("http", b"", "unreachable"),
        ("http", b"\xff" * 40_000, "unreachable"),
        ("rtsps", b"no TLS here\r\n\r\n", "tls"),
        ("https", b"no TLS here\r\n\r\n", "tls"),
    ],
)
def test_strange_answers(scheme: str, text: bytes, kind: str) -> None:
    found = server_probe.ask(f"{scheme}://me:s3cret@{answer_once(text)}/live")
    assert found.kind == kind
    assert "s3cret" not in found.message


@pytest.mark.parametrize("url", ["rtsp:///live", "http://me:pw@/x", "rtsp://host:99999/x"])
def test_an_address_of_nothing(url: str) -> None:
    assert server_probe.ask(url).kind in ("unreachable", "timeout")


def test_a_name_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> socket.socket:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    assert server_probe.ask("rtsp://camera.lan/x") == ("unreachable", "the name of the host is not known")


def test_the_digest_of_the_rfc() -> None:
    """RFC 2617, 3.5, with the one nonce count that is used here."""
    parts = server_probe.urlsplit("http://Mufasa:Circle%20Of%20Life@www.nowhere.org/dir/index.html")
    challenge = 'Digest realm="testrealm@host.com", qop="auth,auth-int", nonce="dcd98b", opaque="5ccc"'
    header = server_probe._login(parts, challenge)

    def digest(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    secret, action = digest("Mufasa:testrealm@host.com:Circle Of Life"), digest("GET:/dir/index.html")
    cnonce = re.search(r'cnonce="(\w+)"', header)
    assert cnonce is not None
    expected = digest(f"{secret}:dcd98b:00000001:{cnonce[1]}:auth:{action}")
    assert f'response="{expected}"' in header
    assert 'opaque="5ccc"' in header
    assert "algorithm=SHA-256" in server_probe._login(parts, 'Digest realm="x", nonce="y", algorithm=SHA-256')
    assert server_probe._login(parts, 'Digest realm="x", nonce="y", algorithm=ROT13') == ""
    assert server_probe._login(parts, "Negotiate") == ""
