"""One camera or several: opened by name, closed side by side, and read one after the other.

Of several cameras the one that waits longest comes first, with the newest frame it has.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from edgemae.device.camera.camera import Camera, Frame
from edgemae.device.camera.sources import AnySource
from edgemae.spec.errors import EdgemaeError, InputError
from edgemae.spec.graph import PixelContract

log = logging.getLogger(__name__)
Source = Camera | AnySource
Sources = Source | Mapping[str, Source] | Sequence[Source]
JOIN_TIMEOUT_S = 0.2  # of all threads together; a closed camera lets its thread go at once


class MultiCameraReader:
    """Read cameras side by side, each by its own thread into its own slot, which holds one frame: the newest.

    A camera that was served goes to the end of the line, so one of 60 fps cannot starve one of 1 fps. A file that gives
    every frame waits for its turn instead. A camera that fails is logged and kept in `lost`; the others go on.
    """

    def __init__(self, cameras: Mapping[str, Camera]) -> None:
        self._cameras = cameras
        self._changed = threading.Condition()
        self._waiting: dict[str, Frame] = {}  # in the order of the line: a newer frame takes its elder's place
        self._reading, self._closed = set(cameras), False
        self.dropped = 0  # frames that were read and got too old, or a successor, or an end, before their turn
        self.lost: dict[str, EdgemaeError] = {}
        self._threads = [
            threading.Thread(target=self._feed, args=item, name="edgemae-multi-camera", daemon=True)
            for item in cameras.items()
        ]
        for thread in self._threads:
            thread.start()

    def read(self) -> tuple[str, Frame] | None:
        """Return (name of the camera, frame), or None when all have ended or this was closed.

        Raises the error of the first camera that failed once all are over.
        """
        with self._changed:
            while not self._closed:
                for name in list(self._waiting):
                    frame = self._waiting.pop(name)
                    self._changed.notify_all()  # a file waits for its slot
                    if self._cameras[name].is_fresh(frame):
                        return name, frame
                    self.dropped += 1
                if not self._reading:
                    break
                self._changed.wait()
            if self.lost and not self._closed:
                raise next(iter(self.lost.values()))
        return None

    def close(self) -> None:
        """Let go of the cameras. A thread ends when its camera is closed, or with the next frame of one that is not."""
        with self._changed:
            self._closed = True
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_TIMEOUT_S / len(self._threads))

    def _feed(self, name: str, camera: Camera) -> None:
        try:
            while (frame := camera.read()) is not None and self._put(name, camera, frame):
                pass
        except EdgemaeError as error:
            log.error("%s is lost, the other cameras go on: %s", name, error.what)
            self.lost[name] = error
        finally:
            with self._changed:
                self._reading.discard(name)
                self._changed.notify_all()

    def _put(self, name: str, camera: Camera, frame: Frame) -> bool:
        """Put a frame into its camera's slot; False when nobody reads any more."""
        with self._changed:
            if camera.policy == "every":
                self._changed.wait_for(lambda: self._closed or name not in self._waiting)
            if self._closed or name in self._waiting:
                self.dropped += 1
            if not self._closed:
                self._waiting[name] = frame
                self._changed.notify_all()
            return not self._closed


def open_cameras(
    source: Sources, policy: str | None, *, realtime: bool, pixel: PixelContract | None
) -> tuple[dict[str, Camera], list[Camera]]:
    """Return cameras by name, and those among them that were opened here; either all are open or none is left open.

    Without a mapping the name is the source itself, redacted. Raises CameraError, InputError.
    """
    named = _listed(source)
    brought = [one for _, one in named if isinstance(one, Camera)]
    if brought and (policy is not None or realtime):
        raise InputError(
            f"{'a policy' if policy is not None else 'realtime'} was given beside a Camera, which has its own",
            expected="sources that are opened here, or a Camera as it is",
            fix="give it to the Camera, and leave it out here",
        )
    new = [one for _, one in named if not isinstance(one, Camera)]
    opening: list[Future[Camera]] = []
    try:
        with ThreadPoolExecutor(max(len(new), 1), "edgemae-open") as threads:  # four that are slow take as long as one
            opening += [threads.submit(Camera, one, policy, realtime=realtime, pixel=pixel) for one in new]
        owned = [found.result() for found in opening]
        fresh = iter(owned)
        cameras = [(name, one if isinstance(one, Camera) else next(fresh)) for name, one in named]
        by_name = {name or camera.source: camera for name, camera in cameras}
        if len(by_name) < len(cameras) or len(set(map(id, brought))) < len(brought):
            raise InputError(
                f"one source was given twice: {', '.join(name or camera.source for name, camera in cameras)}",
                expected="different sources, or a mapping of names to sources",
                fix="pass {'left': ..., 'right': ...}",
            )
    except BaseException:
        done = [found for found in opening if found.done() and not found.cancelled()]
        close_all([found.result() for found in done if found.exception() is None])
        raise
    return by_name, owned


def close_all(cameras: Sequence[Camera]) -> None:
    """Close cameras side by side: each may take 1.2 s when its source hangs."""
    threads = [threading.Thread(target=camera.close, name="edgemae-close") for camera in cameras[1:]]
    for thread in threads:
        thread.start()
    for camera in cameras[:1]:
        camera.close()
    for thread in threads:
        thread.join()


def _listed(source: Sources) -> list[tuple[str, Source]]:
    """Return (name or "", source) of each. A list of anything but sources, as of images, is one source."""
    if isinstance(source, Mapping):
        found = [(str(name), one) for name, one in source.items()]
    elif isinstance(source, (list, tuple)) and all(isinstance(one, (Camera, int, str, Path)) for one in source):
        found = [("", one) for one in source]
    else:
        found = [("", source)]
    if not found:
        raise InputError("no source was given", expected="at least one camera, file or address", fix="pass one")
    return found
