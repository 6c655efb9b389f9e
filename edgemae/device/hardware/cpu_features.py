"""What this machine's processor can do, as far as int8 and compiled blobs depend on it."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def cpu_flags(cpuinfo: str = "/proc/cpuinfo") -> frozenset[str]:
    """Return the processor's feature flags (x86 `flags`, Arm `Features`); empty where the system does not list them."""
    try:
        text = Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, values = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(values.split())
    return frozenset()


def isa_class() -> str:
    """Return this machine's class of integer arithmetic: vnni, avx512, avx2, dotprod or other."""
    flags = cpu_flags()
    if any("vnni" in flag for flag in flags):
        return "vnni"
    for name, flag in (("avx512", "avx512f"), ("avx2", "avx2"), ("dotprod", "asimddp")):
        if flag in flags:
            return name
    return "other"


def u8s8_saturates(target_isa: str) -> bool:
    """Say whether u8 x s8 products saturate at 16 bits: on x86 without VNNI, here or by the target's word."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    flags = cpu_flags()
    return "vnni" not in target_isa or (bool(flags) and not any("vnni" in flag for flag in flags))


def machine_facts() -> dict[str, str]:
    """Return what a compiled blob depends on besides its graph: processor, its flags and the emulation switch."""
    return {
        "arch": platform.machine(),
        "system": platform.system(),
        "flags": " ".join(sorted(cpu_flags())),
        "max_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
    }
