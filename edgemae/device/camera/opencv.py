"""What OpenCV opens: cameras, network streams and video files. Its silent habits are undone here."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

from edgemae.device.camera import csi, server_probe
from edgemae.device.camera.address import redact
from edgemae.device.camera.frame_source import CapturedFrame, SourceError, silence_error
from edgemae.device.hardware.heap import trim_heap
from edgemae.device.opencv_log import restore_opencv_log, silence_opencv

log = logging.getLogger("edgemae.device.camera")
# First frame after 90 ms instead of 1,170 ms on a 25 fps stream; only for RTSP, small probes break files. Not
# `fflags;nobuffer`, which is often advised: it throws away the key frame that was read while probing, and the first
# image then comes with the next key frame (2.0 s later with one in 50 frames).
RTSP_OPTIONS = "rtsp_transport;tcp|flags;low_delay|probesize;32|analyzeduration;0"
_OPTIONS_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_HOLDING = ("h264", "hevc", "avc1", "hvc1", "hev1", "h265")  # their parser holds a frame until the next one comes
OPEN_PATIENCE_S = 2.0  # OpenCV reads its options first thing when it opens something
INSTANT_S = 0.005  # a read of a stream that has ended takes microseconds, one of a damaged packet waits for it
# Reads that fail at once, after which a source is over. A damaged packet fails once; of a camera that was unplugged the
# next read may succeed, with an old frame.
ENDS_IN_A_ROW = {"camera": 1, "csi": 1, "url": 8, "video": 300}
CORRUPT_RUN = 300  # undecodable frames in a row after which the rest is given up
KEY_FRAME_WAIT_S = 10.0
_KEY_FRAME = ord("I")
_PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy")  # FFmpeg may reach what cannot be reached directly

_OPEN_FIX = {
    "camera": "see that it is plugged in and not in use (`ls -l /dev/video*`, `fuser /dev/video0`)",
    "csi": "see that it is connected and that `nvargus-daemon` runs (`systemctl status nvargus-daemon`)",
    "url": "check the address, the password and the network; try it with `ffplay`",
    "video": "check that the file is a video (`file NAME`), and re-encode it as H.264 mp4 when it is",
}
_ASKED_FIX = {
    "auth": "put the right user and password into the address (rtsp://user:password@host/...)",
    "not-found": "correct the path of the address; the camera's manual or its ONVIF page has it",
    "tls": "use the plain scheme, or renew the key of the server",
    "codec": "set the camera to H.264, H.265 or MJPEG",
}


class Video:
    """Read a camera, a network stream or a video file. `again`: the last attempt failed."""

    def __init__(self, source: str, kind: str, timeouts_ms: tuple[int, int], again: bool = False) -> None:
        self._again = again
        self._source, self._name, self._kind, self._timeouts_ms = source, redact(source), kind, timeouts_ms
        self._seen = self._failed_at_once = self._corrupt_run = self._previous_ns = 0
        self._is_inter = self._is_holding = False
        self._silent_s = self._damaged_s = self.fps = 0.0
        self._capture: cv2.VideoCapture | None = None

    def open(self) -> None:
        if self._again or self._kind == "camera":
            _check_reachable(self._source, self._kind)
        # Seconds; 10 by default, there is no parameter for it, and it is read with the first capture of a process.
        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "1")
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # a line on stderr for every damaged packet, for weeks
        is_rtsp = self._source.lower().startswith("rtsp")
        asked_s = time.monotonic()
        silence_opencv()  # theirs come with every time-out: 20,000 lines a day beside a camera that is switched off
        try:
            with opening(RTSP_OPTIONS if is_rtsp else ""):
                self._capture = _capture(self._source, self._kind, self._timeouts_ms)
        finally:
            if self._capture is None:
                restore_opencv_log()
        if not self._capture.isOpened():
            raise _open_error(self._source, self._kind)
        if self._kind == "url" and time.monotonic() - asked_s >= self._timeouts_ms[0] / 1e3:
            # It says that it is open, but has seen no frame: it does not know their size and can decode none, for ever.
            raise silence_error(self._name, time.monotonic() - asked_s, " of opening it")
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        fourcc = int(self._capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFF_FFFF
        self._is_inter = self._kind == "url" and fourcc.to_bytes(4, "little").decode("latin-1").lower() in _HOLDING
        self._is_holding = self._is_inter and is_rtsp
        self._previous_ns = time.monotonic_ns()

    def read(self) -> CapturedFrame | None:
        assert self._capture is not None
        lost = 0
        while not self._silent_s and self._failed_at_once < ENDS_IN_A_ROW[self._kind]:
            asked_ns = time.monotonic_ns()
            has_packet = self._capture.grab()
            t_ns = time.monotonic_ns()
            waited_s = (t_ns - asked_ns) / 1e9
            if self._kind == "url" and waited_s >= self._timeouts_ms[1] / 1e3:
                # OpenCV now empties the decoder, an old frame with ok for each time-out, and never recovers.
                self._silent_s = waited_s
            if has_packet:
                self._failed_at_once, self._seen = 0, self._seen + 1
                return self._retrieve(self._capture, t_ns, lost)
            if self._kind == "url" and waited_s >= INSTANT_S and not self._silent_s:  # data came, and was of no use
                self._seen += 1
                return self._damaged(t_ns, lost)
            self._failed_at_once += 1
            lost += 1  # if anything comes after it; otherwise it is the end
        if self._silent_s:
            raise silence_error(self._name, self._silent_s)
        self._log_missing_frames(self._capture)
        return None

    def interrupt(self) -> None:
        """Do nothing: OpenCV's calls end at their time-outs, or not at all."""

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
            restore_opencv_log()
            if self._kind == "url":
                # A decoder and its packets hold 1 to 4 MiB, for which the process would stay as large as it ever was.
                trim_heap()

    def _retrieve(self, capture: cv2.VideoCapture, t_ns: int, lost: int) -> CapturedFrame | None:
        pts_ms = float(capture.get(cv2.CAP_PROP_POS_MSEC))
        ok, image = capture.retrieve()
        if not ok or image is None or not image.size:
            return self._damaged(t_ns, lost)
        if lost and self._is_inter:
            self._damaged_s = time.monotonic()
        if self._damaged_s:
            is_whole = int(capture.get(cv2.CAP_PROP_FRAME_TYPE)) == _KEY_FRAME
            if not is_whole and time.monotonic() - self._damaged_s < KEY_FRAME_WAIT_S:
                return CapturedFrame(
                    None, t_ns, pts_ms, self._label(), lost, "it leans on a damaged one, no key frame yet"
                )
            self._damaged_s = 0.0
        self._corrupt_run = 0
        t_capture_ns, self._previous_ns = (self._previous_ns if self._is_holding else t_ns), t_ns
        return CapturedFrame(image, t_capture_ns, pts_ms, self._label(), lost)  # type: ignore[arg-type]

    def _damaged(self, t_ns: int, lost: int) -> CapturedFrame | None:
        self._corrupt_run += 1
        if self._is_inter:  # H.264 repairs what follows with what it has: a wrong image
            self._damaged_s = time.monotonic()
        return CapturedFrame(None, t_ns, None, self._label(), lost) if self._corrupt_run < CORRUPT_RUN else None

    def _label(self) -> str:
        return f"{self._name}#{self._seen}"

    def _log_missing_frames(self, capture: cv2.VideoCapture) -> None:
        declared = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if self._kind == "video" else 0
        if declared > self._seen * 1.02 + 2:  # containers without an index estimate it
            log.warning("'%s' declares %d frames, %d could be read", self._name, declared, self._seen)


def _check_reachable(source: str, kind: str) -> None:
    """Raise SourceError when there is nothing to open: cheaper than an attempt, and it says more."""
    message, why = "", "unreachable"
    if kind == "camera" and not source.isdecimal() and not os.path.exists(source):
        message = "the device does not exist"
    elif kind == "url" and not any(os.environ.get(name) for name in _PROXIES):
        why, message = server_probe.check_port(source)
    if message and why:
        raise SourceError(
            f"frame source '{redact(source)}' is away: {message}",
            expected="a source that is switched on and connected",
            fix=_OPEN_FIX[kind],
            kind=why,
        )


def _open_error(source: str, kind: str) -> SourceError:
    """Say why a source did not open: OpenCV does not, so the server is asked."""
    name = redact(source)
    what = f"frame source '{name}' cannot be opened as a {'video' if kind == 'video' else kind}"
    expected, fix, why = "a camera, stream or file that OpenCV can decode", _OPEN_FIX[kind], "other"
    if kind == "url":
        answer = server_probe.ask(source)
        what, why, fix = f"{what}: {answer.message}", answer.kind, _ASKED_FIX.get(answer.kind, fix)
    elif kind == "csi" and not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        what = f"{what}: this OpenCV ({cv2.__version__}) was built without GStreamer"
        expected = "an OpenCV with GStreamer, such as the one that JetPack installs; no wheel of opencv-python has it"
        fix = "remove opencv-python from this environment and use the system's (apt install libopencv-python)"
    return SourceError(what, expected=expected, fix=fix, kind=why)


def _capture(source: str, kind: str, timeouts_ms: tuple[int, int]) -> cv2.VideoCapture:
    if kind == "csi":
        return cv2.VideoCapture(csi.pipeline(source), cv2.CAP_GSTREAMER)
    if kind == "camera":
        backend = cv2.CAP_V4L2 if cv2.videoio_registry.hasBackend(cv2.CAP_V4L2) else cv2.CAP_ANY
        # The second form takes a path such as /dev/v4l/by-id/..., which stays the same after unplugging.
        # It is a link, and points elsewhere after the camera was plugged in again.
        device = int(source) if source.isdecimal() else os.path.realpath(source)
        return cv2.VideoCapture(device, backend)
    if not cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
        return cv2.VideoCapture(source, cv2.CAP_ANY)  # an OpenCV with GStreamer only, as on Jetson
    open_ms, read_ms = timeouts_ms
    # Without these both time-outs are 30 s. They count only as open parameters of an explicit FFMPEG backend.
    parameters = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, open_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, read_ms]
    if kind == "url":
        parameters += [cv2.CAP_PROP_N_THREADS, 1]  # frame threads hold frames back: 81 -> 41 ms age at 25 fps
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, parameters)


class _Opening:
    """Keep the environment right while OpenCV opens a source.

    FFMPEG options can only be given through an environment variable, and those of RTSP would break files. So sources
    that want the same one open side by side, and the others wait for them, but not for one that hangs.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: set[threading.Thread] = set()
        self._options, self._is_ours = "", False

    @contextmanager
    def __call__(self, options: str) -> Iterator[None]:
        thread = threading.current_thread()
        with self._changed:
            if not self._changed.wait_for(lambda: not self._inside or self._options == options, OPEN_PATIENCE_S):
                self._inside.clear()
                self._restore()
            if not self._inside:
                self._set(options)
            self._inside.add(thread)
        try:
            yield
        finally:
            self.forget(thread)

    def forget(self, thread: threading.Thread) -> None:
        """Count a thread as outside: it is, or it hangs and was left behind."""
        with self._changed:
            if thread in self._inside:
                self._inside.remove(thread)
                if not self._inside:
                    self._restore()
                    self._changed.notify_all()

    def _set(self, options: str) -> None:
        # An option that the user has set already stays.
        self._options, self._is_ours = options, bool(options) and _OPTIONS_VARIABLE not in os.environ
        if self._is_ours:
            os.environ[_OPTIONS_VARIABLE] = options

    def _restore(self) -> None:
        if self._is_ours:
            os.environ.pop(_OPTIONS_VARIABLE, None)


opening = _Opening()
