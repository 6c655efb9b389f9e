"""Checkpoints of a training: written whole or not at all, checked before they are believed."""

from __future__ import annotations

import io
import logging
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgemae.model.model_file import tensors_digest
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import CheckpointError

log = logging.getLogger("edgemae")


class Checkpoints:
    """Keep two checkpoints of a training at most: the newest one, and an older one from before anything was wrong.

    A loss is looked at in windows of many steps, so the newest one may hold weights that had begun to leave.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity
        self._newest = self._older = 0  # their steps; 0: there is none

    @property
    def older(self) -> Path:
        """Where the older one lies."""
        assert self.path is not None
        return self.path.with_suffix(f".older{self.path.suffix}")

    def save(self, done: int, proved: int, state: dict[str, Any]) -> None:
        """Write a checkpoint after `done` steps, of which the losses of the first `proved` are known to be in order.

        Raises StorageError and keeps the last one when the disk is full.
        """
        if self.path is None:
            return
        if 0 < self._newest <= proved:
            self._set_aside(self.path)
        buffer = io.BytesIO()
        torch.save({"job": self.identity, **state, "done": done, "older": self._older}, buffer)
        write_atomic(self.path, buffer.getvalue())
        self._newest = done

    def _set_aside(self, path: Path) -> None:
        temporary = path.with_name(f".{self.older.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
            os.replace(temporary, self.older)
            temporary.unlink(missing_ok=True)  # left where both are one file already
        except OSError:  # no hard links here
            write_atomic(self.older, path.read_bytes())
        self._older = self._newest

    def restore(self) -> dict[str, Any] | None:
        """Return the state of the newest valid checkpoint, None when there is none; a corrupt one is logged.

        Raises CheckpointError for the checkpoint of another training.
        """
        if self.path is None:
            return None
        if not self.path.exists():
            self.older.unlink(missing_ok=True)  # of a training whose newest was taken away, to begin anew
            return None
        state, older = _read(self.path), None
        if state is None and self.older.exists():
            state = older = _read(self.older)
        if state is None:
            log.warning("no checkpoint at '%s' is valid: this training starts anew", self.path)
            return None
        theirs = state.get("job", {})
        wrong = [
            f"{name} {theirs.get(name)!r}, not {value!r}"
            for name, value in self.identity.items()
            if theirs.get(name) != value
        ]
        if wrong:
            raise CheckpointError(
                f"'{self.path}' is the checkpoint of another training: {'; '.join(wrong)}",
                expected="the checkpoint of this very training, or none",
                fix="remove it to start anew, or name another file",
            )
        done, before = state["done"], state.get("older", 0) if self.older.exists() else 0
        self._newest, self._older = (done, before) if older is None else (0, done)
        return state

    def fall_back(self, proved: int) -> str:
        """Leave a checkpoint that is known to be good, where there is one, and say which."""
        if self.path is None or not (self._newest or self._older):
            return ""
        if self._newest > proved and not self._older:
            return f"; the checkpoint at {self.path}, of step {self._newest}, may be bad already, and none is older"
        if self._newest > proved or not self._newest:
            os.replace(self.older, self.path)
            self._newest, self._older = self._older, 0
        return f"; the last good checkpoint, of step {self._newest}, is kept at {self.path}"

    def finish(self) -> None:
        """Drop the older one: the training has ended well."""
        if self._older:
            self.older.unlink(missing_ok=True)


def checkpoint_identity(
    checkpoint: Path | None, settings: dict[str, Any], **models: nn.Module | None
) -> dict[str, Any]:
    """Return what else a checkpoint must have been made with to go on from it: settings, and models as digests.

    Without a checkpoint nothing is asked of it, and large models are not read for nothing.
    """
    if checkpoint is None:
        return {}
    return settings | {
        name: tensors_digest(model.state_dict())[:16] if model is not None else "" for name, model in models.items()
    }


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint; None when it is corrupt, which is logged."""
    data = path.read_bytes()
    try:
        # torch does not look at the checksums that it writes: of 150 flipped bits it found 15.
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            bad = archive.testzip()
        if bad is None:
            return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
        reason = f"{bad} has another checksum"
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError) as error:
        reason = str(error).partition("\n")[0]
    log.warning("checkpoint '%s' is damaged (%s)", path, reason)
    return None
