"""Events of a training for other programs: one JSON object a line, and TensorBoard's files on request."""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from edgemae.spec.atomic_file import replace_file
from edgemae.spec.errors import MachineError

log = logging.getLogger("edgemae")
EVERY_S = 5.0


class Events:
    """Write `NAME.events.jsonl` beside a checkpoint: `start`, `step` every five seconds, `epoch`, and `end` or `stop`.

    A training that goes on after a kill drops the lines behind its checkpoint: steps stay in order, each once. One
    whose events cannot be written, on a full disk for example, says so and goes on without them.
    """

    def __init__(self, checkpoint: Path | None, done: int, tensorboard: bool = False, **about: Any) -> None:
        self._file, self._board, self._last, self._path = None, None, 0.0, None
        if checkpoint is None:
            return
        self._path = checkpoint.with_suffix(".events.jsonl")
        board = _board(checkpoint.with_suffix(""), done) if tensorboard else None
        try:
            self._file = _opened(self._path, done)
        except OSError as error:
            self._give_up(error)
        self._board = board
        self.write("start", step=done, **about)

    @property
    def place(self) -> str:
        """The file that events go to; "" when they go nowhere."""
        return str(self._path) if self._file is not None else ""

    def write(self, event: str, /, **values: Any) -> None:
        """Write one line; numbers also go to TensorBoard."""
        try:
            self._write(event, values)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        file, board, self._file, self._board = self._file, self._board, None, None
        for left in (file, board):
            with suppress(OSError):  # what is buffered cannot be written either
                if left is not None:
                    left.close()
        log.warning("events cannot be written to '%s' any more (%s): the training goes on without them",
                    self._path, error.strerror or error)  # fmt: skip

    def _write(self, event: str, values: dict[str, Any]) -> None:
        if self._file is not None:
            line = {"event": event, "time": round(time.time(), 3)} | values
            self._file.write(json.dumps(line) + "\n")
        if self._board is not None and event in ("step", "epoch"):
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{event}/{name}", value, values["step"])

    def step(self, **values: Any) -> None:
        """Write a step, unless the last one was written less than five seconds ago."""
        if self._file is not None and time.monotonic() - self._last >= EVERY_S:
            self._last = time.monotonic()
            self.write("step", **values)

    def close(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
            if self._board is not None:
                self._board.close()
        except OSError as error:
            self._give_up(error)


def _opened(path: Path, done: int) -> TextIO:
    """Return the events file, rid of what lies behind step number `done`, to write on a line at a time."""
    kept = [line for line in _lines(path) if line.get("step", 0) <= done] if done else []
    replace_file(path, ["".join(json.dumps(line) + "\n" for line in kept).encode()])
    return open(path, "a", buffering=1)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the valid lines of an events file; the last one may be torn."""
    found = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def _board(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MachineError(
            "TensorBoard is not installed, and scale.tensorboard asks for it",
            expected="the package tensorboard",
            fix="pip install tensorboard, or leave --set scale.tensorboard out (the events file has the same numbers)",
        ) from error
    return SummaryWriter(str(folder), purge_step=done + 1)
