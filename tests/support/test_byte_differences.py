"""A failed comparison of long byte strings is one line."""

from __future__ import annotations

import pytest

from tests.support.byte_differences import explain

LONG = bytes(range(256)) * 4  # pytest compares by itself too, and for 10 kB its full difference takes 50 s


def test_the_first_difference_is_told() -> None:
    (line,) = explain("==", LONG, LONG[:300] + b"x" + LONG[301:]) or []
    assert line.startswith("1024 bytes == 1024 bytes: they differ from byte 300 on, b',-./")
    (line,) = explain("==", LONG, LONG[:-1]) or []
    assert line.endswith("they differ from byte 1023 on, b'\\xff' != b''")


def test_of_files_only_those_that_differ_are_told() -> None:
    (line,) = explain("==", {"a": LONG, "b": b"1"}, {"a": LONG, "b": b"2"}) or []
    assert line == "b: 1 bytes == 1 bytes: they differ from byte 0 on, b'1' != b'2'"
    assert explain("==", {"a": LONG}, {"b": LONG}) == ["['a'] == ['b']: other names"]


def test_anything_else_is_left_to_pytest() -> None:
    assert explain("==", b"short", b"other") is None
    assert explain("<", LONG, LONG) is None
    assert explain("==", {"a": 1}, {"a": 2}) is None


def test_pytest_asks_for_it() -> None:
    with pytest.raises(AssertionError) as failed:
        assert LONG[1:] == LONG
    assert "they differ from byte 0 on" in str(failed.value)
    assert len(str(failed.value)) < 200
