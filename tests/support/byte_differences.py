"""How two long byte strings differ, in one line: pytest would print both."""

from __future__ import annotations

from collections.abc import Mapping

SHORT = 80  # bytes that a line of a log can hold
SHOWN = 12


def explain(op: str, left: object, right: object) -> list[str] | None:
    """Return the line for bytes, or for mappings of them (files of a graph); None leaves it to pytest."""
    if op != "==":
        return None
    if isinstance(left, bytes) and isinstance(right, bytes):
        return [_first(left, right)] if max(len(left), len(right)) > SHORT else None
    if isinstance(left, Mapping) and isinstance(right, Mapping) and _holds_bytes(left) and _holds_bytes(right):
        if left.keys() != right.keys():
            return [f"{sorted(left)} == {sorted(right)}: other names"]
        return [f"{name}: {_first(left[name], right[name])}" for name in left if left[name] != right[name]] or None
    return None


def _holds_bytes(values: Mapping[object, object]) -> bool:
    return bool(values) and all(isinstance(value, bytes) for value in values.values())


def _first(left: bytes, right: bytes) -> str:
    both = min(len(left), len(right))
    at = next((i for i in range(both) if left[i] != right[i]), both)
    values = " != ".join(repr(side[at : at + SHOWN]) for side in (left, right))
    return f"{len(left)} bytes == {len(right)} bytes: they differ from byte {at} on, {values}"
