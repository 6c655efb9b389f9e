"""Where the time of one inference goes, operator by operator, in one form for every engine.

Watching makes an engine slower, so a watched and a plain session are interleaved: each operator's share comes from
the first, the time that is shared out from the second, and how far they lie apart is part of the result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemae.device.engines import find_engine, open_session
from edgemae.device.operators import Operator
from edgemae.device.preprocess import preprocess
from edgemae.profiling.layers.module_names import modules_of
from edgemae.profiling.layers.roofline import Limits, measured_limits, roofline
from edgemae.profiling.records import Layer, Layers
from edgemae.profiling.timing.interference import VERDICTS
from edgemae.profiling.timing.timer import LEAD_RUNS, interleave, wait_until_idle
from edgemae.spec.errors import EngineRuntimeError
from edgemae.spec.target import Target

if TYPE_CHECKING:
    from edgemae.device.model import Model

ROUNDS, WARMUP = 5, 5
# Blocks of the shortest length, 3 runs and 1 before them: 45 watched runs in all. ONNX Runtime writes 0.5 MB for each.
BLOCK_MS = 1e-3


def layers_of(model: Model, *, limits: bool = True) -> Layers:
    """Return the layers of a loaded bundle's network on this machine; `limits=False` leaves out the roofline.

    Takes 45 watched and 45 plain inferences, and 1 s to 4 s for the limits, once a process.
    """
    from edgemae.spec.bundle import open_bundle

    files = open_bundle(model.path).variant_files(model.variant)
    # What an image shows does not change the time: no engine here skips zeros, and noise has no denormals.
    size = (model.pixel.image_px, model.pixel.image_px, 3)
    noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    pixels = preprocess(noise, model.pixel, model.manifest.io.dtype)
    return profile_layers(model.variant.engine, files, model.target, pixels, limits=limits)


def profile_layers(
    engine: str, files: Mapping[str, bytes], target: Target, pixels: NDArray[Any], *, limits: bool = True,
    rounds: int = ROUNDS,
) -> Layers:  # fmt: skip
    """Return the layers of graph files on an engine; every round takes 6 timed runs of either session.

    Raises EngineMissingError, and EngineRuntimeError also for an engine that tells of no operator.
    """
    watched = find_engine(engine).instrument(files, target)
    with open_session(engine, files, target) as plain:
        measurements = interleave(
            {"plain": lambda: plain(pixels), "watched": lambda: watched(pixels)},
            rounds, block_ms=BLOCK_MS, warmup=WARMUP,
        )  # fmt: skip
    walls = np.array(watched.walls_ns) / 1e6
    operators = watched.finish()
    if not operators:
        raise EngineRuntimeError(
            f"{engine} tells of no operator it ran",
            expected="a version of the engine with profiling",
            fix="update the engine, or profile without --per-layer",
        )
    infer_ms, watched_ms = float(np.median(measurements["plain"].ns)) / 1e6, float(np.median(_timed(walls, rounds)))
    multiplying = [op.precision for op in operators if op.macs and op.precision]
    found = None
    if limits and multiplying and engine != "tensorrt":  # what is measured here are the limits of the processor
        wait_until_idle()
        found = measured_limits(engine, target, multiplying)
    rows = _rows(operators, infer_ms, rounds, found)
    inside_ms = sum(float(np.median(_timed(op.ms, rounds))) for op in operators)
    worse = max((samples.interference for samples in measurements.values()), key=lambda e: VERDICTS.index(e.verdict))
    return Layers(
        rows=tuple(rows), infer_ms=infer_ms, instrumented_ms=watched_ms, overhead=watched_ms / infer_ms - 1,
        unmapped_share=sum(row.ms for row in rows if not row.module) / infer_ms,
        peak_gmacs=found.gmacs if found else {}, peak_gbytes=found.gbytes if found else 0.0,
        runs=measurements["watched"].n, covered=inside_ms / watched_ms, verdict=worse.verdict, reasons=worse.reasons,
    )  # fmt: skip


def by_kind(layers: Layers) -> dict[str, float]:
    """Return the share of time (0..1) of each kind of operator, largest first."""
    return _shares((row.kind, row.ms) for row in layers.rows)


def by_module(layers: Layers) -> dict[str, float]:
    """Return the share of time (0..1) of each of the student's modules, largest first; "" is what is not mapped."""
    return _shares((row.module, row.ms) for row in layers.rows)


def _rows(operators: list[Operator], infer_ms: float, rounds: int, limits: Limits | None) -> list[Layer]:
    """Return operators scaled so that they add up to `infer_ms`. Medians: one disturbed run must not move a share."""
    medians = [float(np.median(_timed(op.ms, rounds))) for op in operators]
    scale = infer_ms / (sum(medians) or 1.0)
    modules = modules_of([(op.name, op.origin, op.kind) for op in operators])
    rows = []
    for op, module, median in zip(operators, modules, medians, strict=True):
        ms, share, bound = median * scale, None, ""
        peak = limits.gmacs.get(op.precision) if limits else None
        # What multiplies in a precision without a measured limit has no place under the roof: "memory" is a guess.
        if limits and (op.bytes or op.macs) and (peak or not op.macs) and ms > 0:
            share, bound = roofline(op.macs, op.bytes, ms, peak, limits.gbytes)
        layer = Layer(
            name=op.name, module=module, kind=op.kind, precision=op.precision, ms=ms, macs=op.macs, bytes=op.bytes,
            limit_share=share, bound=bound,
        )  # fmt: skip
        rows.append(layer)
    return rows


def _timed(values: NDArray[np.float64], rounds: int) -> NDArray[np.float64]:
    """Return the values (runs,) that `interleave` timed: neither warm-up nor the first runs of a block."""
    return values[WARMUP:].reshape(2 * rounds, -1)[:, LEAD_RUNS:].ravel()


def _shares(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    times: dict[str, float] = defaultdict(float)
    for name, ms in pairs:
        times[name] += ms
    total = sum(times.values()) or 1.0
    return {name: round(ms / total, 4) for name, ms in sorted(times.items(), key=lambda row: -row[1])}
