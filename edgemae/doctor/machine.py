"""Processor, memory, limits of a container, power mode and heat, and what each means for a bundle."""

from __future__ import annotations

import os
import platform
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from edgemae.device.hardware.cpu_affinity import usable_cores
from edgemae.device.hardware.cpu_features import cpu_flags
from edgemae.device.hardware.fingerprint import limits
from edgemae.device.hardware.sensors import SensorReading, power_mode, text, throttle_indicators, zones
from edgemae.doctor.board import board_name, in_container, is_jetson
from edgemae.doctor.finding import Finding

AREA = "machine"
X86 = ("x86_64", "amd64")
SHOWN = {  # flag of /proc/cpuinfo -> what its maker calls it
    "avx2": "AVX2", "avx512f": "AVX-512", "avx_vnni": "AVX-VNNI", "avx512_vnni": "AVX512-VNNI", "amx_int8": "AMX-int8",
    "avx512_bf16": "AVX512-bf16", "amx_bf16": "AMX-bf16", "asimd": "NEON", "asimddp": "dotprod", "i8mm": "i8mm",
    "bf16": "bf16", "sve": "SVE",
}  # fmt: skip
INT8 = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}  # without one of them int8 is no faster than float
ROOM_MIB = 512  # a ViT-Tiny takes up to 200 MiB; the app and the images come on top
# These pick the clock by load under every governor; the others stay at the lowest under "powersave".
SELF_DRIVEN = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")


def examine_machine(root: Path) -> Iterator[Finding]:
    """Yield what this machine is and what holds it back."""
    yield _system(root)
    yield _processor(root, platform.machine().lower())
    yield from _memory_and_limits(root)
    yield _power(root)
    yield _heat(root)


def _system(root: Path) -> Finding:
    names = re.findall(r'^PRETTY_NAME="?([^"\n]*)', text(root / "etc/os-release") or "", re.MULTILINE)
    parts = [
        names[0] if names else platform.system(), f"Python {platform.python_version()}", platform.machine(),
        *(["in a container"] if in_container(root) else []),
    ]  # fmt: skip
    found = ", ".join(parts)
    if struct.calcsize("P") == 4:
        return Finding(AREA, "system", "yellow", f"{found}, but a 32-bit Python: no engine has a wheel for it",
                       "install the 64-bit system (aarch64 or x86_64)")  # fmt: skip
    if platform.system() == "Linux" and not platform.libc_ver()[0]:
        return Finding(AREA, "system", "yellow", f"{found}, without glibc: few engines have a wheel for musl",
                       "use an image with glibc, such as python:3.12-slim instead of python:3.12-alpine")  # fmt: skip
    return Finding(AREA, "system", "green", found)


def _processor(root: Path, arch: str) -> Finding:
    flags = cpu_flags(str(root / "proc/cpuinfo"))
    names = re.findall(r"^model name\s*: *(.+)", text(root / "proc/cpuinfo") or "", re.MULTILINE)
    name = board_name(root) or (names[0] if names else arch)
    cores = f"{len(usable_cores())} of {os.cpu_count()} cores"
    has = ", ".join(shown for flag, shown in SHOWN.items() if flag in flags)
    found = f"{name}, {cores}" + (f"; {has}" if has else "")
    if held := os.environ.get("ONEDNN_MAX_CPU_ISA"):
        return Finding(AREA, "processor", "yellow", f"{found}; held to {held} by ONEDNN_MAX_CPU_ISA",
                       "unset ONEDNN_MAX_CPU_ISA: it emulates an older processor")  # fmt: skip
    if not flags:
        return Finding(AREA, "processor", "grey", f"{found}; this system does not list what it can do")
    if arch in X86 and "avx2" not in flags:
        return Finding(AREA, "processor", "yellow", f"{found}; no AVX2: several times slower than the report",
                       "a processor from 2014 or later; in a virtual machine, pass the host's through")  # fmt: skip
    if not INT8 & flags:
        return Finding(AREA, "processor", "yellow", f"{found}; no int8 arithmetic: int8 is no faster than float here",
                       "compile for a target that ships float, such as laptop-x86-avx2, or your own TOML")  # fmt: skip
    return Finding(AREA, "processor", "green", found)


def _memory_and_limits(root: Path) -> Iterator[Finding]:
    sizes = dict(re.findall(r"^(MemTotal|MemAvailable): *(\d+) kB", text(root / "proc/meminfo") or "", re.MULTILINE))
    allowed = limits(root)
    most, quota = allowed["memory_max_mib"], allowed["cpu_quota"]
    if len(sizes) == 2:
        total, free = (int(sizes[key]) // 1024 for key in ("MemTotal", "MemAvailable"))
        room = min(free, most) if isinstance(most, int) else free
        if room < ROOM_MIB:
            yield Finding(AREA, "memory", "yellow", f"{room} MiB to use of {total}: little beside a bundle's 200",
                          "stop other programs, add zram, or raise the container's --memory")  # fmt: skip
        else:
            yield Finding(AREA, "memory", "green", f"{free} MiB free of {total}")
    message = [*([f"{quota:g} processors"] if isinstance(quota, float) else []),
            *([f"{most} MiB of memory"] if isinstance(most, int) else [])]  # fmt: skip
    if isinstance(quota, float) and quota < len(usable_cores()):
        yield Finding(AREA, "limits", "yellow", f"{', '.join(message)}; threads above it are throttled",
                      f"set threads = {max(1, int(quota))} in the target, or raise --cpus or CPUQuota=")  # fmt: skip
    else:
        yield Finding(AREA, "limits", "green", ", ".join(message) or "none on processors or memory")


def _power(root: Path) -> Finding:
    mode = power_mode(root)
    if is_jetson(root):
        return _jetson_power(root, mode)
    policies = list(root.glob("sys/devices/system/cpu/cpufreq/policy*"))
    governors = {governor for folder in policies if (governor := text(folder / "scaling_governor"))}
    drivers = {text(folder / "scaling_driver") for folder in policies}
    found = ", ".join([mode] * bool(mode) + [f"governor {governor}" for governor in sorted(governors)])
    if "low-power" in mode:
        return Finding(AREA, "power", "yellow", found, "powerprofilesctl set balanced, or plug it in")
    if "powersave" in governors and not drivers & set(SELF_DRIVEN):
        return Finding(AREA, "power", "yellow", f"{found}: the lowest clock at all times",
                       "echo ondemand | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor")  # fmt: skip
    return Finding(AREA, "power", "green" if found else "grey", found or "this machine tells of no power mode")


def _jetson_power(root: Path, mode: str) -> Finding:
    """Compare nvpmodel's mode with the strongest, and see whether jetson_clocks has fixed the clocks."""
    known = text(root / "etc/nvpmodel.conf") or ""
    strongest = re.search(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(MAXN\S*)", known)
    policies = list(root.glob("sys/devices/system/cpu/cpufreq/policy*"))
    fixed = bool(policies) and all(
        text(folder / "scaling_min_freq") == text(folder / "scaling_max_freq") for folder in policies
    )
    found = f"{mode or 'nvpmodel does not tell'}, clocks {'fixed by jetson_clocks' if fixed else 'move with the load'}"
    if mode and "MAXN" not in mode:
        number = strongest[1] if strongest else "0"
        return Finding(AREA, "power", "yellow", f"{found}: slower than MAXN",
                       f"sudo nvpmodel -m {number} && sudo jetson_clocks, if supply and cooling allow it")  # fmt: skip
    if not fixed:
        return Finding(AREA, "power", "yellow", f"{found}: the first frames after a pause are slow",
                       "sudo jetson_clocks, at every start")  # fmt: skip
    return Finding(AREA, "power", "green", found)


def _heat(root: Path) -> Finding:
    warmest, hot = None, []
    for zone in zones(root):
        celsius = _reading(zone)
        if isinstance(zone, SensorReading) and celsius is not None:
            warmest = max(celsius, warmest or celsius)
            if zone.limit is not None and celsius >= zone.limit:
                hot.append(f"{zone.name} at {celsius:.0f} C")
    for indicator in throttle_indicators(root):
        if isinstance(indicator, SensorReading) and indicator.unit == "state" and (_reading(indicator) or 0) > 0:
            hot.append(indicator.name)
    if hot:
        return Finding(AREA, "heat", "yellow", ", ".join(hot), "more air or a larger heat sink, a lower power mode; "
                       "on a Raspberry Pi also the supply of its maker")  # fmt: skip
    if warmest is None:
        return Finding(AREA, "heat", "grey", "this machine tells no temperature")
    return Finding(AREA, "heat", "green", f"{warmest:.0f} C at most, nothing throttles")


def _reading(found: SensorReading | str) -> float | None:
    try:
        return None if isinstance(found, str) else found.read()
    except (OSError, ValueError):
        return None
