"""Child process of `cold_start`: load a bundle, classify one frame, say how long it took since the parent started it.

Arguments: path, engine, target ("" for none), the parent's monotonic clock in ns. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time


def main(path: str, engine: str, target: str, started_ns: str) -> None:
    from edgemae.device.latency.profiling import golden_frames
    from edgemae.device.model import load

    loading_ns = time.monotonic_ns()
    model = load(path, target=target or None, engine=engine)
    loaded_ns = time.monotonic_ns()
    frame = golden_frames(model)[0]
    first_ns = time.monotonic_ns()
    model(frame)
    end_ns = time.monotonic_ns()
    spans = {"cold_ms": end_ns - int(started_ns), "load_ms": loaded_ns - loading_ns, "first_ms": end_ns - first_ns}
    print(json.dumps({name: span / 1e6 for name, span in spans.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
