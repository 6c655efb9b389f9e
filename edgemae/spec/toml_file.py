"""Read a TOML file that a user wrote, or was sent: bounded in size, depth and numbers, and never waited for."""

from __future__ import annotations

import codecs
import math
from pathlib import Path
from typing import Any

import msgspec

from edgemae.spec.errors import InputError
from edgemae.spec.regular_file import read_regular

MAX_BYTES = 256 << 10  # a resolved plan takes 8 KiB
MAX_TEXT = 4096  # letters of a text: as many as a path has on Linux
MAX_LETTERS = 200  # of a field's name with those of its tables
MAX_DOTS = 128  # in a line: parts of a key, or a list of numbers
MAX_DEPTH = 16  # tables and lists inside each other; a plan has 3


def read_toml(path: Path, what: str, error: type[InputError]) -> dict[str, Any]:
    """Return the tables of a TOML file, with or without a byte order mark.

    Raises `error` with `what` in it ("plan file") for a path that is no regular file, for one that is too large, and
    for contents that are no TOML or that `check_tree` refuses.
    """
    raw = _read(path, what, error)
    try:
        tree = decode_toml(raw.removeprefix(codecs.BOM_UTF8).decode())
    except ValueError as refused:
        raise error(
            f"{what} '{path}' is not valid TOML: {str(refused).splitlines()[0][:200]}",
            expected="TOML in UTF-8: lines such as `key = value`, below tables such as `[table]`",
            fix="correct the file: examples/plan.toml is a plan, and targets/ holds targets",
        ) from refused
    check_tree(tree, f"{what} '{path}'", error)
    return tree


def decode_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text. Raises ValueError for a text that is none, or that nests without end."""
    # The parser of the standard library keeps every beginning of a dotted key: 100,000 parts would take 40 GB.
    if any(line.count(".") > MAX_DOTS for line in text.split("\n")):
        raise ValueError(f"a line has more than {MAX_DOTS} dots")
    try:
        tree: dict[str, Any] = msgspec.toml.decode(text)
    except RecursionError:
        raise ValueError("tables or lists are nested too deeply") from None
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    return tree


def check_tree(tree: dict[str, Any], where: str, error: type[InputError]) -> None:
    """Raise `error` for values that no field can hold: too deep, too long, infinite, with a NUL."""
    left: list[tuple[str, Any, int]] = [("", tree, 0)]
    while left:
        path, value, depth = left.pop()
        reason = ""
        if depth > MAX_DEPTH:
            raise error(
                f"{where} nests more than {MAX_DEPTH} tables or lists",
                expected=f"at most {MAX_DEPTH} inside each other",
                fix="correct the nested field",
            )
        if len(path) > MAX_LETTERS:
            raise error(
                f"{where} has the name {path[:MAX_LETTERS]!r}...", expected="names of fields", fix="correct that name"
            )
        if isinstance(value, dict):
            left += [(f"{path}.{key}".lstrip("."), below, depth + 1) for key, below in value.items()]
        elif isinstance(value, list | tuple):
            left += [(path, below, depth + 1) for below in value]
        elif isinstance(value, float) and not math.isfinite(value):
            reason = f"{path} is {value}"
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            reason = f"{path} is a number of {value.bit_length()} bits"
        elif isinstance(value, str) and "\0" in value:
            reason = f"{path} holds a NUL character"
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            reason = f"{path} holds {len(value)} letters"
        if reason:
            raise error(
                f"{where}: {reason}",
                expected=f"finite numbers of at most 64 bits, texts of at most {MAX_TEXT} letters",
                fix=f"correct {path}",
            )


def _read(path: Path, what: str, error: type[InputError]) -> bytes:
    """Return the bytes of a regular file."""
    try:
        raw = read_regular(path, MAX_BYTES + 1)
    except (OSError, ValueError) as refused:  # ValueError: a NUL in the path
        raise error(
            f"{what} '{path}' cannot be read: {getattr(refused, 'strerror', None) or refused}",
            expected="a TOML file",
            fix="check its path and permissions",
        ) from refused
    if len(raw) > MAX_BYTES:
        raise error(
            f"{what} '{path}' has more than {MAX_BYTES >> 10} KiB",
            expected=f"at most {MAX_BYTES >> 10} KiB",
            fix="pass the file that you meant",
        )
    return raw
