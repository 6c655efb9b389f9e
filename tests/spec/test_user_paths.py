"""Paths that a user gives: `~`, and outputs apart from inputs, also through links, patterns and folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemae.spec.errors import InputError
from edgemae.spec.user_paths import expand_home, require_apart, require_outside


def soft(new: Path, old: Path) -> Path:
    new.symlink_to(old)
    return new


def hard(new: Path, old: Path) -> Path:
    os.link(old, new)
    return new


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "b.edgemae").write_bytes(b"bundle")
    for name in ("images/cat/1.png", "folder/manifest.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


# What is written and what is read. Siblings: the same spelling, another spelling, links of both kinds in both
# directions, links to folders above, baselines with a prefix, files of a folder, patterns, a file that is not there.
CLASHES: list[tuple[str, Callable[[Path], tuple[Path, str | Path]]]] = [
    ("itself", lambda p: (p / "b.edgemae", p / "b.edgemae")),
    ("spelled", lambda p: (p / "images" / ".." / "b.edgemae", str(p / "b.edgemae"))),
    ("soft link to it", lambda p: (soft(p / "l", p / "b.edgemae"), p / "b.edgemae")),
    ("hard link to it", lambda p: (hard(p / "l", p / "b.edgemae"), p / "b.edgemae")),
    ("read through a link", lambda p: (p / "b.edgemae", soft(p / "l", p / "b.edgemae"))),
    ("linked folder", lambda p: (soft(p / "l", p) / "b.edgemae", p / "b.edgemae")),
    ("baseline", lambda p: (p / "b.edgemae", f"onnx:{p / 'b.edgemae'}")),
    ("image of a folder", lambda p: (p / "images" / "cat" / "1.png", str(p / "images"))),
    ("image through a link", lambda p: (soft(p / "l", p / "images") / "cat" / "1.png", str(p / "images"))),
    ("image of a pattern", lambda p: (p / "images" / "cat" / "1.png", str(p / "images" / "cat" / "*.png"))),
    ("shard of a pattern", lambda p: (p / "images" / "cat" / "1.png", str(p / "images" / "cat" / "{0..3}.png"))),
    ("file of a bundle", lambda p: (p / "folder" / "manifest.json", p / "folder")),
    ("new file in a bundle", lambda p: (p / "folder" / "page.html", p / "folder")),
    ("not there yet", lambda p: (p / "new", p / "images" / ".." / "new")),
]


@pytest.mark.parametrize("paths", [row[1] for row in CLASHES[:-1]], ids=[row[0] for row in CLASHES[:-1]])
def test_nothing_is_written_over_what_is_read(place: Path, paths: Callable[[Path], tuple[Path, str | Path]]) -> None:
    output, source = paths(place)
    with pytest.raises(InputError, match="read here") as error:
        require_apart([output], [source])
    assert str(output) in error.value.what


def test_two_outputs_are_not_one_file(place: Path) -> None:
    with pytest.raises(InputError, match="twice"):
        require_apart([place / "new", place / "images" / ".." / "new"], [])


@pytest.mark.parametrize(
    "source", ["rtsp://camera/1", "0", "int8", "x\0y", "{a..b}", "no/such/folder", "pytorch:none", "[", ""]
)
def test_what_is_no_path_is_passed_over(place: Path, source: str) -> None:
    require_apart([place / "images" / "new.bin", place / "other"], [source, place / "images", place / "b.edgemae"])


def test_maps_do_not_lie_among_the_images(place: Path) -> None:
    for output in (place / "images", place / "images" / "maps", soft(place / "l", place / "images")):
        with pytest.raises(InputError, match="read here"):
            require_outside(output, str(place / "images"))
    require_outside(place / "maps", str(place / "images"))
    require_outside(place, str(place / "images"))


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    wanted = {"~": "/home/me", "~/out": "/home/me/out", "onnx:~/g.onnx": "onnx:/home/me/g.onnx", "a~": "a~"}
    assert {path: expand_home(path) for path in wanted} == wanted
    with pytest.raises(InputError, match="nobody-here"):
        expand_home("~nobody-here/out")
    (tmp_path / "~file").touch()
    assert expand_home("~file") == "~file"
