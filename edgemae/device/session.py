"""Engine, Session and Instrumented: what every inference engine looks like from outside."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.device.hardware.cpu_affinity import on_cores
from edgemae.device.operators import Operator
from edgemae.device.process_end import keep_in_child
from edgemae.spec.errors import EdgemaeError, EngineMissingError, EngineRuntimeError
from edgemae.spec.target import Target

Tensors = dict[str, NDArray[Any]]


class Session:
    """Run one loaded network: {"logits": (B, K), "embedding": (B, D)} of pixels as its graph takes them.

    That is (B, C, H, W) float32, or (B, H, W, C) uint8. Outputs are copies that stay valid after the next call.
    `cores`: those that the calling thread is kept to for the length of a call. Raises EngineRuntimeError.
    """

    def __init__(self, engine: str, run: Callable[[NDArray[Any]], Tensors], release: Callable[[], None]) -> None:
        self.engine, self.cores = engine, tuple[int, ...]()
        self._run: Callable[[NDArray[Any]], Tensors] | None = run
        self._release = release
        keep_in_child(run)

    def __call__(self, pixels: NDArray[Any]) -> Tensors:
        if self._run is None:
            raise EngineRuntimeError(
                f"the {self.engine} session is closed", expected="an open session", fix="load the bundle again"
            )
        with engine_errors(self.engine, "run the network"), on_cores(self.cores):
            return self._run(pixels)

    def close(self) -> None:
        """Free what the engine holds; a second call does nothing."""
        if self._run is not None:
            self._run = None
            self._release()
            self._release = _nothing

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Instrumented:
    """Run a network that is being watched; `finish` ends it and returns what was seen.

    Watching costs time (ONNX Runtime: 10 % to 50 % on small ViTs), so this is never the session that is reported.
    `walls_ns` holds the time of each run alone: what an engine needs to hand its figures over comes after.
    """

    def __init__(
        self,
        engine: str,
        run: Callable[[NDArray[np.float32]], object],
        read: Callable[[], None],
        finish: Callable[[], list[Operator]],
    ) -> None:
        self.engine, self.walls_ns = engine, list[int]()
        self._run, self._read, self._finish = run, read, finish

    def __call__(self, pixels: NDArray[np.float32]) -> None:
        with engine_errors(self.engine, "run the instrumented network"):
            start = time.perf_counter_ns()
            self._run(pixels)
            self.walls_ns.append(time.perf_counter_ns() - start)
            self._read()

    def finish(self) -> list[Operator]:
        with engine_errors(self.engine, "report its operators"):
            return self._finish()


@dataclass(frozen=True)
class Engine:
    """Describe one engine. `compile` may take minutes and its result is cached; `load` makes the result runnable."""

    name: str
    needs: str  # what to install
    version: Callable[[], str | None]  # None: cannot be imported here
    compile: Callable[[Mapping[str, bytes], Target], bytes]
    load: Callable[[bytes, Target], Session]
    instrument: Callable[[Mapping[str, bytes], Target], Instrumented]  # reports every operator, and is slower
    facts: Callable[[], dict[str, str]]  # what else a compiled blob depends on, such as the GPU and its driver
    cached: bool = True  # False where compiling is free


def library(engine: str, modules: tuple[str, ...], needs: str) -> ModuleType:
    """Import the first module that is installed. Raises EngineMissingError, also for one that cannot be imported."""
    reason = ""
    for name in modules:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                reason = f": {error}"
        except (ImportError, OSError) as error:  # a shared library of the engine is missing
            reason = f": {error}"
    state = f"is installed but cannot be imported{reason}" if reason else "is not installed"
    raise EngineMissingError(f"the engine '{engine}' {state}", expected=" or ".join(modules), fix=needs)


def library_version(engine: str, modules: tuple[str, ...], needs: str) -> str | None:
    """Return the version of an engine's library, or None when it cannot be imported."""
    try:
        return str(library(engine, modules, needs).__version__)
    except EngineMissingError:
        return None


def only_file(engine: str, files: Mapping[str, bytes], ending: str) -> bytes:
    """Return the one file with this ending. Raises EngineRuntimeError when there is none, or more than one."""
    found = [name for name in files if name.endswith(ending)]
    if len(found) != 1:
        raise EngineRuntimeError(
            f"{engine} was given {sorted(files)}", expected=f"one {ending} file", fix="compile the bundle again"
        )
    return files[found[0]]


@contextmanager
def engine_errors(engine: str, work: str) -> Iterator[None]:
    """Turn whatever an engine raises into EngineRuntimeError; edgemae's own errors pass."""
    try:
        yield
    except EdgemaeError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise EngineRuntimeError(
            f"{engine} failed to {work}: {' '.join(lines)[:400]}",
            expected="a network and an input that this engine takes",
            fix=f"run `edgemae doctor`; another version of {engine} or another --engine may work",
        ) from error


def _nothing() -> None:
    return None
