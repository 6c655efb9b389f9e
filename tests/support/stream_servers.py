"""Live sources that can be broken on purpose: an RTSP server (H.264 over TCP) and an MJPEG server, both on loopback.

Every frame carries the time of its capture (`time.monotonic_ns`, one clock for all processes of a machine) as 8 x 8
black and white blocks, so its age is read from the image itself and not from any program's report. Faults are
methods and attributes of a running server. `python -m tests.support.stream_servers rtsp` runs one by itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

import av
import cv2

from tests.support.frame_stamps import stamp

FPS = 25.0
PACKET_BYTES = 1400
REALM, NONCE = "streams", "6e6f6e6365"
Connection = socket.socket


# ---------------------------------------------------------------- what both servers do


class Server:
    """Produce stamped frames at `fps` and send them to every client that plays. Made to be broken:

    freeze() stops the camera and, with deaf=True, the answers too; hold() goes on filming; release() ends both, and
    what hold() kept comes at once. reset() ends every connection with RST. stop() and start() are a restart on the same
    port. half_frame() sends half of the next frame and hangs up. `garbage` frames are sent as noise. `hold_play_s`
    makes the server slow to start. resize() changes the image in mid-stream, `jump_s` the source's clock.
    """

    scheme = ""

    def __init__(self, fps: float = FPS, size: tuple[int, int] = (160, 128), login: tuple[str, str, str] | None = None):
        self.fps, self.size, self.login = fps, size, login  # login: ("basic" or "digest", user, password)
        self.garbage, self.jump_s, self.hold_play_s, self.status = 0, 0.0, 0.0, 0  # status: answer with this one only
        self.produced = self.plays = 0
        self.port = 0
        self._mode = "live"
        self._half = False
        self._lock = threading.RLock()
        self._clients: list[Connection] = []  # that play
        self._connections: set[Connection] = set()
        self._threads: list[threading.Thread] = []
        self._late: dict[Connection, list[bytes]] = {}  # what hold() keeps from each client
        self._listener: socket.socket | None = None
        self._over = threading.Event()

    @property
    def held(self) -> int:
        """Return how many frames hold() keeps from the client that came last."""
        return len(self._late.get(self._clients[-1], [])) if self._clients else 0

    @property
    def url(self) -> str:
        login = f"{self.login[1]}:{self.login[2]}@" if self.login else ""
        return f"{self.scheme}://{login}127.0.0.1:{self.port}/live"

    def start(self) -> None:
        self._over = threading.Event()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(16)
        self.port = self._listener.getsockname()[1]
        self._mode, self._late, self._half = "live", {}, False
        self._run(self._accept, self._listener)
        self._run(self._produce)

    def stop(self, reset: bool = False) -> None:
        """Close everything; the port answers with a refusal from then on."""
        self._over.set()
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self._hang_up(reset)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._threads = []

    def freeze(self, deaf: bool = False) -> None:
        self._mode = "deaf" if deaf else "frozen"

    def hold(self) -> None:
        self._mode = "held"

    def release(self) -> None:
        with self._lock:
            late, self._late, self._mode = self._late, {}, "live"
            for client, frames in late.items():
                self._send(b"".join(frames), [client])

    def reset(self) -> None:
        self._hang_up(reset=True)

    def half_frame(self) -> None:
        self._half = True

    def resize(self, width: int, height: int) -> None:
        self.size = (width, height)

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _run(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, name=f"{self.scheme}-server", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(5.0)
            with self._lock:
                self._connections.add(connection)
            self._run(self._answer_safely, connection)

    def _answer_safely(self, connection: Connection) -> None:
        try:
            self._answer(connection)
        except (OSError, ValueError):  # the client has gone, or a reset from here
            pass
        finally:
            self._drop(connection)

    def _drop(self, connection: Connection, reset: bool = False) -> None:
        with self._lock:
            self._connections.discard(connection)
            if connection in self._clients:
                self._clients.remove(connection)
        with suppress(OSError):
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def _hang_up(self, reset: bool) -> None:
        with self._lock:
            for connection in list(self._connections):
                if reset:  # a thread of ours may read it: that must wake up too
                    with suppress(OSError):
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        connection.shutdown(socket.SHUT_RD)
                self._drop(connection, reset)

    def _play(self, connection: Connection) -> None:
        self._over.wait(self.hold_play_s)
        with self._lock:
            self.plays += 1
            self._fresh_start()
            self._clients.append(connection)

    def _produce(self) -> None:
        over, due = self._over, time.monotonic()
        while not over.is_set():
            due = max(due + 1 / self.fps, time.monotonic() - 1.0)
            over.wait(due - time.monotonic())
            if self._mode in ("frozen", "deaf") or over.is_set():
                continue
            with self._lock:
                if not self._clients and self._mode == "live":
                    continue
                data = self._frame(time.monotonic_ns())
                self.produced += 1
                if self._mode == "held":
                    for client in self._clients:
                        self._late.setdefault(client, []).append(data)
                elif self._half:
                    self._half = False
                    self._send(data[: len(data) // 2])
                    self._hang_up(reset=False)
                else:
                    self._send(data)

    def _send(self, data: bytes, clients: list[Connection] | None = None) -> None:
        for client in list(self._clients if clients is None else clients):
            try:
                client.sendall(data)
            except OSError:
                self._drop(client)

    def _read_request(self, connection: Connection) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Yield (method, address, headers in lower case) until the client goes."""
        data = b""
        while not self._over.is_set():
            while b"\r\n\r\n" not in data:
                try:
                    more = connection.recv(4096)
                except TimeoutError:
                    continue
                if not more:
                    return
                data = (data + more).lstrip(b"\r\n")
                while data[:1] == b"$" and len(data) >= 4:  # RTCP of the client
                    data = data[4 + int.from_bytes(data[2:4], "big") :]
            while self._mode == "deaf" and not self._over.wait(0.02):
                pass
            head, _, data = data.partition(b"\r\n\r\n")
            first, *rest = head.decode("latin-1").split("\r\n")
            method, address, *_ = [*first.split(" "), "", ""]
            yield method, address, {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in rest)}

    def _let_in(self, method: str, headers: dict[str, str]) -> bool:
        """Return whether the login that the request carries is the right one."""
        if self.login is None:
            return True
        kind, user, password = self.login
        credentials = headers.get("authorization", "")
        if kind == "basic":
            return credentials == "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        fields = dict(re.findall(r'(\w+)="([^"]*)"', credentials))
        first = hashlib.md5(f"{user}:{REALM}:{password}".encode()).hexdigest()
        second = hashlib.md5(f"{method}:{fields.get('uri', '')}".encode()).hexdigest()
        return fields.get("response") == hashlib.md5(f"{first}:{NONCE}:{second}".encode()).hexdigest()

    @property
    def _challenge(self) -> str:
        assert self.login is not None
        more = f', nonce="{NONCE}"' if self.login[0] == "digest" else ""
        return f'{self.login[0].title()} realm="{REALM}"{more}'

    def _answer(self, connection: Connection) -> None:
        raise NotImplementedError

    def _frame(self, t_ns: int) -> bytes:
        raise NotImplementedError

    def _fresh_start(self) -> None:
        """Let the next frame be one that a new client can begin with."""


# ---------------------------------------------------------------- RTSP


class RtspServer(Server):
    scheme = "rtsp"

    def start(self) -> None:
        self._encoder: Any = None
        self._coded_size, self._want_key, self._number = (0, 0), True, 0
        self._noise = random.Random(0)
        self._encode(time.monotonic_ns())  # the parameter sets for the SDP
        super().start()

    def _fresh_start(self) -> None:
        self._want_key = True

    def _encode(self, t_ns: int) -> list[bytes]:
        """Return the NAL units of one frame."""
        if self._coded_size != self.size:
            self._coded_size = self.size
            self._encoder = av.CodecContext.create("libx264", "w")
            self._encoder.width, self._encoder.height = self.size
            self._encoder.pix_fmt, self._encoder.framerate = "yuv420p", round(self.fps)
            self._encoder.options = {
                "preset": "ultrafast", "tune": "zerolatency", "crf": "26", "forced-idr": "1",
                "x264-params": "keyint=25:repeat-headers=1:log-level=none:threads=1",
            }  # fmt: skip
        frame = av.VideoFrame.from_ndarray(stamp(t_ns, *self.size), format="bgr24").reformat(format="yuv420p")
        if self._want_key:
            frame.pict_type = av.video.frame.PictureType.I
            self._want_key = False
        coded = b"".join(bytes(packet) for packet in self._encoder.encode(frame))
        units = [unit for unit in re.split(b"\x00\x00\x00?\x01", coded) if unit]
        for unit in units:
            if unit[0] & 31 == 7:
                self._sps = unit
            elif unit[0] & 31 == 8:
                self._pps = unit
        return units

    def _frame(self, t_ns: int) -> bytes:
        units = self._encode(t_ns)
        if self.garbage > 0:
            self.garbage -= 1
            units = [
                unit[:1] + self._noise.randbytes(max(len(unit) - 1, 40)) for unit in units if unit[0] & 31 in (1, 5)
            ]
        clock = int((t_ns / 1e9 + self.jump_s) * 90000) & 0xFFFF_FFFF
        packets = [part for i, unit in enumerate(units) for part in self._split(unit, i == len(units) - 1, clock)]
        return b"".join(b"$\x00" + len(packet).to_bytes(2, "big") + packet for packet in packets)

    def _split(self, unit: bytes, last: bool, clock: int) -> Iterator[bytes]:
        """Yield RTP packets: a small unit whole, a large one in parts (FU-A)."""
        parts = [unit]
        if len(unit) > PACKET_BYTES:
            cut = [unit[1 + i : 1 + i + PACKET_BYTES] for i in range(0, len(unit) - 1, PACKET_BYTES)]
            parts = []
            for i, part in enumerate(cut):
                edge = 0x80 if i == 0 else 0x40 if i == len(cut) - 1 else 0
                parts.append(bytes([unit[0] & 0xE0 | 28, edge | unit[0] & 31]) + part)
        for i, part in enumerate(parts):
            mark = 0x80 if last and i == len(parts) - 1 else 0
            self._number = (self._number + 1) & 0xFFFF
            yield struct.pack(">BBHII", 0x80, mark | 96, self._number, clock, 0x1234) + part

    def _sdp(self) -> str:
        sets = ",".join(base64.b64encode(unit).decode() for unit in (self._sps, self._pps))
        return (
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=streams\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
            f"a=rtpmap:96 H264/90000\r\na=framerate:{self.fps:g}\r\na=control:track0\r\n"
            f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={sets};profile-level-id={self._sps[1:4].hex()}\r\n"
        )

    def _answer(self, connection: Connection) -> None:
        for method, address, headers in self._read_request(connection):
            head, body, play = "", "", False
            status = "200 OK"
            if self.status:
                status = f"{self.status} As Asked"
            elif not self._let_in(method, headers):
                status, head = "401 Unauthorized", f"WWW-Authenticate: {self._challenge}\r\n"
            elif method == "OPTIONS":
                head = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            elif "/live" not in address:
                status = "404 Not Found"
            elif method == "DESCRIBE":
                body = self._sdp()
                head = f"Content-Type: application/sdp\r\nContent-Base: {address}/\r\n"
            elif method == "SETUP":
                head = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 7\r\n"
            elif method == "PLAY":
                head, play = "Session: 7\r\nRange: npt=0.000-\r\n", True
            length = f"Content-Length: {len(body)}\r\n" if body else ""
            if play:
                self._over.wait(self.hold_play_s)
            connection.sendall(
                f"RTSP/1.0 {status}\r\nCSeq: {headers.get('cseq', '0')}\r\n{head}{length}\r\n{body}".encode()
            )
            if play:
                self._play(connection)
            if method == "TEARDOWN":
                return


# ---------------------------------------------------------------- MJPEG over HTTP


class MjpegServer(Server):
    scheme = "http"

    def _answer(self, connection: Connection) -> None:
        for method, address, headers in self._read_request(connection):
            status, head = "200 OK", "Content-Type: multipart/x-mixed-replace; boundary=frame\r\n"
            if self.status:
                status, head = f"{self.status} As Asked", "Content-Length: 0\r\n"
            elif not self._let_in(method, headers):
                status, head = "401 Unauthorized", f"WWW-Authenticate: {self._challenge}\r\nContent-Length: 0\r\n"
            elif "/live" not in address:
                status, head = "404 Not Found", "Content-Length: 0\r\n"
            connection.sendall(f"HTTP/1.1 {status}\r\n{head}Connection: close\r\n\r\n".encode())
            if status != "200 OK":
                return
            self._play(connection)

    def _frame(self, t_ns: int) -> bytes:
        data = cv2.imencode(".jpg", stamp(t_ns, *self.size))[1].tobytes()
        if self.garbage > 0:
            self.garbage -= 1
            data = data[:20] + random.Random(0).randbytes(len(data) - 20)
        return b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(data), data)


SERVERS = {"rtsp": RtspServer, "http": MjpegServer}


def main() -> None:
    """Run one server. Each line on standard input is a JSON list: a method or an attribute, and its arguments.

    A line on standard output answers each; the first one is the address.
    """
    options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    if "size" in options:
        options["size"] = tuple(options["size"])
    with SERVERS[sys.argv[1]](**options) as server:
        print(json.dumps(server.url), flush=True)
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            member = getattr(server, name)
            if callable(member):
                member(*arguments)
            elif arguments:
                setattr(server, name, *arguments)
            value = getattr(server, name)
            print(json.dumps(None if callable(value) else value), flush=True)


if __name__ == "__main__":
    main()
