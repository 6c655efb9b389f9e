"""Power and heat on made-up sysfs trees: every layout, exact energies, sensors that lie, vanish or are forbidden."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from edgemae.device.hardware import sensors
from edgemae.profiling.power import PowerSampler
from edgemae.profiling.records import Power, Sensor

_shown: dict[Path, object] = {}


def put(root: Path, files: dict[str, object]) -> None:
    """Let files of a made-up tree show these values; what shows them already is not written again."""
    for name, value in files.items():
        path = root / name
        if _shown.get(path) == value:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
        _shown[path] = value


HWMON = "sys/class/hwmon/hwmon3"
RAPL = "sys/class/powercap"
ZONE = "sys/class/thermal/thermal_zone0"
POLICY = "sys/devices/system/cpu/cpufreq"


def orin(root: Path, volt_mv: int = 5000, curr_ma: int = 1000) -> None:
    """Make a Jetson Orin Nano: one INA3221 under hwmon with a rail of the whole module and a sum of shunts."""
    put(root, {
        f"{HWMON}/name": "ina3221",
        f"{HWMON}/in1_label": "VDD_IN", f"{HWMON}/in1_input": volt_mv, f"{HWMON}/curr1_input": curr_ma,
        f"{HWMON}/in2_label": "VDD_CPU_GPU_CV", f"{HWMON}/in2_input": 5000, f"{HWMON}/curr2_input": 400,
        f"{HWMON}/in3_label": "NC", f"{HWMON}/in3_input": 0, f"{HWMON}/curr3_input": 0,
        f"{HWMON}/in7_label": "sum of shunt voltages", f"{HWMON}/in7_input": 7,
    })  # fmt: skip


def rapl(root: Path, energy_uj: int, range_uj: int = 262_143_328_850) -> None:
    put(root, {
        f"{RAPL}/intel-rapl:0/name": "package-0", f"{RAPL}/intel-rapl:0/energy_uj": energy_uj,
        f"{RAPL}/intel-rapl:0/max_energy_range_uj": range_uj,
    })  # fmt: skip


def drive(root: Path, seconds: float, step: Callable[[float], None], step_s: float = 0.1) -> PowerSampler:
    """Tick a sampler through made-up time; `step(t)` sets the sensors to what they show at t."""
    step(0.0)
    sampler = PowerSampler(root)
    for i in range(round(seconds / step_s) + 1):
        step(i * step_s)
        sampler.tick(1000.0 + i * step_s)
    return sampler


def sensor(power: Power, name: str) -> Sensor:
    (found,) = (s for s in power.sensors if s.name == name)
    return found


def still(_: float) -> None: ...


# ---------------------------------------------------------------- energy


def test_a_ramp_of_a_rail_gives_its_exact_energy(tmp_path: Path) -> None:
    # 5 V and 1 A + 0.2 A/s for 10 s: 5 + t W, mean 10 W, 100 J; 50 J above an idle power of 5 W, over 200 runs.
    found = drive(tmp_path, 10, lambda t: orin(tmp_path, curr_ma=round(1000 + 200 * t))).result(
        runs=200, idle=Power(run_w=5.0)
    )
    assert found.run_w == pytest.approx(10.0)
    assert found.idle_w == 5.0
    assert found.energy_mj == pytest.approx(250.0)
    rail = sensor(found, "VDD_IN")
    assert (rail.source, rail.unit, rail.mean, rail.max) == ("ina3221", "W", pytest.approx(10.0), pytest.approx(15.0))


def test_parts_of_the_module_are_listed_and_not_added(tmp_path: Path) -> None:
    orin(tmp_path)
    found = drive(tmp_path, 2, still).result()
    assert [s.name for s in found.sensors] == ["VDD_IN", "VDD_CPU_GPU_CV"]
    assert found.run_w == pytest.approx(5.0)


def test_without_a_rail_of_the_module_all_rails_are_added_and_named(tmp_path: Path) -> None:
    orin(tmp_path)
    put(tmp_path, {f"{HWMON}/in1_label": "VDD_GPU_SOC"})
    found = drive(tmp_path, 2, still).result()
    assert found.run_w == pytest.approx(7.0)
    assert any("sum of VDD_GPU_SOC, VDD_CPU_GPU_CV" in line for line in found.absent)


def test_rails_of_jetpack_4_are_read_in_milliwatts(tmp_path: Path) -> None:
    chip = "sys/bus/i2c/devices/6-0040/iio:device0"
    put(tmp_path, {f"{chip}/rail_name_0": "POM_5V_IN", f"{chip}/in_power0_input": 2500,
                   f"{chip}/rail_name_1": "POM_5V_GPU", f"{chip}/in_power1_input": 900})  # fmt: skip
    assert drive(tmp_path, 2, still).result().run_w == pytest.approx(2.5)


def test_a_counter_gives_its_exact_energy_across_its_wrap(tmp_path: Path) -> None:
    # A power that rises from 0 by 3 W a second holds 1.5 t^2 J: 37.5 J in 5 s. It wraps around on the way.
    wraps = 20_000_000
    found = drive(tmp_path, 5, lambda t: rapl(tmp_path, (round(1.5e6 * t * t) + 11) % wraps, wraps)).result(
        runs=100, idle=Power(run_w=2.5)
    )
    assert found.run_w == pytest.approx(7.5, rel=1e-6)
    assert found.energy_mj == pytest.approx(250.0, rel=1e-6)
    assert sensor(found, "package-0").max == pytest.approx(3 * 4.95, rel=1e-6)  # of the last tenth of a second


def test_a_counter_that_is_reset_is_no_power_station(tmp_path: Path) -> None:
    found = drive(tmp_path, 4, lambda t: rapl(tmp_path, round(1e6 * t) + (10**10 if t < 2 else 0))).result()
    assert found.run_w == pytest.approx(1.0, rel=1e-6)
    assert any("1 readings failed (the counter leapt" in line for line in found.absent)


def test_memory_is_added_to_its_package_and_parts_are_not(tmp_path: Path) -> None:
    def step(t: float) -> None:
        rapl(tmp_path, round(8e6 * t))
        for number, (name, watts) in enumerate((("core", 6), ("dram", 2))):
            folder = f"{RAPL}/intel-rapl:0:{number}"
            put(tmp_path, {f"{folder}/name": name, f"{folder}/energy_uj": round(watts * 1e6 * t)})
        put(tmp_path, {f"{RAPL}/intel-rapl:1/name": "psys", f"{RAPL}/intel-rapl:1/energy_uj": round(20e6 * t)})
        put(tmp_path, {f"{RAPL}/intel-rapl-mmio:0/name": "package-0",
                       f"{RAPL}/intel-rapl-mmio:0/energy_uj": round(8e6 * t)})  # fmt: skip

    found = drive(tmp_path, 2, step).result()
    assert found.run_w == pytest.approx(10.0)
    assert [s.name for s in found.sensors] == ["package-0", "package-0 core", "package-0 dram", "psys"]


def test_energy_needs_an_idle_power_and_a_window(tmp_path: Path) -> None:
    orin(tmp_path)
    alone = drive(tmp_path, 2, still).result(runs=10)
    assert alone.energy_mj is None
    assert any("no idle power" in line for line in alone.absent)
    short = drive(tmp_path, 0.5, still).result(runs=10, idle=Power(run_w=1.0))
    assert (short.run_w, short.energy_mj) == (None, None)
    assert any("0.50 s is too short" in line for line in short.absent)


# ---------------------------------------------------------------- sensors that fail


def test_a_processors_counter_tells_nothing_of_a_gpu(tmp_path: Path) -> None:
    def step(t: float) -> None:
        rapl(tmp_path, round(12e6 * t))

    busy = drive(tmp_path, 4, step)
    on_gpu = busy.result(runs=10, idle=Power(run_w=2.0), on_gpu=True)
    assert on_gpu.run_w == pytest.approx(12.0)
    assert on_gpu.energy_mj is None
    assert any("runs on the GPU, and rapl tells of the processors alone" in line for line in on_gpu.absent)
    assert busy.result(runs=10, idle=Power(run_w=2.0)).energy_mj == pytest.approx(1e3 * 10 * 4 / 10)
    orin(tmp_path)  # a rail of the whole module feeds the GPU too
    board = drive(tmp_path, 4, step).result(runs=10, idle=Power(run_w=2.0), on_gpu=True)
    assert board.energy_mj == pytest.approx(1e3 * 3 * 4 / 10)


def test_one_garbled_reading_is_bridged(tmp_path: Path) -> None:
    def step(t: float) -> None:
        orin(tmp_path)
        if round(t, 1) == 1.0:
            put(tmp_path, {f"{HWMON}/curr1_input": "4%§"})

    found = drive(tmp_path, 3, step).result()
    assert found.run_w == pytest.approx(5.0)
    assert any("VDD_IN: 1 readings failed" in line for line in found.absent)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text(""), lambda path: path.write_text("-")])
def test_a_rail_that_is_lost_midway_leaves_no_energy(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    orin(tmp_path)
    path = tmp_path / HWMON / "curr1_input"

    def step(t: float) -> None:
        if t > 1.5 and path.exists():
            spoil(path)

    found = drive(tmp_path, 3, step).result(runs=5, idle=Power(run_w=1.0))
    assert (found.run_w, found.energy_mj) == (None, None)
    assert sensor(found, "VDD_IN").mean == pytest.approx(5.0)  # as long as it spoke
    assert any("VDD_IN answered for 1.5 s of 3.0 s" in line for line in found.absent)


@contextmanager
def without_rights() -> Iterator[None]:
    """Act as `nobody` for a while where the tests run as root, whom no permission stops."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_counter_for_root_only_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rapl(tmp_path, 5)
    (tmp_path / RAPL / "intel-rapl:0/energy_uj").chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # from here: nobody may not walk through the folders above
    with without_rights():
        found = drive(Path(), 2, still).result(runs=3, idle=Power(run_w=1.0))
    assert (found.run_w, found.energy_mj, found.sensors) == (None, None, ())
    assert "rapl package-0: not readable without rights (root may: sudo chmod a+r)" in found.absent


def test_a_machine_without_sensors_says_what_was_looked_for(tmp_path: Path) -> None:
    with PowerSampler(tmp_path) as sampler:
        pass
    found = sampler.result(runs=10, idle=Power())
    assert found == Power(absent=found.absent)
    for what in ("ina3221", "rapl", "temperature", "clock", "GPU", "throttling"):
        assert any(line.startswith(f"{what}: no") for line in found.absent), what


def test_a_card_that_nothing_is_read_of_is_said_to_be_there(tmp_path: Path) -> None:
    put(tmp_path, {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.00"})
    absent = drive(tmp_path, 2, still).result().absent
    assert "NVIDIA GPU on a card: its power, clock and load are not read" in absent


def test_this_machine_whatever_it_has_is_read(tmp_path: Path) -> None:
    with PowerSampler() as sampler:
        time.sleep(0.3)
    found = sampler.result(runs=10, idle=Power())
    assert msgspec.json.decode(msgspec.json.encode(found), type=Power) == found
    assert found.sensors or len(found.absent) >= 4


# ---------------------------------------------------------------- heat


def test_zones_are_read_and_offline_ones_named(tmp_path: Path) -> None:
    put(tmp_path, {f"{ZONE}/type": "cpu-thermal", f"{ZONE}/temp": 51500,
                   "sys/class/thermal/thermal_zone1/type": "cv0-thermal",
                   "sys/class/thermal/thermal_zone1/temp": -256000})  # fmt: skip
    found = drive(tmp_path, 3, still).result()
    zone = sensor(found, "cpu-thermal")
    assert (zone.mean, zone.max, zone.unit, zone.source) == (51.5, 51.5, "C", "thermal")
    assert "thermal zone cv0-thermal: offline" in found.absent


def test_first_and_last_minute_of_a_soak(tmp_path: Path) -> None:
    def step(t: float) -> None:
        put(tmp_path, {f"{ZONE}/type": "soc", f"{ZONE}/temp": 40_000 if t <= 60 else 60_000 if t < 120 else 80_000})
        orin(tmp_path, curr_ma=1000 if t <= 60 else 3000)

    found = drive(tmp_path, 180, step, step_s=0.5).result()
    assert (sensor(found, "soc").first_minute, sensor(found, "soc").last_minute) == (40.0, 80.0)
    assert (sensor(found, "VDD_IN").first_minute, sensor(found, "VDD_IN").last_minute) == (5.0, 15.0)
    short = drive(tmp_path, 100, step, step_s=0.5).result()
    assert sensor(short, "soc").first_minute is None


def heated(root: Path, hot_mhz: int, trip_c: int | None, temp_c: int) -> PowerSampler:
    """A minute at 2000 MHz and 50 degrees, then one at `hot_mhz` and `temp_c`."""
    if trip_c is not None:
        put(root, {f"{ZONE}/trip_point_0_type": "active", f"{ZONE}/trip_point_0_temp": 30_000,
                   f"{ZONE}/trip_point_1_type": "passive", f"{ZONE}/trip_point_1_temp": trip_c * 1000})  # fmt: skip

    def step(t: float) -> None:
        late = t >= 60
        put(root, {f"{ZONE}/type": "soc", f"{ZONE}/temp": (temp_c if late else 50) * 1000})
        for core in range(2):
            put(root, {f"{POLICY}/policy{core}/cpuinfo_max_freq": 2_400_000,
                       f"{POLICY}/policy{core}/scaling_cur_freq": (hot_mhz if late else 2000) * 1000})  # fmt: skip

    return drive(root, 120, step, step_s=0.5)


@pytest.mark.parametrize(
    ("hot_mhz", "trip_c", "temp_c", "throttled"),
    [(1400, 95, 93, True), (1950, 95, 93, False), (1400, 95, 70, False), (1400, None, 86, True), (1400, 60, 58, True)],
)
def test_a_clock_that_falls_while_hot_is_throttling(
    tmp_path: Path, hot_mhz: int, trip_c: int | None, temp_c: int, throttled: bool
) -> None:
    sampler = heated(tmp_path, hot_mhz, trip_c, temp_c)
    assert sampler.result().throttled is throttled
    if throttled:
        assert sampler.throttle_reasons == ("cpu up to 2400 MHz fell from 2000 to 1400 MHz while hot",)


@pytest.mark.parametrize(
    ("path", "before", "after", "throttled"),
    [
        ("sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", 7, 9, True),
        ("sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", 7, 7, False),
        ("sys/class/hwmon/hwmon1/oc3_event_cnt", 0, 2, True),
        ("sys/class/thermal/cooling_device4/cur_state", 0, 3, True),
        ("sys/class/thermal/cooling_device4/cur_state", 0, 0, False),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "50000", "50004", True),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "0", "50000", False),  # of an earlier time
    ],
)
def test_witnesses_of_throttling(tmp_path: Path, path: str, before: object, after: object, throttled: bool) -> None:
    put(tmp_path, {"sys/class/thermal/cooling_device4/type": "thermal-devfreq-0"})
    found = drive(tmp_path, 3, lambda t: put(tmp_path, {path: before if t < 1.5 else after}))
    assert found.result().throttled is throttled
    assert bool(found.throttle_reasons) is throttled


def test_a_fan_that_turns_is_no_throttling(tmp_path: Path) -> None:
    put(tmp_path, {"sys/class/thermal/cooling_device0/type": "pwm-fan",
                   "sys/class/thermal/cooling_device0/cur_state": 3})  # fmt: skip
    assert drive(tmp_path, 2, still).result().throttled is None


def test_a_gpu_that_slows_down_in_the_heat_is_throttling(tmp_path: Path) -> None:
    def step(t: float) -> None:
        late = t >= 60
        put(tmp_path, {f"{ZONE}/type": "gpu-thermal", f"{ZONE}/temp": 93_000 if late else 50_000,
                       "sys/class/devfreq/17000000.gpu/cur_freq": 306_000_000 if late else 918_000_000,
                       "sys/class/devfreq/17000000.gpu/device/load": 100 if late else 990})  # fmt: skip

    found = drive(tmp_path, 120, step, step_s=0.5)
    assert found.throttle_reasons == ("gpu fell from 918 to 306 MHz while hot",)  # its load may fall as it likes


# ---------------------------------------------------------------- the rest


def test_gpu_clock_and_load(tmp_path: Path) -> None:
    put(tmp_path, {"sys/class/devfreq/17000000.gpu/cur_freq": 624_750_000,
                   "sys/class/devfreq/17000000.gpu/device/load": 998,
                   "sys/class/devfreq/13e00000.host1x/cur_freq": 1})  # fmt: skip
    found = drive(tmp_path, 2, still).result()
    assert [(s.name, round(s.mean, 2), s.unit) for s in found.sensors] == [
        ("gpu", 624.75, "MHz"), ("gpu load", 99.8, "%"),
    ]  # fmt: skip


def test_power_modes(tmp_path: Path) -> None:
    assert sensors.power_mode(tmp_path) == ""
    put(tmp_path, {"sys/firmware/acpi/platform_profile": "balanced"})
    assert sensors.power_mode(tmp_path) == "platform profile balanced"
    put(tmp_path, {"var/lib/nvpmodel/status": "pmode:0002"})
    assert sensors.power_mode(tmp_path) == "nvpmodel 2"
    put(tmp_path, {"etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=MAXN_SUPER >"})
    assert sensors.power_mode(tmp_path) == "nvpmodel 2 MAXN_SUPER"


def agx(root: Path) -> None:
    """Make a machine with as many sensors as the largest Jetson."""
    orin(root)
    for zone in range(10):
        put(root, {f"sys/class/thermal/thermal_zone{zone}/type": f"zone{zone}",
                   f"sys/class/thermal/thermal_zone{zone}/temp": 40_000 + zone})  # fmt: skip
    for core in range(12):
        put(root, {f"{POLICY}/policy{core}/cpuinfo_max_freq": 2_201_600,
                   f"{POLICY}/policy{core}/scaling_cur_freq": 2_000_000})  # fmt: skip
    for device in range(8):
        put(root, {f"sys/class/thermal/cooling_device{device}/type": f"thermal-cpufreq-{device}",
                   f"sys/class/thermal/cooling_device{device}/cur_state": 0})  # fmt: skip


def test_the_thread_reads_ten_times_a_second_and_costs_next_to_nothing(tmp_path: Path) -> None:
    agx(tmp_path)
    with PowerSampler(tmp_path) as sampler:
        time.sleep(2.0)
    found = sampler.result()
    assert found.run_w == pytest.approx(5.0)
    assert 10 <= len(sampler._power[0].values) <= 22  # 21 on a machine that has time
    assert len(sampler._heat[0].values) < 6
    start = time.thread_time()
    for turn in range(50):  # what it does in 5 s
        sampler.tick(1e6 + turn / 10)
    assert time.thread_time() - start < 0.005 * 5, "more than half a percent of a core"
