"""Checkpoints of a training: written whole or not at all, checked before they are believed."""

from __future__ import annotations

import io
import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from edgemae.model.weights import write_atomic
from edgemae.spec.errors import CheckpointError

log = logging.getLogger("edgemae")


def save(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a checkpoint in place of the last one. Raises StorageError and keeps the last one when the disk is full."""
    buffer = io.BytesIO()
    torch.save({"job": identity, **state}, buffer)
    write_atomic(path, buffer.getvalue())


def restore(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state that `save` was given; None when there is no sound checkpoint, a damaged one said aloud.

    Raises CheckpointError for the checkpoint of another training.
    """
    state = _read(path)
    if state is None:
        return None
    theirs = state.get("job", identity)
    wrong = [
        f"{name} {theirs.get(name)!r}, not {value!r}" for name, value in identity.items() if theirs.get(name) != value
    ]
    if wrong:
        raise CheckpointError(
            f"'{path}' is the checkpoint of another training: {'; '.join(wrong)}",
            expected="the checkpoint of this very training, or none",
            fix="remove it to start anew, or name another file",
        )
    return state


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint; None when there is none or, said aloud, when it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        # torch does not look at the checksums that it writes: of 150 flipped bits it found 15.
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            bad = archive.testzip()
        if bad is None:
            return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
        reason = f"{bad} has another checksum"
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError) as error:
        reason = str(error).partition("\n")[0]
    log.warning("checkpoint '%s' is damaged (%s): this training starts anew", path, reason)
    return None
