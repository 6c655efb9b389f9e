"""A compile on disk: one folder a stage, keyed by everything that decides its result.

    OUT/plan.toml                      the resolved plan
    OUT/stages/student-3f9a.../        what the stage wrote, its training checkpoint while it runs, `done.json` at the end

A stage whose key is done is read back; one that was killed goes on from its checkpoint; a changed number gives another
key, so only what follows from it is done again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgemae.model.weights import write_atomic
from edgemae.spec.errors import InputError, StorageError

log = logging.getLogger("edgemae")
KEY_LENGTH = 16


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON-ready value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, or of all files of a folder by name."""
    if path.is_dir():
        return digest_of(
            {p.relative_to(path).as_posix(): file_digest(p) for p in sorted(path.rglob("*")) if p.is_file()}
        )
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(file)


def _slow(file: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


class Workdir:
    """Keep the stages of one output folder. Raises InputError for a folder that holds something else."""

    def __init__(self, folder: Path, *, overwrite: bool = False) -> None:
        self.folder = folder
        if folder.is_file():
            raise InputError(
                f"--output '{folder}' is a file", expected="a folder (it is created)", fix="choose another --output"
            )
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "stages").is_dir() and not overwrite:
            raise InputError(
                f"--output '{folder}' is not empty and was not made by edgemae",
                expected="a new folder, an empty one, or one of an earlier run (it is resumed)",
                fix="choose another --output, or pass --overwrite",
            )
        if overwrite:
            shutil.rmtree(folder / "stages", ignore_errors=True)
        try:
            (folder / "stages").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"--output '{folder}' cannot be created: {error.strerror}",
                expected="a writable folder",
                fix="choose another --output",
            ) from error

    def run(self, name: str, inputs: dict[str, Any], make: Callable[[Path], None]) -> Path:
        """Return the folder of a finished stage, making it with `make(folder)` unless its key is done already."""
        key = digest_of({"stage": name, **inputs})[:KEY_LENGTH]
        folder = self.folder / "stages" / f"{name}-{key}"
        if self._is_done(folder):
            log.info("%s: done before, kept", name)
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        going_on = any(folder.glob("*.ckpt"))
        log.info("%s: %s", name, "going on from the checkpoint" if going_on else "started")
        began = time.monotonic()
        make(folder)
        for checkpoint in folder.glob("*.ckpt"):
            checkpoint.unlink()
        files = {p.name: file_digest(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != "done.json"}
        done = {"inputs": inputs, "files": files, "seconds": round(time.monotonic() - began, 1)}
        write_atomic(folder / "done.json", json.dumps(done, indent=1).encode())
        return folder

    @staticmethod
    def _is_done(folder: Path) -> bool:
        """Tell whether a stage is finished and its files are the ones that it wrote."""
        try:
            done = json.loads((folder / "done.json").read_bytes())
            return all(file_digest(folder / name) == digest for name, digest in done["files"].items())
        except (OSError, ValueError, KeyError):
            return False
