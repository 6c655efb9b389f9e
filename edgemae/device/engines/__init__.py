"""Inference engines. A new one is a file beside this one and a line in ENGINES.

`open_session` is the way in: graph files -> compiled (from the cache when nothing changed) -> loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from edgemae.device.engine_cache import find, make
from edgemae.device.engines import onnxruntime, openvino, tensorrt
from edgemae.device.hardware.cpu_affinity import on_cores
from edgemae.device.hardware.heap import trim_heap
from edgemae.device.session import Engine, Session
from edgemae.spec.errors import EngineRuntimeError, InputError, nearest
from edgemae.spec.target import Target

__all__ = ["ENGINES", "Engine", "Session", "find_engine", "open_session"]

_log = logging.getLogger("edgemae.device")
ENGINES: dict[str, Engine] = {
    "onnxruntime": onnxruntime.ENGINE,
    "openvino": openvino.ENGINE,
    "tensorrt": tensorrt.ENGINE,
}


def find_engine(name: str) -> Engine:
    """Return an engine by name. Raises InputError with the nearest name."""
    if name not in ENGINES:
        raise InputError(
            f"unknown engine '{name}'.{nearest(name, list(ENGINES))}",
            expected=f"one of {', '.join(ENGINES)}",
            fix="correct the name of the engine",
        )
    return ENGINES[name]


def open_session(engine: str, files: Mapping[str, bytes], target: Target, cores: tuple[int, ...] = ()) -> Session:
    """Return a running session for graph files such as {"int8.onnx": ...} or {"int8.xml": ..., "int8.bin": ...}.

    `cores`: where it computes, see `edgemae.device.hardware.cpu_affinity`; none: where the system puts it.
    Raises EngineMissingError when the engine is not installed, EngineRuntimeError when it cannot build or load.
    """
    chosen = find_engine(engine)
    with on_cores(cores):
        session = _from_cache(chosen, files, target) if chosen.cached else None
        if session is None:
            blob = make(chosen, files, target) if chosen.cached else chosen.compile(files, target)
            trim_heap()  # what compiling took, before loading takes its own
            session = chosen.load(blob, target)
    session.cores = cores
    return session


def _from_cache(engine: Engine, files: Mapping[str, bytes], target: Target) -> Session | None:
    """Return a session of a kept blob; None where there is none, or it cannot be loaded: a right digest says that it is
    what was written, and a power cut or a full disk of the engine's own may have spoilt what was written."""
    blob = find(engine, files, target)
    try:
        return None if blob is None else engine.load(blob, target)
    except EngineRuntimeError as error:
        _log.warning("the cached engine cannot be loaded, compiling again: %s", error.what)
        return None
