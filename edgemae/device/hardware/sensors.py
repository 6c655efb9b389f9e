"""Where Linux tells of power, heat, clocks and throttling: each function yields what can be read, or why it cannot.

Layouts: Documentation/hwmon/ina3221.rst, power/powercap, driver-api/thermal/sysfs-api.rst and ABI/testing/sysfs-class-*
of the Linux kernel; Jetson Linux Developer Guide, "Platform Power and Performance".
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

OFFLINE_C = -256.0  # what Jetson's thermal zones say when their unit has no power
PLAUSIBLE_C = (-40.0, 200.0)
HOT_C = 85.0  # of a zone that states no trip point
BELOW_TRIP_C = 3.0  # from here on a zone is near the point where the kernel takes speed away
TRIPS = ("passive", "hot", "critical")  # "active" switches a fan on
GPU_NAMES = re.compile(r"gpu|gv11b|gp10b|gm20b|ga10b|gb10b|mali")
# Cooling devices that slow something down. A fan is none, and TCC Offset is a setting.
BRAKES = re.compile(r"cpufreq|devfreq|processor|throttle|powerclamp|hot-surface|^cpu|^gpu", re.IGNORECASE)
NOW_BITS = (
    0b1111  # of the Raspberry Pi's firmware: under-voltage, capped, throttled, soft limit; higher bits are of old
)
QUERY_TIMEOUT_S = 5


@dataclass(frozen=True)
class SensorReading:
    """One thing that can be read. `limit`: uJ where a counter wraps around, or degrees C from which a zone is hot."""

    name: str
    read: Callable[[], float]
    unit: str = ""
    limit: float | None = None


def rails(root: Path) -> Iterator[SensorReading | str]:
    """Yield the rails of INA3221 monitors in W, from hwmon (Linux 5 and later) or iio (JetPack 4)."""
    none = True
    for chip in _glob(root, "sys/class/hwmon/hwmon*"):
        if text(chip / "name") != "ina3221":
            continue
        for label in _glob(chip, "in[123]_label"):
            number, name = label.name[2], text(label) or ""
            if _unused(name) or text(chip / f"in{number}_enable") == "0":
                continue
            volt, curr = chip / f"in{number}_input", chip / f"curr{number}_input"
            none = False
            yield _tried(SensorReading(name, partial(_watts, volt, curr)), f"ina3221 {name}")
    for chip in _glob(root, "sys/bus/i2c/devices/*/iio:device*"):
        for label in _glob(chip, "rail_name_*"):
            number, name = label.name.rpartition("_")[2], text(label) or ""
            if not _unused(name):
                none = False
                read = partial(number_of, chip / f"in_power{number}_input", 1e-3)
                yield _tried(SensorReading(name, read), f"ina3221 {name}")
    if none:
        yield "ina3221: no such chip among /sys/class/hwmon and /sys/bus/i2c/devices"


def energy_counters(root: Path) -> Iterator[SensorReading | str]:
    """Yield the RAPL counters in uJ with the value where each wraps around; a part is named behind its package."""
    zone_folders = _glob(root, "sys/class/powercap/intel-rapl:*")
    for folder in zone_folders:
        name = text(folder / "name") or folder.name
        if folder.name.count(":") == 2:  # intel-rapl:0:1 is a part of intel-rapl:0
            name = f"{text(folder.parent / folder.name.rpartition(':')[0] / 'name') or 'package'} {name}"
        wraps = limit_of(folder / "max_energy_range_uj")
        yield _tried(SensorReading(name, partial(number_of, folder / "energy_uj"), limit=wraps), f"rapl {name}")
    if not zone_folders:
        yield "rapl: no intel-rapl zone in /sys/class/powercap"


def zones(root: Path) -> Iterator[SensorReading | str]:
    """Yield the thermal zones in degrees C, each with the temperature from which it is hot."""
    folders = _glob(root, "sys/class/thermal/thermal_zone*")
    names = [text(folder / "type") or folder.name for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        own = name if names.count(name) == 1 else f"{name} {folder.name.removeprefix('thermal_zone')}"
        yield _tried(
            SensorReading(own, partial(_celsius, folder / "temp"), limit=_hot_from(folder)), f"thermal zone {own}"
        )
    if not folders:
        yield "temperature: no thermal zone in /sys/class/thermal"


def clocks(root: Path) -> Iterator[SensorReading | str]:
    """Yield the mean clock in MHz of the cores of each kind, told apart by their highest clock."""
    kinds: dict[float | None, list[Path]] = defaultdict(list)
    for folder in _glob(root, "sys/devices/system/cpu/cpufreq/policy*"):
        kinds[limit_of(folder / "cpuinfo_max_freq")].append(folder / "scaling_cur_freq")
    for most, paths in kinds.items():
        name = "cpu" if most is None else f"cpu up to {most / 1e3:.0f} MHz"
        yield _tried(SensorReading(name, partial(_mean_mhz, tuple(paths))), f"cpufreq {name}")
    if not kinds:
        yield "clock: no policy in /sys/devices/system/cpu/cpufreq"


def gpus(root: Path) -> Iterator[SensorReading | str]:
    """Yield clock in MHz and load in % of GPUs that devfreq drives."""
    none = True
    for folder in _glob(root, "sys/class/devfreq/*"):
        if not GPU_NAMES.search(f"{folder.name} {text(folder / 'device/of_node/name') or ''}"):
            continue
        none = False
        yield _tried(SensorReading("gpu", partial(number_of, folder / "cur_freq", 1e-6), "MHz"), "devfreq gpu")
        if (folder / "device/load").exists():  # in tenths of a percent
            yield _tried(
                SensorReading("gpu load", partial(number_of, folder / "device/load", 0.1), "%"), "devfreq gpu load"
            )
    if none:
        yield "GPU: none in /sys/class/devfreq"
    if (root / "proc/driver/nvidia/version").exists():
        yield "NVIDIA GPU on a card: its power, clock and load are not read"


def throttle_indicators(root: Path) -> Iterator[SensorReading | str]:
    """Yield what counts or shows throttling: unit "count" grows with each event, "state" is above 0 while it lasts."""
    found: list[SensorReading] = []
    for path in _glob(root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"):
        cpu, kind = path.parts[-3], path.name.partition("_")[0]
        found.append(SensorReading(f"{cpu} was throttled by heat ({kind})", partial(number_of, path), "count"))
    for path in _glob(root, "sys/class/hwmon/hwmon*/oc*_event_cnt"):
        found.append(SensorReading(f"over-current or low voltage ({path.name.partition('_')[0]})",
                           partial(number_of, path), "count"))  # fmt: skip
    for folder in _glob(root, "sys/class/thermal/cooling_device*"):
        kind = text(folder / "type") or ""
        if BRAKES.search(kind):
            found.append(SensorReading(f"cooling by {kind}", partial(number_of, folder / "cur_state"), "state"))
    for path in _glob(root, "sys/devices/platform/*/*firmware/get_throttled"):
        found.append(SensorReading("the firmware holds the processor back", partial(_throttled_now, path), "state"))
    for one in found:
        yield _tried(one, f"throttling: {one.name}")
    if not found:
        yield "throttling: no thermal_throttle counter, soctherm event or cooling device"


def power_mode(root: Path) -> str:
    """Return nvpmodel's mode or the firmware's platform profile; "" where there is neither."""
    message = text(root / "var/lib/nvpmodel/status") or ""
    if match := re.search(r"pmode:(\d+)", message):
        number = int(match[1])
        known = text(root / "etc/nvpmodel.conf") or ""
        named = re.search(rf"POWER_MODEL\s+ID={number}\s+NAME=(\S+)", known)
        return f"nvpmodel {number}" + (f" {named[1]}" if named else "")
    if root == Path("/") and (program := shutil.which("nvpmodel")):
        try:
            done = subprocess.run([program, "-q"], capture_output=True, text=True, timeout=QUERY_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        if match := re.search(r"NV Power Mode: *(\S+)\s+(\d+)", done.stdout):
            return f"nvpmodel {match[2]} {match[1]}"
    profile = text(root / "sys/firmware/acpi/platform_profile")
    return f"platform profile {profile}" if profile else ""


# ---------------------------------------------------------------- reading


def text(path: str | Path) -> str | None:
    """Return a file's whole text without its ends, None where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def integer_of(path: Path) -> int | None:
    """Return a file's whole number, None where there is none."""
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def number_of(path: Path, scale: float = 1.0) -> float:
    """Return a file's number times `scale`. Raises OSError or ValueError."""
    return float(int(_read(path))) * scale


def limit_of(path: Path) -> float | None:
    """Return a file's number, None where there is none."""
    try:
        return number_of(path)
    except (OSError, ValueError):
        return None


def _read(path: Path) -> str:
    # os.open and os.read: a third of the time of Path.read_text, and this is done a hundred times a second.
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, 65536).decode().strip()
    finally:
        os.close(handle)


def _glob(root: Path, pattern: str) -> list[Path]:
    """Return the matches, 10 behind 9."""
    try:
        found = list(root.glob(pattern))
    except OSError:
        return []
    return sorted(found, key=lambda p: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(p))])


def _tried(found: SensorReading, where: str) -> SensorReading | str:
    """Return what was found if a first reading works, else the line that says why it does not."""
    try:
        found.read()
    except PermissionError:
        return f"{where}: not readable without rights (root may: sudo chmod a+r)"
    except (OSError, ValueError) as error:
        return f"{where}: {getattr(error, 'strerror', None) or error}"
    return found


def _unused(name: str) -> bool:
    return not name or name.upper() == "NC" or name.startswith("sum of")


def _watts(millivolts: Path, milliamperes: Path) -> float:
    return number_of(millivolts, 1e-3) * number_of(milliamperes, 1e-3)


def _celsius(path: Path) -> float:
    value = number_of(path, 1e-3)
    if value == OFFLINE_C:
        raise ValueError("offline")
    if not PLAUSIBLE_C[0] < value < PLAUSIBLE_C[1]:
        raise ValueError(f"{value:.0f} C cannot be")
    return value


def _hot_from(folder: Path) -> float:
    """Return the lowest trip point at which the kernel acts against heat, a little early."""
    points = [
        value / 1e3
        for path in _glob(folder, "trip_point_*_type")
        if text(path) in TRIPS and (value := limit_of(path.with_name(path.name.replace("_type", "_temp"))))
    ]
    return min((p for p in points if p > 0), default=HOT_C + BELOW_TRIP_C) - BELOW_TRIP_C


def _mean_mhz(paths: tuple[Path, ...]) -> float:
    return sum(number_of(path, 1e-3) for path in paths) / len(paths)


def _throttled_now(path: Path) -> float:
    return float(int(_read(path), 16) & NOW_BITS)
