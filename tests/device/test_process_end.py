"""However a program ends, its exit code is its own; and a fork of a loaded model is told apart and always ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import os, sys, threading, time
import numpy as np
import edgemae
FRAME = np.zeros((48, 64, 3), np.uint8)
model = edgemae.load(sys.argv[1])
"""
WORK = {
    "left with break": "stream = model.stream(sys.argv[2], realtime=True)\nfor seen in stream:\n    break",
    "callback": "model.stream(sys.argv[2], realtime=True, on_result=lambda seen: None).start()\ntime.sleep(0.2)",
    "camera": "camera = edgemae.Camera(sys.argv[2], realtime=True)\nnext(iter(camera))",
    "own thread": """
def work():
    while True:
        model(FRAME)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)""",
}
ENDS = {"exit 3": ("sys.exit(3)", 3), "raise": ("raise ValueError('my own')", 1), "end": ("", 0)}
FORK = """
model(FRAME)
child = os.fork()
if child == 0:
    try:
        model(FRAME)
    except edgemae.EdgemaeError as error:
        print(error.code, flush=True)
    model.close()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
model(FRAME)
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video that is longer than any of these programs."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48))
    for i in range(250):
        writer.write(np.full((48, 64, 3), i, np.uint8))
    writer.release()
    return path


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HEAD + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)


@pytest.mark.parametrize(
    ("work", "end", "engine"),
    [("left with break", "exit 3", "openvino"), ("callback", "raise", "openvino"),
     ("callback", "exit 3", "onnxruntime"), ("camera", "end", "onnxruntime"),
     ("own thread", "exit 3", "openvino"), ("own thread", "raise", "onnxruntime")],
)  # fmt: skip
def test_the_exit_code_is_the_programs_own(
    work: str, end: str, engine: str, clip: Path, make_bundle: Callable[..., Path]
) -> None:
    text, code = ENDS[end]
    ended = run(f"{WORK[work]}\n{text}\n", make_bundle(engines=(engine,)), clip)
    assert ended.returncode == code, ended.stderr
    assert ("my own" in ended.stderr) == (end == "raise")
    assert "terminate called" not in ended.stderr


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_fork_of_a_loaded_model_is_an_error_and_ends(engine: str, make_bundle: Callable[..., Path]) -> None:
    """As under `gunicorn --preload`; the parent's model goes on."""
    ended = run(FORK, make_bundle(engines=(engine,)))
    assert (ended.returncode, ended.stdout) == (0, "engine-runtime\n"), ended.stderr
