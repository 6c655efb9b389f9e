"""docs/plan.md is current, and every field of the plan has a meaning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from edgemae.spec.plan_schema import Plan, Section


def test_the_page_is_current(bench_tool: Callable[[str], ModuleType]) -> None:
    tool = bench_tool("plan_page")
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run `python tools/plan_page.py`"
    assert tool.main(["--check"]) == 0


def test_every_field_has_a_meaning(bench_tool: Callable[[str], ModuleType]) -> None:
    tool = bench_tool("plan_page")
    meanings = tool.meanings()
    for path, section in tool.tables(Plan()):
        values = msgspec.structs.asdict(section)
        fields = {name for name, value in values.items() if not isinstance(value, Section)}
        assert fields <= set(meanings[type(section).__name__]), path


def test_every_table_has_a_chapter(bench_tool: Callable[[str], ModuleType]) -> None:
    tool = bench_tool("plan_page")
    chapters = "\n".join(tool.chapters())
    for path, _ in tool.tables(Plan()):
        assert path == "" or f"## `[{path}]`" in chapters


def test_a_page_that_is_not_current_is_an_error(
    bench_tool: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tool = bench_tool("plan_page")
    monkeypatch.setattr(tool, "PAGE", tmp_path / "plan.md")
    assert tool.main(["--check"]) == 1
    assert "plan_page.py" in capsys.readouterr().err
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
