"""The kernel's counters and a container's limits, read from made-up trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgemae.device.hardware.cpu_affinity import usable_cores
from edgemae.device.hardware.fingerprint import _ranges, cgroups, limits
from edgemae.profiling.timing.system_counters import NAMES, read_system_counters

Plant = Callable[[dict[str, str]], Path]
CPU = f"sys/devices/system/cpu/cpu{min(usable_cores())}"
ZONE = "sys/class/thermal/thermal_zone"


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path

    return write


def test_an_empty_machine_tells_nothing_and_says_so(tmp_path: Path) -> None:
    found = read_system_counters(tmp_path)
    assert found.absent == tuple(NAMES.values())
    assert not found.slowed_by_heat
    assert limits(tmp_path) == {"cpu_quota": None, "cpuset": None, "memory_max_mib": None}


def test_pressure_is_the_total_of_some_not_of_full(plant: Plant) -> None:
    line = "avg10=1.00 avg60=2.00 avg300=3.00 total="
    assert (
        read_system_counters(plant({"proc/pressure/cpu": f"some {line}9435931777\nfull {line}5"})).pressure_us
        == 9435931777
    )


def test_a_quota_above_our_own_group_counts_too(plant: Plant) -> None:
    group = "sys/fs/cgroup/user.slice/app.scope"
    root = plant({
        "proc/self/cgroup": "0::/user.slice/app.scope", f"{group}/cpu.stat": "nr_throttled 2\nthrottled_usec 700",
        "sys/fs/cgroup/user.slice/cpu.stat": "throttled_usec 300", "sys/fs/cgroup/cpu.stat": "usage_usec 12345",
        f"{group}/cpu.max": "max 100000", "sys/fs/cgroup/user.slice/cpu.max": "150000 100000",
        f"{group}/memory.max": "536870912", "sys/fs/cgroup/user.slice/memory.max": "max",
        f"{group}/cpuset.cpus.effective": "0-1",
    })  # fmt: skip
    assert read_system_counters(root).throttled_us == 1000
    assert limits(root) == {"cpu_quota": 1.5, "cpuset": "0-1", "memory_max_mib": 512}


def test_version_1_counts_in_ns_and_spells_no_limit_in_its_own_way(plant: Plant) -> None:
    root = plant({
        "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box\n0::/",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.stat": "nr_periods 9\nnr_throttled 2\nthrottled_time 5000000",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/unified/cpu.stat": "usage_usec 1",
    })  # fmt: skip
    assert read_system_counters(root).throttled_us == 5000
    assert limits(root) == {"cpu_quota": "max", "cpuset": None, "memory_max_mib": "max"}
    (root / "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us").write_text("50000\n")
    assert limits(root)["cpu_quota"] == 0.5


def test_a_group_outside_our_view_is_the_mount_that_we_see(plant: Plant) -> None:
    root = plant({"proc/self/cgroup": "0::/../../host", "sys/fs/cgroup/cpu.stat": "throttled_usec 40"})
    assert [folder.name for folder in cgroups("cpu", root)] == ["cgroup"]
    assert read_system_counters(root).throttled_us == 40


def test_frequency_heat_and_its_counter(plant: Plant) -> None:
    root = plant({
        f"{CPU}/cpufreq/scaling_cur_freq": "2400000", f"{CPU}/thermal_throttle/core_throttle_count": "7",
        f"{ZONE}0/temp": "61500", f"{ZONE}1/temp": "-256000", f"{ZONE}2/temp": "48000",
        f"{ZONE}0/trip_point_0_type": "critical", f"{ZONE}0/trip_point_0_temp": "50000",
        f"{ZONE}0/trip_point_1_type": "passive", f"{ZONE}0/trip_point_1_temp": "62000",
        f"{ZONE}2/trip_point_0_type": "passive", f"{ZONE}2/trip_point_0_temp": "0",
    })  # fmt: skip
    found = read_system_counters(root)
    assert (found.frequency_mhz, found.heat_throttles, found.temperature_c) == (2400.0, 7, 61.5)
    assert not found.slowed_by_heat
    assert found.absent == (NAMES["pressure_us"], NAMES["throttled_us"])
    (root / f"{ZONE}0/temp").write_text("62000\n")
    assert read_system_counters(root).slowed_by_heat


def test_nonsense_in_a_file_is_no_figure(plant: Plant) -> None:
    root = plant({f"{CPU}/cpufreq/scaling_cur_freq": "<unknown>", f"{ZONE}0/temp": "", "proc/pressure/cpu": ""})
    found = read_system_counters(root)
    assert (found.frequency_mhz, found.temperature_c, found.pressure_us) == (None, None, None)


@pytest.mark.parametrize(
    ("numbers", "text"), [({0}, "0"), ({3, 1, 2}, "1-3"), ({0, 1, 4, 6, 7}, "0-1,4,6-7"), (set(), "")]
)
def test_processors_are_written_as_the_kernel_does(numbers: set[int], text: str) -> None:
    assert _ranges(numbers) == text
