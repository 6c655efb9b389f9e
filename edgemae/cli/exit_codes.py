"""Run the command line and turn whatever ends it into an exit code and three lines, or one JSON object."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import typer
import typer.core

from edgemae.cli.output import SILENT, write_json
from edgemae.spec.errors import EdgemaeError, InputError, InternalError, MachineError, StorageError, nearest
from edgemae.spec.printable import PrintableStream

INTERRUPTED = 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
EXTRAS = {"cv2": "camera", "onnxruntime": "onnxruntime", "openvino": "openvino"}  # any other library: build


class _CutShortError(Exception):
    """Ctrl-C, or a reader of our output that went away. Typer itself would turn both into a bare exit code."""


class Verbs(typer.core.TyperGroup):
    """Verbs in the order of the work, with the nearest name for a mistyped one."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, BrokenPipeError) as error:
            raise _CutShortError from error

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


def run_app(app: typer.Typer) -> int:
    """Run the command line; return its exit code. No traceback reaches a user for a mistake of theirs."""
    before = sys.stdout, sys.stderr
    out = open(os.devnull, "w") if SILENT else before[0]  # noqa: SIM115 (as long as the process)
    error = before[1] or open(os.devnull, "w")  # noqa: SIM115 (closed: nobody wants to read it)
    sys.stdout, sys.stderr = PrintableStream(out or error), PrintableStream(error)
    try:
        if out is None:
            return _fail(StorageError("stdout is closed", expected="somewhere to print to", fix="leave `>&-` out"))
        return _run(app)
    finally:
        sys.stdout, sys.stderr = before


def _run(app: typer.Typer) -> int:
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except EdgemaeError as error:
        return _fail(error)
    except _CutShortError as error:
        return _closed() if isinstance(error.__cause__, BrokenPipeError) else _interrupted()
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except typer.TyperException as error:
        return _usage(error)
    except BrokenPipeError:
        return _closed()
    except OSError as error:
        return _storage(error) if error.errno in NO_ROOM else _bug(error)
    except ModuleNotFoundError as error:
        return _missing(error)
    except Exception as error:  # noqa: BLE001 - whatever nobody thought of is our bug, and is reported as one
        return _bug(error)


def _interrupted() -> int:
    sys.stderr.write("interrupted; finished stages are kept: run the same command to go on\n")
    return INTERRUPTED


def _closed() -> int:
    """The reader has seen enough, as in `edgemae run ... | head`. Python would complain when it closes stdout."""
    _leave_stdout()
    return 0


def _leave_stdout() -> None:
    """Send what is left for stdout nowhere, so that Python does not complain about it at its end."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a stream without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: EdgemaeError) -> int:
    if "--json" in sys.argv:
        try:
            write_json({"error": error.row})
            sys.stdout.flush()
        except OSError:  # a full disk may be what the error is about
            _leave_stdout()
    with contextlib.suppress(OSError):
        sys.stderr.write(f"error: {error}\n")
    return error.exit_code


def _usage(error: typer.TyperException) -> int:
    """Report a wrong command line; no verb at all gets the help."""
    context = getattr(error, "ctx", None)
    name = context.command_path if context else "edgemae"
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(f"{error.format_message()}\n")
        return InputError.exit_code
    usage = context.command.get_usage(context) if context else "edgemae VERB ..."
    return _fail(
        InputError(
            error.format_message().rstrip("."),
            expected=" ".join(usage.split()).removeprefix("Usage: "),
            fix=f"see `{name} --help`",
        )
    )


def _storage(error: OSError) -> int:
    return _fail(
        StorageError(
            f"'{error.filename or 'stdout or a file'}' cannot be read or written: {error.strerror}",
            expected="folders that may be read, a writable --output, free space there and in the temporary folder",
            fix="free some space, mend the permissions or choose another --output; finished stages are kept",
        )
    )


def _missing(error: ModuleNotFoundError) -> int:
    module = (error.name or str(error)).split(".")[0]
    if module == "edgemae":
        return _bug(error)
    return _fail(
        MachineError(
            f"the Python module '{module}' is not installed, and this verb needs it",
            expected="the libraries of this verb; `edgemae doctor` lists what is missing for what",
            fix=f"pip install 'edgemae[{EXTRAS.get(module, 'build')}]'",
        )
    )


def _bug(error: BaseException) -> int:
    if os.environ.get("EDGEMAE_DEBUG"):
        traceback.print_exception(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return _fail(
        InternalError(
            f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {error}",
            expected="no such thing: this is a bug of edgemae",
            fix="run again with EDGEMAE_DEBUG=1 for the traceback and report it",
        )
    )
