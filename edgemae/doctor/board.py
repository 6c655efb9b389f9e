"""What kind of board this is, as its own files tell. `root` is the folder that stands for `/`."""

from __future__ import annotations

from pathlib import Path

from edgemae.device.hardware.sensors import text


def board_name(root: Path) -> str:
    """Return what the device tree calls this board, such as "Raspberry Pi 5 Model B Rev 1.0"; "" on a PC."""
    return (text(root / "proc/device-tree/model") or "").strip("\0")


def is_jetson(root: Path) -> bool:
    return (root / "etc/nv_tegra_release").exists() or "nvidia,tegra" in (
        text(root / "proc/device-tree/compatible") or ""
    )


def in_container(root: Path) -> bool:
    return (root / ".dockerenv").exists() or (root / "run/.containerenv").exists()
