"""The report: report.json for machines, report.md for repositories, report.html for people, all from one record."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgemae.evaluation.report import plots
from edgemae.evaluation.report.tables import (
    TABLES,
    WORDS,
    Table,
    calibration_errors,
    choices,
    class_changes,
    class_note,
    confidence_text,
    headline,
    number,
    verdict,
)
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import InternalError
from edgemae.spec.report import Report

if TYPE_CHECKING:
    from rich.console import Group

Figure = tuple[str, bytes]  # title, PNG
RELIABILITY = "Reliability"  # figures whose title starts so stand beside the calibration error


def write_report(report: Report, folder: Path, figures: Sequence[Figure] = ()) -> None:
    """Write report.json, report.md, report.html and figures/*.png (named in the JSON) into `folder`.

    `figures` are (title, PNG bytes). Raises InternalError when the report holds NaN or infinity, StorageError when
    the disk is full or read-only.
    """
    report = checked(report)
    drawn = _drawn(report)
    files = {f"figures/{i + 1:02d}-{_slug(title)}.png": png for i, (title, png) in enumerate(figures)}
    files |= {f"figures/{name}.png": light for name, (light, _) in drawn.items()}
    report = msgspec.structs.replace(report, figures=[*report.figures, *sorted(files)])
    titles = {name: title for name, (title, _) in zip(files, figures, strict=False)}
    files["report.json"] = to_json(report)
    files["report.md"] = _markdown(report, titles).encode()
    files["report.html"] = _html(report, figures, drawn).encode()
    for name, data in files.items():
        write_atomic(folder / name, data)


def to_json(report: Report) -> bytes:
    """Return the report as indented JSON, the same bytes for the same report."""
    return msgspec.json.format(msgspec.json.encode(checked(report), order="deterministic"), indent=2) + b"\n"


def _builtin(value: Any) -> Any:
    """Return a numpy scalar of a free-form field as the Python number that it is."""
    if isinstance(value, np.generic):
        return value.item()
    raise InternalError(
        f"the report holds a {type(value).__name__}",
        expected="text, numbers, lists and mappings",
        fix="report this as a bug",
    )


def checked(report: Report) -> Report:
    """Return the report in plain Python numbers.

    Raises InternalError with the path of the first NaN or infinity: JSON would quietly turn it into null.
    """
    tree = msgspec.to_builtins(report, enc_hook=_builtin)
    for path, value in _leaves(tree, "report"):
        if isinstance(value, float) and not math.isfinite(value):
            raise InternalError(f"{path} is {value}", expected="a finite number or None", fix="report this as a bug")
    return msgspec.convert(tree, Report)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}[{i}]")
    else:
        yield path, value


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] or "figure"


def _drawn(report: Report) -> dict[str, tuple[bytes, bytes]]:
    """Return the plots that this report allows: name -> (light PNG, dark PNG)."""
    makers = {
        "accuracy-latency": partial(plots.accuracy_latency, report),
        "per-class": partial(plots.per_class, report),
    }
    for name, rows in report.curves.items():
        makers[f"loss-{_slug(name)}"] = partial(plots.loss_curves, {name: rows})
    drawn = {name: (make(), make(dark=True)) for name, make in makers.items()}
    return {name: (light, dark) for name, (light, dark) in drawn.items() if light is not None and dark is not None}


def markdown_table(report: Report, part: str, columns: Sequence[str] = ()) -> str:
    """Return one table of TABLES (gates, stages, engines or classes) as Markdown, or only these columns."""
    table = TABLES[part](report)
    return _markdown_of(table.only(*columns) if columns else table)


def _markdown_of(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_plain(cell) for cell in cells) + " |"

    rule = "|" + "|".join(" --- " if i == 0 or name in WORDS else " ---: " for i, name in enumerate(table.header)) + "|"
    rows = [line([f"**{cell}**" if mark == "chosen" and i == 0 else cell for i, cell in enumerate(row)])
            for row, mark in zip(table.rows, table.marks, strict=True)]  # fmt: skip
    return "\n".join([line(table.header), rule, *rows])


def _plain(text: str) -> str:
    """Return text that can neither end a table cell nor become HTML."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("|", "\\|").replace("`", "\\`").replace("[", "\\[")


def _markdown(report: Report, titles: dict[str, str]) -> str:
    lines = [f"# {_plain(report.name)} for {_plain(report.target)}", "", verdict(report)[1], ""]
    for part in TABLES:
        table = TABLES[part](report)
        if table.rows:
            lines += [f"## {table.title}", "", _markdown_of(table), ""]
    lines += [f"- {_plain(sentence)}" for sentence in choices(report)]
    lines += [f"- {_plain(note)}" for note in report.notes] + [""] * bool(report.notes)
    licences = sorted({step["licence"] for step in report.history if step.get("licence")})
    if licences:
        lines += [f"Licence of what came in: {', '.join(map(_plain, licences))}.", ""]
    for file in report.figures:
        lines += [f"![{_plain(titles.get(file, Path(file).stem))}]({file})", ""]
    lines += [f"Made {_plain(report.created)}. Every number is in report.json."]
    return "\n".join(lines) + "\n"


def console_table(report: Report) -> Group:
    """Return what the command line prints at the end: verdict, models and engines, within 100 columns."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    styles = {"passed": "green", "missed": "bold red", "chosen": "bold", "": ""}
    columns = {
        "gates": ("Limit", "Allowed", "Measured", "Verdict", "Evidence"),
        "stages": ("Model", "Top-1", "Drop (points)", "Agreement", "MACs", "Size"),
        "engines": ("Engine", "Precision", "p50", "p90", "× torch eager", "Top-1", "Choice"),
    }
    parts: list[Any] = []
    for part, names in columns.items():
        table = TABLES[part](report).only(*names)
        if not table.rows:
            continue
        rich = RichTable(title=table.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for i, name in enumerate(names):
            rich.add_column(Text(name), justify="left" if i == 0 or name in WORDS else "right")
        for row, mark in zip(table.rows, table.marks, strict=True):
            rich.add_row(*(Text(cell) for cell in row), style=styles[mark])
        parts += [rich, Text("")]
    parts += [Text(sentence) for sentence in choices(report)]
    state, sentence = verdict(report)
    return Group(*parts, Text(sentence, style=styles.get(state, "")))


def _html(report: Report, figures: Sequence[Figure], drawn: dict[str, tuple[bytes, bytes]]) -> str:
    """Return one file with everything inside: no script, no font, no address to load from."""
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"data_uri": _data_uri, "number": number, "columns": _columns}
    template = environment.from_string(files("edgemae.evaluation.report").joinpath("report.html.j2").read_text("utf-8"))
    state, sentence = verdict(report)
    return template.render(
        report=report,
        state=state,
        sentence=sentence,
        tiles=headline(report),
        tables={name: make(report) for name, make in TABLES.items()},
        choices=choices(report),
        heat=class_changes(report),
        confidence=confidence_text(report),
        class_note=class_note(report),
        calibration=calibration_errors(report),
        drawn=drawn,
        losses=[value for name, value in drawn.items() if name.startswith("loss-")],
        reliability=[figure for figure in figures if figure[0].startswith(RELIABILITY)],
        figures=[figure for figure in figures if not figure[0].startswith(RELIABILITY)],
        licences=sorted({step["licence"] for step in report.history if step.get("licence")}),
    )


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return every key of free-form rows, in order of first sight."""
    return list(dict.fromkeys(key for row in rows for key in row))
