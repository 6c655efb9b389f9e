"""What other people hand to edgemae, case by case: what is wrong with it, and how edgemae has to end.

A case is a function of a workbench that returns an outcome. It names the exit codes that are right, and words that have
to be, or must not be, in what was printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from support.release_runner import MOST_MIB, MOST_S, Outcome, Workbench

ESCAPE = "\x1b]0;owned\x07\u202e"
COMPILE = ("--target", "laptop-x86-vnni", "--dry-run", "-o", "out")
CASES: list[Case] = []
Step = Callable[[Workbench, Any], Outcome]
Plain = Callable[[Workbench], Outcome]


@dataclass(frozen=True)
class Case:
    """One input with the end that is right for it."""

    area: str
    name: str
    run: Callable[[Workbench], Outcome]
    codes: tuple[int, ...]
    says: str = ""  # has to be in what was printed
    never: str = ""  # must not be
    most_s: float = MOST_S
    most_mib: float = MOST_MIB

    def faults(self, outcome: Outcome) -> list[str]:
        """Return what is wrong with how it ended; nothing: it ended as it has to."""
        found, printed = outcome.faults(), outcome.out + outcome.err
        if outcome.code not in self.codes:
            found.append(f"exit {outcome.code}, not {' or '.join(map(str, self.codes))}")
        if self.says and self.says.lower() not in printed.lower():
            found.append(f"does not name '{self.says}'")
        if self.never and self.never in printed:
            found.append(f"prints '{self.never}'")
        if not outcome.killed and (outcome.seconds > self.most_s or outcome.peak_mib > self.most_mib):
            found.append(f"took {outcome.seconds:.1f} s and {outcome.peak_mib:.0f} MiB")
        return found


def case(
    area: str, name: str, *codes: int, **rest: Any
) -> Callable[[Callable[[Workbench], Outcome]], Callable[[Workbench], Outcome]]:
    """Add a case to the list. `codes`: exit codes that are right."""

    def add(run: Plain) -> Plain:
        CASES.append(Case(area, name, run, codes or (2,), **rest))
        return run

    return add


def cases(area: str, named: Iterable[tuple[str, Any]], *codes: int, **rest: Any) -> Callable[[Step], Step]:
    """Add a case for each (name, value): the function takes the workbench and the value."""

    def add(run: Step) -> Step:
        for name, value in named:
            case(area, name, *codes, **rest)(lambda bench, value=value: run(bench, value))
        return run

    return add
