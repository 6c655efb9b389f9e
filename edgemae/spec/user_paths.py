"""Paths that a user gives: `~` is the home folder, and nothing is written over what it is made of."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from edgemae.spec.bundle import is_bundle
from edgemae.spec.errors import InputError

_PREFIX = re.compile(r"(pytorch:|onnx:)?(.*)", re.DOTALL)  # of a baseline of `profile`
_PATTERN = re.compile(r"[*?\[{]")  # of images or shards


def expand_home(path: str) -> str:
    """Return a path with the home folder in place of `~`; shells leave `--output=~/out` and quoted paths alone.

    Raises InputError for a `~` that names no home, unless a file has that very name.
    """
    prefix, path = _split(path)
    found = os.path.expanduser(path)
    if found.startswith("~") and not os.path.lexists(found):
        raise InputError(
            f"'{path}' names no home folder",
            expected="~/ for your own, with HOME set; ~name/ for that of a user of this machine",
            fix="write the whole path, or ./~ for a file of that name",
        )
    return prefix + found


def require_apart(outputs: Iterable[Path], inputs: Iterable[str | Path]) -> None:
    """Raise InputError where a file or folder to be written is one that is read, a part of it, or another output.

    Links of both kinds are followed. A new file in a folder of images is none of them, in a bundle that is a folder it
    is: it would make the bundle invalid. Inputs that are no paths, such as addresses, are passed over.
    """
    written: list[Path] = []
    for output in outputs:
        for other in written:
            if _is_same(output, other):
                raise _clash(output, f"is to be written twice, also as '{other}'")
        written.append(output)
    for given in inputs:
        path = _place(given)
        if path is None:
            continue
        for output in written:
            if _is_same(output, path):
                raise _clash(output, "is read here, and would be written over")
            if path.is_dir() and _is_inside(output, path) and (is_bundle(path) or output.is_file()):
                raise _clash(output, f"lies in '{path}', which is read here")


def require_outside(output: Path, source: str | Path) -> None:
    """Raise InputError for a folder to be written that is, or lies in, the folder of images that is read."""
    path = _place(source)
    if path is not None and path.is_dir() and (_is_same(output, path) or _is_inside(output, path)):
        raise _clash(output, f"lies in '{path}', which is read here")


def _place(given: str | Path) -> Path | None:
    """Return the file or folder that an input names, of a pattern its folder; None for an input that is no path."""
    text = _split(str(given))[1]
    try:
        if "://" in text:
            return None
        if os.path.lexists(text) or isinstance(given, Path):  # a text may be a name: a target, a camera's number
            return Path(text)
        if match := _PATTERN.search(text):
            return Path(text[: match.start()] + "x").parent
    except ValueError:  # a NUL in it
        pass
    return None


def _split(text: str) -> tuple[str, str]:
    match = _PREFIX.fullmatch(text)
    assert match is not None
    return match[1] or "", match[2]


def _is_same(one: Path, other: Path) -> bool:
    """Tell whether two paths lead to one file or folder, which need not exist yet."""
    try:
        if one.exists() and other.exists():
            return one.samefile(other)
    except OSError:
        pass
    return os.path.realpath(one) == os.path.realpath(other)


def _is_inside(path: Path, folder: Path) -> bool:
    """Tell whether a path lies below a folder, by its spelling with all links followed or by its parents' identity."""
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        return True
    return any(parent.exists() and parent.samefile(folder) for parent in path.absolute().parents)


def _clash(output: Path, why: str) -> InputError:
    return InputError(
        f"'{output}' {why}",
        expected="a place of its own for each file and folder that is written",
        fix="choose another name for it",
    )
