"""What the tools around cameras share: the breakable server in a process of its own, and what this process holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the server is that of the tests


class ServerProcess:
    """Run `tests.support.stream_servers` beside this process; `send("freeze", True)` calls or sets what is there."""

    def __init__(self, kind: str = "rtsp", **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.stream_servers", kind, json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        self.url: str = self._hear()

    def send(self, name: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server has ended: its message is above")
        return json.loads(line)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate(timeout=30)


def holdings() -> dict[str, float]:
    """Return what this process holds: resident memory in MiB, threads and descriptors."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # listing them takes one
    }


def ages_of(ages_ms: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return how old images were: count, median, p99 and the oldest."""
    if len(ages_ms) == 0:
        return {"n": 0}
    p50, p99 = (float(x) for x in np.percentile(ages_ms, [50, 99]))
    return {
        "n": len(ages_ms),
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
        "max_ms": round(float(max(ages_ms)), 1),
    }


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
