"""One consumer of a stream in a process of its own, for bench_stream: it says on standard output what it got and when.

    python tools/support/stream_program.py edgemae URL 0.04 staleness:200ms

Lines are JSON: ["frame", got_ns, stamp_ns, done_ns, believed_age_ms] and ["state", t_ns, state]. The work on a frame is
a sleep. It ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support.frame_stamps import read_stamp_ns

_lock = threading.Lock()


def report(*row: Any) -> None:
    with _lock:
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


def work(frame_bgr: np.ndarray, work_s: float, own_ms: float | None = None) -> None:
    """Do what an app does with a frame, and tell of it."""
    got_ns, stamp_ns = time.monotonic_ns(), read_stamp_ns(frame_bgr)
    time.sleep(work_s)
    report("frame", got_ns, stamp_ns, time.monotonic_ns(), own_ms)


def edgemae(url: str, work_s: float, policy: str) -> None:
    from edgemae import Camera

    with Camera(url, policy or None) as camera:

        def watch() -> None:
            seen = ""
            while True:
                if (state := camera.state) != seen:
                    seen = state
                    report("state", time.monotonic_ns(), state)
                time.sleep(0.005)

        threading.Thread(target=watch, daemon=True).start()
        for frame in camera:
            work(frame.array_bgr, work_s, frame.age_ms)


def opencv(url: str, work_s: float, policy: str) -> None:
    """The loop of every tutorial, with the advice to open again when a read fails."""
    import cv2

    while True:
        capture = cv2.VideoCapture(url)
        while capture.isOpened():
            ok, frame_bgr = capture.read()
            if not ok:
                break
            work(frame_bgr, work_s)
        capture.release()
        time.sleep(0.5)


def roboflow(url: str, work_s: float, policy: str) -> None:
    from inference import InferencePipeline  # type: ignore[import-not-found]

    pipeline = InferencePipeline.init_with_custom_logic(
        video_reference=url,
        on_video_frame=lambda frames: [work(frame.image, work_s) for frame in frames],
        on_prediction=lambda predictions, frames: None,
    )
    pipeline.start()
    pipeline.join()


PROGRAMS = {"edgemae": edgemae, "opencv": opencv, "roboflow": roboflow}


def main() -> None:
    name, url, work_s, policy = (*sys.argv[1:], "")[:4]
    threading.Thread(target=PROGRAMS[name], args=(url, float(work_s), policy), daemon=True).start()
    report("ready", time.monotonic_ns())
    sys.stdin.read()
    sys.stdout.flush()
    os._exit(0)  # whatever hangs in a driver


if __name__ == "__main__":
    main()
