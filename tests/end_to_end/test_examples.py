"""The examples run as they stand, on images instead of a camera."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import pytest

from tests.support.tiny_job import Job, Ran

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_device_app(
    job: Job, compiled: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = sorted(job.val.rglob("*.png"))[0]
    run("device_app.py", job.bundle, image, monkeypatch=monkeypatch, folder=tmp_path)
    assert capsys.readouterr().out.split()[0] in ("circle", "square")


def test_camera_app(
    job: Job, compiled: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("camera_app.py", job.bundle, job.val / "circle", monkeypatch=monkeypatch, folder=tmp_path)
    out = capsys.readouterr().out
    assert re.search(r"circle frame \d+: (circle|square) 0", out)  # the newest, so maybe not the first
    assert "\nended StreamCounters(" in out


def test_gallery_app(
    weave: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, path in enumerate(sorted((weave / "normal").iterdir())[:4]):
        (tmp_path / "things" / f"cloth-{i}").mkdir(parents=True)
        shutil.copy(path, tmp_path / "things" / f"cloth-{i}")
    monkeypatch.setattr(sys, "argv", [])
    source = tmp_path / "things" / "cloth-2"
    run("gallery_app.py", weave / "weave.edgemae", "things", source, monkeypatch=monkeypatch, folder=tmp_path)
    assert capsys.readouterr().out == "frame 0: cloth-2 (1.00, like 002.png)\n"
    assert (tmp_path / "things.gallery").is_file()


def test_anomaly_app(
    weave: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame_bgr = cv2.imread(str(weave / "normal" / "000.png"))
    cv2.line(frame_bgr, (20, 30), (40, 36), (255, 255, 255), 3)
    (tmp_path / "torn").mkdir()
    assert cv2.imwrite(str(tmp_path / "torn" / "a.png"), frame_bgr)
    run(
        "anomaly_app.py", weave / "weave.edgemae", weave / "normal", tmp_path / "torn", monkeypatch=monkeypatch,
        folder=tmp_path,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "is_claim=False" in out, "80 images are too few for 1 %"
    assert out.endswith("ANOMALY\n")
    assert cv2.imread(str(tmp_path / "anomaly-0.png")).shape == (64, 64, 3)
