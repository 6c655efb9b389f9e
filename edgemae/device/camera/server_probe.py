"""Ask a server itself why OpenCV could not open its stream: OpenCV only says that it could not.

One RTSP DESCRIBE or one HTTP GET, with the login of the address. Nothing of the answer's body is used but its kind.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import ssl
import time
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
PROBE_S = 1.0  # for all of it: `close` may wait for it, and has 1.5 s
HEAD_BYTES = 16_384
_HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}


class Answer(NamedTuple):
    """Say what a server answered: `kind` as in SourceError, "" when it offers a stream; `message` in words."""

    kind: str
    message: str


def check_port(url: str, timeout_s: float = 0.5) -> Answer:
    """Return whether the port of an address answers at all: what a new attempt costs while a source is away."""
    try:
        _connect(urlsplit(url), time.monotonic() + timeout_s).close()
    except (OSError, ValueError) as error:
        return _unconnected(error)
    return Answer("", "it answers")


def ask(url: str, timeout_s: float = PROBE_S) -> Answer:
    """Return why a stream cannot be had. Raises nothing."""
    parts, end = urlsplit(url), time.monotonic() + timeout_s
    try:
        with _connect(parts, end) as connection:
            status, headers = _request(connection, parts, end, "")
        login = _login(parts, headers.get("www-authenticate", "")) if status == 401 else ""
        if login:
            with _connect(parts, end) as connection:
                status, headers = _request(connection, parts, end, login)
    except ssl.SSLError as error:
        return Answer("tls", f"TLS failed: {error.reason or error}")
    except (OSError, ValueError) as error:
        return _unconnected(error)
    return _classify(status, headers)


def _classify(status: int, headers: dict[str, str]) -> Answer:
    if status in (401, 403):
        return Answer("auth", f"the server refuses the login ({status})")
    if status in (404, 410, 454):
        return Answer("not-found", f"the server has no such stream ({status})")
    if status != 200:
        return Answer("other", f"the server answers {status}")
    kind = headers.get("content-type", "").split(";")[0]
    if kind.startswith("text/"):
        return Answer("codec", f"the server answers with {kind}, which is no video")
    return Answer("codec", f"the server offers {kind or 'something'} that OpenCV cannot decode")


def _unconnected(error: Exception) -> Answer:
    if isinstance(error, ConnectionRefusedError):
        return Answer("refused", "the connection is refused")
    if isinstance(error, TimeoutError):
        return Answer("timeout", "there is no answer in time")
    if isinstance(error, socket.gaierror):
        return Answer("unreachable", "the name of the host is not known")
    return Answer("unreachable", f"{type(error).__name__}: {error}")


def _connect(parts: SplitResult, end: float) -> socket.socket:
    scheme = parts.scheme.lower()
    if not parts.hostname:
        raise ValueError("the address names no host")
    plain = socket.create_connection((parts.hostname, parts.port or PORTS[scheme]), max(end - time.monotonic(), 0.05))
    if scheme not in ("rtsps", "https"):
        return plain
    # FFmpeg does not check certificates either: a camera has none that anybody signed.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        return context.wrap_socket(plain, server_hostname=parts.hostname)
    except BaseException:
        plain.close()
        raise


def _request(connection: socket.socket, parts: SplitResult, end: float, login: str) -> tuple[int, dict[str, str]]:
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme.lower().startswith("rtsp"):
        text = f"DESCRIBE {_target(parts)} RTSP/1.0\r\nCSeq: {2 if login else 1}\r\nAccept: application/sdp\r\n"
    else:
        text = f"GET {_target(parts)} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n"
    connection.settimeout(max(end - time.monotonic(), 0.05))
    connection.sendall(f"{text}User-Agent: edgemae\r\n{login}\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data and len(data) < HEAD_BYTES:
        connection.settimeout(max(end - time.monotonic(), 0.05))
        more = connection.recv(4096)
        if not more:
            break
        data += more
    first, *rest = data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    found = re.match(r"(?:RTSP|HTTP)/\d\.\d (\d{3})", first)
    if found is None:
        raise ValueError("the server does not speak the protocol of the address")
    headers: dict[str, str] = {}
    for line in rest:
        name, _, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        if name != "www-authenticate" or not headers.get(name, "").lower().startswith("digest"):  # the stronger one
            headers[name] = value
    return int(found[1]), headers


def _target(parts: SplitResult) -> str:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{path}" if parts.scheme.lower().startswith("rtsp") else path


def _login(parts: SplitResult, challenge: str) -> str:
    """Return the Authorization header that answers a challenge; empty without a login or for an unknown scheme."""
    if parts.username is None:
        return ""
    user, password = unquote(parts.username), unquote(parts.password or "")
    if challenge.lower().startswith("basic"):
        return f"Authorization: Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}\r\n"
    fields = {k.lower(): a or b for k, a, b in re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', challenge)}
    algorithm = fields.get("algorithm", "MD5").upper()
    if not challenge.lower().startswith("digest") or algorithm not in _HASHES:
        return ""

    def digest(text: str) -> str:
        return _HASHES[algorithm](text.encode()).hexdigest()

    method = "DESCRIBE" if parts.scheme.lower().startswith("rtsp") else "GET"
    target, nonce, realm = _target(parts), fields.get("nonce", ""), fields.get("realm", "")
    secret, action = digest(f"{user}:{realm}:{password}"), digest(f"{method}:{target}")
    more = ""
    if "auth" in fields.get("qop", "").split(","):
        response = digest(f"{secret}:{nonce}:00000001:edgemae:auth:{action}")
        more = ', qop=auth, nc=00000001, cnonce="edgemae"'
    else:
        response = digest(f"{secret}:{nonce}:{action}")
    if "opaque" in fields:
        more += f', opaque="{fields["opaque"]}"'
    return (
        f'Authorization: Digest username="{user}", realm="{realm}", nonce="{nonce}", uri="{target}", '
        f'response="{response}", algorithm={algorithm}{more}\r\n'
    )
