"""The fingerprint of a machine: repeatable, and different where latencies are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgemae.device.hardware import fingerprint as fingerprint_module
from edgemae.device.hardware.fingerprint import _ranges, differences, fingerprint


def test_the_fingerprint_is_json_and_repeatable() -> None:
    found = fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert differences(found, fingerprint()) == []
    assert found["libraries"]["numpy"] == np.__version__
    assert "onnxruntime" in found["libraries"]
    assert found["cores"] >= 1
    assert set(found["flags"]) <= set(fingerprint_module.FLAGS)
    assert "torch" not in found["libraries"]


def test_any_difference_is_named() -> None:
    here = fingerprint()
    assert differences(here, {**here, "governor": "powersave-x"}) == [f"governor: {here['governor']} / powersave-x"]
    without = {key: value for key, value in here.items() if key != "microcode"}
    assert len(differences({**here, "microcode": "0x1"}, without)) == 1


def test_two_arm_boards_are_two_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    def board(part: str, model: str) -> dict[str, object]:
        files = {
            "/proc/cpuinfo": "processor : 0\nCPU implementer : 0x41\nCPU architecture: 8\nCPU variant : 0x0\n"
            f"CPU part : {part}\nCPU revision : 1\n", "/proc/device-tree/model": f"{model}\0",
        }  # fmt: skip
        monkeypatch.setattr(fingerprint_module, "text", lambda path: files.get(str(path)))
        return fingerprint_module.fingerprint()

    orin, pi = board("0xd42", "Orin Nano"), board("0xd0b", "Raspberry Pi 5")
    assert orin["cpu_id"] == "0x41/8/0x0/0xd42/1"
    assert {line.partition(":")[0] for line in differences(orin, pi)} == {"cpu_id", "board"}
    assert "Raspberry Pi 5" in differences(orin, pi)[0]


def test_the_governors_of_all_processors_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint_module, "usable_cores", lambda: {0, 1, 2, 3})
    assert fingerprint_module._governor(tmp_path) is None
    for cpu in range(4):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text("performance\n")
    assert fingerprint_module._governor(tmp_path) == "performance"
    (folder / "scaling_governor").write_text("powersave\n")
    assert fingerprint_module._governor(tmp_path) == "performance 0-2, powersave 3"


@pytest.mark.parametrize(
    ("key", "other"), [("pinning", "0"), ("environment", {"OMP_NUM_THREADS": "77"}), ("gpu", ["x"])]
)
def test_pinning_and_environment_forbid_a_comparison(key: str, other: object) -> None:
    here = fingerprint()
    assert differences(here, {**here, key: other}) == [f"{key}: {here[key]} / {other}"]


def test_unreadable_facts_are_none_and_a_broken_library_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint_module, "text", lambda path: None)
    monkeypatch.setitem(fingerprint_module.LIBRARIES, "json", ("no-such-distribution",))
    monkeypatch.setitem(fingerprint_module.LIBRARIES, "absent_library", ("no-such-distribution",))
    found = fingerprint_module.fingerprint()
    assert found["microcode"] is None
    assert found["memory_mib"] is None
    assert found["flags"] == []
    assert found["libraries"]["json"] == json.__version__
    assert "absent_library" not in found["libraries"]

    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(fingerprint_module.importlib, "import_module", refuse)
    monkeypatch.setitem(fingerprint_module.LIBRARIES, "wave", ("no-such-distribution",))
    assert fingerprint_module.fingerprint()["libraries"]["wave"] == "broken"


@pytest.mark.parametrize(
    ("numbers", "text"), [({0}, "0"), ({3, 1, 2}, "1-3"), ({0, 1, 4, 6, 7}, "0-1,4,6-7"), (set(), "")]
)
def test_processors_are_written_as_the_kernel_does(numbers: set[int], text: str) -> None:
    assert _ranges(numbers) == text
