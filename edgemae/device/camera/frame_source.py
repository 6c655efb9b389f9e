"""What a source gives: captured frames, or an error that says whether trying again can help."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemae.spec.errors import CameraError

FINAL_KINDS = ("auth", "not-found")  # the server itself has answered: asking again gives the same


class CapturedFrame(NamedTuple):
    """One attempt to read a frame: `array_bgr` is None for one that is corrupt, named by `name`.

    `lost` counts images before this one that could not be decoded, `reason` says why this one is corrupt.
    """

    array_bgr: NDArray[np.uint8] | None
    t_capture_ns: int
    pts_ms: float | None
    name: str
    lost: int = 0
    reason: str = ""


class Source(Protocol):
    """Something that is opened, read and closed by one thread, the reader's. `fps` is 0 until it is known."""

    fps: float

    def open(self) -> None:
        """Open the source. Raises SourceError; `close` is called either way."""

    def read(self) -> CapturedFrame | None:
        """Return the next frame, or None at the end of the source."""

    def interrupt(self) -> None:
        """Let a blocked call return if that is possible. The one method that another thread may call."""

    def close(self) -> None: ...


class SourceError(CameraError):
    """A source that failed; `kind`: auth, not-found, tls, timeout, refused, unreachable, codec, hung, ended, other."""

    def __init__(self, what: str, *, expected: str, fix: str, kind: str = "other") -> None:
        super().__init__(what, expected=expected, fix=fix)
        self.kind = kind

    @property
    def is_final(self) -> bool:
        return self.kind in FINAL_KINDS


def silence_error(source: str, seconds: float, more: str = "", kind: str = "timeout") -> SourceError:
    """Return the error of a source that gives nothing."""
    return SourceError(
        f"no frame came from '{source}' within {seconds:.1f} s{more}",
        expected="a source that delivers frames",
        fix="see that it is switched on and reachable, raise the time-out for a slow one, then open it again",
        kind=kind,
    )
