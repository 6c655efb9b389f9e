"""How old results are when they are handed over, and whether one failure costs more than its own frame.

    python tools/bench_results.py --quick
    python tools/bench_results.py --json tools/results/stream-results.json

A clip is played at its own 25 fps. Each way to take results meets sinks of no time, of one and of ten frame intervals,
behind a model faster and one slower than the camera. Promised are two frame intervals and one inference; here the
oldest result of all is held against two intervals and the slowest inference. Models and sinks sleep: what is measured
is the stream. The exit code is 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.device.stream import Stream, stream
from edgemae.device.stream_result import StreamResult

FPS = 25.0
INTERVAL_MS = 1000 / FPS
INFER_MS = (10.0, 60.0)  # faster than the camera, slower than it
SINK_INTERVALS = (0, 1, 10)
FAULTY_FRAMES, FAULT_SHARE = 4000, 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 s a case instead of 16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("edgemae").setLevel(logging.CRITICAL)  # a thousand faults are made on purpose
    seconds = 4.0 if args.quick else 16.0
    with tempfile.TemporaryDirectory() as folder:
        path = clip(Path(folder) / "clip.avi", round(seconds * FPS))
        ages = [
            age_case(name, path, infer_ms, intervals) for name in WAYS for infer_ms in INFER_MS
            for intervals in SINK_INTERVALS
        ]  # fmt: skip
        faults = [fault_case(what, Path(folder)) for what in ("callback", "inference")]
    passed = all(row["late"] == 0 for row in ages) and all(row["lost"] == 0 for row in faults)
    result = {
        "command": shlex.join(["python", "tools/bench_results.py", *sys.argv[1:]]),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "fps": FPS, "seconds": seconds, "ages": ages, "faults": faults, "passed": passed, "machine": fingerprint(),
    }  # fmt: skip
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    say("passed" if passed else "FAILED")
    return 0 if passed else 1


# ---------------------------------------------------------------- ages


class Sleeper:
    """A model that sleeps, and remembers how long that took."""

    def __init__(self, ms: float) -> None:
        self.ms, self.took_ms = ms, list[float]()

    def __call__(self, frame_bgr: Any) -> None:
        start = time.monotonic_ns()
        time.sleep(self.ms / 1e3)
        self.took_ms.append((time.monotonic_ns() - start) / 1e6)


def age_case(name: str, path: Path, infer_ms: float, intervals: int) -> dict[str, Any]:
    """Take the results of one clip (or of two) in one way; say how old they were."""
    model, ages = Sleeper(infer_ms), list[float]()
    results = WAYS[name](model, path, ages, intervals * INTERVAL_MS / 1e3)
    cameras = len(results.cameras)
    # Of two cameras each waits for the other's inference as well.
    limit_ms = 2 * INTERVAL_MS + cameras * max(model.took_ms)
    live = ages[:-cameras]  # the last frame of a file is never dropped: nothing newer comes
    row = {
        "way": name, "infer_ms": infer_ms, "sink_ms": intervals * INTERVAL_MS, "results": len(live),
        "p50_ms": float(np.median(live)), "max_ms": max(live), "limit_ms": limit_ms,
        "late": sum(age > limit_ms for age in live), "counters": asdict(results.counters),
        "frames": sum(camera.counters.captured for camera in results.cameras.values()),
    }  # fmt: skip
    say(
        f"{name:10} inference {infer_ms:3.0f} ms  sink {row['sink_ms']:3.0f} ms  {len(live):4} results  "
        f"p50 {row['p50_ms']:5.1f}  oldest {row['max_ms']:5.1f}  limit {limit_ms:5.1f} ms  late {row['late']}"
    )
    return row


def by_iteration(model: Sleeper, path: Path, ages: list[float], sink_s: float) -> Stream[None]:
    with stream(model, path, "latest", realtime=True) as results:
        for seen in results:
            ages.append(seen.age_ms)
            time.sleep(sink_s)
    return results


def by_callback(model: Sleeper, path: Path, ages: list[float], sink_s: float) -> Stream[None]:
    def sink(seen: StreamResult[None]) -> None:
        ages.append(seen.age_ms)
        time.sleep(sink_s)

    with stream(model, path, "latest", realtime=True, on_result=sink).start() as results:
        results.wait()
    return results


def by_event_loop(model: Sleeper, path: Path, ages: list[float], sink_s: float) -> Stream[None]:
    async def take() -> Stream[None]:
        async with stream(model, path, "latest", realtime=True) as results:
            async for seen in results:
                ages.append(seen.age_ms)
                await asyncio.sleep(sink_s)
        return results

    return asyncio.run(take())


def of_two(model: Sleeper, path: Path, ages: list[float], sink_s: float) -> Stream[None]:
    with stream(model, {"left": path, "right": path}, "latest", realtime=True) as results:
        for seen in results:
            ages.append(seen.age_ms)
            time.sleep(sink_s)
    return results


WAYS: dict[str, Callable[[Sleeper, Path, list[float], float], Stream[None]]] = {
    "iteration": by_iteration, "callback": by_callback, "async": by_event_loop, "two": of_two,
}  # fmt: skip


# ---------------------------------------------------------------- faults


def fault_case(what: str, folder: Path) -> dict[str, Any]:
    """Let one of a hundred callbacks or inferences raise; count the other frames that were not processed."""
    path = clip(folder / f"{what}.avi", FAULTY_FRAMES)
    chosen = random.Random(0)
    raising = {i for i in range(FAULTY_FRAMES) if chosen.random() < FAULT_SHARE}
    number, done = iter(range(FAULTY_FRAMES)), set[int]()

    def model(frame_bgr: Any) -> int:
        i = next(number)
        if what == "inference" and i in raising:
            raise RuntimeError("made on purpose")
        return i

    def sink(seen: StreamResult[int]) -> None:
        if what == "callback" and seen.result in raising:
            raise RuntimeError("made on purpose")
        done.add(seen.result)

    results = stream(model, path, on_result=sink)
    results.run()
    others = FAULTY_FRAMES - len(raising)
    row = {"what": what, "frames": FAULTY_FRAMES, "raised": len(raising), "lost": others - len(done),
           "counters": asdict(results.counters)}  # fmt: skip
    say(f"{what:10} {len(raising)} of {FAULTY_FRAMES} raised, {row['lost']} of the other {others} lost")
    return row


def clip(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (64, 48))
    for i in range(frames):
        writer.write(np.full((48, 64, 3), i % 256, np.uint8))
    writer.release()
    return path


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
