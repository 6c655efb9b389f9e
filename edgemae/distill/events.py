"""Events of a training for other programs: one JSON object a line, and TensorBoard's files on request."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from edgemae.spec.errors import MachineError

EVERY_S = 5.0


class Events:
    """Write `NAME.events.jsonl` beside a checkpoint: `start`, `step` every five seconds, `epoch`, and `end` or `stop`.

    A training that goes on after a kill drops the lines behind its checkpoint: steps stay in order, each once.
    """

    def __init__(self, checkpoint: Path | None, done: int, tensorboard: bool = False, **about: Any) -> None:
        self._file, self._board, self._last = None, None, 0.0
        if checkpoint is None:
            return
        path = checkpoint.with_suffix(".events.jsonl")
        kept = [line for line in _lines(path) if line.get("step", 0) <= done] if done else []
        text = "".join(json.dumps(line) + "\n" for line in kept)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        os.replace(temporary, path)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 (a line at a time, closed by `close`)
        self._board = _board(checkpoint.with_suffix(""), done) if tensorboard else None
        self.write("start", step=done, **about)

    def write(self, event: str, /, **values: Any) -> None:
        """Write one line; numbers also go to TensorBoard."""
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
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the sound lines of an events file; the last one may be torn."""
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
