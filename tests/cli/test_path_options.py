"""Every path of every verb is known to be read or written, and no verb writes over what it reads."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer.main

from edgemae.cli import app
from edgemae.cli.exit_codes import run_app
from edgemae.cli.path_options import READS, RESULTS, WRITES, check_paths
from edgemae.spec.errors import InputError

# Texts that name no path: a new option stands here, in READS or in WRITES.
OTHERS = {
    "set_", "precision", "name", "remote", "remote_python", "recipe", "scheme", "scenario", "slo", "soak", "engine",
    "cores", "fallback", "policy",
}  # fmt: skip


def verbs() -> Iterator[tuple[str, Any]]:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        yield from getattr(command, "commands", {name: command}).items()


@pytest.mark.parametrize(("name", "verb"), list(verbs()))
def test_every_path_is_known(name: str, verb: Any) -> None:
    kinds = get_type_hints(verb.callback, include_extras=False)
    texts = {p.name for p in verb.params if {"str", "Path"} & set(re.findall(r"\w+", str(kinds.get(p.name, str))))}
    texts -= {"help"}
    assert texts <= {*READS, *WRITES, *OTHERS}
    assert (name in RESULTS) == ("overwrite" in {p.name for p in verb.params})


FILES = (
    "b.edgemae", "clip.mp4", "x.safetensors", "out/teacher.safetensors", "out/student.safetensors", "out/plan.toml",
    "out/stages/s-1/student.safetensors", "images/a.png", "folder/manifest.json",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    os.link("b.edgemae", "hard")
    os.symlink("b.edgemae", "soft")
    os.link("clip.mp4", "hard.mp4")
    return tmp_path


LINES = [
    "gallery build b.edgemae images -o b.edgemae", "gallery build b.edgemae images -o hard",
    "gallery build b.edgemae images -o soft", "gallery build soft images -o b.edgemae",
    "gallery build b.edgemae images -o images/a.png", "gallery build b.edgemae images --held-out hard -o b.edgemae",
    "gallery build folder images -o folder/manifest.json", "gallery score b.edgemae x.safetensors images --save images",
    "profile b.edgemae --html b.edgemae", "profile b.edgemae --html hard", "profile folder --html folder/page.html",
    "profile b.edgemae --per-layer --trace b.edgemae", "profile b.edgemae --html new --trace new",
    "profile b.edgemae --baseline pytorch:x.safetensors --html x.safetensors",
    "run b.edgemae clip.mp4 --save clip.mp4", "run b.edgemae clip.mp4 --save hard.mp4",
    "run clip.mp4 0 --save hard.mp4",
    "extract x.safetensors -o x.safetensors", "extract x.safetensors -o ./images/../x.safetensors",
    "pretrain --from out/teacher.safetensors -o out", "finetune out/teacher.safetensors -o out",
    "distill out/student.safetensors -o out", "distill x --finetuned-teacher out/student.safetensors -o out",
    "prune out/student.safetensors -o out", "compile x.safetensors --plan out/plan.toml -o out",
    "compile x.safetensors --data images -o images", "quantize x.safetensors --calib-data images -o images",
    "demo -o . --target b.edgemae --set name=x -o out --target out/plan.toml",
    "compile out/stages/s-1/student.safetensors -o out --overwrite",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_verb_does_not_write_over_what_it_reads(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    monkeypatch.setattr("sys.argv", ["edgemae", *shlex.split(line)])
    assert run_app(app) == InputError.exit_code
    assert "read here" in (said := capsys.readouterr().err) or "twice" in said
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_what_is_apart_passes(place: Path) -> None:
    check_paths("compile", {"source": Path("out/teacher.safetensors"), "output": Path("out"), "data": "images"})
    check_paths("run", {"bundle": Path("b.edgemae"), "source": "rtsp://c/1", "save": Path("new.mp4")})
    check_paths("build", {"bundle": Path("b.edgemae"), "folder": "images", "output": Path("g.gallery")})


def test_the_home_folder_is_found(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setattr("sys.argv", ["edgemae", "extract", "~/x.safetensors", "--output=~/x.safetensors"])
    assert run_app(app) == InputError.exit_code
    assert f"'{place / 'x.safetensors'}' is read here" in capsys.readouterr().err
    assert not (place / "~").exists()
