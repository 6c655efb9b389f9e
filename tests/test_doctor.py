"""What a machine has and lacks, also where nearly everything is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edgemae.device.engines import ENGINES
from edgemae.doctor import BUILD, diagnose
from tests.tiny import edgemae

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def test_here_everything_is_found() -> None:
    found = diagnose()
    assert set(found["engines"]) == set(ENGINES)
    assert all(found["build"].values())
    assert found["opencv"]
    assert set(found["video"]) == {"FFMPEG", "GStreamer", "v4l/v4l2"}
    assert found["machine"]["cores"] >= 1
    json.dumps(found)


def test_what_is_missing_is_a_hint_each(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino", "nncf"):
        monkeypatch.setitem(sys.modules, name, None)
    hints = "\n".join(diagnose()["hints"])
    assert "engine openvino is not installed: pip install 'edgemae[openvino]'" in hints
    assert "not compiling: no openvino, nncf;" in hints


def test_the_build_extra_installs_what_the_doctor_looks_for() -> None:
    extras = msgspec.toml.decode(PROJECT.read_bytes())["project"]["optional-dependencies"]
    asked = {line.split(">")[0].split(" ")[0] for line in extras["build"]}
    assert set(BUILD.values()) <= asked


def test_it_answers_where_nothing_is_installed() -> None:
    """Neither OpenCV nor an engine nor torch: then it is asked."""
    code = f"""
import sys
for name in {[*BUILD, "cv2", "tensorrt", "tensorrt_rtx"]!r}:
    sys.modules[name] = None
sys.argv = ["edgemae", "doctor", "--json"]
from edgemae.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["opencv"] is None
    assert not any(found["build"].values())
    assert sum("is not installed" in hint for hint in found["hints"]) == len(ENGINES)
    assert any("edgemae[camera]" in hint for hint in found["hints"])


def test_the_verb() -> None:
    ran = edgemae("doctor", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["engines"]["onnxruntime"]["version"]
    assert "onnxruntime" in edgemae("doctor").out
