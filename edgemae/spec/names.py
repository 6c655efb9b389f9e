"""Names that become files and folders: one rule, so that what a file says never leads out of the folder it names."""

from __future__ import annotations

import re

from edgemae.spec.errors import InputError

MOST_LETTERS = 100  # two of them, a dash and an ending fit into the 255 bytes that file systems give a name
FORM = f"at most {MOST_LETTERS} letters, digits, '.', '_' and '-', a letter or digit first, no '.' at the end"
WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # Windows opens them as hardware
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


def is_file_name(name: str) -> bool:
    """Tell whether a name may become a file or folder of that name, on every system."""
    fits = len(name) <= MOST_LETTERS and _NAME.match(name) is not None
    return fits and not name.endswith(".") and not WINDOWS_DEVICES.match(name)


def require_file_name(what: str, name: str, error: type[InputError]) -> None:
    """Raise `error` unless a name may become a file or folder; `what` says whose name it is."""
    if not is_file_name(name):
        shown = repr(name if len(name) <= MOST_LETTERS else f"{name[:MOST_LETTERS]}...")
        raise error(f"{what} is {shown}", expected=f"{FORM}: it names files", fix=f"correct {what}")
