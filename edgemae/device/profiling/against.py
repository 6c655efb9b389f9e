"""How much faster than something else: another bundle taken in turns, or a stored profile of this very machine."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemae.device.latency.interference import VERDICTS, Interference
from edgemae.device.latency.machine import differences
from edgemae.device.latency.quantiles import Ratio, Summary, ratio, summarise
from edgemae.device.latency.timing import interleave
from edgemae.device.profiling.frames import golden_frames
from edgemae.device.profiling.record import Against, Profile, read_profile
from edgemae.spec.errors import InputError

if TYPE_CHECKING:
    from edgemae.device.model import Model


def stored_profile(against: object, machine: dict[str, Any]) -> Profile | None:
    """Return the stored profile (.json) that `against` names, if it does. Raises InputError for another machine's."""
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


def against_model(model: Model, other: Model) -> tuple[Against, Interference]:
    """Measure whole calls of two loaded models in turns; return the ratio and the worse of both evidences."""
    taken = interleave({"other": _run(other), "this": _run(model)})
    found = ratio(taken["other"], taken["this"])
    theirs = summarise(taken["other"].ns)
    evidence = max((samples.interference for samples in taken.values()), key=lambda e: VERDICTS.index(e.verdict))
    about = (other.manifest.name, "bundle", other.rung.engine, other.rung.precision)
    return _compared(about, theirs, found, paired=True), evidence


def against_stored(steady: Summary, stored: Profile) -> Against:
    """Compare medians that were not taken in turns: the interval spans the corners of both medians' intervals."""
    theirs = stored.steady
    low, high = theirs.p50_low_ms / steady.p50_high_ms, theirs.p50_high_ms / steady.p50_low_ms
    found = Ratio(median=theirs.p50_ms / steady.p50_ms, low=low, high=high, rounds=0, different=low > 1 or high < 1)
    return _compared((stored.name, "profile", stored.engine, stored.precision), theirs, found, paired=False)


def _run(model: Model) -> Callable[[], object]:
    frames = itertools.cycle(golden_frames(model))
    return lambda: model(next(frames))


def _compared(about: tuple[str, str, str, str], theirs: Summary, found: Ratio, *, paired: bool) -> Against:
    name, kind, engine, precision = about
    return Against(
        name=name, kind=kind, engine=engine, precision=precision, p50_ms=theirs.p50_ms, n=theirs.n, ratio=found.median,
        ratio_low=found.low, ratio_high=found.high, different=found.different, paired=paired, rounds=found.rounds,
    )  # fmt: skip
