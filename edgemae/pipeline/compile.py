"""The way of a compile on one page: a teacher or a student and images in, one measured bundle for each target out."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edgemae.evaluation.accuracy import Predictions
from edgemae.evaluation.gates import status_of
from edgemae.evaluation.report.report import write_report
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViTShape
from edgemae.pipeline import report_data
from edgemae.pipeline.benchmark import LOCAL, Benchmark, latencies
from edgemae.pipeline.candidate_graphs import Candidate, all_candidates, build_checks
from edgemae.pipeline.datasets import gather
from edgemae.pipeline.finished_bundle import BUNDLE, publish
from edgemae.pipeline.packaging import baseline_stats, bundle_readme, now, pack, report_files
from edgemae.pipeline.preflight import check_benchmark, check_images, check_models
from edgemae.pipeline.qat_stage import ptq_row, qat_stage
from edgemae.pipeline.report_figures import report_figures
from edgemae.pipeline.scoring import score_candidates, score_models, with_cosine
from edgemae.pipeline.selection import choose, latency_table, unmeasured_rows
from edgemae.pipeline.stage_cache import check_output, digest_of
from edgemae.pipeline.stage_files import ModelFile
from edgemae.pipeline.training_stages import (
    StageContext,
    distill_stages,
    extract_stage,
    finetune_stage,
    open_stage_context,
    pretrain_stage,
    prune_stage,
    read_curves,
)
from edgemae.spec.bundle import write_bundle
from edgemae.spec.manifest import Manifest
from edgemae.spec.plan_loading import plan_tree
from edgemae.spec.plan_schema import Plan
from edgemae.spec.report import GateVerdict, Report, StageScore
from edgemae.spec.target import Target


@dataclass(frozen=True)
class Models:
    """Model files of one compile. `source` is the teacher as given, `finetuned` the one with a head, `qat` for int8."""

    source: ModelFile | None
    finetuned: ModelFile | None
    student: ModelFile
    pruned: ModelFile
    qat: ModelFile | None = None

    @property
    def files(self) -> list[ModelFile]:
        """Return every model file once, in the order of the way."""
        files = (self.source, self.finetuned, self.student, self.pruned, self.qat)
        return list({file.path: file for file in files if file is not None}.values())


@dataclass(frozen=True)
class AccuracyResults:
    """Candidates of one target with the stage rows, scores and predictions behind every decision."""

    candidates: list[Candidate]
    stages: tuple[StageScore, ...]
    scores: dict[str, StageScore]
    predictions: dict[str, Predictions]
    trained: list[Candidate]  # those of quantization-aware training


@dataclass(frozen=True)
class CompileResult:
    """One finished bundle with its report and verdicts."""

    bundle: Path
    report: Report
    gates: tuple[GateVerdict, ...]


def compile_bundles(
    plan: Plan, targets: list[Target], source: Path | None, output: Path, benchmark: Benchmark = LOCAL, *,
    overwrite: bool = False, resume: bool = False,
) -> list[CompileResult]:  # fmt: skip
    """Go the whole way from a teacher (None: pretrain one), or from a student, to one bundle for each target.

    Candidates are measured on `benchmark`; everything else is done on this machine.
    Every stage is kept in `output` and is not done again. Raises the error tree of `edgemae.spec.errors`; missed gates
    are no error here: they are in the result, and the bundle is marked failed.
    """
    file = _model_file(plan, source)
    begin = check_models(plan, targets, file)
    check_benchmark(benchmark, targets)
    context = open_stage_context(plan, output, overwrite=overwrite, resume=resume, reads=_shape_read(begin))
    check_images(plan, targets, begin, context.inputs, benchmark, scratch=source is None)
    models = train(context, file, max(target.width_multiple for target in targets))
    return [finish(context, models, target, output, benchmark, alone=len(targets) == 1) for target in targets]


def dry_run(
    plan: Plan, targets: list[Target], source: Path | None, output: Path, benchmark: Benchmark = LOCAL, **flags: bool
) -> dict[str, Any]:
    """Check all that can be known before the first expensive step and return it; nothing is written."""
    begin = check_models(plan, targets, _model_file(plan, source))
    check_benchmark(benchmark, targets)
    check_output(output, **flags)
    inputs = gather(plan, reads=_shape_read(begin))
    check_images(plan, targets, begin, inputs, benchmark, scratch=source is None)
    return {"plan": plan_tree(plan), "targets": [target.name for target in targets], "data": inputs.summary()}


def train(context: StageContext, source: ModelFile | None, width_multiple: int) -> Models:
    """Return the model files, training what is missing."""
    if source is not None and source.is_student:
        return Models(None, None, source, prune_stage(context, source, None, width_multiple))
    source = source or pretrain_stage(context, None)
    teacher, classes = source.teacher, context.inputs.classes
    finetuned = source if teacher.vit.head is not None and teacher.labels == classes else None
    if finetuned is None and context.inputs.labelled is not None:
        finetuned = finetune_stage(context, source)
    student = extract_stage(context, distill_stages(context, source, finetuned))
    return Models(source, finetuned, student, prune_stage(context, student, finetuned, width_multiple))


def finish(
    context: StageContext, models: Models, target: Target, output: Path, benchmark: Benchmark, *, alone: bool
) -> CompileResult:
    """Measure candidates for one target, choose, evaluate the gates, and write report and bundle."""
    plan, student = context.plan, models.pruned.student
    models, measured = measure_accuracy(context, models, target)
    candidates, scores = measured.candidates, measured.scores
    measurements = latencies(context, target, models.pruned, candidates, benchmark)
    choices = choose(target, plan.quantize, candidates, scores, measurements, benchmark.machine)
    latency, best = measurements.rows, choices[0].candidate
    engines = latency_table(choices, scores, latency, len(target.engines))
    stages = (*measured.stages, *report_data.int8_row(best, [best, *(measured.trained or candidates)], scores, latency))
    history = models.qat.student.history if models.qat and best.is_qat else student.history
    mismatch = benchmark.machine.mismatch(target)
    rows = (*engines, *unmeasured_rows(choices, latency, len(target.engines)))
    name = plan.name if alone else f"{plan.name}-{target.name}"

    def make(folder: Path) -> None:
        packed = pack(choices, target, student.pixel, context.inputs.calibration, plan.seed)
        gates = report_data.gate_verdicts(plan, stages, rows, mismatch, sum(map(len, packed.files.values())))
        report = Report(
            name=name, target=target.name, created=now(), stages=stages, engines=engines, gates=gates,
            machine=benchmark.machine.fingerprint, data=context.inputs.summary(), curves=read_curves(*models.files),
            history=[msgspec.to_builtins(step) for step in history],
            attention=report_data.attention_rows(candidates, latency),
            int8_evidence=report_data.int8_evidence(target, candidates, latency, mismatch)
            if benchmark is LOCAL else {},
            notes=report_data.notes(target, benchmark, pruned=models.pruned is not models.student)
            + build_checks(context, target, candidates),
        )  # fmt: skip
        shutil.rmtree(folder / "figures", ignore_errors=True)
        write_report(report, folder, report_figures(context, models.source, measured.predictions))
        pruned = measured.predictions["pruned"]
        manifest = Manifest(
            name=name, version=plan.version, created=report.created, target=target, io=best.graph.io,
            status=status_of(gates), pixel=student.pixel,
            variants=packed.variants, golden=packed.golden, labels=student.labels, history=history, gates=gates,
            latency=engines, machine=report.machine, licence=_licence(models),
            baseline_stats=baseline_stats(pruned.logits, pruned.embedding),
        )  # fmt: skip
        files = packed.files | report_files(folder) | {"README.md": bundle_readme(manifest)}
        write_bundle(folder / BUNDLE, manifest, files, as_zip=True)

    asked = {name: value for name, value in plan_tree(plan).items() if name not in ("data", "workers", "scale")}
    decided = {
        "plan": asked, "target": target, "latency": measurements, "stages": stages, "data": context.inputs.summary(),
        "machines": (benchmark.name, benchmark.machine, LOCAL.machine),
    }  # fmt: skip
    key = context.key(
        name=name, models=[file.digest for file in models.files], graphs=[[c.name, c.digest] for c in candidates],
        calibration=context.inputs.calibration.fingerprint, evaluation=context.inputs.evaluation.fingerprint,
        decided=digest_of(msgspec.to_builtins(decided)),
    )  # fmt: skip
    stage = context.work.run(f"bundle-{target.name}", key, make)
    bundle, report = publish(stage, output if alone else output / target.name, name)
    return CompileResult(bundle, report, report.gates)


def measure_accuracy(context: StageContext, models: Models, target: Target) -> tuple[Models, AccuracyResults]:
    """Score the float stages and every candidate, those of quantization-aware training too where it runs."""
    student, candidates = models.pruned.student, all_candidates(context, target, models.pruned)
    teacher = models.finetuned or models.source
    stages: dict[str, tuple[ModelFile, Teacher | Student]] = {"teacher": (teacher, teacher.teacher)} if teacher else {}
    stages |= {"student": (models.student, models.student.student), "pruned": (models.pruned, student)}
    rows, predictions = score_models(context, stages)

    def scored(graphs: list[Candidate]) -> dict[str, StageScore]:
        found, predicted = score_candidates(context, target, student, graphs, predictions["student"])
        predictions.update(predicted)
        return with_cosine(found, predicted, predictions["pruned"])

    scores = scored(candidates)
    qat, trained = qat_stage(context, target, models.pruned, models.finetuned, candidates, scores)
    if qat is not None:
        rows.append(ptq_row(candidates, scores))
        scores |= scored(trained)
    return replace(models, qat=qat), AccuracyResults([*candidates, *trained], tuple(rows), scores, predictions, trained)


def _model_file(plan: Plan, path: Path | None) -> ModelFile | None:
    return None if path is None else ModelFile.of(path, plan)


def _shape_read(begin: Teacher | Student) -> ViTShape | None:
    """Return the shape of the student that is compiled, where it is there already."""
    return begin.vit.shape if isinstance(begin, Student) else None


def _licence(models: Models) -> str:
    """Return the licence of the teacher's weights, which the bundle inherits."""
    if models.source is not None:
        return models.source.teacher.licence
    return next((step.licence for step in models.pruned.student.history if step.licence), "unknown")
