"""Figures of a profile in words, shared by the lines for a terminal and by the page."""

from __future__ import annotations

from collections.abc import Callable

from edgemae.profiling.records import BaselineComparison, Layers, Power, SloVerdict
from edgemae.profiling.stats.percentiles import Summary
from edgemae.profiling.timing.interference import Interference


def percentile_cells(row: Summary, interval: Callable[[float, float, float], str]) -> list[str]:
    """Return p50, p90 and p99 written by `interval` (value, low, high), or how many runs a percentile would need."""
    cells = []
    for name in ("p50", "p90", "p99"):
        value, low, high = (getattr(row, f"{name}{end}_ms") for end in ("", "_low", "_high"))
        cells.append(f"needs {row.withheld.get(name)} runs" if value is None else interval(value, low, high))
    return cells


def engine_of(other: BaselineComparison) -> str:
    """Return what ran the other one: torch eager 2.13.0 fp32."""
    return " ".join(filter(None, (other.engine, other.version, other.precision)))


def difference_message(other: BaselineComparison) -> str:
    """Return in words whether two sides differ."""
    if other.different is None:
        return "whether they differ cannot be decided"
    return "different" if other.different else "no difference shown"


def power_facts(power: Power) -> list[str]:
    """Return what was found out about power and throttling besides the sensors."""
    facts = [f"{power.idle_w:.4g} W at rest"] if power.idle_w is not None else []
    facts += [f"{power.run_w:.4g} W under load"] if power.run_w is not None else []
    facts += [f"{power.energy_mj:.2f} mJ a call above idle"] if power.energy_mj is not None else []
    if power.throttled is not None:
        facts.append("throttled" if power.throttled else "not throttled")
    return facts + ([power.mode] if power.mode else [])


def limits_of(layers: Layers) -> str:
    """Return the measured limits of the machine in words."""
    peaks = ", ".join(f"{name} {value:.0f} GMAC/s" for name, value in layers.peak_gmacs.items())
    return f"limits here: {peaks}, {layers.peak_gbytes:.1f} GB/s" if peaks else "no limits measured"


def unit_of(limit: SloVerdict) -> tuple[float, str]:
    """Return by what a limit's figures are multiplied to be shown, and their unit."""
    if limit.text.startswith("drop"):
        return 100.0, " %"
    return 1.0, " frames/s" if limit.text.startswith("fps") else " ms"


def clean(e: Interference) -> list[str]:
    """Return how many runs were undisturbed, what disturbed the others, and the median without those."""
    known = [f"{e.clean_fraction:.0%} of the runs clean"]
    known.append(f"{e.switched_runs} switched out, {e.slow_canaries} looks at a slow canary")
    return known + ([f"median of the clean ones {e.p50_clean_ms:.3f} ms"] if e.p50_clean_ms is not None else [])


def shares(e: Interference) -> list[tuple[str, str]]:
    """Return what the machine did over the whole window, as (name, figure)."""
    known = {
        "others": e.others_share, "steal": e.steal_share, "waiting (PSI)": e.pressure_share,
        "throttled": e.throttled_share, "frequency drop": e.frequency_drop,
    }  # fmt: skip
    rows = [(name, f"{share:.1%}") for name, share in known.items() if share is not None]
    if e.temperature_c is not None:
        rows.append(("at most", f"{e.temperature_c:.0f} C ({e.temperature_slope or 0:+.1f} C/min)"))
    if e.wall_step_s:
        rows.append(("the wall clock was set by", f"{e.wall_step_s:+.1f} s, which harms nothing"))
    return rows
