"""A child process that is spoken to in JSON lines: orders on its standard input, answers from its standard output.

The child ends when its standard input does, which is when this process ends, however that happens.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any


class JsonLinesProcess:
    """The parent's side. `stderr` is where the child's messages go, `pass_fds` what it inherits."""

    def __init__(
        self, words: Sequence[str], *, stderr: int | IO[bytes] = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=env, pass_fds=pass_fds, bufsize=0
        )
        self.pid = self._process.pid
        self._rest = b""

    def ask(self, order: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send an order and return the answer. Raises EOFError for an ended child, TimeoutError for a silent one."""
        stdin = self._process.stdin
        assert stdin is not None
        left = memoryview(json.dumps(order).encode() + b"\n")
        try:
            while left:  # a raw pipe may take a part
                left = left[stdin.write(left) or 0 :]
        except BrokenPipeError:
            raise EOFError from None
        return self.receive(timeout_s)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the next answer. Raises EOFError when the child has ended, TimeoutError when it is silent."""
        assert self._process.stdout is not None
        end, stdout = time.monotonic() + timeout_s, self._process.stdout.fileno()
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        while b"\n" not in self._rest:
            if not poll.poll(max(0.0, end - time.monotonic()) * 1e3):
                raise TimeoutError
            part = os.read(stdout, 1 << 16)
            if not part:
                raise EOFError
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def wait(self, timeout_s: float) -> int:
        """Return the exit status. Raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        self._process.kill()

    def close(self, leave_s: float = 0.0) -> int:
        """Close the child's standard input, kill it when it has not ended in `leave_s`, and return its exit status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(leave_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.stdout.close()
        return self._process.wait()


def claim_stdout() -> Callable[[Mapping[str, Any]], None]:
    """In the child: return what sends an answer, and point stdout at stderr: what libraries print is no answer."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda answer: print(json.dumps(answer), file=answers, flush=True)
