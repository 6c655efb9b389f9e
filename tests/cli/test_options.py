"""Flags: spelled once, unfolded into verbs, resolved into a plan and into targets."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import pytest
import typer

from edgemae.cli import app
from edgemae.cli.option_groups import (
    ProfileFlags,
    RunFlags,
)
from edgemae.cli.targets import (
    default_target,
    find_targets,
)
from edgemae.cli.typer_records import (
    given,
    unfold,
)
from edgemae.spec.errors import TargetError
from edgemae.spec.target import list_targets
from tests.support.tiny_job import write_target


def test_a_record_of_flags_becomes_flags_of_the_verb() -> None:
    seen = []

    @unfold
    def verb(flags: RunFlags, first: int, last: str = "z") -> None:
        seen.append((flags, first, last))

    names = list(inspect.signature(verb).parameters)
    assert names[:2] == ["first", "last"]
    assert set(names[2:]) == {"set_", "seed", "overwrite", "resume", "json", "verbose"}
    verb(first=1, set_=["a=1"], seed=3, overwrite=False, resume=True, json=True, verbose=False, last="y")
    assert seen == [(RunFlags(set_=["a=1"], seed=3, resume=True, json=True), 1, "y")]
    assert seen[0][0].at(Path("o")) == {"output": Path("o"), "overwrite": False, "resume": True}


def test_every_flag_has_a_help_text_and_one_spelling() -> None:
    spelled: dict[str, set[str]] = {}
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command in verbs.values():
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{command.name} {parameter.name}"
            if parameter.param_type_name == "option":
                spelled.setdefault(parameter.name, set()).add(" ".join(parameter.opts))
                assert all("_" not in flag for flag in parameter.opts)
    assert {name: flags for name, flags in spelled.items() if len(flags) > 1} == {}


def test_targets_by_name_by_file_and_of_this_machine(tmp_path: Path) -> None:
    own = write_target(tmp_path / "own.toml")
    assert [t.name for t in find_targets(["raspberry-pi-5", str(own)])] == ["raspberry-pi-5", "own"]
    assert [t.name for t in find_targets()] == [t.name for t in find_targets([None])] == [default_target()]
    assert default_target() in list_targets()
    with pytest.raises(TargetError, match="two targets are named 'own'"):
        find_targets([str(own), str(own)])


def test_precisions_are_kept_in_the_targets_order(tmp_path: Path) -> None:
    own = write_target(tmp_path / "own.toml", precisions=("fp16", "int8", "fp32"))
    assert find_targets([str(own)], ["fp32", "fp16"])[0].precisions == ("fp16", "fp32")
    with pytest.raises(TargetError, match=r"no precision 'int4'\. Did you mean 'int8'"):
        find_targets([str(own)], ["int4"])


def test_what_was_given_can_be_passed_on_to_another_machine() -> None:
    seen = []
    small = typer.Typer()

    @small.command()
    @unfold
    def verb(
        flags: ProfileFlags, context: typer.Context, bundle: str,
        cold: Annotated[bool, typer.Option("--cold/--no-cold")] = True, json: bool = False,
    ) -> None:  # fmt: skip
        seen.append((flags.remote, given(context)))

    line = (
        "b.edgemae --remote me@device --slo p99<33ms --soak 2.5 --slo fps>25 --per-layer --no-cold --html p.html --json"
    )
    small(line.split(), standalone_mode=False)
    small(["b.edgemae"], standalone_mode=False)
    passed = [("--soak", "2.5"), ("--per-layer", ""), ("--no-cold", ""), ("--slo", "p99<33ms"), ("--slo", "fps>25")]
    assert [remote for remote, _ in seen] == ["me@device", None]
    assert sorted(seen[0][1]) == sorted(passed)  # the page is drawn here
    assert seen[1][1] == []
