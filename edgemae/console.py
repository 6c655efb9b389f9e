"""What the command line prints: tables for people, one JSON object for scripts, errors in three lines."""

from __future__ import annotations

import errno
import json as json_library
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer
import typer.core

from edgemae.spec.errors import EdgemaeError, InputError, InternalError, StorageError, nearest

if TYPE_CHECKING:
    from edgemae.build import Built
    from edgemae.spec.target import Target

INTERRUPTED = 130


class Verbs(typer.core.TyperGroup):
    """Verbs in the order of the work, with the nearest name for a mistyped one."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except typer.TyperException as error:
            if args and args[0] not in self.commands:
                raise InputError(
                    f"unknown verb '{args[0]}'.{nearest(args[0], list(self.commands))}",
                    expected=f"one of {', '.join(self.commands)}",
                    fix="see `edgemae --help`",
                ) from error
            raise


def start_logging(verbose: bool) -> None:
    """Send log lines with a time of day to stderr."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr,
        force=True,
    )  # fmt: skip
    logging.getLogger("edgemae").setLevel(logging.DEBUG if verbose else logging.INFO)


def run_app(app: typer.Typer) -> int:
    """Run the command line; return its exit code. No traceback reaches a user for a mistake of theirs."""
    try:
        code = app(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except EdgemaeError as error:
        return _fail(error)
    except typer.Abort:
        sys.stderr.write("interrupted; finished stages are kept, run the same command to go on\n")
        return INTERRUPTED
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; finished stages are kept, run the same command to go on\n")
        return INTERRUPTED
    except typer.TyperException as error:
        sys.stderr.write(f"error: {error.format_message()}\n")
        return error.exit_code
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            return _fail(StorageError(
                f"'{error.filename or 'a file'}' cannot be written: {error.strerror}",
                expected="a writable folder with free space",
                fix="free some space or choose another --output; finished stages are kept",
            ))  # fmt: skip
        return _bug(error)
    except Exception as error:
        return _bug(error)


def _fail(error: EdgemaeError) -> int:
    if "--json" in sys.argv:
        _write_json({"error": {"code": error.code, "what": error.what, "expected": error.expected, "fix": error.fix}})
    sys.stderr.write(f"error: {error}\n")
    return error.exit_code


def _bug(error: BaseException) -> int:
    if os.environ.get("EDGEMAE_DEBUG"):
        traceback.print_exception(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return _fail(InternalError(
        f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {error}",
        expected="no such thing: this is a bug of edgemae",
        fix="run again with EDGEMAE_DEBUG=1 for the traceback and report it",
    ))  # fmt: skip


def to_builtins(value: Any) -> Any:
    """Return a JSON-ready copy; numpy scalars become numbers."""
    return msgspec.to_builtins(value, enc_hook=lambda v: v.item() if hasattr(v, "item") else str(v))


def _write_json(value: Any) -> None:
    sys.stdout.write(json_library.dumps(to_builtins(value), indent=1) + "\n")


def emit(kind: str, model: Path, output: Path, following: str, json: bool) -> None:
    """Copy a stage's model to the top of the output folder and say what to do with it."""
    final = output / model.name
    shutil.copyfile(model, final)
    if json:
        _write_json({kind: str(final)})
        return
    sys.stdout.write(f"{kind}: {final}\nnext: {following.format(final)}\n")


def print_built(built: Sequence[Built], *, json: bool) -> None:
    """Print verdicts, tables and the next commands; exit 3 or 4 when a gate was missed."""
    from edgemae.measure.gates import exit_code

    code = max((exit_code(b.gates) for b in built), key=lambda c: {0: 0, 4: 1, 3: 2}[c])
    if json:
        reports = [{"bundle": str(b.bundle), **to_builtins(b.report)} for b in built]
        _write_json(reports[0] if len(reports) == 1 else {"bundles": reports})
    else:
        from rich.console import Console

        from edgemae.measure.report import console_table

        for b in built:
            Console().print(console_table(b.report))
            folder = b.bundle.parent
            sys.stdout.write(
                f"\nbundle: {b.bundle}\nreport: {folder / 'report.html'}\nnext:\n"
                f"  edgemae verify {b.bundle}\n  edgemae profile {b.bundle}\n  edgemae run {b.bundle} SOURCE\n"
            )
    if code:
        raise typer.Exit(code)


def print_rows(title: str, rows: dict[str, Any], *, json: bool) -> None:
    """Print a flat dictionary as two columns, or as JSON."""
    if json:
        _write_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    for key, value in to_builtins(rows).items():
        table.add_row(key, _text(value))
    Console().print(table)


def _text(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "\n".join(f"{k}: {_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return (
            "\n".join(_text(v) for v in value) if value and isinstance(value[0], dict) else ", ".join(map(_text, value))
        )
    return escape(str(value))


def print_profile(found: Any, *, json: bool) -> None:
    """Print a latency profile; exit 5 when the machine was too noisy for any number."""
    rows = to_builtins(found)
    if json:
        _write_json(rows)
    else:
        shown = {k: v for k, v in rows.items() if k not in ("machine", "schema") and v is not None}
        print_rows(f"latency: {found.verdict}", shown, json=False)
    if found.verdict == "INVALID":
        raise typer.Exit(5)


def print_targets(targets: Sequence[Target], *, json: bool) -> None:
    """Print the built-in targets."""
    if json:
        _write_json([msgspec.to_builtins(t) for t in targets])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="targets", title_justify="left")
    for column in ("name", "device", "engines", "precisions", "threads"):
        table.add_column(column)
    for t in targets:
        table.add_row(t.name, t.title, ", ".join(t.engines), ", ".join(t.precisions), str(t.threads))
    Console().print(table)
