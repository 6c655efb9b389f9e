"""A profile as lines for a terminal: one table with intervals, then limits, evidence and the verdict."""

from __future__ import annotations

from edgemae.profiling.records import BaselineComparison, Layers, Power, Profile, SloVerdict
from edgemae.profiling.stats.percentiles import Summary
from edgemae.profiling.timing.interference import Interference

SHOWN_LAYERS = 10
HEAD = ("ms", "p50", "p90", "p99", "runs")


def describe(found: Profile) -> list[str]:
    """Return the lines; a percentile that the runs do not allow says how many it would need."""
    scheme = f" ({found.scheme})" if found.scheme else ""
    what = f"{found.name} v{found.version}  {found.engine} {found.precision}{scheme}"
    return [
        f"{what}, {found.machine['threads']} threads, target {found.target}, scenario {found.scenario}",
        "",
        *_table(found),
        "",
        *_facts(found),
        *(_baseline(found.baseline) if found.baseline else []),
        *(_layers(found.layers) if found.layers else []),
        *_limits(found),
        *_evidence(found),
        f"verdict     {found.verdict}",
        *(f"            {reason}" for reason in found.reasons),
    ]


def _table(found: Profile) -> list[str]:
    rows = {"whole call": found.steady, **{f"  {name}": stage for name, stage in found.stages.items()}}
    if found.camera is not None:
        rows["result age"] = found.camera.age
    table = [HEAD, *((name, *_cells(row)) for name, row in rows.items())]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _cells(row: Summary) -> tuple[str, ...]:
    cells = [_interval(row.p50_ms, row.p50_low_ms, row.p50_high_ms)]
    for name in ("p90", "p99"):
        value, low, high = (getattr(row, f"{name}{part}_ms") for part in ("", "_low", "_high"))
        cells.append(f"needs {row.withheld.get(name)} runs" if value is None else _interval(value, low, high))
    return (*cells, str(row.n))


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _facts(found: Profile) -> list[str]:
    lines = []
    if (start := found.start) is not None:
        several = f" (median of {start.runs} starts)" if start.runs > 1 else ""
        lines.append(
            f"cold start  {start.cold_ms:.0f} ms from process start to result{several}: "
            f"loading {start.load_ms:.0f} ms, the first inference in it {start.first_ms:.2f} ms"
        )
    if (speed := found.throughput) is not None:
        lines.append(f"throughput  {speed.fps:.1f} frames/s [{speed.low:.1f}, {speed.high:.1f}]")
    if (seen := found.camera) is not None:
        lines.append(
            f"camera      {seen.fps:.2f} results/s [{seen.fps_low:.2f}, {seen.fps_high:.2f}] of {seen.source_fps:.2f} "
            f"frames/s; {seen.drop_share:.1%} of {seen.frames} frames dropped "
            f"[{seen.drop_low:.1%}, {seen.drop_high:.1%}]"
        )
    for estimate in found.early_stopping:
        # Offline is the throughput, and only of so many samples; it has no percentile that could be stopped early.
        how, unit = ("", "frames/s") if estimate.name == "Offline" else (" (early stopping)", "ms")
        value = f"needs {estimate.needed} runs" if estimate.value is None else f"{estimate.value:.3f} {unit}"
        lines.append(f"MLPerf      {estimate.name}{how}: {value}")
    if (power := found.power) is not None:
        shown = [f"{s.name} {s.mean:.4g} {s.unit} (at most {s.max:.4g})" for s in power.sensors]
        shown += power_facts(power)
        lines += [f"power       {', '.join(shown)}"] if shown else []
    if (soak := found.soak) is not None:
        slower = "it got slower" if soak.slower else "no slow-down of more than 2 % shown"
        longer = _interval(soak.ratio, soak.ratio_low, soak.ratio_high)
        lines.append(
            f"soak        {soak.minutes * 60:.0f} s: p50 {soak.first_p50_ms:.3f} ms first, {soak.last_p50_ms:.3f} ms "
            f"last, {longer} times as long: {slower} at 95 %"
        )
    return lines


def _baseline(other: BaselineComparison) -> list[str]:
    how = f"interleaved, {other.rounds} rounds" if other.paired else "not interleaved: stored profile"
    verdict = f"{difference_message(other)} at 95 %" if other.paired else difference_message(other)
    faster = _interval(other.ratio, other.ratio_low, other.ratio_high)
    what = f"{other.name} ({engine_of(other)})"
    return [f"baseline    {what}: this one is {faster} times as fast, {verdict} ({how})"]


def engine_of(other: BaselineComparison) -> str:
    """Return what ran the other one: torch eager 2.13.0 fp32."""
    return " ".join(filter(None, (other.engine, other.version, other.precision)))


def difference_message(other: BaselineComparison) -> str:
    """Return in words whether two sides differ."""
    if other.different is None:
        return "whether they differ cannot be told"
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


def _layers(layers: Layers) -> list[str]:
    """Return the modules that take most of the time."""
    lines = [
        f"layers      {layers.infer_ms:.3f} ms an inference; watching costs {layers.overhead:.0%} and is scaled out",
        f"            operators hold {layers.covered:.0%} of a watched inference, the rest is shared out among them",
        f"            {layers.unmapped_share:.1%} not mapped; {limits_of(layers)}",
    ]
    if layers.reasons:
        lines.append(f"            this pass was {layers.verdict}: {'; '.join(layers.reasons)}")
    for row in sorted(layers.rows, key=lambda r: -r.ms)[:SHOWN_LAYERS]:
        limit = "" if row.limit_share is None else f"  {row.limit_share:.0%} of the {row.bound} limit"
        lines.append(
            f"            {row.ms / layers.infer_ms:6.1%}  {row.ms:.3f} ms  {row.module or row.name}  {row.kind}{limit}"
        )
    return lines


def unit_of(limit: SloVerdict) -> tuple[float, str]:
    """Return by what a limit's figures are multiplied to be shown, and their unit."""
    if limit.text.startswith("drop"):
        return 100.0, " %"
    return 1.0, " frames/s" if limit.text.startswith("fps") else " ms"


def _limits(found: Profile) -> list[str]:
    lines = []
    for limit in found.slo:
        scale, unit = unit_of(limit)
        shown = "not measured"
        if limit.value is not None and limit.high is not None:
            end = "at least" if limit.text.startswith("fps") else "at most"
            shown = f"{limit.value * scale:.3f}{unit}, {end} {limit.high * scale:.3f}{unit} at 95 %"
        note = f" ({limit.note})" if limit.note else ""
        lines.append(f"limit       {limit.text}  {'met' if limit.passed else 'MISSED'}: {shown}{note}")
    return lines


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


def _evidence(found: Profile) -> list[str]:
    e, power = found.interference, found.power
    lines = [f"evidence    {'; '.join(clean(e))}"]
    lines += [f"            {', '.join(f'{name} {figure}' for name, figure in rows)}"] if (rows := shares(e)) else []
    if e.absent:
        lines.append(f"absent      {', '.join(e.absent)}: this machine does not tell")
    if power is not None and power.absent:
        lines.append(f"            power and heat: {'; '.join(power.absent)}")
    return lines
