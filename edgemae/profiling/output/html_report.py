"""A profile as one HTML page: nothing is loaded, no script; the content policy makes a browser hold us to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from edgemae.profiling.output import charts
from edgemae.profiling.output.rows import clean, limits_of, percentile_cells, power_facts, shares, unit_of
from edgemae.profiling.output.svg import number
from edgemae.profiling.records import STAGES, Layers, Profile, store
from edgemae.profiling.stats.percentiles import Summary
from edgemae.profiling.timing.interference import Interference

SHOWN_LAYERS = 25
STYLE = Path(__file__).with_name("page.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(record: Profile) -> str:
    """Return the whole page of a profile."""
    parts = [
        _head(record),
        _figures(record),
        _limits(record),
        charts.histogram(record),
        charts.timeline(record),
        charts.surroundings(record),
        charts.stages(record),
    ]
    parts += [charts.comparison(record), _layers(record.layers), _heat(record)]
    parts += [_evidence(record.interference), _machine(record)]
    title = escape(f"{record.name}: {record.verdict}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{STYLE.read_text()}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def write_page(path: Path, record: Profile) -> None:
    """Write the page of a profile. Raises StorageError when that cannot be."""
    store(path, page(record).encode())


def _head(record: Profile) -> str:
    what = f"{record.engine} {record.precision} {record.scheme}".strip()
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in record.reasons)
    about = (
        f"{record.scenario} scenario, {record.steady.n:,} runs, {record.machine.get('threads')} threads, "
        f"{record.created}, bundle {record.bundle_sha256[:12]}"
    )
    return (
        f"<h1>{escape(record.name)} <span>on {escape(what)}</span></h1>"
        f'<p class="soft">{escape(about)}</p><div class="verdict {record.verdict}">{record.verdict}'
        f"{f'<ul>{reasons}</ul>' if reasons else ''}</div>"
    )


def _figures(record: Profile) -> str:
    tiles = [(_ms(record.steady.p50_ms), "median of a call")]
    for name, value in (("90 %", record.steady.p90_ms), ("99 %", record.steady.p99_ms)):
        if value is not None:
            tiles.append((_ms(value), f"{name} of the calls are faster"))
    if record.throughput is not None:
        tiles.append((number(record.throughput.fps), "frames a second, back to back"))
    if (seen := record.camera) is not None:
        tiles += [(_ms(seen.age.p50_ms), "median age of a result"), (number(seen.fps), "results a second")]
        tiles.append((f"{100 * seen.drop_share:.1f} %", "of the frames dropped"))
    if record.start is not None:
        tiles.append((_ms(record.start.cold_ms), "process start to first result"))
        tiles.append((_ms(record.start.first_ms), "first inference"))
    if record.power is not None and record.power.energy_mj is not None:
        tiles.append((f"{record.power.energy_mj:.1f} mJ", "energy of a call, above idle"))
    shown = "".join(f"<div><b>{escape(big)}</b><span>{escape(small)}</span></div>" for big, small in tiles)
    rows = [_percentiles("whole call", record.steady)]
    rows += [_percentiles(name, record.stages[name]) for name in STAGES if name in record.stages]
    if record.camera is not None:
        rows.append(_percentiles("age of a result", record.camera.age))
    early = [
        (e.name, f"needs {e.needed} runs" if e.value is None else number(e.value), f"{e.runs}")
        for e in record.early_stopping
    ]
    bounds = _table(("MLPerf early stopping", "ms (Offline: samples/s)", "runs"), early) if early else ""
    return (
        f'<div class="tiles">{shown}</div>'
        + _table(("", "p50 (95 %)", "p90 (95 %)", "p99 (95 %)", "runs"), rows)
        + bounds
    )


def _percentiles(name: str, s: Summary) -> tuple[str, ...]:
    cells = percentile_cells(s, lambda value, low, high: f"{value:.3f} ({low:.3f} to {high:.3f})")
    return (name, *cells, f"{s.n:,}")


def _limits(record: Profile) -> str:
    if not record.slo:
        return ""
    rows = []
    for s in record.slo:
        scale, unit = unit_of(s)
        value, end = ("–" if v is None else f"{number(scale * v)}{unit}" for v in (s.value, s.high))
        rows.append((s.text, value, end, "met" if s.passed else "missed", s.note))
    return "<h2>Limits</h2>" + _table(("limit", "measured", "end of its interval", "verdict", ""), rows)


def _layers(layers: Layers | None) -> str:
    if layers is None:
        return ""
    rows = sorted(layers.rows, key=lambda r: -r.ms)
    shown = [
        (r.module or r.name, r.kind, r.precision, f"{r.ms:.4f}", f"{r.ms / layers.infer_ms:.1%}",
         "–" if r.macs is None else f"{r.macs / 1e6:.2f}",
         "–" if r.limit_share is None else f"{r.limit_share:.0%}", r.bound)
        for r in rows[:SHOWN_LAYERS]
    ]  # fmt: skip
    text = (
        f"Scaled to the median of {layers.infer_ms:.3f} ms without instruments; they cost {layers.overhead:.0%}. "
        f"{layers.covered:.0%} of a watched inference lies in its operators, the rest is shared out among them. "
        f"{layers.unmapped_share:.1%} of the time lies in operators whose module is not known; {limits_of(layers)}."
    )
    text += f" This pass was {layers.verdict}: {'; '.join(layers.reasons)}." if layers.reasons else ""
    return "<h2>Layer by layer</h2>" + f"<p>{escape(text)}</p>" + charts.roofline(layers) + _table(
        ("module", "operator", "precision", "ms", "share", "MMAC", "of the limit", "bound"), shown
    )  # fmt: skip


def _heat(record: Profile) -> str:
    parts = []
    if (soak := record.soak) is not None:
        outcome = "slower at the end" if soak.slower else "no slowing of more than 2 % shown"
        parts.append(
            f"<p>{soak.minutes:g} minutes: median {soak.first_p50_ms:.3f} ms at first, {soak.last_p50_ms:.3f} ms at "
            f"last, ratio {soak.ratio:.3f} ({soak.ratio_low:.3f} to {soak.ratio_high:.3f}): {outcome}.</p>"
        )
    if (power := record.power) is not None:
        parts.append(f"<p>{escape('; '.join(power_facts(power)))}.</p>" if power_facts(power) else "")
        rows = [
            (
                s.name,
                s.source,
                f"{s.mean:.4g} {s.unit}",
                f"{s.max:.4g} {s.unit}",
                _dash(s.first_minute),
                _dash(s.last_minute),
            )
            for s in power.sensors
        ]
        parts.append(
            _table(("sensor", "read from", "mean", "highest", "first minute", "last minute"), rows) if rows else ""
        )
        if power.absent:
            parts.append(f'<p class="soft">Not on this machine: {escape(", ".join(power.absent))}.</p>')
    return "<h2>Power and heat</h2>" + "".join(parts) if parts else ""


def _evidence(e: Interference) -> str:
    rows = [("runs", "; ".join(clean(e))), *shares(e)]
    absent = f'<p class="soft">Not on this machine: {escape(", ".join(e.absent))}.</p>' if e.absent else ""
    return "<h2>Evidence</h2>" + _table(("", ""), rows, words=1) + absent


def _machine(record: Profile) -> str:
    rows = [(name, _plain(value)) for name, value in record.machine.items() if value not in (None, "", [], {})]
    return "<h2>Machine</h2>" + _table(("", ""), rows, words=1)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = -1) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td{' class=words' if i == words else ''}>{escape(cell)}</td>" for i, cell in enumerate(rest, 1))
        + "</tr>"
        for first, *rest in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 100 else f"{value:,.0f} ms"


def _dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
