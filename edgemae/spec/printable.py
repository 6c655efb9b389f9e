"""Text of strangers made printable: a label, a file name, an address, an error of another program.

Whatever a terminal would act on, or show in another order than it stands in, is written as an escape (`\\x1b`): the
control characters C0 and C1 (ECMA-48), DEL, the marks and overrides of bidirectional text (Unicode TR9, as in "Trojan
Source", CVE-2021-42574), line and paragraph separators, and bytes of a file name that are no UTF-8. JSON needs none of
this: its writer escapes them itself.
"""

from __future__ import annotations

import re
from typing import IO, Any

_RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BREAKS = str.maketrans({"\n": "\\n", "\t": "\\t"})


def printable(text: object) -> str:
    """Return text that may be printed; lines and tabs stay."""
    return _RAW.sub(_escape, str(text))


def printable_line(text: object) -> str:
    """Return text that may be printed within one line, as in a cell, a log line or a part of an error."""
    return printable(text).translate(_BREAKS)


def _escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as Python keeps it in a file name
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class PrintableStream:
    """Pass text on to a stream, printable; a character that its encoding lacks becomes an escape too.

    rich writes its colours to `rich_proxied_file`, the stream itself: what it prints goes through PrintableConsole.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.rich_proxied_file = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)
