"""One line of the examination."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["green", "yellow", "red", "grey"]
WORST_FIRST: tuple[State, ...] = ("red", "yellow", "green", "grey")


@dataclass(frozen=True)
class Finding:
    """Hold what was found. red: nothing runs before it is mended; yellow: it runs, but worse; grey: not needed.

    `fix` is what to do about it, and is never empty for a red or a yellow one.
    """

    area: str
    name: str
    state: State
    found: str
    fix: str = ""

    def __post_init__(self) -> None:
        if self.state in ("red", "yellow") and not self.fix:
            raise ValueError(f"{self.area} {self.name} is {self.state} and says no fix")


def combined_state(findings: Iterable[Finding]) -> State:
    """Return the worst state among findings, grey when there is none."""
    states = {finding.state for finding in findings}
    for state in WORST_FIRST[:-1]:
        if state in states:
            return state
    return "grey"
