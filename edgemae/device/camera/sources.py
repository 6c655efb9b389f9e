"""Where frames come from: cameras, streams, video files, images, arrays. Which is which, and who reads it."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.device.camera import csi
from edgemae.device.camera.address import is_camera_number, redact, split
from edgemae.device.camera.frame_source import CapturedFrame, Source
from edgemae.device.camera.image_header import FORMATS, MAX_FILE_BYTES, MAX_PX, is_image, why_refused
from edgemae.device.camera.isolated import IsolatedSource
from edgemae.device.camera.opencv import Video
from edgemae.device.preprocess import as_bgr, decode
from edgemae.spec.errors import CameraError, InputError
from edgemae.spec.graph import PixelContract
from edgemae.spec.regular_file import read_regular

AnySource = int | str | Path | Iterable[NDArray[Any]]
URL_SCHEMES = ("rtsp", "rtsps", "http", "https")
KINDS = ("camera", "csi", "url", "video", "images", "arrays")
LIVE_KINDS = ("camera", "csi", "url")
ISOLATED_KINDS = ("camera", "csi", "url", "video")  # what OpenCV reads
# How playlists and descriptions begin that FFmpeg follows: HLS, ffconcat, SDP, DASH and other XML, PLS, ASX.
LISTS = (b"#extm3u", b"ffconcat", b"v=0", b"<?xml", b"<mpd", b"[playlist]", b"<asx")
REFUSED_RUN = 300  # arrays in a row that are no images, after which a source is given up: it may have no end


def kind_of(source: AnySource) -> str:
    """Return which of KINDS a source is. Raises CameraError when it does not exist, InputError when it is no source."""
    if not isinstance(source, int | str | Path) or isinstance(source, bool):
        return _kind_of_arrays(source)
    text = str(source)
    if isinstance(source, int) or is_camera_number(text):
        return "camera"
    if text.isdecimal() and os.path.exists(f"/dev/video{text}"):
        raise InputError(
            f"'{text}' is a camera of this machine, and a file or folder here",
            expected="a source that means one thing",
            fix=f"./{text} for what is here, /dev/video{text} for the camera",
        )
    if "://" in text:
        scheme = split(text).scheme.lower()
        if scheme == "csi":
            csi.pipeline(text)
            return "csi"
        if scheme in URL_SCHEMES:
            return "url"
        raise CameraError(
            f"frame source '{redact(text)}' has the unknown scheme '{scheme}'",
            expected=f"one of {', '.join(name + '://' for name in (*URL_SCHEMES, 'csi'))}",
            fix="correct the address, or pass the path of a file",
        )
    path = Path(text)
    if not os.path.exists(text):  # unlike Path.exists it survives a name that is too long
        if text.startswith("/dev/v"):
            return "camera"  # it may be plugged in later: opening it says that it is not there
        if glob.has_magic(text):
            return "images"
        raise CameraError(
            f"frame source '{redact(text)}' does not exist",
            expected="a camera number, /dev/video0, csi://0, a video file, an image, a folder or pattern of images "
            "('shots/*.jpg'), an rtsp/http address, arrays",
            fix="check the path; for a camera, see that it is plugged in (`ls /dev/video*`)",
        )
    if path.is_dir() or is_image(path):
        return "images"
    if path.is_char_device():
        return "camera"
    _refuse_list(path)
    return "video"


def _refuse_list(path: Path) -> None:
    """Refuse a file that names others: FFmpeg would open them, whatever they are and wherever they lie."""
    try:
        head = read_regular(path, 64).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    except OSError:
        return  # opening it says what is wrong, and a pipe may hold a video
    if head.startswith(LISTS):
        raise InputError(
            f"'{redact(path)}' is a playlist, which names other files and addresses",
            expected="a video file, or the address of a stream",
            fix="pass the file or the address that it names",
        )


def _kind_of_arrays(source: object) -> str:
    is_single_image = isinstance(source, np.ndarray) and source.ndim != 4
    if isinstance(source, Iterable) and not isinstance(source, bytes | bytearray | dict) and not is_single_image:
        return "arrays"
    given = f"an array of shape {source.shape}" if isinstance(source, np.ndarray) else f"a {type(source).__name__}"
    raise InputError(
        f"{given} was given as a frame source",
        expected="a camera, an address, a path, or a list or generator of images",
        fix="for a single image, call the model on it or pass [image]",
    )


def make_source(
    source: AnySource, kind: str, timeouts_ms: tuple[int, int], pixel: PixelContract, again: bool, isolated: bool
) -> Source:
    """Return a source that is not open yet; `timeouts_ms` are those of opening and of reading. `again`: it failed."""
    if kind == "arrays":
        return Arrays(source)  # type: ignore[arg-type]
    text = str(source)
    if kind == "images":
        return Images(text, pixel)
    if kind == "video" and text.isdecimal():
        text = os.path.join(".", text)  # OpenCV takes digits alone for a camera
    if isolated:
        return IsolatedSource(text, kind, timeouts_ms, again)
    return Video(text, kind, timeouts_ms, again)


class Images:
    """Read an image file, every image under a folder, or those that match a pattern, in the order of their paths."""

    fps = 0.0

    def __init__(self, source: str, pixel: PixelContract) -> None:
        self._source, self._pixel = source, pixel
        self._paths: Iterator[Path] = iter(())

    def open(self) -> None:
        path = Path(self._source)
        if path.is_file():
            self._paths = iter([path])
            return
        inside = path.rglob("*") if path.is_dir() else map(Path, glob.glob(self._source, recursive=True))
        paths = sorted(found for found in inside if found.is_file() and is_image(found))
        if not paths:
            raise CameraError(
                f"{'folder' if path.is_dir() else 'pattern'} '{self._source}' holds no images",
                expected=f"files in the format {FORMATS}",
                fix="pass the folder that holds the images",
            )
        self._paths = iter(paths)

    def read(self) -> CapturedFrame | None:
        path = next(self._paths, None)
        if path is None:
            return None
        try:
            data = read_regular(path, MAX_FILE_BYTES + 1)
        except OSError:
            data = b""
        name, t_capture_ns = redact(path), time.monotonic_ns()
        if why := why_refused(data):
            return CapturedFrame(None, t_capture_ns, None, name, reason=why)
        return CapturedFrame(decode(data, self._pixel), t_capture_ns, None, name)

    def interrupt(self) -> None:
        """Do nothing: reading a file ends."""

    def close(self) -> None:
        self._paths = iter(())


class Arrays:
    """Read images that the program makes itself: (H, W), (H, W, 3) in BGR order or (H, W, 4) uint8 arrays.

    What is no image is counted as corrupt, with its reason in the log: a wrong guess would be a wrong result.
    """

    fps = 0.0

    def __init__(self, source: Iterable[NDArray[Any]]) -> None:
        self._source, self._number, self._refused = source, 0, 0
        self._items: Iterator[NDArray[Any]] = iter(())

    def open(self) -> None:
        self._items = iter(self._source)

    def read(self) -> CapturedFrame | None:
        for item in self._items:
            name, t_ns = f"array#{self._number}", time.monotonic_ns()
            self._number += 1
            try:
                captured = CapturedFrame(_checked(item), t_ns, None, name)
            except InputError as error:
                self._refused += 1
                if self._refused == REFUSED_RUN:
                    raise InputError(
                        f"{REFUSED_RUN} arrays in a row are no images; of the last one: {error.what}",
                        expected=error.expected,
                        fix=error.fix,
                    ) from error
                return CapturedFrame(None, t_ns, None, name, reason=error.what)
            self._refused = 0
            return captured
        return None

    def interrupt(self) -> None:
        """Do nothing: the program's own code is not stopped."""

    def close(self) -> None:
        if (close := getattr(self._items, "close", None)) is not None:
            close()  # a generator frees what it holds


def _checked(item: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image of the program as a BGR frame of its own. Raises InputError for what is no image."""
    if isinstance(item, np.ndarray) and item.ndim >= 2 and item.shape[0] * item.shape[1] > MAX_PX:
        raise InputError(
            f"a frame of shape {item.shape} was given",
            expected=f"at most {MAX_PX >> 20} Mpx",
            fix="pass one image at a time, rows first, scaled down or cut into tiles",
        )
    frame_bgr = as_bgr(np.ascontiguousarray(item) if isinstance(item, np.ndarray) else item)
    # The program may write into its own array while the frame waits in the slot or is being worked on.
    return frame_bgr.copy() if np.may_share_memory(frame_bgr, item) else frame_bgr
