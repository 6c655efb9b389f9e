"""The whole of `edgemae profile` on one page: prepare (check and load), run (measure), conclude (assess)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.profiling.cold_start import cold_start
from edgemae.profiling.compare.ab_test import ABSide, ab_test
from edgemae.profiling.compare.baseline import baseline_of, compare_with_stored, stored_profile
from edgemae.profiling.compare.graph_benchmark import target_mismatches
from edgemae.profiling.layers.layer_profile import layers_of
from edgemae.profiling.output.chrome_trace import chrome_trace
from edgemae.profiling.power import PowerSampler
from edgemae.profiling.records import (
    BaselineComparison,
    EarlyStopping,
    Layers,
    Power,
    Profile,
    Start,
    store,
    writable,
)
from edgemae.profiling.request import ProfileRequest, scenario_options
from edgemae.profiling.scenarios import RUNNERS, ScenarioOptions, ScenarioResult
from edgemae.profiling.slo import COLD_STARTS, Slo, evaluate_slo, parse_slo
from edgemae.profiling.soak import first_against_last
from edgemae.profiling.stats import early_stopping
from edgemae.profiling.stats.percentiles import summarise
from edgemae.profiling.timing.interference import Interference, Window, combined_verdict, disturbances
from edgemae.profiling.timing.timer import wait_until_idle
from edgemae.spec.errors import EdgemaeError, EngineRuntimeError, StorageError
from edgemae.spec.user_paths import require_apart

if TYPE_CHECKING:
    from edgemae.device.model import Model

log = logging.getLogger("edgemae.device")
LAYERS_NOISY = 0.10  # between the plain runs beside the watched ones, and the inference stage of the scenario
IDLE_S = 2.0  # of rest, before power is read under load


def profile(
    source: str | Path | Model, baseline: str | Path | None = None, *, runs: int | None = None,
    engine: str = "auto", target: str | None = None, scenario: str = "single", slo: Sequence[str] = (),
    soak: str | None = None, fps: float | None = None, per_layer: bool = False, trace: str | Path | None = None,
) -> Profile:  # fmt: skip
    """Measure a bundle (or a loaded model) with its own golden frames.

    `scenario` is single, offline (back to back) or camera (frames arrive at `fps`, the newest is taken). `runs` takes
    exactly that many, otherwise at least 100 (offline: 600) and 3 s, more where an `slo` such as "p99<33ms" needs more,
    or for as long as `soak` ("10m") says. `baseline` is another bundle, `pytorch:student.safetensors` or
    `onnx:graph.onnx`, interleaved with this one, a process each, or a stored profile (.json), which must come
    from this very machine.
    `per_layer` adds where an inference spends its time; `trace` names a file for a timeline that chrome://tracing and
    ui.perfetto.dev open.
    Raises InputError before measuring for what cannot be shown: too few runs, a figure that the scenario has not, a
    stored profile that may not be compared; StorageError for a timeline that could not be written. One that cannot be
    written all the same, after the runs, is logged: the record is not lost with it.
    """
    request = ProfileRequest(
        source=source, baseline=baseline, runs=runs, engine=engine, target=target, scenario=scenario, slo=slo,
        soak=soak, fps=fps, per_layer=per_layer, trace=None if trace is None else Path(trace),
    )  # fmt: skip
    with ExitStack() as owned:
        prepared = _prepare(request, owned)
        return _conclude(prepared, _run(prepared))


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """Hold what is checked and loaded before anything is measured."""

    request: ProfileRequest
    limits: tuple[Slo, ...]
    options: ScenarioOptions
    model: Model
    own_target: str  # the target that child processes are given, "" for the bundle's own
    machine: dict[str, Any]
    mismatches: tuple[str, ...]  # why this machine's latencies do not speak for the target
    stored: Profile | None  # the baseline, where it is a stored profile
    other: ABSide | None  # the baseline, where it runs here


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """Hold what was measured, and each warning as (verdict, what it is of, reasons)."""

    start: Start
    measurements: ScenarioResult
    power: Power
    comparison: BaselineComparison | None
    layers: Layers | None
    warnings: tuple[tuple[str, str, tuple[str, ...]], ...]


def _prepare(request: ProfileRequest, owned: ExitStack) -> _Prepared:
    """Check the request and load the model. Raises InputError and StorageError before anything is measured."""
    limits = tuple(parse_slo(text) for text in request.slo)
    options = scenario_options(request, limits)
    if request.trace is not None:
        require_apart([request.trace], [x for x in (request.source, request.baseline) if isinstance(x, str | Path)])
        writable(request.trace)
    model = _load(request.source, request.engine, request.target, owned)
    machine = {**fingerprint(), "threads": model.target.threads}
    mismatches = _log_target_mismatches(model)
    own = "" if model.target == model.manifest.target else request.target or model.target.name
    stored, other = None, None
    if request.baseline:
        named = str(request.baseline)
        stored = stored_profile(named, machine, request.scenario, options.fps)
        other = baseline_of(named, model.path, request.engine, own) if stored is None else None
    return _Prepared(
        request=request, limits=limits, options=options, model=model, own_target=own, machine=machine,
        mismatches=mismatches, stored=stored, other=other,
    )  # fmt: skip


def _run(prepared: _Prepared) -> _Finished:
    """Measure: cold start, A/B test, the scenario with power beside it, and the layers."""
    request, model, own = prepared.request, prepared.model, prepared.own_target
    starts = COLD_STARTS if any(limit.metric == "cold" for limit in prepared.limits) else 1
    start, beside_start = _start(model, own, starts)
    comparison: BaselineComparison | None = None
    warnings: list[tuple[str, str, tuple[str, ...]]] = [("NOISY", "cold start: ", beside_start)]
    if prepared.other is not None:  # before the runs: what cannot be compared must not cost an hour of them
        this = ABSide("bundle", str(model.path), model.variant.engine, own, str(model.path))
        comparison, beside = _ab_test(this, prepared.other, str(request.baseline))
        warnings.append((beside.verdict, "comparison: ", beside.reasons))
    wait_until_idle()
    measurements, power = _with_power(
        lambda: RUNNERS[request.scenario](model, prepared.options), on_gpu=model.variant.engine == "tensorrt"
    )
    evidence = measurements.samples.interference
    warnings[:0] = [
        (evidence.verdict, "", evidence.reasons),
        ("NOISY", "", prepared.mismatches),
        ("NOISY", "", power.throttle),
    ]
    if (stored := prepared.stored) is not None:
        comparison = compare_with_stored(summarise(measurements.calls), stored)
        warnings.append((stored.verdict, "comparison: ", stored.reasons))
    # The layers share out a time that has its own evidence: they warn, and never condemn.
    layers, of_layers = _layers(model, measurements) if request.per_layer else (None, ())
    warnings.append(("NOISY", "layers: ", of_layers))
    if request.trace is not None:
        _store_trace(request.trace, measurements, layers)
    return _Finished(
        start=start, measurements=measurements, power=power, comparison=comparison, layers=layers,
        warnings=tuple(warnings),
    )  # fmt: skip


def _conclude(prepared: _Prepared, finished: _Finished) -> Profile:
    """Return the profile: summaries, limits and the combined verdict."""
    request, model, found = prepared.request, prepared.model, finished.measurements
    manifest, variant, start = model.manifest, model.variant, finished.start
    return Profile(
        verdict=combined_verdict(
            *(verdict for verdict, _, reasons in finished.warnings if reasons or verdict == "INVALID")
        ),
        reasons=tuple(f"{of}{reason}" for _, of, reasons in finished.warnings for reason in reasons),
        name=manifest.name, version=manifest.version, bundle_sha256=model.sha256, target=model.target.name,
        engine=variant.engine, precision=variant.precision, scheme=variant.scheme, scenario=request.scenario,
        steady=summarise(found.calls), stages={name: summarise(ns) for name, ns in found.stages.items()}, start=start,
        interference=found.samples.interference, machine=prepared.machine,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), throughput=found.throughput, camera=found.camera,
        early_stopping=_early_stopping(request.scenario, found),
        slo=tuple(evaluate_slo(limit, found, start) for limit in prepared.limits), baseline=finished.comparison,
        layers=finished.layers, power=finished.power, soak=first_against_last(found) if request.soak else None,
        series=found.series(), command=request.command(model.path),
    )  # fmt: skip


def _ab_test(this: ABSide, other: ABSide, named: str) -> tuple[BaselineComparison, Interference]:
    """Run the A/B test; an error names what was to be compared."""
    try:
        return ab_test(this, other)
    except EngineRuntimeError as error:
        raise EngineRuntimeError(
            f"the comparison with '{named}' failed: {error.what}", expected=error.expected, fix=error.fix
        ) from error


def _layers(model: Model, measurements: ScenarioResult) -> tuple[Layers | None, tuple[str, ...]]:
    """Return where an inference spends its time, and why to doubt it; a failure costs the layers, not the profile."""
    try:
        found = layers_of(model)
    except EdgemaeError as error:
        log.error("the layers are lost, the profile is not: %s (%s)", error.what, error.fix)
        return None, (f"they could not be taken: {error.what}",)
    return found, (*found.reasons, *_apart(found, measurements))


def _store_trace(path: Path, measurements: ScenarioResult, layers: Layers | None) -> None:
    """Write the timeline; a disk that filled up meanwhile costs the timeline, not the profile."""
    try:
        store(path, chrome_trace(*measurements.timeline(), layers))
    except StorageError as error:
        log.error("the timeline is lost, the profile is not: %s (%s)", error.what, error.fix)


def _log_target_mismatches(model: Model) -> tuple[str, ...]:
    """Return why this machine's latencies do not speak for the model's target, after logging it."""
    found = target_mismatches(model.target)
    for reason in found:
        log.warning("'%s' on another machine than its target's: %s", model.path, reason)
    return found


def _apart(layers: Layers, measurements: ScenarioResult) -> tuple[str, ...]:
    """Return that the layers were scaled to another time than that of the inference stage, where they were."""
    stage_ms = float(np.median(measurements.stages["infer"])) / 1e6
    if abs(layers.infer_ms / stage_ms - 1) <= LAYERS_NOISY:
        return ()
    return (f"their plain runs took {layers.infer_ms:.3f} ms, the inference stage {stage_ms:.3f} ms",)


def _start(model: Model, target: str, processes: int) -> tuple[Start, tuple[str, ...]]:
    """Start new processes, and tell what disturbed them; of several, return medians and the slowest, which is above the
    true median."""
    window = Window(children=True)
    found = [cold_start(model.path, model.variant.engine, target) for _ in range(processes)]
    middle = {key: float(np.median([one[key] for one in found])) for key in found[0]}
    slowest = max(one["cold_ms"] for one in found) if processes >= COLD_STARTS else None
    return Start(**middle, runs=processes, cold_high_ms=slowest), disturbances(window)


def _with_power(
    work: Callable[[], ScenarioResult], root: str | Path = "/", *, on_gpu: bool = False
) -> tuple[ScenarioResult, Power]:
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
        measurements = work()
    return measurements, busy.result(runs=measurements.runs_done, idle=idle, on_gpu=on_gpu)


def _early_stopping(scenario: str, measurements: ScenarioResult) -> tuple[EarlyStopping, ...]:
    """Return what MLPerf's loadgen would estimate from these runs; it has no scenario like `camera`."""
    n = len(measurements.calls)
    if scenario == "offline" and measurements.throughput is not None:
        enough = n >= early_stopping.OFFLINE_SAMPLES
        value = measurements.throughput.fps if enough else None
        return (EarlyStopping(name="Offline", value=value, runs=n, needed=early_stopping.OFFLINE_SAMPLES),)
    if scenario != "single":
        return ()
    one, many = early_stopping.SINGLE_STREAM, early_stopping.MULTI_STREAM
    queries = early_stopping.multi_stream(measurements.calls)
    estimates = (early_stopping.estimate(measurements.calls, one), early_stopping.estimate(queries, many))
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
