"""Cold start: a new process loads a bundle and classifies one frame. This module is both the parent and the child.

The child takes path, engine, target ("" for none) and the parent's monotonic clock in ns, and prints one JSON object.
At the top it imports what an app would import anyway, for imports are part of a cold start.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from edgemae.spec.errors import EngineRuntimeError

COLD_TIMEOUT_S = 600  # an engine may still have to be built


def cold_start(path: str | Path, engine: str = "auto", target: str | None = None) -> dict[str, float]:
    """Return {cold_ms, load_ms, first_ms} of a new process that loads a bundle and classifies one frame.

    The first inference is that of the first golden frame, within loading: an app's first frame finds the engine warm.

    Raises EngineRuntimeError when it does not get that far.
    """
    from edgemae.profiling.child_process import command, environment
    from edgemae.profiling.timing.timer import wait_until_idle

    words = command("edgemae.profiling.cold_start", str(path), engine, target or "")
    wait_until_idle()
    try:
        # The monotonic clock is one for all processes of a machine, so the child can subtract our start from its end.
        done = subprocess.run(
            [*words, str(time.monotonic_ns())],
            capture_output=True, text=True, timeout=COLD_TIMEOUT_S, env=environment(),
        )  # fmt: skip
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    except subprocess.TimeoutExpired:
        done, reason = None, [f"no result within {COLD_TIMEOUT_S} s"]
    if done is None or done.returncode:
        raise EngineRuntimeError(
            f"'{path}' does not start in a new process: {reason[0]}",
            expected="the same bundle to load there as it did here",
            fix="see that memory is left for a second copy of it",
        )
    return {key: float(value) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}


def main(path: str, engine: str, target: str, started_ns: str) -> None:
    from edgemae.device.model import load
    from edgemae.profiling.golden_inputs import bundle_of, golden_frames

    loading_ns = time.monotonic_ns()
    model = load(path, target=target or None, engine=engine)
    loaded_ns = time.monotonic_ns()
    frame = golden_frames(bundle_of(model))[0]
    framed_ns = time.monotonic_ns()
    model(frame)
    end_ns = time.monotonic_ns()
    cold_ns = end_ns - int(started_ns) - (framed_ns - loaded_ns)  # an app has its frame from a camera
    spans = {"cold_ms": cold_ns / 1e6, "load_ms": (loaded_ns - loading_ns) / 1e6, "first_ms": model.check.first_ms}
    print(json.dumps(spans))


if __name__ == "__main__":
    main(*sys.argv[1:])
