"""The timeline: held against the rules of the Trace Event Format, and equal to what it was given."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edgemae.profiling.output.chrome_trace import Marks, Spans, chrome_trace
from edgemae.profiling.records import Layer, Layers
from edgemae.spec.errors import InternalError

BOOT = 2**60 + 1  # ns: a float64 would lose the last 7 bits
SPANS = Spans(
    names=["pre 0", "infer 0", "pre 1", "infer 1"],
    start_ns=[BOOT, BOOT + 1_500, BOOT + 9_000, BOOT + 10_000],
    duration_ns=[1_500, 4_001, 1_000, 4_000],
    tracks=["pre", "infer", "pre", "infer"],
)
# Phase -> fields that it must have, from "Trace Event Format" (Chromium).
REQUIRED = {
    "X": {"name": str, "cat": str, "ts": float, "dur": float, "pid": int, "tid": int},
    "i": {"name": str, "ts": float, "pid": int, "tid": int, "s": str},
    "M": {"name": str, "pid": int, "args": dict},
}


def layers() -> Layers:
    rows = [("blocks.0.attn.qkv", "Gemm", 0.2), ("blocks.0.attn", "Split", 0.1), ("blocks.0.attn", "MatMul", 0.3)]
    return Layers(
        rows=tuple(
            Layer(name=f"n{i}", module=module, kind=kind, precision="fp32", ms=ms, macs=None if i == 1 else 100)
            for i, (module, kind, ms) in enumerate(rows)
        ),
        infer_ms=0.6, instrumented_ms=0.9, overhead=0.5, unmapped_share=0.0, peak_gmacs={}, peak_gbytes=0.0, runs=30,
    )  # fmt: skip


def events(data: bytes) -> list[dict[str, Any]]:
    """Return the events of a trace that keeps to the format; fail for any other."""
    trace = json.loads(data)
    assert trace["displayTimeUnit"] in ("ms", "ns")
    found: list[dict[str, Any]] = trace["traceEvents"]
    for event in found:
        for field, kind in REQUIRED[event["ph"]].items():
            assert isinstance(event[field], kind), (field, event)
        assert event.get("dur", 0) >= 0
        assert event.get("ts", 0) >= 0
        assert event["ph"] != "i" or event["s"] in ("g", "p", "t")
        assert event["ph"] != "M" or event["name"] in ("process_name", "thread_name")
    return found


def test_frames_are_spans_on_the_track_of_their_stage() -> None:
    found = events(chrome_trace(SPANS))
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in found if e["name"] == "thread_name"}
    spans = [(e["name"], names[e["pid"], e["tid"]], e["ts"], e["dur"]) for e in found if e["ph"] == "X"]
    assert spans == [
        ("pre 0", "pre", 0.0, 1.5), ("infer 0", "infer", 1.5, 4.001), ("pre 1", "pre", 9.0, 1.0),
        ("infer 1", "infer", 10.0, 4.0),
    ]  # fmt: skip


def test_interference_is_marked_on_the_clock_of_the_frames() -> None:
    found = events(chrome_trace(SPANS, Marks(["switched out", "slow canary"], [BOOT - 500, BOOT + 2_000])))
    assert [(e["name"], e["ts"]) for e in found if e["ph"] == "i"] == [("switched out", 0.0), ("slow canary", 2.5)]
    assert min(e["ts"] for e in found if e["ph"] == "X") == 0.5


def test_layers_follow_one_another_inside_their_module() -> None:
    found = events(chrome_trace(SPANS, layers=layers()))
    rows = [e for e in found if e.get("cat") == "layer"]
    for before, after in pairwise(rows):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"])
    assert sum(e["dur"] for e in rows) == pytest.approx(600)
    assert [e["args"].get("macs") for e in rows] == [100, None, 100]
    modules = [(e["name"], e["ts"], e["dur"]) for e in found if e.get("cat") == "module"]
    assert modules == [
        ("blocks.0.attn.qkv", 0, pytest.approx(200)), ("blocks.0.attn", pytest.approx(200), pytest.approx(400)),
    ]  # fmt: skip
    assert {e["pid"] for e in rows}.isdisjoint({e["pid"] for e in found if e.get("cat") == "stage"})


def test_nothing_at_all_is_still_a_trace() -> None:
    assert [e["ph"] for e in events(chrome_trace(Spans([], [], [], [])))] == ["M"]


@pytest.mark.parametrize(
    "spans",
    [Spans(["a"], [1, 2], [1], ["t"]), Spans(["a"], [1], [], ["t"]), Spans(["a"], np.array([1]), np.array([1]), [])],
)
def test_columns_of_other_lengths_are_refused(spans: Spans) -> None:
    with pytest.raises(InternalError, match="different lengths"):
        chrome_trace(spans)
