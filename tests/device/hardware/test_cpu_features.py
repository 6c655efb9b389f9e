"""What the processor can do: its flags, and whether its int8 products saturate."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemae.device.hardware import cpu_features
from edgemae.device.hardware.cpu_features import cpu_flags, u8s8_saturates


@pytest.mark.parametrize(
    ("arch", "flags", "target_isa", "saturates"),
    [
        ("x86_64", {"avx2"}, "avx2", True),
        ("x86_64", {"avx2"}, "avx2_vnni", True),  # the bundle was made for better than this machine
        ("x86_64", {"avx512f", "avx512_vnni"}, "avx512_vnni", False),
        ("x86_64", {"avx2", "avx_vnni"}, "avx2", True),  # the target's word: an emulated processor
        ("x86_64", set(), "avx2_vnni", False),  # flags unknown: the target's word
        ("AMD64", {"avx2"}, "avx2", True),
        ("aarch64", {"asimddp"}, "dotprod", False),
    ],
)
def test_who_saturates(
    arch: str, flags: set[str], target_isa: str, saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_features.platform, "machine", lambda: arch)
    monkeypatch.setattr(cpu_features, "cpu_flags", lambda: frozenset(flags))
    assert u8s8_saturates(target_isa) is saturates


def test_processor_flags_are_read_from_x86_and_arm_lists(tmp_path: Path) -> None:
    read = cpu_flags.__wrapped__
    (tmp_path / "x86").write_text("processor : 0\nflags\t\t: fpu avx2 avx_vnni\nflags : other\n")
    (tmp_path / "arm").write_text("processor : 0\nFeatures\t: fp asimd asimddp\n")
    (tmp_path / "none").write_text("nothing\n")
    assert read(str(tmp_path / "x86")) == {"fpu", "avx2", "avx_vnni"}
    assert read(str(tmp_path / "arm")) == {"fp", "asimd", "asimddp"}
    assert read(str(tmp_path / "none")) == read(str(tmp_path / "missing")) == frozenset()
