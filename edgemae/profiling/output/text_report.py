"""A profile as lines for a terminal: one table with intervals, then limits, evidence and the verdict."""

from __future__ import annotations

from edgemae.profiling.output.rows import (
    clean,
    difference_message,
    engine_of,
    limits_of,
    percentile_cells,
    power_facts,
    shares,
    unit_of,
)
from edgemae.profiling.records import BaselineComparison, Layers, Profile
from edgemae.profiling.stats.percentiles import Summary

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
    return (*percentile_cells(row, _interval), str(row.n))


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


def _evidence(found: Profile) -> list[str]:
    e, power = found.interference, found.power
    lines = [f"evidence    {'; '.join(clean(e))}"]
    lines += [f"            {', '.join(f'{name} {figure}' for name, figure in rows)}"] if (rows := shares(e)) else []
    if e.absent:
        lines.append(f"absent      {', '.join(e.absent)}: this machine does not tell")
    if power is not None and power.absent:
        lines.append(f"            power and heat: {'; '.join(power.absent)}")
    return lines
