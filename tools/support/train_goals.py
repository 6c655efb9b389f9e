"""What `bench_train.py` is to show: each goal for the case that it is set for, beside what was found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from support.train_baselines import OURS, SMALL, THEIRS

Finding = dict[str, Any]
BARE, COST, WAIT_SHARE, LARGE_GIB = 1.0, 1.6, 0.03, 24.0


def judge(result: dict[str, Any]) -> list[Finding]:
    """Return a finding for each goal and case that a result has: its limit, what was found, and whether it is met.

    The cost of `relation` has a goal where the teacher is about four times the student, as in the small case. From
    ViT-Large to ViT-Tiny the teacher's multiply-accumulates alone are twelve times a step of the student.
    """
    return [*_bare(result), *_files(result), *_large(result)]


def _bare(result: dict[str, Any]) -> Iterator[Finding]:
    for group in result.get("bare", ()):
        first, title = group["rows"][0], group["title"]
        if group["reference"] == THEIRS:
            yield _finding("bare MAE step, times as fast as transformers'", title, BARE, first["ratio"], least=True)
        elif group["case"]["name"] == SMALL.name:
            yield _finding("a step of relation, in plain MAE steps", title, COST, 1 / first["ratio"])


def _files(result: dict[str, Any]) -> Iterator[Finding]:
    for row in result.get("files", ()):
        if row["name"] == OURS:
            yield _finding("share of waiting for data", row["case"], WAIT_SHARE, row["wait_share"])


def _large(result: dict[str, Any]) -> Iterator[Finding]:
    for row in result.get("large", ()):
        yield _finding(f"peak GiB of a step of {row['name']}", row["case"], LARGE_GIB, row["peak_mib"] / 1024)


def _finding(goal: str, case: str, limit: float, found: float, *, least: bool = False) -> Finding:
    met = found >= limit if least else found <= limit
    return {"goal": goal, "case": case, "at least" if least else "at most": limit, "found": found, "met": met}


def lines(findings: list[Finding]) -> list[str]:
    """Return the findings as text."""
    return [
        f"{'met   ' if f['met'] else 'MISSED'} {f['goal']}, {f['case']}: {f['found']:.3g}, goal "
        + (f"at least {f['at least']:g}" if "at least" in f else f"at most {f['at most']:g}")
        for f in findings
    ]
