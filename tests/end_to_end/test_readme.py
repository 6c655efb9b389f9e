"""The README says what is true: its table is the measured one, its commands and files exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from edgemae.cli import app
from edgemae.distill.recipes import RECIPES
from edgemae.spec.plan_loading import load_plan
from edgemae.spec.report import Report

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = sorted(path for path in (ROOT / "tools/results").glob("*.json") if f"<!-- table: {path.stem} -->" in README)


def test_code_comes_within_the_first_twenty_lines() -> None:
    assert "```" in "\n".join(README.splitlines()[:20])


def test_every_table_has_its_results() -> None:
    assert sorted(path.stem for path in RESULTS) == sorted(re.findall(r"<!-- table: (\S+) -->", README))


def test_tables_are_the_measured_ones(bench_tool: Callable[[str], ModuleType]) -> None:
    for path in RESULTS:
        raw = msgspec.json.decode(path.read_bytes())
        assert raw["command"].startswith("python tools/bench_")
        assert raw["machine"]
    assert bench_tool("readme_tables").filled(README, ROOT / "tools/results") == README


def test_the_compiled_table_is_of_a_small_student() -> None:
    raw = msgspec.json.decode((ROOT / "tools/results/clothing10.json").read_bytes())
    report = msgspec.convert({k: v for k, v in raw.items() if k not in ("command", "seconds")}, Report)
    assert [stage.stage for stage in report.stages] == ["teacher", "student", "pruned", "int8"]
    student, teacher = report.stages[1], report.stages[0]
    assert student.macs * 4 <= teacher.macs


def test_commands_exist() -> None:
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    verbs |= {str(group.typer_instance.info.name) for group in app.registered_groups if group.typer_instance}
    blocks = "".join(re.findall(r"```bash\n(.*?)```", README, flags=re.S))
    used = set(re.findall(r"^ *(?:\.venv/bin/)?edgemae (\w+)", blocks, flags=re.M))
    assert used
    assert used <= verbs
    assert named_in("verb") == verbs - {"demo"}


def test_recipes_exist() -> None:
    assert named_in("recipe") == set(RECIPES)


def named_in(table: str) -> set[str]:
    """Return the names in the first column of a table of the README."""
    rows = README.split(f"| {table} |")[1].split("\n\n")[0].splitlines()[2:]
    return set(re.findall(r"`([\w-]+)`", "".join(row.split("|")[1] for row in rows)))


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_the_example_plan_is_a_plan() -> None:
    plan = load_plan(ROOT / "examples/plan.toml")
    assert plan.name == "clothing10"


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("bench_*.py")), ids=lambda path: path.stem)
def test_benchmarks_take_quick_and_json(path: Path) -> None:
    text = path.read_text()
    assert '"--quick"' in text
    assert '"--json"' in text
