"""Text of strangers is printable: what a terminal would act on is written as an escape, everything else stays."""

from __future__ import annotations

import io

import pytest

from edgemae.spec.errors import InputError
from edgemae.spec.printable import PrintableStream, printable, printable_line


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"), ("\x9b31m", r"\x9b31m"), ("a\x7fb", r"a\x7fb"), ("a\rb", r"a\x0db"),
        ("\u202egnp.exe", r"\u202egnp.exe"), ("\u2066x\u2069", r"\u2066x\u2069"), ("\u200fx", r"\u200fx"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"), ("a\x85b", r"a\x85b"),
        ("caf\udce9", r"caf\xe9"), ("\ud83d", r"\ud83d"),
        ("one\ntwo\tthree", "one\ntwo\tthree"), ("één 猫 👩‍👩‍👧 שלום", "één 猫 👩‍👩‍👧 שלום"), (7, "7"),
    ],
)  # fmt: skip
def test_what_a_terminal_acts_on_is_escaped(raw: object, shown: str) -> None:
    assert printable(raw) == shown
    assert printable(shown) == shown


def test_a_cell_has_one_line() -> None:
    assert printable_line("one\ntwo\tthree\x1b") == r"one\ntwo\tthree\x1b"


def test_an_error_keeps_its_three_lines() -> None:
    error = InputError("no 'a\nfix: rm -rf /\x1b[2J'", expected="x", fix="y")
    assert str(error).splitlines() == [r"no 'a\nfix: rm -rf /\x1b[2J'", "  expected: x", "  fix: y"]
    assert error.row["what"] == "no 'a\nfix: rm -rf /\x1b[2J'"  # other programs get what it is about


def test_a_stream_of_another_encoding_loses_nothing() -> None:
    raw = io.BytesIO()
    stream = PrintableStream(io.TextIOWrapper(raw, encoding="ascii"))
    stream.writelines(["é ✓\n", "\x1b[31mred\n"])
    stream.flush()
    assert raw.getvalue() == b"\\xe9 \\u2713\n\\x1b[31mred\n"
    assert stream.encoding == "ascii"
