"""The latency of every candidate, as a cached stage: measured on this machine, or on a device over ssh."""

from __future__ import annotations

import logging
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch

from edgemae.deploy.remote_profile import find_edgemae, parse_answer
from edgemae.deploy.ssh import RemoteHost, parse_address
from edgemae.model.vit import ViT
from edgemae.pipeline.candidate_graphs import Candidate
from edgemae.pipeline.stage_cache import digest_of
from edgemae.pipeline.stage_files import ModelFile
from edgemae.pipeline.training_stages import StageContext
from edgemae.profiling.compare.graph_benchmark import Entry, Job, Latencies, Machine, measure, this_machine, write_job
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import InputError
from edgemae.spec.graph import Graph
from edgemae.spec.target import Target

log = logging.getLogger("edgemae")
EAGER = "torch-eager"
MODULE = "edgemae.profiling.compare.graph_benchmark"
Entries = list[tuple[Entry, Graph]]


class Benchmark(Protocol):
    """A machine that graphs are measured on; `name` says which in a sentence."""

    name: str

    @property
    def machine(self) -> Machine: ...

    def measure(self, target: Target, vit: ViT, entries: Entries) -> Latencies:
        """Return what was measured, by the names of the entries."""


class LocalBenchmark:
    """This machine: every graph, interleaved with torch eager fp32 of the same student on the same threads."""

    name = "this machine"

    @cached_property
    def machine(self) -> Machine:
        return this_machine()

    def measure(self, target: Target, vit: ViT, entries: Entries) -> Latencies:
        job = job_of(target, entries)
        files = {entry.name: graph.files for entry, graph in entries}
        shape = vit.eval().shape
        tensor = torch.zeros(1, shape.channels, shape.image_px, shape.image_px)
        before = torch.get_num_threads()

        def eager() -> None:
            with torch.inference_mode():
                vit(tensor)

        torch.set_num_threads(target.threads)
        try:
            return measure(job, lambda entry: files[entry.name], (EAGER, eager))
        finally:
            torch.set_num_threads(before)


class RemoteBenchmark:
    """A device behind ssh, with edgemae and without torch; the graphs are copied to it once."""

    def __init__(self, remote: str, python: str = "python3") -> None:
        self._address, self._python = parse_address(remote), python
        self.name = self._address.host

    @cached_property
    def machine(self) -> Machine:
        with RemoteHost(self._address, self._python) as host:
            machine = msgspec.convert(self._ask(host), Machine)
        engines = ", ".join(f"{name} {version}" for name, version in machine.engines.items())
        log.info("candidates are measured on %s: %s, %s", self.name, machine.fingerprint.get("cpu"), engines)
        return machine

    def measure(self, target: Target, vit: ViT, entries: Entries) -> Latencies:
        with (
            RemoteHost(self._address, self._python, has_answered="machine" in self.__dict__) as host,
            tempfile.TemporaryDirectory() as draft,
        ):
            path = Path(draft) / f"candidates-{target.name}.zip"
            write_job(path, job_of(target, entries), [graph.files for _, graph in entries])
            return msgspec.convert(self._ask(host, host.copy(path)), Latencies)

    def _ask(self, host: RemoteHost, *arguments: str) -> dict[str, Any]:
        python = find_edgemae(host)[0]
        codes, outputs = host.run([[python, "-m", MODULE, *arguments]])
        return parse_answer(host, codes, outputs)


def job_of(target: Target, entries: Entries) -> Job:
    """Return the job of graphs with one io contract."""
    (pixels,) = entries[0][1].io.inputs
    graphs = tuple(entry for entry, _ in entries)
    return Job(target=target, shape=pixels.shape, dtype=pixels.dtype, graphs=graphs)


LOCAL = LocalBenchmark()


def benchmark_at(remote: str | None, python: str | None) -> Benchmark:
    """Return the benchmark that the command line names. Raises InputError for the Python of no machine."""
    if remote is None and python is not None:
        raise InputError(
            "--remote-python says which Python another machine uses, and no machine is named",
            expected="--remote user@host beside it",
            fix="name the machine, or leave --remote-python out",
        )
    return LOCAL if remote is None else RemoteBenchmark(remote, python or "python3")


def latencies(
    context: StageContext, target: Target, student: ModelFile, candidates: list[Candidate], benchmark: Benchmark
) -> Latencies:
    """Measure every candidate that the machine runs, interleaved; the next run measures INVALID figures again."""
    able = [c for c in candidates if c.engine in benchmark.machine.engines]

    def make(folder: Path) -> None:
        entries = [(c.entry, c.graph) for c in able]
        found = benchmark.measure(target, student.student.vit, entries) if entries else Latencies()
        write_atomic(folder / "latency.json", msgspec.json.format(msgspec.json.encode(found), indent=1))

    key = {"graphs": [[c.name, c.digest] for c in able], "student": student.digest,
           "target": msgspec.to_builtins(target), "machine": digest_of(benchmark.machine.fingerprint)}  # fmt: skip
    folder = context.work.run(f"latency-{target.name}", key, make)
    measurements = msgspec.json.decode((folder / "latency.json").read_bytes(), type=Latencies)
    if any(row.verdict == "INVALID" for row in measurements.rows.values()):
        log.warning("%s was too busy while candidates were measured: run this again when it is quiet", benchmark.name)
        context.work.forget(folder)
    return measurements
