"""Open files that somebody else named: regular ones alone, so that a FIFO is not waited for and a device has an end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | Path, *, follow: bool = True) -> BinaryIO:
    """Return a regular file, open for reading.

    Raises OSError, also for every other kind of file, and without `follow` for a link.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    number = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return open(number, "rb")


def read_regular(path: str | Path, most_bytes: int = -1, *, follow: bool = True) -> bytes:
    """Return the first bytes of a regular file, by default all. Raises as `open_regular`."""
    with open_regular(path, follow=follow) as file:
        return file.read(most_bytes)
