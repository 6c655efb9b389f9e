"""The charts of a profile: histogram, timeline, stages, comparison, roofline; "" where there is nothing to draw."""

from __future__ import annotations

from html import escape

import numpy as np

from edgemae.profiling.output.rows import clean, difference_message, engine_of
from edgemae.profiling.output.svg import HUES, Chart, legend, spread
from edgemae.profiling.records import STAGES, Layers, Profile

FEWEST = 20  # runs that make a chart


def histogram(record: Profile) -> str:
    ms = np.array(record.series.ms)
    if len(ms) < FEWEST:
        return ""
    low, high = spread(ms)
    counts, edges = np.histogram(ms, bins=60, range=(low, high))
    chart = Chart("Histogram of latencies", (low, high), (0, 1.12 * counts.max()), "ms of a call", "runs")
    chart.bars(edges, counts)
    for row, (name, value) in enumerate(
        (("p50", record.steady.p50_ms), ("p90", record.steady.p90_ms), ("p99", record.steady.p99_ms))
    ):
        if value is not None and value <= high:
            chart.upright(value, f"{name} {value:.2f} ms", row=row)
    beyond = int((ms > high).sum())
    note = f'<p class="soft">{beyond} of {len(ms):,} runs are slower than the chart shows, up to {ms.max():.1f} ms.</p>'
    return "<h2>How long calls take</h2>" + chart.svg() + (note if beyond else "")


def timeline(record: Profile) -> str:
    at, ms, bad = (np.array(values) for values in (record.series.at_s, record.series.ms, record.series.disturbed))
    if len(ms) < FEWEST:
        return ""
    low, high = spread(ms)
    chart = Chart(
        "Latency over time, disturbed runs marked", (0, float(at.max()) or 1.0), (low, high), "s", "ms of a call"
    )
    shown = np.minimum(ms, high)
    chart.dots(at[~bad], shown[~bad])
    chart.crosses(at[bad], shown[bad])
    text = "; ".join(clean(record.interference)) + "."
    return "<h2>When it was disturbed</h2>" + chart.svg() + legend(
        (("a", "undisturbed run"), ("b", "switched out, or beside a slow canary (×)"))
    ) + f'<p class="soft">{escape(text)}</p>'  # fmt: skip


def surroundings(record: Profile) -> str:
    """Return what the machine did meanwhile, on the same axis of time as the runs: load, clock and temperature."""
    seen, runs = record.interference.timeline, record.series.at_s
    if len(seen.at_s) < 2:
        return ""
    end = max(seen.at_s[-1], runs[-1] if runs else 0.0)
    shares = {
        "others on the processors": seen.others_share, "taken by the hypervisor": seen.steal_share,
        "tasks waiting (PSI)": seen.pressure_share, "stopped by a quota": seen.throttled_share,
    }  # fmt: skip
    known = [(hue, name, 100 * np.array(row)) for hue, (name, row) in zip(HUES, shares.items(), strict=False) if row]
    top = max((float(percent.max()) for _, _, percent in known), default=0.0)
    parts = []
    if known:
        chart = Chart("Load beside the runs, over time", (0, end), (0, max(1.1 * top, 5.0)), "s", "%", height=170)
        named = []
        for place, (hue, name, percent) in enumerate(known):
            chart.line(seen.at_s, percent, hue, dashed=place % 2 == 1)
            named.append((hue, name + (" (dashed)" if place % 2 else "")))
        parts.append(chart.svg() + legend(named))
    for title, unit, row in (("Frequency of the fastest processor", "MHz", seen.frequency_mhz),
                             ("Temperature of the hottest zone", "C", seen.temperature_c)):  # fmt: skip
        if row:
            low, high = min(row), max(row)
            margin = 0.1 * (high - low) or 0.02 * high
            chart = Chart(f"{title}, over time", (0, end), (low - margin, high + margin), "s", unit, height=130)
            chart.line(seen.at_s, row)
            parts.append(chart.svg() + f'<p class="soft">{title}.</p>')
    return "<h2>What the machine did meanwhile</h2>" + "".join(parts) if parts else ""


def stages(record: Profile) -> str:
    names = [name for name in STAGES if name in record.stages]
    if not names:
        return ""
    medians = [record.stages[name].p50_ms for name in names]
    total = sum(medians)
    chart = Chart(
        "Stages of a call, one after another", (0, 1.18 * total or 1.0), (0, len(names)), "ms, medians", "",
        height=40 + 34 * len(names), named_rows=True, left=80,
    )  # fmt: skip
    start = 0.0
    for row, (name, median) in enumerate(zip(names, medians, strict=True)):
        top = len(names) - row
        chart.box(start, start + median, top - 0.82, top - 0.18, "a", f"{name}: {median:.3f} ms")
        left, middle = chart.at(start + median, top - 0.5)
        chart.text(left + 6, middle + 4, f"{median:.3f} ms, {median / total:.0%}" if total else "0")
        chart.text(72, middle + 4, name, "end", "name")
        start += median
    return "<h2>Where a call spends its time</h2>" + chart.svg()


def comparison(record: Profile) -> str:
    if (other := record.baseline) is None:
        return ""
    how = f"interleaved, {other.rounds} rounds, a process each" if other.paired else "not interleaved: a stored profile"
    text = (
        f"{record.name} is {other.ratio:.3f} times as fast as {other.name} ({engine_of(other)}), 95 % "
        f"interval {other.ratio_low:.3f} to {other.ratio_high:.3f}: {difference_message(other)} ({how})."
    )
    drawing = ""
    if other.ratios:
        ratios = np.array(other.ratios)
        low, high = min(ratios.min(), 1.0), max(ratios.max(), 1.0)
        margin = 0.15 * (high - low) or 0.05
        chart = Chart(
            "Ratio of every round",
            (0.0, len(ratios) + 1.0),
            (low - margin, high + margin),
            "round",
            "their time / ours",
        )
        chart.box(0.0, len(ratios) + 1.0, other.ratio_low, other.ratio_high, "band", "95 % interval")
        chart.line((0.0, len(ratios) + 1.0), (1.0, 1.0), "soft", dashed=True)
        chart.dots(
            np.arange(1, len(ratios) + 1), ratios, "a", 3, [f"round {i + 1}: {r:.3f}" for i, r in enumerate(ratios)]
        )
        drawing = chart.svg()
    return f"<h2>Baseline {escape(other.name)}</h2><p>{escape(text)}</p>{drawing}"


def roofline(layers: Layers) -> str:
    """Return the roofline chart (Williams, Waterman, Patterson 2009): intensity against achieved speed."""
    rows = [r for r in layers.rows if r.macs and r.bytes and r.ms > 0]
    if not rows or not layers.peak_gmacs:
        return ""
    intensity = np.array([(r.macs or 0) / (r.bytes or 1) for r in rows])
    speed = np.array([(r.macs or 0) / r.ms / 1e6 for r in rows])
    top = max(layers.peak_gmacs.values())
    left, right = min(intensity.min(), 0.5) / 1.5, max(intensity.max(), 2 * top / layers.peak_gbytes) * 1.5
    chart = Chart(
        "Roofline",
        (left, right),
        (speed.min() / 2, 1.6 * top),
        "MACs a byte",
        "GMAC/s",
        log_x=True,
        log_y=True,
        height=330,
    )
    label = 0.0
    xs = np.geomspace(left, right, 200)
    for row, (name, peak) in enumerate(sorted(layers.peak_gmacs.items(), key=lambda item: -item[1])):
        roof = np.minimum(peak, xs * layers.peak_gbytes)
        chart.line(xs[roof > chart.y[0]], roof[roof > chart.y[0]], HUES[row % 5 + 1] if row < 4 else "soft")
        x, y = chart.at(right, peak)
        label = max(y - 5, label + 13)  # roofs of one height have their names below one another
        chart.text(x - 4, label, f"{name} {peak:.0f} GMAC/s", "end")
    share = np.array([r.ms / layers.infer_ms for r in rows])
    for i, r in enumerate(rows):
        tip = f"{r.module or r.name} ({r.kind}): {r.ms:.3f} ms, {speed[i]:.1f} GMAC/s"
        chart.dots(intensity[i : i + 1], speed[i : i + 1], "a", 2.5 + 14 * float(np.sqrt(share[i])) / 2, [tip])
    return chart.svg() + '<p class="soft">A dot is an operator, its area its share of the time.</p>'
