"""What the command line prints: log lines on stderr, tables for people, one JSON object for scripts."""

from __future__ import annotations

import json as json_library
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from edgemae.spec.errors import StorageError
from edgemae.spec.printable import printable_line

if TYPE_CHECKING:
    from rich.console import Console

    from edgemae.pipeline.compile import CompileResult
    from edgemae.profiling.records import Profile
    from edgemae.spec.plan_schema import Plan
    from edgemae.spec.target import Target

SILENT = os.environ.get("RANK", "0") != "0"  # one of several processes of a training: only the first prints
WIDTH = 132  # of tables in a file or a pipe, where nothing says how wide the reader's window is


class _LineFormatter(logging.Formatter):
    """Keep a message to its own line, whatever name of a file stands in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging names it so
        record.message = printable_line(record.message)
        return super().formatMessage(record)


def start_logging(verbose: bool) -> None:
    """Send log lines with a time of day to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    quiet = logging.ERROR if SILENT else logging.INFO
    logging.getLogger("edgemae").setLevel(logging.DEBUG if verbose else quiet)
    if SILENT:  # what the first process does not see
        logging.getLogger("edgemae.data.loader").setLevel(logging.WARNING)


def to_builtins(value: Any) -> Any:
    """Return a JSON-ready copy; numpy scalars become numbers."""
    return msgspec.to_builtins(value, enc_hook=lambda v: v.item() if hasattr(v, "item") else str(v))


def write_json(value: Any) -> None:
    # JSON's own escapes cover all that a terminal would act on, but DEL.
    text = json_library.dumps(to_builtins(value), indent=1).replace("\x7f", "\\u007f")
    sys.stdout.write(text + "\n")


def screen() -> Console:
    from edgemae.terminal.console import PrintableConsole

    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH
    return PrintableConsole(width=wide, file=sys.stdout)


def print_compiled(compiled: Sequence[CompileResult], *, json: bool) -> None:
    """Print verdicts, tables and the next commands; exit 3 or 4 when a gate was missed."""
    from edgemae.evaluation.gates import exit_code

    code = max((exit_code(b.gates) for b in compiled), key=lambda c: {0: 0, 4: 1, 3: 2}[c])
    if json:
        pages = [json_library.loads((b.bundle.parent / "report.json").read_bytes()) for b in compiled]
        reports = [{"bundle": str(b.bundle), **page} for b, page in zip(compiled, pages, strict=True)]
        write_json(reports[0] if len(reports) == 1 else {"bundles": reports})
    else:
        from edgemae.evaluation.report.report import console_table

        for b in compiled:
            screen().print(console_table(b.report))
            sys.stdout.write(
                f"\nbundle: {b.bundle}\nreport: {b.bundle.parent / 'report.html'}\nnext:\n"
                f"  edgemae verify {b.bundle}\n  edgemae profile {b.bundle}\n  edgemae run {b.bundle} SOURCE\n"
            )
    if code:
        raise typer.Exit(code)


def print_dry_run(found: dict[str, Any], plan: Plan, *, json: bool) -> None:
    """Print what was checked, and the resolved plan as TOML."""
    if json:
        write_json(found)
        return
    from edgemae.pipeline.stage_cache import to_toml

    counts = ", ".join(f"{len_['images']} {name}" for name, len_ in found["data"].items() if "images" in len_)
    sys.stdout.write(f"# checked: {', '.join(found['targets'])}; images: {counts}\n{to_toml(plan).decode()}")


def print_rows(title: str, rows: dict[str, Any], *, json: bool) -> None:
    """Print a dictionary as lines of two columns, or as JSON."""
    if json:
        write_json(rows)
        return
    sys.stdout.write("\n".join([title, *_lines(to_builtins(rows), "  ")]) + "\n")


def _lines(rows: dict[str, Any], indent: str) -> list[str]:
    """Return `key  value` lines; dictionaries and lists of them go below their key, deeper."""
    width = max((len(key) for key in rows), default=0)
    lines = []
    for key, value in rows.items():
        below: list[str] = []
        if isinstance(value, dict) and value:
            below, value = _lines(value, indent + "  "), ""
        elif isinstance(value, (list, tuple)) and any(
            isinstance(v, (dict, list, tuple)) or "\n" in str(v) for v in value
        ):
            below, value = [f"{indent}  {_text(v)}" for v in value], ""
        lines += [f"{indent}{key:{width}}  {_text(value)}".rstrip(), *below]
    return lines


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "  ".join(f"{k} {_text(v)}" for k, v in value.items() if v not in (None, "")) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "-"
    return printable_line(value)


def print_profile(found: Profile, html: Path | None = None, *, json: bool) -> None:
    """Print a profile, then write its page. Exits 5 for INVALID or a page that is not written, 4 for a missed limit."""
    from edgemae.profiling.output.html_report import write_page
    from edgemae.profiling.output.text_report import describe
    from edgemae.profiling.slo import exit_code

    write_json(found) if json else sys.stdout.write("\n".join(describe(found)) + "\n")
    code = exit_code(found)
    try:
        write_page(html, found) if html else None
    except StorageError as error:  # not raised: with --json an error would be a second object behind the record
        sys.stderr.write(f"error: {error}\nThe figures were printed and stand; their page is missing.\n")
        code = error.exit_code
    if found.verdict != "TRUSTED":
        sys.stderr.write(f"{found.verdict}: {'; '.join(found.reasons)}. Quiet the machine and measure again.\n")
    if missed := [limit.text for limit in found.slo if not limit.passed]:
        sys.stderr.write(f"not shown to be met: {', '.join(missed)}\n")
    if code:
        raise typer.Exit(code)


def print_targets(targets: Sequence[Target], *, json: bool) -> None:
    """Print the built-in targets."""
    if json:
        write_json({"targets": targets})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "engines", "precisions", "threads", "device"):
        table.add_column(column, no_wrap=column == "name")
    for t in targets:
        table.add_row(t.name, ", ".join(t.engines), ", ".join(t.precisions), str(t.threads), t.title)
    screen().print(table)
