"""Targets by name or file, as the command line takes them, and the one that is nearest to this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemae.spec.target import Target


def find_targets(names: Sequence[str | None] | None = None, precisions: Sequence[str] | None = None) -> list[Target]:
    """Return targets by name or TOML file (none: this machine's), kept to some precisions. Raises TargetError."""
    from edgemae.spec.target import check_targets, find_target

    found = [find_target(name or default_target()) for name in names or [None]]
    check_targets(found)
    return [_kept_to(target, precisions) for target in found] if precisions else found


def _kept_to(target: Target, precisions: Sequence[str]) -> Target:
    import msgspec

    from edgemae.spec.errors import TargetError, nearest

    for wanted in precisions:
        if wanted not in target.precisions:
            raise TargetError(
                f"target '{target.name}' has no precision '{wanted}'.{nearest(wanted, list(target.precisions))}",
                expected=f"some of {', '.join(target.precisions)}",
                fix="correct --precision, or leave it out",
            )
    return msgspec.structs.replace(target, precisions=tuple(p for p in target.precisions if p in precisions))


def default_target() -> str:
    """Return the built-in target that is nearest to this machine."""
    import platform

    from edgemae.device.hardware.cpu_features import cpu_flags

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "raspberry-pi-5"
    return "laptop-x86-vnni" if any("vnni" in flag for flag in cpu_flags()) else "laptop-x86-avx2"
