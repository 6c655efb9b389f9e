"""The accuracy of everything that a compile makes, as cached stages: float models by torch, graphs by their engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgemae.device.engines import open_session
from edgemae.device.hardware.cpu_features import machine_facts
from edgemae.evaluation.accuracy import Predictions, Run, cosine, score
from edgemae.evaluation.evaluate import predictions, torch_run
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import count_macs, count_params
from edgemae.pipeline.benchmark import LOCAL
from edgemae.pipeline.candidate_graphs import Candidate, versions
from edgemae.pipeline.stage_files import ModelFile, save_array
from edgemae.pipeline.training_stages import StageContext
from edgemae.spec.graph import PixelContract
from edgemae.spec.report import StageScore
from edgemae.spec.target import Target

PARTS = ("logits", "embedding", "labels")


def score_models(
    context: StageContext, models: dict[str, tuple[ModelFile, Teacher | Student]]
) -> tuple[list[StageScore], dict[str, Predictions]]:
    """Return the score of each float model against the one named `student`, and its predictions, by name."""
    found, scores = {}, []
    for stage, (file, model) in models.items():
        found[stage] = torch_predictions(context, stage, file, model)
        reference = found.get("student") if stage != "student" else None
        scores.append(score(
            stage, found[stage], reference, params=count_params(model.vit), macs=count_macs(model.vit.shape),
            size_bytes=4 * count_params(model.vit), label_names=context.inputs.classes,
            confidence=context.plan.gates.confidence,
        ))  # fmt: skip
    return scores, found


def score_candidates(
    context: StageContext, target: Target, student: Student, candidates: list[Candidate], reference: Predictions
) -> tuple[dict[str, StageScore], dict[str, Predictions]]:
    """Return the score of each candidate through its engine, against a float student's predictions, and its own."""
    scores, found = {}, {}
    for candidate in candidates:
        found[candidate.name] = engine_predictions(context, candidate, target, student.pixel)
        scores[candidate.name] = score(
            candidate.stage, found[candidate.name], reference,
            params=count_params(student.vit), macs=count_macs(student.vit.shape),
            size_bytes=candidate.graph.size_bytes, label_names=context.inputs.classes,
            confidence=context.plan.gates.confidence,
        )  # fmt: skip
    return scores, found


def with_cosine(
    scores: dict[str, StageScore], found: dict[str, Predictions], source: Predictions
) -> dict[str, StageScore]:
    """Return scores whose cosine is to the weights that the graphs were made from, not to the float student."""
    return {
        name: msgspec.structs.replace(row, cosine=float(cosine(found[name].embedding, source.embedding).mean()))
        for name, row in scores.items()
    }


def torch_predictions(context: StageContext, name: str, file: ModelFile, model: Teacher | Student) -> Predictions:
    """Return what a float model predicts for the evaluation images, run by torch."""
    key = {"from": file.digest, "tools": versions("torch")}
    return _predictions(context, name, key, lambda: torch_run(model.vit), model.pixel, "float32", 32)


def engine_predictions(
    context: StageContext, candidate: Candidate, target: Target, pixel: PixelContract
) -> Predictions:
    """Return what a graph predicts through the engine that ships it; a TensorRT graph runs on ONNX Runtime here."""
    engine = candidate.engine if candidate.engine in LOCAL.machine.engines else "onnxruntime"
    key = {"graph": candidate.digest, "engine": engine, "target": msgspec.to_builtins(target),
           "machine": machine_facts(), "tools": versions(engine)}  # fmt: skip
    dtype = candidate.graph.io.dtype
    return _predictions(
        context, candidate.name, key, lambda: open_session(engine, candidate.graph.files, target), pixel, dtype, 1
    )


def _predictions(
    context: StageContext,
    name: str,
    key: dict[str, Any],
    run: Callable[[], Run],
    pixel: PixelContract,
    dtype: str,
    batch: int,
) -> Predictions:
    images = context.inputs.evaluation

    def make(folder: Path) -> None:
        found = predictions(run(), images, pixel, dtype=dtype, batch=batch, workers=context.plan.workers)
        for part in PARTS:
            if getattr(found, part) is not None:
                save_array(folder / f"{part}.npy", getattr(found, part))

    key = {**key, "evaluation": images.fingerprint, "pixel": msgspec.to_builtins(pixel)}
    folder = context.work.run(f"scores-{name}", key, make)
    return Predictions(*(np.load(file) if (file := folder / f"{part}.npy").exists() else None for part in PARTS))  # type: ignore[arg-type]
