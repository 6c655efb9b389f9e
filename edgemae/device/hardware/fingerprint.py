"""Which machine a latency was taken on: everything that moves it and that can be read without rights."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

from edgemae.device.hardware.cpu_affinity import usable_cores
from edgemae.device.hardware.sensors import text

FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve")
# import name -> distributions that may carry it; Jetson's own OpenCV and TensorRT have no distribution at all.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "cv2": ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt_rtx": ("tensorrt-rtx",),
}
VARIABLES = (  # they change the speed of an engine
    "CUDA_VISIBLE_DEVICES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_BLOCKTIME", "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip
X86_ID = ("vendor_id", "cpu family", "model", "stepping")
ARM_ID = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")
ROOT = Path("/")
NO_LIMIT_BYTES = 1 << 60  # version 1 of the control groups says "no limit" as the largest whole number of pages
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader")
NVIDIA_SMI_S = 10


def fingerprint() -> dict[str, Any]:
    """Return a JSON-ready description of this machine; an entry that cannot be read here is None, never guessed."""
    cpu = _cpuinfo()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    return {
        "cpu": cpu.get("model name") or cpu.get("Model") or platform.processor() or platform.machine(),
        "cpu_id": "/".join(cpu.get(key, "?") for key in (ARM_ID if ARM_ID[0] in cpu else X86_ID)),
        "board": (text("/proc/device-tree/model") or "").strip(chr(0)) or None,
        "arch": platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "microcode": cpu.get("microcode"),
        "governor": _governor(),
        "boost": text("/sys/devices/system/cpu/cpufreq/boost"),
        "power_mode": _power_mode(),
        "cores": os.cpu_count(),
        "cores_usable": len(usable_cores()),
        "pinning": _ranges(usable_cores()),
        "numa_nodes": text("/sys/devices/system/node/online"),
        **limits(),
        "memory_mib": _memory_mib(),
        "gpu": _gpu(),
        "os": _os_name(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return one line for each entry in which two fingerprints differ; empty when latencies may be compared."""
    return [f"{key}: {a.get(key)} / {b.get(key)}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def cgroups(controller: str, root: Path = ROOT) -> list[Path]:
    """Return the folder of our control group and of every one above it, for version 2 and for one controller of 1."""
    found: list[Path] = []
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        mounts = [root / "sys/fs/cgroup" / name for name in ((names, controller) if names else ("unified", "."))]
        if mount := next((folder for folder in mounts if folder.is_dir()), None):
            # The path of a group that lies outside our view starts with "/..": then the mount is all that we see.
            own = mount / path.lstrip("/")
            own = own if ".." not in path and own.is_dir() else mount
            found += [own, *(folder for folder in own.parents if folder.is_relative_to(mount))]
    return list(dict.fromkeys(found))


def limits(root: Path = ROOT) -> dict[str, Any]:
    """Return what a container or a service manager allows: `cpu_quota` in processors, `cpuset`, `memory_max_mib`.

    "max" where nothing is limited, None where this machine does not tell.
    """
    quotas: list[float] = []
    for folder in cgroups("cpu", root):
        words = (text(folder / "cpu.max") or "").split()
        if not words:  # version 1 has a file for each
            words = [cell for name in ("quota", "period") if (cell := text(folder / f"cpu.cfs_{name}_us"))]
        if len(words) == 2:
            quotas.append(float("inf") if words[0] in ("max", "-1") else int(words[0]) / int(words[1]))
    memory = [
        NO_LIMIT_BYTES if cell == "max" else int(cell)
        for folder in cgroups("memory", root)
        if (cell := text(folder / "memory.max") or text(folder / "memory.limit_in_bytes"))
    ]
    names = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")
    sets = (text(folder / name) for folder in cgroups("cpuset", root) for name in names)
    quota, most = min(quotas, default=None), min(memory, default=None)
    return {
        "cpu_quota": "max" if quota == float("inf") else quota,
        "cpuset": next(filter(None, sets), None),
        "memory_max_mib": "max" if most is not None and most >= NO_LIMIT_BYTES else most and most // 2**20,
    }


def _gpu() -> list[str] | None:
    """Return name, driver and power limit of each NVIDIA GPU, or a Jetson's release; None where there is none."""
    if shutil.which(NVIDIA_SMI[0]):
        try:
            done = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True)
            return done.stdout.strip().splitlines()
        except (OSError, subprocess.SubprocessError):
            pass  # the driver's own files may still tell
    if release := text("/etc/nv_tegra_release"):
        return [f"{(text('/proc/device-tree/model') or 'Jetson').strip(chr(0))}, {release.splitlines()[0]}"]
    if driver := text("/proc/driver/nvidia/version"):
        models = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        return [*((text(path) or "").partition("\n")[0] for path in models), driver.splitlines()[0]]
    return None


def _governor(root: Path = ROOT) -> str | None:
    """Return the governor of the processors that we may use; where they differ, those of each: performance 0-3, ..."""
    found: dict[str, set[int]] = {}
    for number in usable_cores():
        if name := text(root / f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_governor"):
            found.setdefault(name, set()).add(number)
    if len(found) < 2:
        return next(iter(found), None)
    return ", ".join(f"{name} {_ranges(numbers)}" for name, numbers in sorted(found.items()))


def _power_mode() -> str | None:
    """Return Jetson's nvpmodel, or the profile that a laptop's firmware offers."""
    return text("/var/lib/nvpmodel/status") or text("/sys/firmware/acpi/platform_profile")


def _ranges(numbers: Collection[int]) -> str:
    """Return a set of processors as the kernel writes it: 0-3,6."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo; ARM puts `Model` in a last paragraph, so all are read."""
    found: dict[str, str] = {}
    for line in (text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _memory_mib() -> int | None:
    for line in (text("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            # Rounded: what the kernel keeps for itself moves by some MiB between boots of one machine.
            return round(int(line.split()[1]) / 1024 / 256) * 256
    return None


def _os_name() -> str:
    for line in (text("/etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _version(name: str) -> str | None:
    """Return a library's version, None when it is not installed; a system build without metadata is imported."""
    for distribution in LIBRARIES[name]:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        return None
    try:
        return str(getattr(importlib.import_module(name), "__version__", "unknown"))
    except ImportError:
        return "broken"
