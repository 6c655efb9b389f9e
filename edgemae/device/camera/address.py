"""Addresses of cameras: read without surprises, and shown without what nobody else should read."""

from __future__ import annotations

import os
import re
from urllib.parse import SplitResult, urlsplit

from edgemae.spec.errors import InputError
from edgemae.spec.printable import printable_line

_ADDRESS = re.compile(r"\w\w+:/")
# Up to the last "@": passwords hold "@", "/", "#" and spaces, which people forget to encode.
_LOGIN = re.compile(r"(\w\w+:/+).*@", re.DOTALL)
# Many cameras take the login in their path or query: /user=admin&password=x&channel=1, ?usr=admin&pwd=x.
_SECRET = re.compile(r"(?i)([a-z_-]*(?:user|usr|login|pass|pwd|psw|token|key|secret|auth)[a-z_-]*=)[^&\s'\"]*")
# A name that nobody thought of may hold a secret too (?pw=, ?code=): of a query only the names are shown, and the
# settings of a CSI camera.
_QUERY = re.compile(
    r"([?&;](?!(?:width|height|fps|flip)=\d{1,4}(?:[&;#\s'\"]|$))[^=&;#?\s'\"]*=)[^&;#\s'\"]*"
)  # fmt: skip
_FRAGMENT = re.compile(r"#[^\s'\"]*")


def redact(source: object) -> str:
    """Return a source, or a message about one, as printable text without its login and the values of its query."""
    text = printable_line(source)
    if not _ADDRESS.search(text):
        return text
    text = _QUERY.sub(r"\1***", _SECRET.sub(r"\1***", _LOGIN.sub(r"\1***@", text)))
    return _FRAGMENT.sub("#***", text)


def is_camera_number(source: str) -> bool:
    """Tell whether a text numbers a camera: up to four digits, and no file or folder here has that name."""
    return source.isdecimal() and len(source) < 5 and not os.path.lexists(source)


def split(address: str) -> SplitResult:
    """Return the parts of an address. Raises InputError, which does not repeat its login."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - it is read when it is asked for
    except ValueError:  # its text quotes the login
        raise InputError(
            f"the address '{redact(address)}' cannot be read",
            expected="scheme://user:password@host:port/path, the port a number, other signs than letters and digits in "
            "user and password %-encoded",
            fix="write / as %2F, # as %23, ? as %3F, @ as %40, : as %3A, [ as %5B, ] as %5D, a space as %20",
        ) from None
    return parts
