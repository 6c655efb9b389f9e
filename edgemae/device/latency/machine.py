"""Which machine a latency was taken on: everything that moves it and that can be read without rights."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

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
VARIABLES = ("OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")  # they change engine speed


def fingerprint() -> dict[str, Any]:
    """Return a JSON-ready description of this machine; an entry that cannot be read here is None, never guessed."""
    cpu = _cpuinfo()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    return {
        "cpu": cpu.get("model name") or cpu.get("Model") or platform.processor() or platform.machine(),
        "cpu_id": "/".join(cpu.get(key, "?") for key in ("vendor_id", "cpu family", "model", "stepping")),
        "arch": platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "microcode": cpu.get("microcode"),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "cores": os.cpu_count(),
        "cores_usable": len(usable_cpus()),
        "cpu_quota": _read("/sys/fs/cgroup/cpu.max"),
        "memory_mib": _memory_mib(),
        "os": _os_name(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return one line for each entry in which two fingerprints differ; empty when latencies may be compared."""
    return [f"{key}: {a.get(key)} / {b.get(key)}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def usable_cpus() -> set[int]:
    """Return the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo; ARM puts `Model` in a last paragraph, so all are read."""
    found: dict[str, str] = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _memory_mib() -> int | None:
    for line in (_read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            # Rounded: what the kernel keeps for itself moves by some MiB between boots of one machine.
            return round(int(line.split()[1]) / 1024 / 256) * 256
    return None


def _os_name() -> str:
    for line in (_read("/etc/os-release") or "").splitlines():
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


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
