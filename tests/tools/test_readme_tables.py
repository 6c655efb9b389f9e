"""The tables of README and docs: the summary of a compile, and pages that are not current."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def stage(name: str, drop_pts: float | None = None) -> dict[str, Any]:
    return {"stage": name, "top1": 0.8, "top1_low": 0.75, "top1_high": 0.85, "macs": 49e6, "size_bytes": 2**20,
            "drop_pts": drop_pts, "drop_low_pts": 0.5, "drop_high_pts": 1.5}  # fmt: skip


def engine(name: str, precision: str, p50_ms: float, verdict: str = "TRUSTED") -> dict[str, Any]:
    return {"engine": name, "precision": precision, "p50_ms": p50_ms, "ratio_to_torch_eager": 2.0, "ratio_low": 1.9,
            "ratio_high": 2.1, "verdict": verdict}  # fmt: skip


def test_the_last_float_and_the_last_int8_stage_have_the_latency_of_their_fastest_engine(
    bench_tool: Callable[[str], ModuleType],
) -> None:
    report = {
        "stages": [stage("teacher"), stage("student"), stage("int8 (PTQ)", 2.0), stage("int8 (QAT)", 1.0)],
        "engines": [
            engine("torch-eager", "fp32", 0.1), engine("openvino", "fp32", 0.5), engine("onnxruntime", "fp32", 0.4),
            engine("openvino", "int8", 0.3, "NOISY"),
        ],
        "machine": {"cpu": "a chip", "cores": 2}, "created": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    lines = bench_tool("readme_tables").summary(report).splitlines()
    teacher, student, ptq, qat = lines[2:6]
    assert teacher.endswith("| – | – |")
    assert "| reference |" in student
    assert "onnxruntime fp32, 0.400 ms | 2.00× (1.90 to 2.10)" in student
    assert ptq.endswith("| – | – |")
    assert "| +1.00 (+0.50 to +1.50) |" in qat
    assert "openvino int8, 0.300 ms" in qat
    assert lines[-1] == "Latencies: a chip, 2 cores, 2026-01-02, verdict NOISY."


def test_a_page_that_is_not_current_is_an_error(
    bench_tool: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tool = bench_tool("readme_tables")
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- summary: clothing10 -->\n<!-- end -->\nb\n")
    monkeypatch.setattr(tool, "PAGES", (page,))
    assert tool.main(["--check"]) == 1
    assert "page.md" in capsys.readouterr().err
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
    assert page.read_text().startswith("a\n<!-- summary: clothing10 -->\n\n| Model |")
    assert page.read_text().endswith("<!-- end -->\nb\n")
