"""A/B test: two sides in a process each, interleaved (A B B A); the one that does not run is idle.

In one process two engines' thread pools, allocators and caches meet; in two they meet only in the hardware, as they
would on a device that ships one of them. Raw medians of a shared machine move by up to 38 %, the ratio of neighbouring
blocks by 1 %.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from edgemae.device.child_process import JsonLinesProcess
from edgemae.profiling.child_process import command, environment
from edgemae.profiling.records import BaselineComparison
from edgemae.profiling.stats.comparison import ratio, round_ratios
from edgemae.profiling.stats.percentiles import summarise
from edgemae.profiling.timing.interference import VERDICTS, Interference, Window, with_verdict
from edgemae.profiling.timing.timer import BLOCK_RUNS, Samples, block_length, interleaved_order, samples_of
from edgemae.spec.errors import EdgemaeError, EngineRuntimeError, error_of

ROUNDS = 20
LOAD_TIMEOUT_S = 600.0  # an engine may still have to be built
BLOCK_TIMEOUT_S = 120.0
AB_WORKER = "edgemae.profiling.compare.ab_worker"


@dataclass(frozen=True)
class ABSide:
    """Name something to measure: the module whose process holds it, and its first order."""

    kind: str
    path: str
    engine: str = "auto"
    target: str = ""
    pixels_of: str = ""  # the bundle whose golden frames and pixel contract are used
    module: str = AB_WORKER


def ab_test(this: ABSide, other: ABSide, rounds: int = ROUNDS) -> tuple[BaselineComparison, Interference]:
    """Measure two sides interleaved; return how much faster `this` is, and the worse one's evidence.

    Raises EngineRuntimeError when a process ends or hangs, and whatever a process says it cannot do.
    """
    with ExitStack() as stack:
        a = stack.enter_context(_Process(other))
        b = stack.enter_context(_Process(this))
        lengths = {process: block_length(process.load(rounds)) for process in (a, b)}
        window = Window(processes=(a.pid, b.pid))
        restless = set()
        for block, name, _ in interleaved_order(["a", "b"], rounds):
            window.sample()
            process = {"a": a, "b": b}[name]
            if not process.ask({"block": block, "runs": lengths[process]}, BLOCK_TIMEOUT_S)["idle"]:
                restless.add(process.about["name"])
        theirs, ours = measurements = [samples_of(process.end(), window) for process in (a, b)]
        found = ratio(theirs, ours)
        baseline = summarise(theirs.ns)
        comparison = BaselineComparison(
            name=a.about["name"], kind=other.kind, engine=a.about["engine"], precision=a.about["precision"],
            p50_ms=baseline.p50_ms, n=baseline.n, ratio=found.median, ratio_low=found.low, ratio_high=found.high,
            different=found.different, paired=True, rounds=found.rounds,
            ratios=tuple(float(r) for r in round_ratios(theirs, ours)), version=a.about.get("version", ""),
        )  # fmt: skip
    return comparison, _evidence(measurements, restless)


def _evidence(measurements: list[Samples], restless: set[str]) -> Interference:
    """Return the worse of two verdicts; a side that does not rest while the other runs spoils both."""
    found = max((samples.interference for samples in measurements), key=lambda e: VERDICTS.index(e.verdict))
    reasons = tuple(f"the threads of '{name}' run on between its blocks" for name in sorted(restless))
    return with_verdict(found, reasons)


class _Process:
    """The process of one side: started, given a side to hold, asked for blocks, and ended with the block's `with`."""

    def __init__(self, side: ABSide) -> None:
        self.side, self.about = side, dict[str, Any]()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._process = JsonLinesProcess(command(side.module), stderr=self._stderr, env=environment())
        self.pid = self._process.pid

    def load(self, rounds: int) -> float:
        """Make the process hold its side; return the seconds of a typical run."""
        order = {
            "kind": self.side.kind, "path": self.side.path, "engine": self.side.engine,
            "target": self.side.target, "pixels_of": self.side.pixels_of,
            "capacity": 2 * rounds * BLOCK_RUNS[1],
        }  # fmt: skip
        self.about = self.ask(order, LOAD_TIMEOUT_S)
        return float(self.about["typical_s"])

    def end(self) -> dict[str, np.ndarray]:
        rows = self.ask({"end": True}, BLOCK_TIMEOUT_S)
        return {name: np.array(values, np.int64) for name, values in rows.items()}

    def ask(self, order: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send an order and return the answer."""
        try:
            answer = self._process.ask(order, timeout_s)
        except EOFError:
            raise self._silent(None) from None
        except TimeoutError:
            raise self._silent(timeout_s) from None
        if "error" in answer:
            raise error_of(answer["error"])
        return answer

    def _silent(self, waited_s: float | None) -> EdgemaeError:
        """Return the error for a process that has ended, or that was silent for `waited_s`."""
        if waited_s is None:
            state = f"ended with status {self._process.wait(10)}"  # its end is seen in the pipe before it is gone
        else:
            state = f"gave no answer within {waited_s:.0f} s"
        self._stderr.seek(0)
        message = self._stderr.read().decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        return EngineRuntimeError(
            f"the process that holds '{self.side.path}' {state}: {message[0]}",
            expected="a side that loads and runs here",
            fix="see that memory is left for both, and that each of them runs alone",
        )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.close()
        self._stderr.close()
