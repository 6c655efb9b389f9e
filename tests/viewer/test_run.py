"""`edgemae run` as a process: what ends it, what it says then, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from edgemae.device.model import Model, Result
from edgemae.device.stream_result import StreamResult
from edgemae.spec.errors import EngineRuntimeError, InputError
from edgemae.viewer import run
from tests.support.tiny_job import Job, Ran, edgemae, parts
from tests.viewer.samples import clip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_its_counts_and_a_whole_video(
    job: Job, compiled: Ran, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    source, out = clip(tmp_path / "clip.avi", 600, fps=20), tmp_path / "seen.mp4"
    command = [
        sys.executable, "-m", "edgemae", "run", str(job.bundle), str(source), "--json", "--save", str(out), "--webui",
        "--port", "0",
    ]  # fmt: skip
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    rows = [json.loads(process.stdout.readline()) for _ in range(5)]  # each line leaves at once
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    rows += [json.loads(line) for line in output.splitlines()]
    assert [row["seq"] for row in rows] == list(range(len(rows)))
    assert "watch at http://127.0.0.1:" in errors
    assert "Traceback" not in errors
    counted = int(errors.splitlines()[-1].split(" of ")[0])
    assert counted - len(rows) in (0, 1)  # the signal may come between a result and its line
    capture = cv2.VideoCapture(str(out))
    assert len(rows) <= capture.get(cv2.CAP_PROP_FRAME_COUNT) <= len(rows) + 1
    capture.release()


def test_a_limit_below_zero_is_not_no_limit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="-1"):
        run.run(tmp_path / "b.edgemae", "0", run.ViewerOptions(limit=-1))


def test_a_terminal_gets_the_live_view(job: Job, compiled: Ran, tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgemae", "run", str(job.bundle), str(job.val / "circle")],
        stdout=terminal, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(main, 65536):
            shown += part
    except OSError:  # the other end was closed
        pass
    os.close(main)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "12 of 12 frames seen" in errors.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    for word in ("shapes", "results/s", "inference", "12 seen", "needs 44"):
        assert word in text, word


def test_views_that_cannot_be_are_said_before_anything_runs(job: Job, compiled: Ran, tmp_path: Path) -> None:
    ran = edgemae("run", job.bundle, job.val, "--save", tmp_path / "seen.gif")
    assert ran.code == 2
    assert "has no ending of a video" in ran.err
    if "NONE" in next(line for line in cv2.getBuildInformation().splitlines() if "GUI:" in line):
        ran = edgemae("run", job.bundle, job.val, "--show")
        assert ran.code == 5
        assert "opencv-python-headless" in parts(ran.err)[0]


def test_results_that_are_too_old_are_withheld(job: Job, compiled: Ran) -> None:
    ran = edgemae("run", job.bundle, job.val / "circle", "--max-age-ms", "0.000001")
    assert (ran.code, ran.out) == (0, "")
    assert "0 of 12 frames seen, 0 dropped, 12 withheld" in ran.err


def test_a_signal_that_python_swallowed_ends_it_all_the_same(
    job: Job, compiled: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(seen: StreamResult[Result]) -> str:
        with contextlib.suppress(KeyboardInterrupt):  # as a destructor would
            os.kill(os.getpid(), signal.SIGTERM)
        return "said"

    monkeypatch.setattr(run, "as_text", tell)
    ran = edgemae("run", job.bundle, job.val / "circle")
    assert (ran.code, ran.out) == (143, "said\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_run_in_which_every_inference_failed_is_no_success(
    job: Job, compiled: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also below the five failures in a row that end a stream; one result among failures is a success."""
    for name in ("0.png", "1.png"):
        (tmp_path / name).write_bytes(next(job.val.rglob("*.png")).read_bytes())

    def broken(self: Model, *_: object) -> Result:
        raise EngineRuntimeError("the engine is away", expected="", fix="")

    monkeypatch.setattr(Model, "__call__", broken)
    ran = edgemae("run", job.bundle, tmp_path)
    assert ran.code == 5
    assert "2 of 2" in ran.err
