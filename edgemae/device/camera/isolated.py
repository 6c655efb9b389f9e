"""A source in a child process: a driver that hangs there can be killed, where a thread could only be left behind.

Commands go to the child's standard input and answers come from its standard output, one JSON line each; pixels lie in
shared memory that has no name (memfd), so nothing of it can be left over. The child ends when its standard input does,
which is when this process ends, however that happens. The address is sent, not passed as an argument: others could read
its password in the list of processes.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from edgemae.device.camera.address import redact
from edgemae.device.camera.frame_source import CapturedFrame, SourceError
from edgemae.device.child_process import JsonLinesProcess
from edgemae.spec.errors import error_of

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edgemae.device.camera.isolated_worker import main; main()"
)
START_S = 20.0  # a small board loads Python, numpy and OpenCV
OPEN_GRACE_S, READ_GRACE_S = 1.5, 0.5  # the child's own time-outs, and its questions to the server, come first
LEAVE_S = 0.2


class IsolatedSource:
    """Read a source of OpenCV's through a child process."""

    def __init__(self, source: str, kind: str, timeouts_ms: tuple[int, int], again: bool) -> None:
        self._name, self.fps = redact(source), 0.0
        self._order = {"source": source, "kind": kind, "timeouts_ms": list(timeouts_ms), "again": again}
        self._open_s, self._read_s = timeouts_ms[0] / 1e3 + OPEN_GRACE_S, timeouts_ms[1] / 1e3 + READ_GRACE_S
        self._child: JsonLinesProcess | None = None
        self._memory: mmap.mmap | None = None
        self._memory_fd = -1

    def open(self) -> None:
        self._memory_fd = os.memfd_create("edgemae-frame")
        self._child = JsonLinesProcess(
            [sys.executable, "-c", _START, json.dumps(sys.path), str(self._memory_fd)], pass_fds=(self._memory_fd,)
        )
        self._answer(lambda child: child.receive(START_S), START_S)
        self.fps = float(self._ask(self._order, self._open_s)["fps"])

    def read(self) -> CapturedFrame | None:
        reply = self._ask({}, self._read_s)
        if reply["over"]:
            return None
        shape = reply.pop("shape")
        array_bgr = None
        if shape is not None:
            size = int(np.prod(shape))
            if self._memory is None or len(self._memory) < size:
                if self._memory is not None:
                    self._memory.close()
                self._memory = mmap.mmap(self._memory_fd, size, prot=mmap.PROT_READ)
            array_bgr = np.frombuffer(self._memory, np.uint8, size).reshape(shape).copy()
        return CapturedFrame(
            array_bgr, reply["t_capture_ns"], reply["pts_ms"], reply["name"], reply["lost"], reply["reason"]
        )

    def interrupt(self) -> None:
        if (child := self._child) is not None:  # the reader's thread may be closing it
            child.kill()

    def close(self) -> None:
        if self._child is not None:
            self._child.close(LEAVE_S)
            self._child = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1

    def _ask(self, order: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert self._child is not None
        return self._answer(lambda child: child.ask(order, timeout_s), timeout_s)

    def _answer(self, step: Callable[[JsonLinesProcess], dict[str, Any]], timeout_s: float) -> dict[str, Any]:
        """Return the child's answer. A child that is silent is killed by `close`."""
        assert self._child is not None
        try:
            reply = step(self._child)
        except EOFError:
            raise self._gone("has ended") from None
        except TimeoutError:
            raise self._gone(f"did not answer within {timeout_s:.1f} s and was killed") from None
        if "error" in reply:
            error = error_of(reply["error"])
            if "kind" in reply:
                error = SourceError(error.what, expected=error.expected, fix=error.fix, kind=reply["kind"])
            raise error
        return reply

    def _gone(self, what: str) -> SourceError:
        return SourceError(
            f"the process that reads '{self._name}' {what}",
            expected="a driver that answers",
            fix="see that the source is switched on and reachable; `dmesg` tells of drivers that crash",
            kind="hung",
        )
