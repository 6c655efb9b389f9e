"""What a verb prints: JSON of any value, and tables that cut nothing."""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemae.cli import output
from edgemae.cli.output import (
    print_rows,
    print_targets,
    to_builtins,
)
from edgemae.data import loader
from edgemae.spec.target import find_target


def test_further_processes_say_only_what_the_first_cannot_know(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Each reads pictures of its own, and so it alone meets the broken ones among them."""
    heard = [logging.getLogger(name) for name in ("edgemae", "edgemae.data.loader")]
    for log in heard:
        request.addfinalizer(functools.partial(log.setLevel, log.level))
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(output, "SILENT", True)
    output.start_logging(False)
    assert [log.isEnabledFor(logging.WARNING) for log in heard] == [False, True]
    assert loader.log is heard[1]


def test_numpy_values_become_json() -> None:
    value = {"a": np.float32(0.5), "b": [np.int64(3)], "c": np.bool_(True), "d": Path("x")}
    assert json.loads(json.dumps(to_builtins(value))) == {"a": 0.5, "b": [3], "c": True, "d": "x"}


def test_rows_for_people_hide_nothing_and_cut_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    digest = "0123456789abcdef" * 8
    rows: dict[str, Any] = {
        "sha256": digest, "none": None, "fine": True, "share": 0.123456, "names": ["a", "b"],
        "table": {"deep": {"x": 1}}, "rows": [{"engine": "one", "why": None, "ok": False}, {"engine": "two"}],
    }  # fmt: skip
    print_rows("title", rows, json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "title"
    assert f"  sha256  {digest}" in lines
    assert "  none    -" in lines
    assert "  fine    yes" in lines
    assert "  share   0.1235" in lines
    assert "  names   a, b" in lines
    assert lines[lines.index("  table") + 1 :][:2] == ["    deep", "      x  1"]
    assert lines[-2:] == ["    engine one  ok no", "    engine two"]
    print_rows("title", rows, json=True)
    assert json.loads(capsys.readouterr().out)["rows"][0] == {"engine": "one", "why": None, "ok": False}


def test_names_of_targets_are_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    print_targets([find_target("jetson-agx-orin")], json=False)
    assert "jetson-agx-orin" in capsys.readouterr().out
    print_targets([find_target("jetson-agx-orin")], json=True)
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["targets"]] == ["jetson-agx-orin"]
