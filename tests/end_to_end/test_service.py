"""What people copy: the service talks to systemd, its unit is valid, the image has no torch and no root."""

from __future__ import annotations

import configparser
import importlib
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import msgspec
import numpy as np
import pytest

from tests.support.bundles import block_onnx, box, make_bundle

__all__ = ["block_onnx", "box", "make_bundle"]
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
UNIT = EXAMPLES / "edgemae-camera.service"
HARDENED = (
    "DynamicUser", "LockPersonality", "NoNewPrivileges", "PrivateTmp", "ProtectClock", "ProtectControlGroups",
    "ProtectHome", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables",
    "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID",
)  # fmt: skip


@pytest.fixture(scope="module")
def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(delimiters="=", comment_prefixes="#", interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"
    assert parser["Install"]["WantedBy"] == "multi-user.target"
    return parser["Service"]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("camera_service")


# ---------------------------------------------------------------- the service


def heard(listener: socket.socket) -> list[str]:
    """Return what the service has sent to the service manager so far."""
    words = []
    listener.setblocking(False)
    while True:
        try:
            words += listener.recv(100).decode().split("\n")
        except BlockingIOError:
            return words


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_tells_of_each_result(
    service: ModuleType, make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], abstract: bool,
) -> None:  # fmt: skip
    for i in range(3):
        assert cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((40, 48, 3), 60 * i, np.uint8))
    address = f"@edgemae-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0"))
        assert service.main(str(make_bundle(("onnxruntime",))), str(tmp_path)) == 0
        words = heard(listener)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) >= 1
    assert words == ["READY=1", "WATCHDOG=1"] * len(lines) + ["STOPPING=1"]
    assert set(lines[0]) == {"seq", "age_ms", "label", "score"}


def test_the_service_ends_with_the_code_of_the_error(
    service: ModuleType, make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert service.main(str(tmp_path / "no.edgemae"), "0") == 2
    assert service.main(str(make_bundle(("onnxruntime",))), str(tmp_path / "no.mp4")) == 5
    assert capsys.readouterr().err.count("error: ") == 2


# ---------------------------------------------------------------- the unit


def test_the_unit_restarts_what_hangs_or_ends(unit: configparser.SectionProxy) -> None:
    assert (unit["Type"], unit["Restart"]) == ("notify", "always")
    assert int(unit["WatchdogSec"]) > 3, "longer than a camera needs to come back by itself"
    assert int(unit["TimeoutStartSec"]) >= 300, "TensorRT compiles for minutes"
    assert unit["RestartPreventExitStatus"] == "2"
    assert "camera_service.py" in unit["ExecStart"]


def test_the_unit_has_no_rights_but_the_camera(unit: configparser.SectionProxy) -> None:
    assert [name for name in HARDENED if unit.get(name) != "yes"] == []
    assert "User" not in unit
    assert (unit["CapabilityBoundingSet"], unit["ProtectSystem"]) == ("", "strict")
    assert (unit["SupplementaryGroups"], unit["DeviceAllow"]) == ("video", "char-video4linux rw")
    assert f"EDGEMAE_CACHE_DIR=%C/{unit['CacheDirectory']}" in unit["Environment"]
    assert unit["CacheDirectoryMode"] == "0700", "the cache refuses a folder that others may write"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/edgemae/venv/bin/python", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- the image


def test_the_image_has_the_runtime_alone_and_no_root() -> None:
    lines = [line for line in (EXAMPLES / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.match(r"(FROM|WORKDIR|COPY|RUN|ARG|ENV|VOLUME|USER|ENTRYPOINT|CMD) ", line) for line in lines)
    last = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    order = [line.split()[0] for line in last]
    assert order.index("USER") < order.index("ENTRYPOINT")
    assert "USER edgemae" in last
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            assert all((ROOT / name).exists() for name in line.split()[1:-1]), line
    extras = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]["optional-dependencies"]
    (engine,) = re.findall(r"^ARG ENGINE=(\w+)", "\n".join(last), re.MULTILINE)
    assert engine in extras
    (install,) = (line for line in last if "pip install" in line)
    assert install.endswith('[${ENGINE},camera]"')
    assert "--only-binary=:all:" in install
