"""Compare graphs on the machine that this runs on: what it can run, and how fast each graph is beside the others.

`python -m edgemae.profiling.compare.graph_benchmark` prints what the machine is; with the file of a `Job` it measures,
and prints its `Latencies`. A compile calls the same functions here, and sends the command to a device over ssh.
"""

from __future__ import annotations

import platform
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from edgemae.device.engines import ENGINES, open_session
from edgemae.device.hardware.cpu_affinity import usable_cores
from edgemae.device.hardware.cpu_features import isa_class
from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.profiling.stats.comparison import ratio
from edgemae.profiling.stats.percentiles import summarise
from edgemae.profiling.timing.timer import Run, interleave
from edgemae.spec.errors import EdgemaeError
from edgemae.spec.report import EngineLatency, Record
from edgemae.spec.target import Target

ROUNDS = 12  # of ABBA blocks; at 20 ms a block and six candidates about 6 s
ORDER = "job.json"


class Machine(Record, frozen=True):
    """What decides which graphs can be measured on a machine, and for which targets their latencies speak."""

    arch: str
    isa: str
    engines: dict[str, str]  # those that execute there -> version
    fingerprint: dict[str, Any]

    def mismatch(self, target: Target) -> str:
        """Return why latencies taken there do not speak for the target's processor, or an empty string."""
        if self.arch != target.arch:
            return f"the machine is {self.arch}, the target is {target.arch}"
        wanted = next((c for c in ("vnni", "avx512", "avx2", "dotprod") if c in target.isa), "")
        if wanted and wanted != self.isa:
            return f"the machine has {self.isa} arithmetic, the target has {target.isa}"
        return ""


class Entry(Record, frozen=True):
    """One graph of a job; its files lie below `name` in the job's archive."""

    name: str
    engine: str
    precision: str
    scheme: str
    files: tuple[str, ...]


class Latencies(Record, frozen=True):
    """A row for each graph, and how many times faster each is than another on its engine, by interleaved blocks."""

    rows: dict[str, EngineLatency] = msgspec.field(default_factory=dict)
    gains: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)  # gains[a][b]: time of b / time of a


class Job(Record, frozen=True):
    """What is to be measured: graphs that take one tensor of `shape` and `dtype`, with the settings of a target."""

    target: Target
    shape: tuple[int, ...]
    graphs: tuple[Entry, ...]
    dtype: str = "float32"


def target_mismatches(target: Target) -> tuple[str, ...]:
    """Return why the latencies of this machine do not speak for a target; empty where they do.

    Imports no engine, as `this_machine` does: it is called just before the runs of a profile.
    """
    here = Machine(arch=_arch(), isa=isa_class(), engines={}, fingerprint={})
    found = [reason] if (reason := here.mismatch(target)) else []
    if target.threads > (cores := len(usable_cores())):
        found.append(f"target '{target.name}' asks for {target.threads} threads, and {cores} processors are usable")
    return tuple(found)


def _arch() -> str:
    return platform.machine().lower().replace("amd64", "x86_64")


def this_machine() -> Machine:
    """Return what this machine is; TensorRT counts where there is a GPU for it."""
    found = {name: engine.version() for name, engine in ENGINES.items()}
    able = {name: version for name, version in found.items() if version is not None and _executes(name)}
    return Machine(
        arch=_arch(), isa=isa_class(), engines=able, fingerprint=fingerprint()
    )  # fmt: skip


def _executes(engine: str) -> bool:
    return engine != "tensorrt" or ENGINES[engine].facts().get("gpu", "none") != "none"


def measure(
    job: Job, files: Callable[[Entry], Mapping[str, bytes]], reference: tuple[str, Run] | None = None
) -> Latencies:
    """Measure the graphs of a job interleaved, and `reference`, a name and what to run, before them.

    Ratios are those to the reference, and absent without one. Raises EngineRuntimeError.
    """
    rng = np.random.default_rng(0)
    pixels: NDArray[Any] = rng.standard_normal(job.shape, np.float32)
    if job.dtype == "uint8":
        pixels = rng.integers(0, 256, job.shape, np.uint8)
    entries = {entry.name: entry for entry in job.graphs}
    if reference:
        entries = {reference[0]: Entry(name="", engine=reference[0], precision="fp32", scheme="", files=()), **entries}
    sizes = {}
    with ExitStack() as held:
        runs: dict[str, Run] = dict([reference] if reference else [])
        for entry in job.graphs:
            data = files(entry)
            sizes[entry.name] = sum(map(len, data.values()))
            session = held.enter_context(open_session(entry.engine, data, job.target))
            runs[entry.name] = lambda session=session: session(pixels)  # type: ignore[misc]
        samples = interleave(runs, ROUNDS)
    rows = {}
    for name, measurements in samples.items():
        entry, summary = entries[name], summarise(measurements.ns)
        row = EngineLatency(
            engine=entry.engine, precision=entry.precision, scheme=entry.scheme, p50_ms=summary.p50_ms, n=summary.n,
            p90_ms=summary.p90_ms, p99_ms=summary.p99_ms, ratio_to_torch_eager=None, size_bytes=sizes.get(name, 0),
            p90_high_ms=summary.p90_high_ms, verdict=measurements.interference.verdict,
        )  # fmt: skip
        if reference:
            gain = ratio(samples[reference[0]], measurements)
            row = replace(row, ratio_to_torch_eager=gain.median, ratio_low=gain.low, ratio_high=gain.high)
        rows[name] = row
    gains = {
        a.name: {b.name: ratio(samples[b.name], samples[a.name]).median for b in job.graphs if b.engine == a.engine}
        for a in job.graphs
    }
    return Latencies(rows=rows, gains=gains)


# ---------------------------------------------------------------- as a file, for another machine


def write_job(path: Path, job: Job, graphs: Iterable[Mapping[str, bytes]]) -> None:
    """Write a job with the files of its graphs, in their order, as one archive with the same bytes every time."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(ORDER), msgspec.json.encode(job))
        for entry, files in zip(job.graphs, graphs, strict=True):
            for name in entry.files:
                archive.writestr(zipfile.ZipInfo(f"{entry.name}/{name}"), files[name])


def run_job(path: Path) -> Latencies:
    """Measure what `write_job` wrote."""
    with zipfile.ZipFile(path) as archive:
        job = msgspec.json.decode(archive.read(ORDER), type=Job)
        return measure(job, lambda entry: {name: archive.read(f"{entry.name}/{name}") for name in entry.files})


def main(arguments: list[str]) -> int:
    """Print one JSON object: the machine, or what a job found; an error as its `row`."""
    try:
        found: Any = run_job(Path(arguments[0])) if arguments else this_machine()
    except EdgemaeError as error:
        found = {"error": error.row}
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
