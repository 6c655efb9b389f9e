"""The whole of `edgemae profile` on one page: check what is asked, start cold, run the scenario, compare, judge."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.profiling.cold_start import cold_start
from edgemae.profiling.compare.ab_test import Contender, versus
from edgemae.profiling.compare.baseline import against_stored, contender_of, stored_profile
from edgemae.profiling.layers.layer_profile import layers_of
from edgemae.profiling.output.chrome_trace import chrome_trace
from edgemae.profiling.power import PowerSampler
from edgemae.profiling.records import (
    SCENARIOS,
    Against,
    EarlyStopping,
    Layers,
    Power,
    Profile,
    Start,
    store,
    writable,
)
from edgemae.profiling.scenarios import FEWEST_RUNS, RUNNERS, Taken, Wanted
from edgemae.profiling.slo import COLD_STARTS, Slo, judge, parse_slo, runs_for
from edgemae.profiling.soak import first_against_last, parse_soak
from edgemae.profiling.stats import early_stopping
from edgemae.profiling.stats.percentiles import runs_needed, summarise, too_few
from edgemae.profiling.target_mismatch import misfits
from edgemae.profiling.timing.interference import Interference, Window, disturbances, worst
from edgemae.profiling.timing.timer import park
from edgemae.spec.errors import EdgemaeError, EngineRuntimeError, InputError, StorageError, nearest

if TYPE_CHECKING:
    from edgemae.device.model import Model

log = logging.getLogger("edgemae.device")
MIN_RUNS = {"single": 100, "offline": 600, "camera": 100}  # 600: from here on a block interval at 95 % holds 94 %
MIN_SECONDS = 3.0
MOST_RUNS = 20_000_000  # 2 GB of notes
LAYERS_NOISY = 0.10  # between the plain runs beside the watched ones, and the inference stage of the scenario
IDLE_S = 2.0  # of rest, before power is read under load
FPS, FASTEST_FPS = 25.0, 1000.0  # of a camera: unless told, at most


def profile(
    source: str | Path | Model, against: str | Path | None = None, *, runs: int | None = None,
    engine: str = "auto", target: str | None = None, scenario: str = "single", slo: Sequence[str] = (),
    soak: str | None = None, fps: float | None = None, per_layer: bool = False, trace: str | Path | None = None,
) -> Profile:  # fmt: skip
    """Measure a bundle (or a loaded model) with its own golden frames.

    `scenario` is single, offline (back to back) or camera (frames arrive at `fps`, the newest is taken). `runs` takes
    exactly that many, otherwise at least 100 (offline: 600) and 3 s, more where an `slo` such as "p99<33ms" needs more,
    or for as long as `soak` ("10m") says. `against` is another bundle, `pytorch:student.safetensors` or
    `onnx:graph.onnx`, measured in turns with this one, a process each, or a stored profile (.json), which must come
    from this very machine.
    `per_layer` adds where an inference spends its time; `trace` names a file for a timeline that chrome://tracing and
    ui.perfetto.dev open.
    Raises InputError before measuring for what cannot be shown: too few runs, a figure that the scenario has not, a
    stored profile that may not be compared; StorageError for a timeline that could not be written. One that cannot be
    written all the same, after the runs, is logged: the record is not lost with it.
    """
    limits = tuple(parse_slo(text) for text in slo)
    wanted = _wanted(scenario, limits, runs, soak, fps)
    if trace is not None:
        writable(Path(trace))
    with ExitStack() as owned:
        model = _load(source, engine, target, owned)
        machine = {**fingerprint(), "threads": model.target.threads}
        elsewhere = _misfits(model)
        stored = stored_profile(str(against), machine, scenario, wanted.fps) if against else None
        own = "" if model.target == model.manifest.target else target or model.target.name
        rival = contender_of(str(against), model.path, engine, own) if against and stored is None else None
        start, beside_start = _start(model, own, COLD_STARTS if any(limit.metric == "cold" for limit in limits) else 1)
        compared: Against | None = None
        doubts: list[tuple[str, str, tuple[str, ...]]] = [("NOISY", "cold start: ", beside_start)]
        if rival is not None:  # before the runs: what cannot be compared must not cost an hour of them
            this = Contender("bundle", str(model.path), model.variant.engine, own, str(model.path))
            compared, beside = _versus(this, rival, str(against))
            doubts.append((beside.verdict, "comparison: ", beside.reasons))
        park()
        taken, power = _with_power(lambda: RUNNERS[scenario](model, wanted), on_gpu=model.variant.engine == "tensorrt")
        steady, evidence = summarise(taken.calls), taken.samples.interference
        doubts[:0] = [
            (evidence.verdict, "", evidence.reasons),
            ("NOISY", "", elsewhere),
            ("NOISY", "", power.throttle),
        ]
        if stored is not None:
            compared = against_stored(steady, stored)
            doubts.append((stored.verdict, "comparison: ", stored.reasons))
        # It shares out a time that has its own evidence: it warns, and never condemns.
        layers, doubtful = _layers(model, taken) if per_layer else (None, ())
        doubts.append(("NOISY", "layers: ", doubtful))
        if trace is not None:
            _store_trace(Path(trace), taken, layers)
        manifest, variant = model.manifest, model.variant
        return Profile(
            verdict=worst(*(verdict for verdict, _, reasons in doubts if reasons or verdict == "INVALID")),
            reasons=tuple(f"{of}{reason}" for _, of, reasons in doubts for reason in reasons),
            name=manifest.name, version=manifest.version, bundle_sha256=model.sha256, target=model.target.name,
            engine=variant.engine, precision=variant.precision, scheme=variant.scheme, scenario=scenario, steady=steady,
            stages={name: summarise(ns) for name, ns in taken.stages.items()}, start=start, interference=evidence,
            machine=machine, created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), throughput=taken.throughput,
            camera=taken.camera, early_stopping=_early_stopping(scenario, taken),
            slo=tuple(judge(limit, taken, start) for limit in limits), against=compared,
            layers=layers, power=power, soak=first_against_last(taken) if soak else None, series=taken.series(),
            command=_command(model.path, slo, {
                "--scenario": scenario, "--against": against,
                "--runs": runs, "--soak": soak, "--fps": fps,
                "--engine": None if engine == "auto" else engine, "--target": target,
            }) + " --per-layer" * per_layer,
        )  # fmt: skip


def _versus(this: Contender, rival: Contender, named: str) -> tuple[Against, Interference]:
    """Compare in turns; an error names what was to be compared."""
    try:
        return versus(this, rival)
    except EngineRuntimeError as error:
        raise EngineRuntimeError(
            f"the comparison with '{named}' failed: {error.what}", expected=error.expected, fix=error.fix
        ) from error


def _layers(model: Model, taken: Taken) -> tuple[Layers | None, tuple[str, ...]]:
    """Return where an inference spends its time, and why to doubt it; a failure costs the layers, not the profile."""
    try:
        found = layers_of(model)
    except EdgemaeError as error:
        log.error("the layers are lost, the profile is not: %s (%s)", error.what, error.fix)
        return None, (f"they could not be taken: {error.what}",)
    return found, (*found.reasons, *_apart(found, taken))


def _store_trace(path: Path, taken: Taken, layers: Layers | None) -> None:
    """Write the timeline; a disk that filled up meanwhile costs the timeline, not the profile."""
    try:
        store(path, chrome_trace(*taken.timeline(), layers))
    except StorageError as error:
        log.error("the timeline is lost, the profile is not: %s (%s)", error.what, error.fix)


def _misfits(model: Model) -> tuple[str, ...]:
    """Return why this machine's latencies do not speak for the model's target, after logging it."""
    found = misfits(model.target)
    for reason in found:
        log.warning("'%s' on another machine than its target's: %s", model.path, reason)
    return found


def _apart(layers: Layers, taken: Taken) -> tuple[str, ...]:
    """Return that the layers were scaled to another time than that of the inference stage, where they were."""
    stage_ms = float(np.median(taken.stages["infer"])) / 1e6
    if abs(layers.infer_ms / stage_ms - 1) <= LAYERS_NOISY:
        return ()
    return (f"their plain runs took {layers.infer_ms:.3f} ms, the inference stage {stage_ms:.3f} ms",)


def _wanted(
    scenario: str, limits: Sequence[Slo], runs: int | None, soak: str | None, asked_fps: float | None
) -> Wanted:  # fmt: skip
    """Return how much to measure. Raises InputError for what cannot be measured or shown."""
    fps = FPS if asked_fps is None else asked_fps
    if scenario not in SCENARIOS:
        raise InputError(
            f"unknown scenario '{scenario}'.{nearest(scenario, list(SCENARIOS))}",
            expected=f"one of {', '.join(SCENARIOS)}",
            fix="correct --scenario",
        )
    if not 0 < fps <= FASTEST_FPS:
        raise InputError(
            f"a camera of {fps:g} frames a second was asked for",
            expected=f"more than 0 and at most {FASTEST_FPS:g}",
            fix="correct --fps",
        )
    if asked_fps is not None and scenario != "camera":
        raise InputError(
            f"{fps:g} frames a second were asked for in scenario '{scenario}', which has no camera",
            expected="--fps with --scenario camera only",
            fix="add --scenario camera, or leave --fps out",
        )
    if runs is not None and soak is not None:
        raise InputError(
            f"both {runs} runs and a soak of {soak} were asked for",
            expected="one of them: a soak takes as many runs as fit",
            fix="leave --runs or --soak out",
        )
    if runs is not None and runs < runs_needed(0.5):
        raise too_few(runs)
    if runs is not None and runs < FEWEST_RUNS[scenario]:
        raise InputError(
            f"{runs} runs are too few for the intervals of scenario '{scenario}'",
            expected=f"at least {FEWEST_RUNS[scenario]} runs",
            fix="ask for more runs, or leave --runs out",
        )
    needed = runs_for(limits, scenario, fps, runs)
    if max(needed, runs or 0) > MOST_RUNS:
        raise InputError(
            f"{max(needed, runs or 0):,} runs were asked for, or are needed to show the limits",
            expected=f"at most {MOST_RUNS:,}", fix="ask for fewer runs, or for a limit that fewer runs can show",
        )  # fmt: skip
    if runs is not None:
        return Wanted(runs, 0.0, fps)
    return Wanted(max(MIN_RUNS[scenario], needed), parse_soak(soak) if soak else MIN_SECONDS, fps)


def _start(model: Model, target: str, processes: int) -> tuple[Start, tuple[str, ...]]:
    """Start new processes, and tell what disturbed them; of several, return medians and the slowest, which is above the
    true median."""
    window = Window(children=True)
    found = [cold_start(model.path, model.variant.engine, target) for _ in range(processes)]
    middle = {key: float(np.median([one[key] for one in found])) for key in found[0]}
    slowest = max(one["cold_ms"] for one in found) if processes >= COLD_STARTS else None
    return Start(**middle, runs=processes, cold_high_ms=slowest), disturbances(window)


def _with_power(work: Callable[[], Taken], root: str | Path = "/", *, on_gpu: bool = False) -> tuple[Taken, Power]:
    """Run a scenario, and read power and heat beside it.

    Where a rail tells of power, 2 s of rest come first: energy is what the runs took above them. Where nothing can be
    read, nothing is: no thread runs beside the work.
    """
    busy, idle = PowerSampler(root), None
    if busy.blind:
        return work(), busy.result()
    if busy.measures_power:
        with PowerSampler(root) as rest:
            time.sleep(IDLE_S)
        idle = rest.result()
    with busy:
        taken = work()
    return taken, busy.result(runs=taken.runs_done, idle=idle, on_gpu=on_gpu)


def _early_stopping(scenario: str, taken: Taken) -> tuple[EarlyStopping, ...]:
    """Return what MLPerf's loadgen would estimate from these runs; it has no scenario like `camera`."""
    n = len(taken.calls)
    if scenario == "offline" and taken.throughput is not None:
        enough = n >= early_stopping.OFFLINE_SAMPLES
        value = taken.throughput.fps if enough else None
        return (EarlyStopping(name="Offline", value=value, runs=n, needed=early_stopping.OFFLINE_SAMPLES),)
    if scenario != "single":
        return ()
    one, many = early_stopping.SINGLE_STREAM, early_stopping.MULTI_STREAM
    queries = early_stopping.multi_stream(taken.calls)
    estimates = (early_stopping.estimate(taken.calls, one), early_stopping.estimate(queries, many))
    needed = (
        early_stopping.queries_needed(one),
        early_stopping.queries_needed(many) * early_stopping.SAMPLES_A_QUERY,
    )
    return tuple(
        EarlyStopping(name=name, value=None if ns is None else ns / 1e6, runs=n, needed=least)
        for name, ns, least in zip(("SingleStream p90", "MultiStream p99"), estimates, needed, strict=True)
    )


def _load(source: str | Path | Model, engine: str, target: str | None, owned: ExitStack) -> Model:
    if not isinstance(source, (str, Path)):
        return source
    from edgemae.device.model import load

    return owned.enter_context(load(source, target=target, engine=engine))


def _command(path: Path, slo: Sequence[str], options: dict[str, object]) -> str:
    """Return the command line that takes this profile again."""
    words = [str(word) for option in options.items() if option[1] is not None for word in option]
    return shlex.join(["edgemae", "profile", str(path), *words, *(word for text in slo for word in ("--slo", text))])
