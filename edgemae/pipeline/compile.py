"""The whole way on one page: teacher -> student -> pruned -> graphs -> int8 -> measured -> chosen -> bundle."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgemae.evaluation.accuracy import Predictions, cosine, judge, score
from edgemae.evaluation.report.report import write_report
from edgemae.model.student import Student, load_student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT, ViTShape, count_macs, count_params
from edgemae.pipeline.benchmark import HERE, Bench
from edgemae.pipeline.candidate_graphs import (
    Candidate,
    all_candidates,
    engine_predictions,
    latencies,
    rehearsals,
    torch_predictions,
)
from edgemae.pipeline.datasets import gather
from edgemae.pipeline.packaging import baseline_stats, bundle_readme, now, pack, report_files
from edgemae.pipeline.preflight import check_ahead, check_bench, check_images
from edgemae.pipeline.qat_stage import before_tail, tail
from edgemae.pipeline.report_figures import pictures
from edgemae.pipeline.selection import choose, table, unmeasured
from edgemae.pipeline.stage_cache import check_output
from edgemae.pipeline.training_stages import (
    Flow,
    distilled,
    extracted,
    finetuned,
    is_student,
    open_flow,
    pretrained,
    pruned,
    read_curves,
    read_teacher,
)
from edgemae.profiling.layers.layer_profile import by_kind, profile_layers
from edgemae.spec.bundle import Manifest, write_bundle
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_loading import plan_tree
from edgemae.spec.plan_schema import Plan
from edgemae.spec.report import EngineLatency, GateVerdict, Report, StageScore
from edgemae.spec.target import Target

log = logging.getLogger("edgemae")
EXPECTED_GAIN = 2.0  # int8 over float on one engine; below it the report shows where the time goes


@dataclass(frozen=True)
class Models:
    """Model files of one compile. `source` is the teacher as given, `finetuned` the one with a head."""

    source: Path | None
    finetuned: Path | None
    student: Path
    pruned: Path
    tail: Path | None = None  # for int8 only

    @property
    def files(self) -> list[Path]:
        made = (self.source, self.finetuned, self.student, self.pruned, self.tail)
        return list(dict.fromkeys(path for path in made if path is not None))


@dataclass(frozen=True)
class Built:
    """One finished bundle with its report and verdicts."""

    bundle: Path
    report: Report
    gates: tuple[GateVerdict, ...]


def build(
    plan: Plan, targets: list[Target], source: Path | None, output: Path, bench: Bench = HERE, *,
    overwrite: bool = False, resume: bool = False,
) -> list[Built]:  # fmt: skip
    """Go the whole way from a teacher (None: pretrain one), or from a student, to one bundle for each target.

    Candidates are measured on `bench`; everything else is done on this machine.
    Every stage is kept in `output` and is not done again. Raises the error tree of `edgemae.spec.errors`; missed gates
    are no error here: they are in the result, and the bundle is marked failed.
    """
    begin = check_ahead(plan, targets, source)
    check_bench(bench, targets)
    flow = open_flow(plan, output, overwrite=overwrite, resume=resume, reads=_read(begin))
    check_images(plan, targets, begin, flow.inputs, bench, scratch=source is None)
    models = train(flow, source, max(target.width_multiple for target in targets))
    return [finish(flow, models, target, output, bench, alone=len(targets) == 1) for target in targets]


def dry_run(
    plan: Plan, targets: list[Target], source: Path | None, output: Path, bench: Bench = HERE, **flags: bool
) -> dict[str, Any]:
    """Check all that can be known before the first expensive step and return it; nothing is written."""
    begin = check_ahead(plan, targets, source)
    check_bench(bench, targets)
    check_output(output, **flags)
    inputs = gather(plan, reads=_read(begin))
    check_images(plan, targets, begin, inputs, bench, scratch=source is None)
    return {"plan": plan_tree(plan), "targets": [target.name for target in targets], "data": inputs.summary()}


def _read(begin: Teacher | Student) -> ViTShape | None:
    """Return the shape of the student that is compiled, where it is there already."""
    return begin.vit.shape if isinstance(begin, Student) else None


def train(flow: Flow, source: Path | None, width_multiple: int) -> Models:
    """Return the model files, training what is missing."""
    if source is not None and is_student(source):
        return Models(None, None, source, pruned(flow, source, None, width_multiple))
    source = source or pretrained(flow, None)
    teacher = read_teacher(source, flow.plan)
    finetuned_path = source if teacher.vit.head is not None and teacher.labels == flow.inputs.classes else None
    if finetuned_path is None and flow.inputs.labelled is not None:
        finetuned_path = finetuned(flow, source)
    student = extracted(flow, distilled(flow, source, finetuned_path))
    return Models(source, finetuned_path, student, pruned(flow, student, finetuned_path, width_multiple))


def finish(flow: Flow, models: Models, target: Target, output: Path, bench: Bench, *, alone: bool) -> Built:
    """Measure candidates for one target, choose, judge the gates, and write report and bundle."""
    plan = flow.plan
    student = load_student(models.pruned)
    found = all_candidates(flow, target, models.pruned)
    stages, scores, predictions = evaluate(flow, models, target, found)
    trained, more = tail(flow, target, models.pruned, models.finetuned, found, scores)
    if trained is not None:
        models, stages = replace(models, tail=trained), (*stages, before_tail(found, scores))
        found += more
        scores |= evaluate(flow, models, target, more)[1]
    taken = latencies(flow, target, models.pruned, found, bench)
    choices, latency = choose(target, plan.quantize, found, scores, taken, bench.machine), taken.rows
    engines = table(choices, scores, latency, len(target.engines))
    stages = (*stages, *_int8_stage(choices[0].candidate, [choices[0].candidate, *(more or found)], scores, latency))
    history = load_student(trained).history if trained and choices[0].candidate.aware else student.history
    packed = pack(choices, target, student.pixel, flow.inputs.calibration, plan.seed)
    rows = (*engines, *unmeasured(choices, latency, len(target.engines)))
    unlike = bench.machine.mismatch(target)
    gates = _verdicts(plan, stages, rows, unlike, sum(map(len, packed.files.values())))
    name = plan.name if alone else f"{plan.name}-{target.name}"
    report = Report(
        name=name, target=target.name, created=now(), stages=stages, engines=engines, gates=gates,
        machine=bench.machine.fingerprint, data=flow.inputs.summary(), curves=read_curves(*models.files),
        history=[msgspec.to_builtins(step) for step in history], attention=_attention(found, latency),
        int8_evidence=_evidence(target, found, latency, unlike) if bench is HERE else {},
        notes=_notes(target, models, bench) + rehearsals(flow, target, found),
    )  # fmt: skip
    folder = output if alone else output / target.name
    write_report(report, folder, pictures(flow, models.source, predictions))
    manifest = Manifest(
        name=name, version=plan.version, created=report.created, target=target, io=choices[0].candidate.graph.io,
        status="passed" if all(g.passed for g in gates) else "failed", pixel=student.pixel, variants=packed.variants,
        golden=packed.golden, labels=student.labels, history=history, gates=gates, latency=engines,
        machine=report.machine, licence=_licence(models, student, plan),
        baseline_stats=baseline_stats(predictions["pruned"].logits, predictions["pruned"].embedding),
    )  # fmt: skip
    files = packed.files | report_files(folder) | {"README.md": bundle_readme(manifest)}
    return Built(write_bundle(folder / f"{name}.edgemae", manifest, files), report, gates)


def evaluate(
    flow: Flow, models: Models, target: Target, found: list[Candidate]
) -> tuple[tuple[StageScore, ...], dict[str, StageScore], dict[str, Predictions]]:
    """Return the float stages in order, the score of every candidate by name, and the predictions behind them."""
    predictions: dict[str, Predictions] = {}
    stages: list[StageScore] = []
    labels = flow.inputs.classes

    def add(stage: str, path: Path, vit: ViT, pixel: PixelContract, reference: Predictions | None) -> Predictions:
        predictions[stage] = torch_predictions(flow, stage, path, vit, pixel)
        stages.append(score(
            stage, predictions[stage], reference, params=count_params(vit), macs=count_macs(vit.shape),
            size_bytes=4 * count_params(vit), label_names=labels, confidence=flow.plan.gates.confidence,
        ))  # fmt: skip
        return predictions[stage]

    teacher_path = models.finetuned or models.source
    if teacher_path is not None:
        teacher = read_teacher(teacher_path, flow.plan)
        add("teacher", teacher_path, teacher.vit, teacher.pixel, None)
    first, last = load_student(models.student), load_student(models.pruned)
    reference = add("student", models.student, first.vit, first.pixel, None)
    add("pruned", models.pruned, last.vit, last.pixel, reference)
    scores = {}
    for candidate in found:
        said = engine_predictions(flow, candidate, target, last.pixel)
        scores[candidate.name] = score(
            "int8" if candidate.graph.precision == "int8" else "float", said, reference, params=count_params(last.vit),
            macs=count_macs(last.vit.shape), size_bytes=candidate.graph.size_bytes, label_names=labels,
            confidence=flow.plan.gates.confidence,
        )  # fmt: skip
        # Beside the stage's figures against the float student: how near the graph is to the weights it was made from.
        nearness = float(cosine(said.embedding, predictions["pruned"].embedding).mean())
        scores[candidate.name] = msgspec.structs.replace(scores[candidate.name], cosine=nearness)
        predictions[candidate.name] = said
    return tuple(stages), scores, predictions


# ---------------------------------------------------------------- parts of the report


def _int8_stage(
    first: Candidate, found: list[Candidate], scores: dict[str, StageScore], latency: dict[str, EngineLatency]
) -> tuple[StageScore, ...]:
    """Return the stage row of the int8 graph that ships, or else of the fastest one of the first engine."""
    eights = [c for c in found if c.graph.precision == "int8"]
    if not eights:
        return ()
    mine = [c for c in eights if c.engine == first.engine] or eights
    shown = first if first in mine else min(mine, key=lambda c: latency[c.name].p50_ms if c.name in latency else 0.0)
    return (scores[shown.name],)


def _verdicts(
    plan: Plan, stages: tuple[StageScore, ...], engines: tuple[EngineLatency, ...], unlike: str, size: int
) -> tuple[GateVerdict, ...]:
    """Return the gates' verdicts; a latency that was taken on other arithmetic than the target's shows nothing."""
    if not unlike:
        return judge(plan.gates, stages, engines, size)
    found = judge(plan.gates, stages, [msgspec.structs.replace(e, p90_ms=None) for e in engines], size)
    return tuple(
        msgspec.structs.replace(g, note=f"{g.note}: {unlike}; profile on the device") if g.gate == "p90_ms" else g
        for g in found
    )


def _attention(found: list[Candidate], latency: dict[str, EngineLatency]) -> list[dict[str, Any]]:
    """Return both exported forms of attention as measured on each engine, the faster one marked."""
    floats = [c for c in found if c.graph.precision == "fp32" and c.name in latency]
    fastest = {
        e: min((c for c in floats if c.engine == e), key=lambda c: latency[c.name].p50_ms)
        for e in {c.engine for c in floats}
    }
    return [
        {
            "engine": c.engine, "form": c.form, "p50_ms": latency[c.name].p50_ms, "n": latency[c.name].n,
            "ratio_to_torch_eager": latency[c.name].ratio_to_torch_eager, "chosen": c is fastest[c.engine],
        }
        for c in floats
    ]  # fmt: skip


def _evidence(target: Target, found: list[Candidate], latency: dict[str, EngineLatency], unlike: str) -> dict[str, Any]:
    """Return shares of time by operator, float beside int8, for engines where int8 gains less than EXPECTED_GAIN."""
    evidence: dict[str, Any] = {}
    for engine in target.engines:
        mine = [c for c in found if c.engine == engine and c.name in latency]
        floats = [c for c in mine if c.graph.precision == "fp32"]
        eights = [c for c in mine if c.graph.precision == "int8"]
        if not floats or not eights:
            continue
        best, eight = (min(part, key=lambda c: latency[c.name].p50_ms) for part in (floats, eights))
        gain = latency[best.name].p50_ms / latency[eight.name].p50_ms
        if gain >= EXPECTED_GAIN:
            continue
        pixels = np.zeros(best.graph.io.inputs[0].shape, best.graph.io.dtype)
        evidence[engine] = {
            "int8_gain": round(gain, 3),
            "why": unlike or "share of time by operator, float beside int8",
            "float": by_kind(profile_layers(engine, best.graph.files, target, pixels, limits=False)),
            "int8": by_kind(profile_layers(engine, eight.graph.files, target, pixels, limits=False)),
        }
    return evidence


def _notes(target: Target, models: Models, bench: Bench) -> list[str]:
    notes = [] if bench is HERE else [f"Latencies were measured on {bench.name}, where there is no torch."]
    if unlike := bench.machine.mismatch(target):
        notes.append(f"Latencies do not speak for {target.title}: {unlike}. Profile the bundle on the device.")
    if models.pruned == models.student:
        notes.append("Pruning was off: the pruned stage is the student itself.")
    return notes


def _licence(models: Models, student: Student, plan: Plan) -> str:
    if models.source is not None:
        return read_teacher(models.source, plan).licence
    return next((step.licence for step in student.history if step.licence), "unknown")
