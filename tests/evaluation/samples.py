"""A report as a real compile leaves it, with a class name and notes that try to break out of HTML and Markdown."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemae.evaluation.accuracy import Predictions, score
from edgemae.evaluation.gates import evaluate_gates
from edgemae.spec.plan_schema import GatePlan
from edgemae.spec.report import EngineLatency, Report, StageScore

HOSTILE = '<script>alert("1|2")</script>'
NAMES = (HOSTILE, "hat", "shoe", "スカート")


def scored(labelled: bool = True, n: int = 200) -> tuple[tuple[StageScore, ...], Predictions, Predictions]:
    """Return four stages, and the student's and the int8 model's predictions."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(NAMES), n)
    logits = rng.normal(size=(n, len(NAMES))) + 2.5 * np.eye(len(NAMES))[labels]
    embedding = rng.normal(size=(n, 8)).astype(np.float32)

    def model(noise: float, width: int = 8) -> Predictions:
        moved = (logits + noise * rng.normal(size=logits.shape)).astype(np.float32)
        return Predictions(moved, embedding[:, :width] * np.float32(1 + noise), labels if labelled else None)

    student, int8 = model(0.3), model(0.4)
    sizes: dict[str, Any] = {"params": 1_560_000, "macs": 197_000_000, "label_names": NAMES, "confidence": 0.95}
    stages = (
        score("teacher", model(0.1, 6), student, size_bytes=25_400_000, **sizes),
        score("student", student, None, size_bytes=7_350_000, **sizes),
        score("pruned", model(0.35), student, size_bytes=6_270_000, **sizes),
        score("int8", int8, student, size_bytes=1_910_000, **sizes),
    )
    return stages, student, int8


def engines() -> tuple[EngineLatency, ...]:
    def one(engine: str, precision: str, p50_ms: float, n: int, **rest: Any) -> EngineLatency:
        ratio = 6.3 / p50_ms
        return EngineLatency(
            engine=engine, precision=precision, p50_ms=p50_ms, p90_ms=p50_ms * 1.1, n=n,
            p90_high_ms=p50_ms * 1.12, ratio_to_torch_eager=ratio,
            ratio_low=ratio * 0.99, ratio_high=ratio * 1.01, size_bytes=2_000_000, **rest,
        )  # fmt: skip

    return (
        one(
            "openvino",
            "int8",
            1.31,
            800,
            scheme="static",
            p99_ms=1.9,
            cosine=0.9996,
            top1=0.9,
            chosen=True,
            reason="fastest",
        ),
        one("openvino", "fp32", 2.76, 800, reason="slower"),
        one("onnxruntime", "int8", 2.05, 300, scheme="dynamic", reason="second"),
        one("onnxruntime", "fp32", 3.04, 300, reason="third"),
        one("torch", "fp32", 6.3, 800, reason="reference"),
    )


def report(labelled: bool = True, gates: GatePlan | None = None, **fields: Any) -> Report:
    stages, _, _ = scored(labelled)
    limits = gates or GatePlan(max_drop_pts=0.1, p90_ms=2.0, size_mib=12.0, min_agreement=0.5)
    given: dict[str, Any] = {
        "name": "clothing & <b>more</b>",
        "target": "laptop-x86-vnni",
        "created": "2026-01-02 03:04 UTC",
        "stages": stages,
        "engines": engines(),
        "gates": evaluate_gates(limits, stages, engines(), 9_000_000),
        "machine": {"cpu": "some CPU", "cores": 2, "flags": ["avx2", "fma"], "libraries": {"openvino": "2026.4"}},
        "data": {"train": 3068, "skipped": [{"file": f"train/{HOSTILE}.jpg", "reason": "empty file"}]},
        "curves": {
            "distill": [{"epoch": float(i), "pixel": 1 / i, "relation": 3 / i**2} for i in range(1, 21)],
            "finetune": [{"epoch": i, "label": 2 / i} | ({"validation": 0.8} if i % 2 else {}) for i in range(1, 6)],
        },
        "history": [
            {"stage": "import", "licence": "CC-BY-NC-4.0", "tools": {"edgemae": "0.1"}, "seed": None},
            {"stage": "distill", "plan": {"epochs": 20, "finetune": {"lr": 0.1}}, "scores": {"top1": 0.9}, "seed": 0},
        ],
        "attention": [{"form": "fused", "p50_ms": 2.7}, {"form": "split", "p50_ms": 2.9, "note": "slower"}],
        "int8_evidence": {"ratio": 1.6, "ops": [{"op": "Softmax", "fp32_ms": 0.3, "int8_ms": 0.3}]},
        "notes": [f"A note with {HOSTILE}."],
    }
    return Report(**(given | fields))
