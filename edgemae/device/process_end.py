"""The end of the interpreter, and a fork: what becomes of threads and engines that are in C++ just then.

A daemon thread that comes back from C++ while the interpreter ends is unwound through frames that do not allow it, and
the process aborts (SIGABRT, its own exit code lost). So streams, cameras and models that are still open are closed
before that, in this order, and calls of a model that begin later are refused.

A fork copies an engine without its threads. In the child it would answer, and hang when it is freed: there it is never
freed, and never used.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from edgemae.spec.errors import EngineRuntimeError

STREAM, CAMERA, MODEL = range(3)  # in the order of closing
CALL_TIMEOUT_S = 2.0  # an inference that is longer under way at the end is left behind
_open: tuple[weakref.WeakSet[Any], ...] = (weakref.WeakSet(), weakref.WeakSet(), weakref.WeakSet())
_engines: weakref.WeakSet[Any] = weakref.WeakSet()


def close_at_exit(kind: int, thing: Any) -> None:
    """Close a stream, a camera or a model at the end of the interpreter, if it is still open: `thing.end()`."""
    _open[kind].add(thing)


def keep_in_child(engine: Any) -> None:
    """Never free in a forked child what this object holds: its threads are not there to join."""
    _engines.add(engine)


@atexit.register
def _close_all() -> None:
    for things in _open:
        for thing in list(things):
            with contextlib.suppress(Exception):  # there is nobody left to tell
                thing.end()


def _keep_all() -> None:
    for engine in list(_engines):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))
    for things in _open:  # the threads of cameras and streams are not there either
        things.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_all)


class CallGate:
    """Let calls in until the interpreter ends; then wait for those that are inside, and refuse more."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside, self._ended, self._pid = 0, False, os.getpid()

    def __enter__(self) -> None:
        if os.getpid() != self._pid:  # before the lock, which the fork may have copied as held
            raise EngineRuntimeError(
                f"this model was loaded in process {self._pid}, of which this one is a fork",
                expected="a model that is loaded in the process that uses it: an engine's threads are not forked",
                fix="load after the fork (gunicorn: without --preload), or start processes by `spawn`",
            )
        with self._changed:
            if self._ended:
                raise EngineRuntimeError(
                    "the interpreter ends", expected="calls before its end", fix="stop the thread that calls the model"
                )
            self._inside += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._changed:
            self._inside -= 1
            if self._ended:
                self._changed.notify_all()

    @property
    def is_forked(self) -> bool:
        return os.getpid() != self._pid

    def end(self, close: Callable[[], None]) -> None:
        """Refuse more calls, wait for those inside, then `close`; one that takes too long is left behind, unclosed."""
        with self._changed:
            self._ended = True
            if self._changed.wait_for(lambda: self._inside == 0, CALL_TIMEOUT_S):
                close()
