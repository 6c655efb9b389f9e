"""No library below edgemae reports to its maker: no file in a fresh home, no question to a name server."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemae.doctor.software import examine_telemetry
from edgemae.spec.telemetry import VARIABLES, telemetry_left_on

ROOT = Path(__file__).resolve().parents[2]
SESSION = """
import sys, time
{first}
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
{then}
time.sleep(1.5)
"""
ALL = "import edgemae, edgemae.device.engines; [e.version() for e in edgemae.device.engines.ENGINES.values()]"


STRACE = ["strace", "-f", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmmsg"]


@functools.cache
def can_trace() -> bool:
    """Return whether strace is here and may watch: some containers forbid it."""
    if not shutil.which("strace"):
        return False
    return subprocess.run([*STRACE, "true"], capture_output=True, check=False).returncode == 0


def left_by(program: str, graph: Path, home: Path) -> tuple[list[str], list[str]]:
    """Return the files that a program leaves in its home, and the addresses that it spoke to (where strace is)."""
    home.mkdir()
    trace = home.parent / f"{home.name}.strace"
    watch = [*STRACE, "-o", str(trace)] if can_trace() else []
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT)}  # no CI, which hides it too
    subprocess.run([*watch, sys.executable, "-c", program, graph], env=env, check=True, timeout=60)
    spoken = re.findall(r"sin6?_addr[^)]*\)", trace.read_text()) if watch else []
    return [path.name for path in home.rglob("*") if path.is_file()], spoken


@pytest.fixture
def graph(block_onnx: Callable[..., bytes], tmp_path: Path) -> Path:
    path = tmp_path / "graph.onnx"
    path.write_bytes(block_onnx())
    return path


def test_the_engine_alone_would_report(graph: Path, tmp_path: Path) -> None:
    """What is switched off is there: a version that stops it shows here, and the variable can go."""
    left, _ = left_by(SESSION.format(first="", then=""), graph, tmp_path / "home")
    assert "deviceid" in left


@pytest.mark.parametrize("then", ["", "import nncf, huggingface_hub"], ids=["device", "build"])
def test_nothing_is_reported(graph: Path, tmp_path: Path, then: str) -> None:
    assert left_by(SESSION.format(first=ALL, then=then), graph, tmp_path / "home") == ([], [])


def test_what_you_set_yourself_stays_and_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert telemetry_left_on() == []
    assert examine_telemetry().state == "green"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert telemetry_left_on() == ["ORT_DISABLE_TELEMETRY=0"]
    assert examine_telemetry().state == "yellow"
