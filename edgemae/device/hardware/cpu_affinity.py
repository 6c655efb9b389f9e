"""Which processor cores an engine computes on: checked, set where it is made and at every call, and given back.

A thread inherits the cores of the thread that starts it, so an engine that is made inside `on_cores` keeps to them with
all threads that it starts. The caller's thread computes too, so it is moved for the length of a call: 2 us. OpenVINO
shares one pool of threads among all models of a process, where the first model's cores count for all.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from edgemae.spec.errors import InputError


def usable_cores() -> tuple[int, ...]:
    """Return the numbers of the cores that this process may use, sorted."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def checked_cores(cores: Collection[int] | None) -> tuple[int, ...]:
    """Return core numbers sorted; none for None, which leaves every thread where it is.

    Raises InputError for an empty list, a core twice, one that is not there or that this process may not use, and on
    systems that cannot keep a thread to a core.
    """
    if cores is None:
        return ()
    if not hasattr(os, "sched_setaffinity"):
        raise InputError(
            f"cores {list(cores)} were asked for, and this system cannot keep a thread to a core",
            expected="Linux for `cores`",
            fix="leave `cores` out; `threads` works everywhere",
        )
    usable, asked = usable_cores(), sorted(cores)
    wrong = [core for core in asked if core not in usable]
    if wrong or not asked or len(set(asked)) < len(asked):
        raise InputError(
            f"core {wrong[0]} was asked for, and this process cannot use it" if wrong else f"cores are {asked}",
            expected=f"one or more of {', '.join(map(str, usable))}, none of them twice",
            fix="correct `cores`; `taskset -p <pid>` and the container's cpuset say what a process may use",
        )
    return tuple(asked)


@contextmanager
def on_cores(cores: tuple[int, ...]) -> Iterator[None]:
    """Keep the calling thread, and every thread that it starts, to these cores; none: leave it where it is."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
