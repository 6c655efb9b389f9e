"""Records that measurements produce and that reports, gates and manifests carry."""

from __future__ import annotations

from typing import Any

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records: immutable and JSON-ready."""


class StageScore(Record, frozen=True):
    """What one model of the way from teacher to int8 scores on the evaluation set."""

    stage: str  # teacher | student | pruned | int8; where QAT ran: int8 (PTQ), int8 (QAT)
    top1: float | None  # 0..1; None without labels
    n: int
    params: int
    macs: int
    size_bytes: int
    top1_low: float | None = None  # Wilson interval at `confidence`
    top1_high: float | None = None
    ece: float | None = None
    agreement: float | None = None  # share of images with the float student's label
    drop_pts: float | None = None  # against the float student, paired; positive is worse
    drop_low_pts: float | None = None
    drop_high_pts: float | None = None
    lost: int | None = None  # images that the float student gets right and this model gets wrong
    gained: int | None = None  # the other way round: with `n`, enough to compute the drop's interval again
    cosine: float | None = None  # mean over images, of the embedding to the float student's; None when widths differ
    per_class: dict[str, float] = {}
    confidence: float = 0.95


class EngineLatency(Record, frozen=True):
    """Latency of one graph on one engine of one machine, interleaved with the other graphs and torch eager fp32."""

    engine: str
    precision: str
    p50_ms: float
    n: int
    ratio_to_torch_eager: float | None  # torch time / engine time: larger is faster; None: there was no torch
    p90_ms: float | None = None
    p90_high_ms: float | None = None  # upper end of its 95 % interval
    p99_ms: float | None = None
    scheme: str = ""
    verdict: str = ""  # TRUSTED | NOISY | INVALID: whether the machine was quiet enough
    ratio_low: float | None = None
    ratio_high: float | None = None
    size_bytes: int = 0
    cosine: float | None = None  # to the float student's logits on evaluation images
    top1: float | None = None  # 0..1, of this very engine file; None when only its stage was scored
    chosen: bool = False
    reason: str = ""


class ProfileSummary(Record, frozen=True):
    """One profile that a bundle carries: where it lies, what it was measured on, and its main figures."""

    file: str  # profiles/<machine>.json, with a page of the same name beside it
    device: str
    engine: str
    precision: str
    scenario: str
    verdict: str
    p50_ms: float
    n: int
    created: str
    p90_ms: float | None = None
    p99_ms: float | None = None


class GateVerdict(Record, frozen=True):
    """One limit, the value that was measured, and whether the value was shown to meet it."""

    gate: str  # max_drop_pts | p90_ms | size_mib | min_agreement
    limit: float
    value: float | None
    passed: bool
    note: str = ""


class Report(Record, frozen=True):
    """Everything that `report.json` holds; `report.html` and `report.md` are drawn from it."""

    name: str
    target: str
    created: str
    stages: tuple[StageScore, ...]
    engines: tuple[EngineLatency, ...]
    gates: tuple[GateVerdict, ...]
    machine: dict[str, Any] = {}
    data: dict[str, Any] = {}
    curves: dict[str, list[dict[str, float]]] = {}  # stage -> one row an epoch
    history: list[dict[str, Any]] = []
    attention: list[dict[str, Any]] = []  # both exported forms, measured
    int8_evidence: dict[str, Any] = {}  # per-op times, when int8 gains less than 2x
    figures: list[str] = []  # PNG files beside the report
    notes: list[str] = []
