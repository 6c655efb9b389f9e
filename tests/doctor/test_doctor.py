"""What a machine has and lacks, also where nearly everything is missing."""

from __future__ import annotations

import builtins
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgemae.device.engines import ENGINES
from edgemae.doctor import Finding, combined_state, diagnose, software
from edgemae.doctor.page import sum_up, table
from edgemae.doctor.software import BUILD, examine_build, examine_engines, examine_opencv
from tests.support.tiny_job import edgemae

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
HERE = Path("/")
JETSON = {"etc/nv_tegra_release": "# R36"}


def named(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_here_everything_is_found() -> None:
    found = diagnose()
    assert set(found["engines"]) == set(ENGINES)
    assert all(found["build"].values())
    assert found["opencv"]
    assert set(found["video"]) == {"FFMPEG", "GStreamer", "V4L2"}
    assert found["machine"]["cores"] >= 1
    assert found["state"] in ("green", "yellow")
    areas = list(dict.fromkeys(finding.area for finding in found["findings"]))
    assert areas == ["machine", "engines", "images", "cameras", "cache", "compiling"]


def test_a_fault_always_says_its_fix() -> None:
    for state in ("red", "yellow"):
        with pytest.raises(ValueError, match="says no fix"):
            Finding("a", "b", state, "broken")


# ---------------------------------------------------------------- engines and libraries


def test_an_engine_that_is_missing_is_not_needed_beside_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    _, findings = examine_engines(HERE)
    assert named(findings)["openvino"] == Finding(
        "engines", "openvino", "grey", "not installed", "pip install 'edgemae[openvino]'"
    )
    assert "any" not in named(findings)


def test_an_engine_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    _, findings = examine_engines(HERE)
    found = named(findings)["onnxruntime"]
    assert (found.state, "libgomp.so.1" in found.found) == ("yellow", True)


@pytest.mark.parametrize("board", [{}, JETSON])
def test_no_engine_at_all_is_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, board: dict[str, str]) -> None:
    for name in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    for path in board:
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    found = named(examine_engines(tmp_path)[1])["any"]
    assert found.state == "red"
    assert ("nvidia-jetpack" in found.fix) == bool(board)


def test_libraries_of_the_workstation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine_build()[1].state == "green"
    for name in ("openvino", "nncf"):
        monkeypatch.setitem(sys.modules, name, None)
    assert examine_build()[1].found == "not compiling: no openvino, nncf"
    monkeypatch.setitem(sys.modules, "torch", None)
    assert examine_build()[1].state == "grey"


def test_the_build_extra_installs_what_the_doctor_looks_for() -> None:
    extras = msgspec.toml.decode(PROJECT.read_bytes())["project"]["optional-dependencies"]
    asked = {line.split(">")[0].split(" ")[0] for line in extras["build"]}
    assert set(BUILD.values()) <= asked


# ---------------------------------------------------------------- OpenCV


@pytest.mark.parametrize(
    ("error", "message", "fix"),
    [
        (ModuleNotFoundError("No module named 'cv2'", name="cv2"), "not installed", "pip install 'edgemae[camera]'"),
        (ImportError("libGL.so.1: cannot open shared object file"), "libGL.so.1", "opencv-python-headless"),
        (AttributeError("_ARRAY_API not found"), "_ARRAY_API", "numpy<2"),
    ],
)
def test_an_opencv_that_does_not_import(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, fix: str
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "cv2":
            raise error
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    (found,) = examine_opencv(HERE)
    assert found.state == "red"
    assert message in found.found
    assert fix in found.fix


@pytest.mark.parametrize(
    ("built", "jetson", "state"),
    [
        ({"FFMPEG": True, "GStreamer": False}, False, "green"), ({"FFMPEG": True, "GStreamer": False}, True, "yellow"),
        ({"FFMPEG": False, "GStreamer": True}, True, "green"), ({"FFMPEG": False, "GStreamer": False}, False, "yellow"),
    ],
)  # fmt: skip
def test_video_back_ends(monkeypatch: pytest.MonkeyPatch, built: dict[str, bool], jetson: bool, state: str) -> None:
    monkeypatch.setattr(software, "opencv", lambda: ("4.8", built, ""))
    monkeypatch.setattr(software, "is_jetson", lambda root: jetson)
    assert named(examine_opencv(HERE))["video"].state == state


def test_two_wheels_of_opencv_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_version", lambda module, name: "5.0" if "contrib" not in name else None)
    found = named(examine_opencv(HERE))["OpenCV"]
    assert (found.state, "overwrite each other" in found.found) == ("yellow", True)
    assert "pip uninstall opencv-python opencv-python-headless" in found.fix


# ---------------------------------------------------------------- the whole of it


def test_it_answers_where_nothing_is_installed(tmp_path: Path) -> None:
    """Neither OpenCV nor an engine nor torch: then it is asked. Red is exit 5, each red line says what to do."""
    code = f"""
import sys
for name in {[*BUILD, "cv2", "tensorrt", "tensorrt_rtx"]!r}:
    sys.modules[name] = None
sys.argv = ["edgemae", "doctor", "rtsp://me:secret@camera/live", "--json"]
from edgemae.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "secret" not in done.stdout
    found = json.loads(done.stdout)
    assert (found["state"], found["opencv"]) == ("red", None)
    assert not any(found["build"].values())
    rows = {(row["area"], row["name"]): row for row in found["findings"]}
    red = {key for key, row in rows.items() if row["state"] == "red"}
    assert red == {("engines", "any"), ("images", "OpenCV"), ("source", "rtsp://***@camera/live")}
    assert all(rows[key]["fix"] for key in red)
    assert all(rows["engines", name]["found"] == "not installed" for name in ENGINES)
    assert "edgemae[camera]" in rows["images", "OpenCV"]["fix"]


def test_the_verb(tmp_path: Path) -> None:
    ran = edgemae("doctor", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["engines"]["onnxruntime"]["version"]
    page = edgemae("doctor")
    assert page.code == 0
    assert "onnxruntime" in page.out
    missing = edgemae("doctor", tmp_path / "clip.mp4")
    assert missing.code == 5
    assert "1 thing in the way" in missing.out


@pytest.mark.parametrize(("encoding", "mark"), [("utf-8", "✗"), ("ascii", "X")])
def test_the_page_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, encoding: str, mark: str) -> None:
    from rich.console import Console

    findings = [
        Finding("engines", "one", "green", "1.0"),
        Finding("engines", "two", "grey", "not installed", "pip install two"),
        Finding("source", "rtsp://" + "x" * 60, "red", "is away " * 12, "call it [back] " * 12),
    ]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    out = io.StringIO()
    Console(file=out, width=80).print(table(findings))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(mark in line for line in lines) == 1
    assert out.getvalue().replace("\n", " ").count("[back]") == 12, "what is found is text, never markup"
    assert lines[-1].strip() == "1 thing in the way: mend the red ones first."


def test_the_worst_counts() -> None:
    yellow, green = Finding("a", "b", "yellow", "x", "y"), Finding("a", "c", "green", "x")
    assert combined_state([green, yellow]) == "yellow"
    assert combined_state([]) == "grey"
    assert sum_up([yellow, yellow, green]) == "It runs; 2 things to look at."
    assert sum_up([green]) == "Everything is in order."
