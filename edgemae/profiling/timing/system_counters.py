"""What the kernel says of a stretch of time: waiting for a processor, throttling, frequency, heat.

Every counter is read from files that need no rights, under a `root` that tests can replace. One that this machine does
not have is None, and its name is in `absent`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgemae.device.hardware.cpu_affinity import usable_cores
from edgemae.device.hardware.fingerprint import cgroups
from edgemae.device.hardware.sensors import integer_of, text

ROOT = Path("/")
# What is absent is listed by these names, in this order.
NAMES = {
    "pressure_us": "cpu pressure (PSI)",
    "throttled_us": "cgroup throttling",
    "frequency_mhz": "processor frequency",
    "temperature_c": "temperature",
    "heat_throttles": "thermal throttle counter",
}
PLAUSIBLE_C = (-40.0, 200.0)  # a zone that is switched off reads -256


@dataclass(frozen=True)
class SystemCounters:
    """Hold the counters and gauges of one moment."""

    pressure_us: int | None  # some task, of anybody, waited for a processor: total since boot
    throttled_us: int | None  # our cgroups, or one above, had used up their quota: total
    frequency_mhz: float | None  # of the fastest processor that we may use
    temperature_c: float | None  # of the hottest zone
    heat_throttles: int | None  # how often a processor slowed itself down for its heat: total
    slowed_by_heat: bool = False  # a zone is at the temperature from which the kernel slows the processor down

    @property
    def absent(self) -> tuple[str, ...]:
        """Return the names of the indicators that this machine does not have."""
        return tuple(name for field, name in NAMES.items() if getattr(self, field) is None)


def read_system_counters(root: Path = ROOT) -> SystemCounters:
    """Read all system counters; about 0.3 ms."""
    cpus = root / "sys/devices/system/cpu"
    mine = [cpus / f"cpu{number}" for number in usable_cores()]
    khz = [value for cpu in mine if (value := integer_of(cpu / "cpufreq/scaling_cur_freq")) is not None]
    heat = [value for cpu in mine if (value := integer_of(cpu / "thermal_throttle/core_throttle_count")) is not None]
    zones = [(zone, celsius) for zone in _zones(root) if (celsius := _celsius(zone / "temp")) is not None]
    return SystemCounters(
        pressure_us=_pressure_us(root), throttled_us=_throttled_us(root),
        frequency_mhz=max(khz) / 1e3 if khz else None, temperature_c=max((c for _, c in zones), default=None),
        heat_throttles=sum(heat) if heat else None, slowed_by_heat=any(_at_passive(zone, c) for zone, c in zones),
    )  # fmt: skip


def _pressure_us(root: Path) -> int | None:
    for line in (text(root / "proc/pressure/cpu") or "").splitlines():
        if line.startswith("some "):
            return int(line.rpartition("total=")[2])
    return None


def _throttled_us(root: Path) -> int | None:
    """Sum over our cgroup and those above it: a quota of any of them stops us."""
    totals = []
    for folder in cgroups("cpu", root):
        rows = dict(line.split() for line in (text(folder / "cpu.stat") or "").splitlines())
        if "throttled_usec" in rows:  # version 2
            totals.append(int(rows["throttled_usec"]))
        elif "throttled_time" in rows:  # version 1, in ns
            totals.append(int(rows["throttled_time"]) // 1000)
    return sum(totals) if totals else None


def _zones(root: Path) -> list[Path]:
    return sorted((root / "sys/class/thermal").glob("thermal_zone*"))


def _at_passive(zone: Path, celsius: float) -> bool:
    for kind in zone.glob("trip_point_*_type"):
        if text(kind) == "passive":
            limit = _celsius(kind.with_name(kind.name.replace("_type", "_temp")))
            # Firmware that has no limit to tell says 0 degrees.
            if limit is not None and 0 < limit <= celsius:
                return True
    return False


def _celsius(path: Path) -> float | None:
    milli = integer_of(path)
    return milli / 1e3 if milli is not None and PLAUSIBLE_C[0] < milli / 1e3 < PLAUSIBLE_C[1] else None
