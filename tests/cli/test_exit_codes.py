"""What ends a verb: its exit code, a message in three parts, one JSON object, and no traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

import pytest
import typer

from edgemae.cli.exit_codes import (
    Verbs,
    run_app,
)
from edgemae.spec import errors
from edgemae.spec.errors import EdgemaeError
from tests.support.tiny_job import Ran, parts


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Return a runner of an app whose one verb `work` raises what it is given."""

    def run(error: BaseException | None, *arguments: str) -> Ran:
        app = typer.Typer(cls=Verbs, no_args_is_help=True, add_completion=False, rich_markup_mode=None)

        @app.command()
        def work(count: int = 1, json: bool = False) -> None:
            if error is not None:
                raise error

        @app.command()
        def rest() -> None:
            pass

        monkeypatch.setattr(sys, "argv", ["edgemae", *arguments])
        code = run_app(app)
        streams = capsys.readouterr()
        return Ran(code, streams.out, streams.err)

    return run


def every_error() -> list[type[EdgemaeError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EdgemaeError)]
    assert len(found) > 15
    return found


@pytest.mark.parametrize("kind", every_error())
def test_each_error_gives_its_own_exit_code_and_three_lines(
    kind: type[EdgemaeError], outcome: Callable[..., Ran]
) -> None:
    ran = outcome(kind("no", expected="yes", fix="say yes"), "work")
    assert ran.code == kind.exit_code
    assert parts(ran.err) == ["no", "yes", "say yes"]
    assert ran.out == ""


def test_with_json_the_error_is_an_object_on_stdout_too(outcome: Callable[..., Ran]) -> None:
    ran = outcome(errors.DataError("no", expected="yes", fix="say yes"), "work", "--json")
    assert ran.json == {"error": {"code": "data", "what": "no", "expected": "yes", "fix": "say yes"}}
    assert parts(ran.err) == ["no", "yes", "say yes"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_more_is_the_machine_not_a_bug(number: int, outcome: Callable[..., Ran]) -> None:
    ran = outcome(OSError(number, os.strerror(number), "out/x.bin"), "work")
    assert ran.code == 5
    assert "out/x.bin" in parts(ran.err)[0]


@pytest.mark.parametrize(("module", "extra"), [("torch", "build"), ("nncf.quantize", "build"), ("cv2", "camera")])
def test_a_missing_library_names_the_extra_that_has_it(module: str, extra: str, outcome: Callable[..., Ran]) -> None:
    ran = outcome(ModuleNotFoundError(f"No module named '{module}'", name=module), "work")
    assert ran.code == 5
    assert f"'{module.split('.')[0]}'" in parts(ran.err)[0]
    assert parts(ran.err)[2] == f"pip install 'edgemae[{extra}]'"


def test_what_nobody_thought_of_is_our_bug_and_says_where(
    outcome: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = outcome(ZeroDivisionError("by zero"), "work")
    assert ran.code == 1
    assert parts(ran.err)[0].startswith("ZeroDivisionError in test_exit_codes.py:")
    assert outcome(ModuleNotFoundError("x", name="edgemae.gone"), "work").code == 1
    monkeypatch.setenv("EDGEMAE_DEBUG", "1")
    assert "Traceback" in outcome(ZeroDivisionError("by zero"), "work").err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_an_interrupt_says_that_finished_stages_are_kept(error: BaseException, outcome: Callable[..., Ran]) -> None:
    ran = outcome(error, "work")
    assert ran.code == 130
    assert ran.err == "interrupted; finished stages are kept: run the same command to go on\n"


def test_an_exit_code_of_a_verb_is_handed_on(outcome: Callable[..., Ran]) -> None:
    assert outcome(typer.Exit(4), "work").code == 4
    assert outcome(None, "work").code == 0


@pytest.mark.parametrize(
    ("arguments", "what", "expected"),
    [
        (("wrok",), "unknown verb 'wrok'. Did you mean 'work'?", "one of work, rest"),
        (("work", "--cuont", "2"), "No such option: --cuont", "work [OPTIONS]"),
        (("work", "--count", "many"), "Invalid value for '--count'", "work [OPTIONS]"),
        (("work", "more"), "more", "work [OPTIONS]"),
    ],
)
def test_a_wrong_command_line_says_what_was_expected(
    arguments: tuple[str, ...], what: str, expected: str, outcome: Callable[..., Ran]
) -> None:
    ran = outcome(None, *arguments)
    assert ran.code == 2
    found = parts(ran.err)
    assert what in found[0]
    assert expected in found[1]
    assert "--help" in found[2]


def test_no_verb_at_all_gets_the_help(outcome: Callable[..., Ran]) -> None:
    ran = outcome(None)
    assert ran.code == 2
    assert "Usage" in ran.err
    assert "error:" not in ran.err
