"""Results without a model: what the views are shown."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from rich.console import Console

from edgemae.device.camera.camera import Frame
from edgemae.device.model import Result
from edgemae.device.stream import Stream, stream
from edgemae.device.stream_result import StreamResult
from edgemae.viewer.live_stats import StatsCollector
from edgemae.viewer.terminal import render

SPEED = {"pre_ms": 1.0, "infer_ms": 8.0, "post_ms": 0.1}
IMAGE = np.zeros((8, 8, 3), np.uint8)
TOPK = [("<b>Müller</b>", 0.75), ("circle", 0.15), ("square", 0.1)]
MODEL: Any = SimpleNamespace(
    manifest=SimpleNamespace(name="shapes"), variant=SimpleNamespace(engine="openvino", precision="int8")
)


def answer(frame_bgr: np.ndarray, topk: list[tuple[str, float]] = TOPK) -> Result:
    label, score = topk[0] if topk else (None, None)
    return Result(label=label, score=score, topk=topk, embedding=None, logits=None, speed=dict(SPEED))


def seen(
    image: np.ndarray, seq: int = 0, t_capture_ns: int | None = None, topk: list[tuple[str, float]] = TOPK
) -> StreamResult[Result]:
    at = time.monotonic_ns() if t_capture_ns is None else t_capture_ns
    frame = Frame(image, seq, at, 0, None, f"cam#{seq + 1}")
    return StreamResult(answer(image, topk), frame, frame.age_ms, "cam")


def clip(path: Path, frames: int, fps: float = 12.5, image_hw: tuple[int, int] = (360, 480)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, image_hw[::-1])
    for i in range(frames):
        writer.write(np.full((*image_hw, 3), (i * 8) % 256, np.uint8))
    writer.release()
    return path


def watched(source: Path, *, realtime: bool = False) -> tuple[Stream[Result], StatsCollector]:
    results = stream(answer, source, realtime=realtime)
    return results, StatsCollector(MODEL, results)


def text(stats: StatsCollector, width: int = 100) -> str:
    """Return what the terminal shows."""
    out = io.StringIO()
    Console(file=out, width=width).print(render(stats.now()))
    return out.getvalue()
