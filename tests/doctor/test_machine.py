"""Processor, limits, power mode and heat on made-up trees of /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemae.doctor import machine
from edgemae.doctor.finding import Finding

POLICY = "sys/devices/system/cpu/cpufreq/policy0"


def put(root: Path, files: dict[str, str]) -> Path:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def examined(root: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in machine.examine_machine(root)}


def cpu(root: Path, line: str, arch: str) -> Finding:
    return machine._processor(put(root, {"proc/cpuinfo": f"model name : A chip\n{line}"}), arch)


@pytest.mark.parametrize(
    ("line", "arch", "state", "shown", "fix"),
    [
        ("flags : sse4_2 avx2 avx_vnni", "x86_64", "green", "A chip, ", ""),
        ("flags : avx2 avx512f avx512_vnni avx512_bf16", "x86_64", "green", "AVX512-VNNI, AVX512-bf16", ""),
        ("flags : sse4_2 avx2", "x86_64", "yellow", "int8 is no faster", "laptop-x86-avx2"),
        ("flags : sse4_2", "x86_64", "yellow", "no AVX2", "processor"),
        ("Features : asimd asimddp i8mm bf16", "aarch64", "green", "NEON, dotprod, i8mm, bf16", ""),
        ("Features : asimd", "aarch64", "yellow", "no int8 arithmetic", "your own TOML"),
        ("", "riscv64", "grey", "does not list", ""),
    ],
)
def test_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, arch: str, state: str, shown: str, fix: str
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    found = cpu(tmp_path, line, arch)
    assert found.state == state
    assert shown in found.found
    assert fix in found.fix


def test_an_emulated_older_processor_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    found = cpu(tmp_path, "flags : avx2 avx_vnni", "x86_64")
    assert (found.state, "held to AVX2" in found.found) == ("yellow", True)


def test_a_board_is_called_by_its_name(tmp_path: Path) -> None:
    put(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B\0", "etc/os-release": 'PRETTY_NAME="A system"'})
    found = examined(tmp_path)
    assert found["processor"].found.startswith("Raspberry Pi 5 Model B, ")
    assert found["system"].found.startswith("A system, Python 3")


def test_limits_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: {0, 1, 2, 3})
    group = "sys/fs/cgroup/app"
    put(tmp_path, {
        "proc/self/cgroup": "0::/app", f"{group}/cpu.max": "150000 100000", f"{group}/memory.max": str(300 << 20),
        "proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 3000000 kB", ".dockerenv": "",
    })  # fmt: skip
    found = examined(tmp_path)
    assert found["limits"].state == "yellow"
    assert "1.5 processors, 300 MiB of memory" in found["limits"].found
    assert "threads = 1" in found["limits"].fix
    assert found["memory"].state == "yellow"
    assert "300 MiB to use" in found["memory"].found
    assert "in a container" in found["system"].found


def test_without_limits_nothing_is_yellow(tmp_path: Path) -> None:
    put(tmp_path, {"proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 3000000 kB"})
    found = examined(tmp_path)
    assert (found["limits"].state, found["memory"].state) == ("green", "green")
    assert (found["power"].state, found["heat"].state) == ("grey", "grey")


MODES = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >"


@pytest.mark.parametrize(
    ("mode", "lowest", "state", "fix"),
    [(0, "100", "yellow", "nvpmodel -m 2"), (2, "100", "yellow", "sudo jetson_clocks"), (2, "900", "green", "")],
)
def test_power_of_a_jetson(tmp_path: Path, mode: int, lowest: str, state: str, fix: str) -> None:
    put(tmp_path, {
        "etc/nv_tegra_release": "# R36", "etc/nvpmodel.conf": MODES, "var/lib/nvpmodel/status": f"pmode:000{mode}",
        f"{POLICY}/scaling_min_freq": lowest, f"{POLICY}/scaling_max_freq": "900",
    })  # fmt: skip
    found = examined(tmp_path)["power"]
    assert found.state == state
    assert fix in found.fix
    assert ("MAXN_SUPER" in found.found) == (mode == 2)


@pytest.mark.parametrize(
    ("governor", "driver", "profile", "state"),
    [
        ("schedutil", "cpufreq-dt", "", "green"),
        ("powersave", "cpufreq-dt", "", "yellow"),
        ("powersave", "intel_pstate", "", "green"),
        ("powersave", "intel_pstate", "low-power", "yellow"),
    ],
)
def test_power_elsewhere(tmp_path: Path, governor: str, driver: str, profile: str, state: str) -> None:
    put(tmp_path, {f"{POLICY}/scaling_governor": governor, f"{POLICY}/scaling_driver": driver})
    if profile:
        put(tmp_path, {"sys/firmware/acpi/platform_profile": profile})
    assert examined(tmp_path)["power"].state == state


def test_heat_and_low_voltage(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    put(tmp_path, {f"{zone}/type": "cpu", f"{zone}/temp": "45000"})
    assert examined(tmp_path)["heat"].found == "45 C at most, nothing throttles"
    put(tmp_path, {f"{zone}/temp": "99000", "sys/devices/platform/soc/soc:firmware/get_throttled": "50005"})
    found = examined(tmp_path)["heat"]
    assert found.state == "yellow"
    assert "cpu at 99 C" in found.found
    assert "the firmware holds the processor back" in found.found
