"""Every figure of the report as text, in one place, so that HTML, Markdown, plots and the terminal cannot disagree.

`report.py` and `report.html.j2` lay out what the functions here return; they format no number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgemae.evaluation.gates import shipped_stages
from edgemae.spec.report import EngineLatency, GateVerdict, Report, StageScore

DASH = "–"
HEAT_FULL_PTS = 10.0  # a class that moves this far gets the full colour
WORDS = ("Evidence", "Choice")  # columns of running text: left-aligned, and they may wrap
_GATES = {
    "max_drop_pts": ("top-1 drop", "≤", " points"),
    "min_agreement": ("agreement", "≥", ""),
    "p90_ms": ("latency p90", "≤", " ms"),
    "size_mib": ("bundle size", "≤", " MiB"),
}


@dataclass(frozen=True)
class Table:
    """Hold a header, rows of text, and one mark a row: passed, missed, chosen or nothing."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...]

    def only(self, *names: str) -> Table:
        """Return the table with these columns alone, in this order."""
        at = [self.header.index(name) for name in names]
        rows = tuple(tuple(row[i] for i in at) for row in self.rows)
        return Table(self.title, tuple(names), rows, self.marks)

    def without_empty(self) -> Table:
        """Return the table without the columns in which nothing was measured."""
        kept = [name for i, name in enumerate(self.header) if any(row[i] not in (DASH, "") for row in self.rows)]
        return self.only(*kept)


def percent(share: float | None, digits: int = 1) -> str:
    """Return 0.9731 as `97.3 %`."""
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def count(value: float) -> str:
    """Return 5510000 as `5.51 M`, and other numbers with k, G or T."""
    for factor, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.0f}"


def mib(size_bytes: float) -> str:
    """Return bytes as `5.25 MiB`, or KiB below a tenth of that."""
    return f"{size_bytes / 2**20:.2f} MiB" if size_bytes >= 2**20 / 10 else f"{size_bytes / 2**10:.1f} KiB"


def milliseconds(value_ms: float | None) -> str:
    """Return a latency with three significant digits: `4.92 ms`."""
    if value_ms is None:
        return DASH
    digits = 0 if value_ms >= 99.95 else 1 if value_ms >= 9.995 else 2 if value_ms >= 0.9995 else 3
    return f"{value_ms:.{digits}f} ms"


def signed(value: float, digits: int) -> str:
    """Return a difference with its sign, and zero without one."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def interval(low: float | None, high: float | None, digits: int = 1, sign: bool = False) -> str:
    """Return `97.1 to 99.2`, or nothing when an end is missing."""
    if low is None or high is None:
        return ""
    if sign:
        return f"{signed(low, digits)} to {signed(high, digits)}"
    return f"{low:.{digits}f} to {high:.{digits}f}"


def with_interval(value: str, span: str) -> str:
    """Return `98.3 % (97.1 to 99.2)`."""
    return f"{value} ({span})" if span else value


def number(value: Any) -> str:
    """Return a value of a free-form record as short text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: DASH}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def speed_up(ratio: float) -> str:
    """Return a ratio of speeds as `4.81×`."""
    return f"{ratio:.2f}×"


def top1_interval(stage: StageScore) -> str:
    """Return the interval of a stage's top-1 in percent, `97.1 to 99.2`, or nothing."""
    low, high = (None if end is None else 100 * end for end in (stage.top1_low, stage.top1_high))
    return interval(low, high)


def drop_interval(stage: StageScore) -> str:
    """Return the interval of a stage's paired drop in points, or nothing."""
    return interval(stage.drop_low_pts, stage.drop_high_pts, 2, sign=True)


def top1_text(stage: StageScore) -> str:
    """Return a stage's top-1 with its interval."""
    if stage.top1 is None:
        return DASH
    return with_interval(percent(stage.top1), top1_interval(stage))


def drop_text(stage: StageScore) -> str:
    """Return a stage's paired drop in points with its interval."""
    if stage.drop_pts is None:
        return "reference" if stage.stage == "student" else DASH
    return with_interval(signed(stage.drop_pts, 2), drop_interval(stage))


def ratio_text(engine: EngineLatency) -> str:
    """Return how many times faster than torch eager an engine is, with its interval."""
    if engine.ratio_to_torch_eager is None:
        return DASH
    return with_interval(speed_up(engine.ratio_to_torch_eager), interval(engine.ratio_low, engine.ratio_high, 2))


def gate_text(gate: GateVerdict) -> tuple[str, str, str]:
    """Return (name, limit, measured value) of a verdict, with units."""
    name, sign, unit = _GATES.get(gate.gate, (gate.gate, "limit", ""))
    value = DASH if gate.value is None else f"{gate.value:.4g}{unit}"
    return name, f"{sign} {gate.limit:g}{unit}", value


def gates_table(report: Report) -> Table:
    """Return the limits, what was measured, and whether each is met."""
    rows = []
    for gate in report.gates:
        name, limit, value = gate_text(gate)
        rows.append((name, limit, value, "passed" if gate.passed else "missed", gate.note))
    marks = tuple(row[3] for row in rows)
    return Table("Limits", ("Limit", "Allowed", "Measured", "Verdict", "Evidence"), tuple(rows), marks)


def stages_table(report: Report) -> Table:
    """Return the way from teacher to int8, one line a model; the shipped one is marked."""
    header = (
        "Model", "Top-1", "Drop (points)", "Lost / gained", "Agreement", "Cosine", "ECE", "Parameters", "MACs", "Size",
        "Images",
    )  # fmt: skip
    shipped = shipped_stages(report.stages, report.engines)
    rows, marks = [], []
    for stage in report.stages:
        moved = DASH if stage.lost is None or stage.gained is None else f"{stage.lost} / {stage.gained}"
        cosine = DASH if stage.cosine is None else f"{stage.cosine:.4f}"
        rows.append((
            stage.stage, top1_text(stage), drop_text(stage), moved, percent(stage.agreement), cosine,
            percent(stage.ece), count(stage.params), count(stage.macs), mib(stage.size_bytes), str(stage.n),
        ))  # fmt: skip
        marks.append("chosen" if any(stage is other for other in shipped) else "")
    return Table("From teacher to int8", header, tuple(rows), tuple(marks))


def engines_table(report: Report) -> Table:
    """Return the latency of every engine as measured beside torch eager; percentiles only where runs allow them."""
    header = (
        "Engine", "Precision", "p50", "p90", "p99", "× torch eager", "Runs", "Cosine", "Top-1", "Size", "Choice",
    )  # fmt: skip
    rows = []
    for engine in report.engines:
        precision = f"{engine.precision} ({engine.scheme})" if engine.scheme else engine.precision
        cosine = DASH if engine.cosine is None else f"{engine.cosine:.5f}"
        rows.append((
            engine.engine, precision, milliseconds(engine.p50_ms), milliseconds(engine.p90_ms),
            milliseconds(engine.p99_ms), ratio_text(engine), str(engine.n), cosine, percent(engine.top1),
            mib(engine.size_bytes) if engine.size_bytes else DASH,
            "ships" if engine.chosen else "",
        ))  # fmt: skip
    return Table("Engines", header, tuple(rows), tuple("chosen" if engine.chosen else "" for engine in report.engines))


def choices(report: Report) -> list[str]:
    """Return sentences: why each chosen engine ships what it ships, then what else is known of the others."""
    sentences = [f"{e.engine} ships {e.precision}: {e.reason}" for e in report.engines if e.chosen and e.reason]
    others: dict[str, list[str]] = {}
    for e in report.engines:
        if e.reason and not e.chosen:
            others.setdefault(e.reason, []).append(" ".join(part for part in (e.engine, e.precision, e.scheme) if part))
    return sentences + [f"{reason}: {', '.join(names)}" for reason, names in others.items()]


def classes_table(report: Report) -> Table:
    """Return for each class the share that every stage gets right, and the change that shipping brings."""
    stages = [stage for stage in report.stages if stage.per_class]
    before = next((stage for stage in stages if stage.stage == "student"), None)
    after = next(reversed(shipped_stages(report.stages, report.engines)), None)
    names = sorted({name for stage in stages for name in stage.per_class})
    rows, marks = [], []
    for name in names:
        shares = [percent(stage.per_class.get(name)) for stage in stages]
        change = class_change(name, before, after)
        rows.append((name, *shares, DASH if change is None else signed(change, 1)))
        marks.append("")
    return Table("Per class", ("Class", *(stage.stage for stage in stages), "Change"), tuple(rows), tuple(marks))


def class_change(name: str, before: StageScore | None, after: StageScore | None) -> float | None:
    """Return by how many points a class gained from one stage to another; None when either has no such class."""
    if before is None or after is None or name not in before.per_class or name not in after.per_class:
        return None
    return 100 * (after.per_class[name] - before.per_class[name])


def class_changes(report: Report) -> list[list[tuple[str, float]]]:
    """Return for each row of the class table (up | down, strength 0..1) of every stage against the float student."""
    stages = [stage for stage in report.stages if stage.per_class]
    before = next((stage for stage in stages if stage.stage == "student"), None)
    after = next(reversed(shipped_stages(report.stages, report.engines)), None)
    rows = []
    for row in classes_table(report).rows:
        changes = [class_change(row[0], before, stage) or 0.0 for stage in (*stages, after)]
        rows.append([("up" if c > 0 else "down", min(1.0, abs(c) / HEAT_FULL_PTS)) for c in changes])
    return rows


def class_note(report: Report) -> str:
    """Return a sentence: how much one image counts in the share of its class; nothing without a class."""
    classes = len(classes_table(report).rows)
    images = report.stages[-1].n / classes if classes else 0
    return f"With about {images:.0f} images a class, one image is {100 / images:.1f} points." if images >= 1 else ""


def calibration_errors(report: Report) -> list[tuple[str, str]]:
    """Return (stage, expected calibration error) of each stage that has one."""
    return [(stage.stage, percent(stage.ece)) for stage in report.stages if stage.ece is not None]


def confidence_text(report: Report) -> str:
    """Return the confidence of the intervals of the stages: `95 %`."""
    return f"{100 * next((stage.confidence for stage in report.stages), 0.95):g} %"


def headline(report: Report) -> list[tuple[str, str, str]]:
    """Return the headline figures of what ships: (name, value, what it rests on)."""
    stage = next(reversed(shipped_stages(report.stages, report.engines)), None)
    engine = next((engine for engine in report.engines if engine.chosen), None)
    rows = []
    if stage is not None and stage.top1 is not None:
        span = top1_interval(stage)
        rows.append(("Top-1", percent(stage.top1), f"{span}, {stage.n} images" if span else f"{stage.n} images"))
    if stage is not None and stage.drop_pts is not None:
        span = drop_interval(stage)
        rows.append(("Drop in points", signed(stage.drop_pts, 2), f"paired, {span}" if span else "paired"))
    elif stage is not None and stage.agreement is not None:
        rows.append(("Agreement", percent(stage.agreement), f"with the float student, {stage.n} images"))
    if engine is not None:
        basis = f"{engine.engine} {engine.precision}, {engine.n} runs"
        rows.append(("Latency p50", milliseconds(engine.p50_ms), basis))
    if engine is not None and engine.ratio_to_torch_eager is not None:
        rows.append(("Speed-up", speed_up(engine.ratio_to_torch_eager), "over torch eager, interleaved"))
    if stage is not None:
        rows.append(("Size", mib(stage.size_bytes), f"{count(stage.params)} parameters"))
    return rows


def verdict(report: Report) -> tuple[str, str]:
    """Return (passed | missed | none, one sentence)."""
    if not report.gates:
        return "none", "No limits were set, so nothing was tested against one."
    missed = sum(not gate.passed for gate in report.gates)
    plural = "" if len(report.gates) == 1 else "s"
    if missed:
        return "missed", f"{missed} of {len(report.gates)} limit{plural} not shown to be met."
    return "passed", f"All {len(report.gates)} limits shown to be met." if plural else "The limit was shown to be met."


TABLES: dict[str, Callable[[Report], Table]] = {
    "gates": gates_table,
    "stages": stages_table,
    "engines": engines_table,
    "classes": classes_table,
}
