"""`edgemae profile`: cold, first and steady latency of a bundle on this machine, and whether they can be believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.device.latency.interference import VERDICTS, Interference, worst
from edgemae.device.latency.machine import differences, fingerprint
from edgemae.device.latency.quantiles import Ratio, Summary, ratio, runs_needed, summarise
from edgemae.device.latency.timing import interleave, measure, park
from edgemae.device.preprocess import as_bgr, decode
from edgemae.spec.bundle import open_bundle
from edgemae.spec.errors import BundleError, EngineRuntimeError, InputError
from edgemae.spec.report import Record

if TYPE_CHECKING:
    from edgemae.device.model import Model

SCHEMA = "edgemae.profile/1"
COLD_TIMEOUT_S = 600  # an engine may still have to be built
STAGES = ("pre", "infer", "post")


class Against(Record, frozen=True):
    """State how much faster this bundle is than another one: their time / ours, above 1 when we are faster."""

    name: str
    engine: str
    precision: str
    p50_ms: float
    n: int
    ratio: float
    ratio_low: float
    ratio_high: float
    different: bool  # at 95 %
    paired: bool  # True: taken in turns, right now; False: against a stored profile of the same machine
    rounds: int = 0


class Profile(Record, frozen=True):
    """Hold everything that one `edgemae profile` found out. Times are of whole calls, pixels in to result out."""

    verdict: str  # TRUSTED | NOISY | INVALID
    reasons: tuple[str, ...]
    name: str
    bundle_sha256: str
    engine: str
    precision: str
    steady: Summary
    stages: dict[str, Summary]  # pre | infer | post, of the same runs
    cold_ms: float  # start of a new process -> first result
    load_ms: float  # of that process: opening and checking the bundle, building or fetching the engine
    first_ms: float  # of that process: first call after loading
    against: Against | None
    interference: Interference
    machine: dict[str, Any]  # fingerprint() and the engine's threads
    created: str
    schema: str = SCHEMA


def profile(
    source: str | Path | Model, against: str | Path | Model | None = None, *, runs: int | None = None,
    engine: str = "auto", target: str | None = None,
) -> Profile:  # fmt: skip
    """Measure a bundle (or a loaded model) with its own golden frames.

    `runs` takes exactly that many steady runs, otherwise at least 100 and at least 3 s. `against` is another bundle or
    model, measured in turns with this one, or a stored profile (.json), which must come from this very machine.
    Raises InputError for too few runs and for a stored profile that may not be compared.
    """
    if runs is not None and runs < runs_needed(0.5):
        summarise(np.zeros(runs))  # raises, with the numbers that are needed
    with ExitStack() as owned:
        model = _load(source, engine, target, owned)
        machine = {**fingerprint(), "threads": model.target.threads}
        stored = _stored(against, machine)
        own = model.target == model.manifest.target
        cold = cold_start(model.path, model.rung.engine, None if own else target or model.target.name)
        park()
        run, speeds = _runner(model)
        samples = measure(run) if runs is None else measure(run, min_runs=runs, min_seconds=0)
        steady, evidence = summarise(samples.ns), [samples.interference]
        compared: Against | None = None
        if stored is not None:
            compared = _against_stored(steady, stored)
            evidence.append(stored.interference)
        elif against is not None:
            compared, found = _against_model(model, _load(against, engine, target, owned))
            evidence.append(found)
        reasons = [f"{who}{r}" for who, e in zip(("", "comparison: "), evidence, strict=False) for r in e.reasons]
        return Profile(
            verdict=worst(*(e.verdict for e in evidence)), reasons=tuple(reasons), name=model.manifest.name,
            bundle_sha256=model.sha256, engine=model.rung.engine, precision=model.rung.precision, steady=steady,
            stages={stage: summarise(_ns(speeds[-samples.n :], stage)) for stage in STAGES},
            cold_ms=cold["cold_ms"], load_ms=cold["load_ms"], first_ms=cold["first_ms"], against=compared,
            interference=samples.interference, machine=machine,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )  # fmt: skip


def describe(record: Profile) -> list[str]:
    """Return a profile as lines for a terminal; a percentile that the runs do not allow says what it would need."""
    lines = [f"{record.name}  {record.engine} {record.precision}, {record.machine['threads']} threads"]
    rows = {"steady": record.steady, **{f"  {name}": stage for name, stage in record.stages.items()}}
    for name, row in rows.items():
        cells = [f"p50 {row.p50_ms:8.3f} ms [{row.p50_low_ms:.3f}, {row.p50_high_ms:.3f}]"]
        for percentile, value in (("p90", row.p90_ms), ("p99", row.p99_ms)):
            needed = row.withheld.get(percentile)
            cells.append(f"{percentile} needs {needed} runs" if value is None else f"{percentile} {value:8.3f} ms")
        lines.append(f"{name:8} {'  '.join(cells)}  ({row.n} runs)")
    lines.append(
        f"cold     {record.cold_ms:.0f} ms from process start to result, of that loading {record.load_ms:.0f} ms"
    )
    lines.append(f"first    {record.first_ms:.3f} ms")
    if (other := record.against) is not None:
        how = f"in turns, {other.rounds} rounds" if other.paired else "not in turns: stored profile"
        verdict = "different" if other.different else "no difference shown"
        lines.append(
            f"against  {other.name} ({other.engine} {other.precision}): this one is {other.ratio:.3f} times as fast "
            f"[{other.ratio_low:.3f}, {other.ratio_high:.3f}], {verdict} at 95 % ({how})"
        )
    return [*lines, f"verdict  {record.verdict}" + "".join(f"\n         {reason}" for reason in record.reasons)]


def read_profile(path: str | Path) -> Profile:
    """Return a stored profile. Raises InputError for a file that is none, or one of another schema."""
    try:
        raw = Path(path).read_bytes()
        schema = msgspec.json.decode(raw, type=dict[str, Any]).get("schema")
        if schema == SCHEMA:
            return msgspec.json.decode(raw, type=Profile)
        reason = f"it has schema {schema!r}"
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = str(error)
    raise InputError(
        f"'{path}' cannot be read as a profile: {reason}",
        expected=f"JSON of schema '{SCHEMA}', as `edgemae profile --json` prints it",
        fix="take that profile again with this version",
    )


def cold_start(path: str | Path, engine: str = "auto", target: str | None = None) -> dict[str, float]:
    """Return {cold_ms, load_ms, first_ms} of a new process that loads a bundle and classifies one frame."""
    roots = (str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))}
    command = [sys.executable, "-m", "edgemae.device.latency.cold", str(path), engine, target or ""]
    park()
    try:
        # The monotonic clock is one for all processes of a machine, so the child can subtract our start from its end.
        done = subprocess.run(
            [*command, str(time.monotonic_ns())],
            capture_output=True, text=True, timeout=COLD_TIMEOUT_S, env=environment,
        )  # fmt: skip
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    except subprocess.TimeoutExpired:
        done, reason = None, [f"no result within {COLD_TIMEOUT_S} s"]
    if done is None or done.returncode:
        raise EngineRuntimeError(
            f"'{path}' does not start in a new process: {reason[0]}",
            expected="the same bundle to load there as it did here",
            fix="see that memory is left for a second copy of it",
        )
    return {key: float(value) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}


def golden_frames(model: Model) -> list[NDArray[np.uint8]]:
    """Return the frames that the bundle proves itself with. Raises BundleError when it carries none."""
    bundle = open_bundle(model.path)
    golden = bundle.manifest.golden
    if bundle.sha256 != model.sha256 or not golden.frames:
        raise BundleError(
            f"'{model.path}' is not the bundle that was loaded, or carries no golden frames",
            expected="the same bundle, with at least one picture under golden/",
            fix="load it again",
        )
    decoded = [decode(bundle.read(name), model.pixel) for name in golden.frames]
    return [as_bgr(frame, golden.color) for frame in decoded if frame is not None]


def _load(source: str | Path | Model, engine: str, target: str | None, owned: ExitStack) -> Model:
    if not isinstance(source, (str, Path)):
        return source
    from edgemae.device.model import load

    return owned.enter_context(load(source, target=target, engine=engine))


def _stored(against: str | Path | Model | None, machine: dict[str, Any]) -> Profile | None:
    """Return the stored profile that `against` names, if it does. Raises InputError when it is of another machine."""
    if not isinstance(against, (str, Path)) or Path(against).suffix != ".json":
        return None
    stored = read_profile(against)
    if found := differences(stored.machine, machine):
        raise InputError(
            f"'{against}' was taken on another machine (there / here): {'; '.join(found)}",
            expected="a profile of this machine in this state: latencies of two machines cannot be compared",
            fix="pass the other bundle itself; it is then measured here, in turns with this one",
        )
    return stored


def _runner(model: Model) -> tuple[Callable[[], None], list[dict[str, float]]]:
    """Return what to time, and the list that it appends every run's stages to."""
    frames = golden_frames(model)
    speeds: list[dict[str, float]] = []
    turn = 0

    def run() -> None:
        nonlocal turn
        speeds.append(model(frames[turn % len(frames)]).speed)
        turn += 1

    return run, speeds


def _ns(speeds: list[dict[str, float]], stage: str) -> NDArray[np.float64]:
    return np.array([speed[f"{stage}_ms"] for speed in speeds]) * 1e6


def _against_model(model: Model, other: Model) -> tuple[Against, Interference]:
    taken = interleave({"other": _runner(other)[0], "this": _runner(model)[0]})
    found = ratio(taken["other"], taken["this"])
    theirs = summarise(taken["other"].ns)
    evidence = max((samples.interference for samples in taken.values()), key=lambda e: VERDICTS.index(e.verdict))
    return _compared(other.manifest.name, other.rung.engine, other.rung.precision, theirs, found, paired=True), evidence


def _against_stored(steady: Summary, stored: Profile) -> Against:
    """Compare medians that were not taken in turns: the interval spans the corners of both medians' intervals."""
    theirs = stored.steady
    low, high = theirs.p50_low_ms / steady.p50_high_ms, theirs.p50_high_ms / steady.p50_low_ms
    found = Ratio(median=theirs.p50_ms / steady.p50_ms, low=low, high=high, rounds=0, different=low > 1 or high < 1)
    return _compared(stored.name, stored.engine, stored.precision, theirs, found, paired=False)


def _compared(name: str, engine: str, precision: str, theirs: Summary, found: Ratio, paired: bool) -> Against:
    return Against(
        name=name, engine=engine, precision=precision, p50_ms=theirs.p50_ms, n=theirs.n, ratio=found.median,
        ratio_low=found.low, ratio_high=found.high, different=found.different, paired=paired, rounds=found.rounds,
    )  # fmt: skip
