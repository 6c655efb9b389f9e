"""A compile on disk: one folder a stage, keyed by everything that decides its result.

    OUT/plan.toml                      the resolved plan
    OUT/stages/student-3f9a.../        what the stage wrote, its training checkpoint while it runs, then `done.json`

A stage whose key is done is read back; one that was killed goes on from its checkpoint; a changed number gives another
key, so only what follows from it is done again. Several processes of one training share the folder: the first writes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import InputError, StorageError
from edgemae.spec.plan_loading import plan_tree
from edgemae.spec.plan_schema import Plan
from edgemae.train.distributed import ProcessGroup

log = logging.getLogger("edgemae")
KEY_LENGTH = 16


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON-ready value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_output(folder: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Raise InputError when `folder` is no place for a run; nothing is created."""
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"--output '{folder}' is a file", expected="a folder (it is created)", fix="choose another --output"
        )
    earlier = (folder / "stages").is_dir()
    if resume and not earlier:
        raise InputError(
            f"there is no run to resume in --output '{folder}'",
            expected="the folder of an earlier run",
            fix="correct --output, or leave --resume out: a run that is there goes on by itself",
        )
    if not earlier and not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"--output '{folder}' is not empty and was not made by edgemae",
            expected="a new folder, an empty one, or one of an earlier run (it is resumed)",
            fix="choose another --output, or pass --overwrite",
        )


class StageCache:
    """Keep the stages of one output folder. Raises InputError for a folder that holds something else."""

    def __init__(self, folder: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.folder, self.processes = folder, ProcessGroup()
        check_output(folder, overwrite=overwrite, resume=resume)
        self.processes.wait()
        try:
            (folder / "stages").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"--output '{folder}' cannot be created: {error.strerror}",
                expected="a writable folder",
                fix="choose another --output",
            ) from error
        if self.processes.first:
            self._held = _hold(folder)
            for stage in (folder / "stages").iterdir() if overwrite else ():
                if stage.is_dir():
                    shutil.rmtree(stage, ignore_errors=True)
        self.processes.wait()

    def run(self, name: str, inputs: dict[str, Any], make: Callable[[Path], None]) -> Path:
        """Return the folder of a finished stage, making it with `make(folder)` unless its key is done already."""
        key = digest_of({"stage": name, **inputs})[:KEY_LENGTH]
        folder = self.folder / "stages" / f"{name}-{key}"
        state = self.processes.agree(_state(folder))
        if state == "done":
            log.info("%s: done before, kept", name)
            return folder
        log.info("%s: %s", name, state)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.tmp") if self.processes.first else ():  # of a write that was killed
            left.unlink()
        began = time.monotonic()
        make(folder)
        if self.processes.first:
            _finish(folder, inputs, time.monotonic() - began)
        self.processes.wait()
        return folder

    def digests(self, folder: Path) -> dict[str, str]:
        """Return the sha256 of every file of a finished stage, by name: hashed when it was made or found."""
        done: dict[str, dict[str, str]] = json.loads((folder / "done.json").read_bytes())
        return done["files"]

    def forget(self, folder: Path) -> None:
        """Let a stage be made again by the next run; its files stay."""
        if self.processes.first:
            (folder / "done.json").unlink(missing_ok=True)

    def keep_plan(self, plan: Plan) -> None:
        """Write the resolved plan beside the stages."""
        if self.processes.first:
            write_atomic(self.folder / "plan.toml", to_toml(plan))


class _Hold:
    """Keep an output folder for this process as long as the object lives. Raises InputError when another has it."""

    def __init__(self, folder: Path) -> None:
        file = os.open(folder / "stages" / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        weakref.finalize(self, os.close, file)  # what ends the process lets go as well
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another run is at work in --output '{folder}'",
                expected="one run in a folder at a time",
                fix="wait for it, or choose another --output",
            ) from error


_HELD: weakref.WeakValueDictionary[Path, _Hold] = weakref.WeakValueDictionary()


def _hold(folder: Path) -> _Hold:
    """Return this process's hold on a folder, which may be asked for more than once."""
    place = folder.resolve()
    held = _HELD.get(place) or _Hold(folder)
    _HELD[place] = held
    return held


def _finish(folder: Path, inputs: dict[str, Any], seconds: float) -> None:
    """Drop what was needed on the way, and write down what the stage made."""
    for checkpoint in folder.glob("*.ckpt"):
        checkpoint.unlink()
    for views in folder.glob("teacher-views-*"):
        shutil.rmtree(views)
    files = {p.name: file_digest(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != "done.json"}
    done = {"inputs": inputs, "files": files, "seconds": round(seconds, 1)}
    write_atomic(folder / "done.json", json.dumps(done, indent=1).encode())


def _state(folder: Path) -> str:
    """Return "done" for a finished stage whose files are the ones that it wrote, else what is about to happen."""
    try:
        done = json.loads((folder / "done.json").read_bytes())
        if all(file_digest(folder / name) == digest for name, digest in done["files"].items()):
            return "done"
    except FileNotFoundError:
        if not (folder / "done.json").exists():
            return "going on from the checkpoint" if any(folder.glob("*.ckpt")) else "started"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return "its files have changed, made again"


def to_toml(plan: Plan) -> bytes:
    """Return the plan as TOML, every field written out that is not off (None); `load_plan` reads it back."""
    lines: list[str] = []

    def table(tree: dict[str, Any], path: str) -> None:
        if path:
            lines.append(f"\n[{path}]")
        fields = {key: value for key, value in tree.items() if value is not None and not isinstance(value, dict)}
        lines.extend(f"{key} = {_literal(value)}" for key, value in fields.items())
        for key, value in tree.items():
            if isinstance(value, dict):
                table(value, f"{path}.{key}" if path else key)

    table(plan_tree(plan), "")
    return ("\n".join(lines) + "\n").encode()


def _literal(value: Any) -> str:
    """Return a text, number, boolean or list: spelled alike in JSON and TOML, but for one character."""
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
