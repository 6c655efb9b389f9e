"""The child process of `isolated`: it reads one source and leaves its frames in shared memory. Imports no torch."""

from __future__ import annotations

import json
import mmap
import os
import queue
import sys
import threading
from typing import Any

import numpy as np

from edgemae.device.camera.frame_source import CapturedFrame, SourceError
from edgemae.device.camera.opencv import Video
from edgemae.device.child_process import claim_stdout
from edgemae.spec.errors import EdgemaeError, InternalError


def main() -> None:
    """Answer orders until standard input ends, which also ends a call that hangs."""
    send = claim_stdout()  # what drivers print must not get among the answers
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    memory = _Memory(int(sys.argv[2]))
    send({})
    try:
        order = orders.get()
        video = Video(order["source"], order["kind"], tuple(order["timeouts_ms"]), order["again"])
        video.open()
        send({"fps": video.fps})
        while orders.get() == {}:
            send(memory.store(video.read()))
    except SourceError as error:
        send({"error": error.row, "kind": error.kind})
    except EdgemaeError as error:
        send({"error": error.row})
    except Exception as bug:  # noqa: BLE001 - the parent raises it
        what = f"{type(bug).__name__}: {bug}"
        send({"error": InternalError(what, expected="no failure", fix="report it").row})


def _listen(orders: queue.SimpleQueue[dict[str, Any]]) -> None:
    received = b""
    while more := os.read(0, 65_536):
        *lines, received = (received + more).split(b"\n")
        for line in lines:
            orders.put(json.loads(line))
    os._exit(0)  # the parent is gone, or wants this one gone


class _Memory:
    """Shared memory that grows with the frames. The parent copies a frame before it asks for the next one."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = None

    def store(self, captured: CapturedFrame | None) -> dict[str, Any]:
        """Copy the pixels of a captured frame into shared memory, return everything else about it."""
        if captured is None:
            return {"over": True}
        image = captured.array_bgr
        reply = captured._asdict() | {"over": False, "array_bgr": None, "shape": None if image is None else image.shape}
        if image is not None:
            if self._map is None or len(self._map) < image.nbytes:
                os.ftruncate(self._fd, image.nbytes)
                self._map = mmap.mmap(self._fd, image.nbytes)
            np.frombuffer(self._map, np.uint8, image.nbytes).reshape(image.shape)[:] = image
        return reply
