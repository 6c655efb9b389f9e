"""The first run of a bundle that nobody here has run before: in a child process, under limits of memory and time.

A graph may loop without end, or ask for more memory than there is; a hash does not tell. In a child such a graph ends
with an error instead of with the device. Before that the manifest was held to its rules, and the graph to a strict
parser, so what is left to a stranger is time and memory, and both are bounded here.

    -> {"path": ..., "loading": {...}, "data_mib": 1500}
    <- {"info": {...}, "log": [[30, "..."]]}  or  {"error": {"code", "what", "expected", "fix"}, "log": [...]}
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemae.device.child_process import JsonLinesProcess, claim_stdout
from edgemae.device.engines import ENGINES
from edgemae.profiling.child_process import command, environment
from edgemae.spec.bundle import open_bundle
from edgemae.spec.errors import EdgemaeError, EngineRuntimeError, error_of

log = logging.getLogger("edgemae")
TIME_LIMIT_S = 60.0  # a ViT-Tiny takes 1 s, its OpenVINO build included
BUILD_LIMIT_S = 1800.0  # TensorRT chooses kernels for minutes
MEMORY_MIB = 1024  # beside the bundle: Python, OpenCV and an engine take 200 to 300
MEMORY_TIMES = 16  # of the bundle's size: engines copy and repack weights while they build


def first_run(path: Path, **loading: Any) -> dict[str, Any]:
    """Load a bundle and run its golden frames in a child process; return what `Model.info` says there.

    `loading`: keyword arguments of `load`. Raises what `load` raises, and EngineRuntimeError for a bundle that does not
    end, or that takes more memory than 1 GiB and 16 times its size.
    """
    bundle = open_bundle(path)
    mib = MEMORY_MIB + MEMORY_TIMES * sum(file.size for file in bundle.manifest.files.values()) // 2**20
    # A stranger gets the long limit only where TensorRT would really build: it is listed, installed and may be taken.
    listed = any(variant.engine == "tensorrt" for variant in bundle.manifest.variants)
    builds = (
        listed and loading.get("engine") in (None, "auto", "tensorrt") and ENGINES["tensorrt"].version() is not None
    )
    limit_s = BUILD_LIMIT_S if builds else TIME_LIMIT_S
    child = JsonLinesProcess(command("edgemae.deploy.first_run"), env=environment())
    try:
        answer = child.ask({"path": str(path), "loading": loading, "data_mib": mib}, limit_s)
    except TimeoutError:
        child.kill()
        raise _refused(path, f"did not end within {limit_s:.0f} s", limit_s, mib) from None
    except EOFError:
        raise _refused(path, f"ended its process with status {child.wait(10)}", limit_s, mib) from None
    finally:
        child.close()
    for level, message in answer["log"]:
        log.log(level, "%s", message)
    if "error" in answer:
        raise error_of(answer["error"])
    info: dict[str, Any] = answer["info"]
    return info


def _refused(path: Path, what: str, limit_s: float, mib: int) -> EngineRuntimeError:
    return EngineRuntimeError(
        f"the first run of '{path}' {what}",
        expected=f"golden frames that are done within {limit_s:.0f} s and {mib} MiB",
        fix="do not use this bundle unless you know who made it; if it is your own, report this",
    )


class _Kept(logging.Handler):
    """Keep messages for the parent."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.rows.append((record.levelno, record.getMessage()))


def _limit_memory(mib: int) -> None:
    """Bound what this process may write to, where the system can (Linux counts RLIMIT_DATA so, since 4.7)."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_DATA, (mib << 20, mib << 20))


def _serve() -> None:
    from edgemae.device.model import load

    send, kept = claim_stdout(), _Kept()
    logging.getLogger("edgemae").addHandler(kept)
    order: Mapping[str, Any] = json.loads(sys.stdin.readline())
    _limit_memory(order["data_mib"])
    try:
        with load(order["path"], **order["loading"]) as model:
            send({"info": model.info, "log": kept.rows})
    except EdgemaeError as error:
        send({"error": error.row, "log": kept.rows})
    except MemoryError:
        sys.exit(1)


if __name__ == "__main__":
    _serve()
