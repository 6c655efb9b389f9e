"""Whether a machine is the one that a target speaks of: latencies of another one are true, and not the target's."""

from __future__ import annotations

import platform

from edgemae.device.hardware.cpu_features import isa_class
from edgemae.device.hardware.fingerprint import usable_cpus
from edgemae.profiling.compare.graph_benchmark import Machine
from edgemae.spec.target import Target


def misfits(target: Target) -> tuple[str, ...]:
    """Return why the latencies of this machine do not speak for a target; empty where they do."""
    # Of `candidates.this_machine`, which also imports every engine, and would do so just before the runs.
    arch = platform.machine().lower().replace("amd64", "x86_64")
    here = Machine(arch=arch, isa=isa_class(), engines={}, fingerprint={})
    found = [reason] if (reason := here.mismatch(target)) else []
    if target.threads > (cores := len(usable_cpus())):
        found.append(f"target '{target.name}' asks for {target.threads} threads, and {cores} processors are usable")
    return tuple(found)
