"""The graphs that a compile tries, as cached stages: ONNX in both forms of attention, and int8 of every scheme."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgemae.data.image_set import ImageSet
from edgemae.data.loader import Loader
from edgemae.device.engines import ENGINES
from edgemae.export.lint import lint
from edgemae.export.to_onnx import ATTENTION_FORMS, both_forms
from edgemae.export.uint8_input import take_uint8, with_uint8
from edgemae.pipeline.stage_files import ModelFile, graph_digest, load_graph, save_graph
from edgemae.pipeline.training_stages import StageContext
from edgemae.profiling.compare.graph_benchmark import Entry
from edgemae.quantize.calibrate import Calibration
from edgemae.quantize.fp16 import to_fp16
from edgemae.quantize.openvino_int8 import uint8_ir
from edgemae.quantize.range_search import QAT
from edgemae.quantize.schemes import ENGINE_SCHEMES, SCHEMES, schemes_for
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import EngineRuntimeError, MachineError
from edgemae.spec.graph import Graph, PixelContract, Scales
from edgemae.spec.plan_loading import plan_tree
from edgemae.spec.target import Target
from edgemae.version import __version__

log = logging.getLogger("edgemae")


@dataclass(frozen=True)
class Candidate:
    """One graph on one engine. `name` tells it apart; `form` is the exported form of attention."""

    engine: str
    graph: Graph
    form: str
    digest: str

    @property
    def is_qat(self) -> bool:
        """Return whether its scales were trained (quantization-aware training)."""
        return self.graph.scheme.endswith(QAT)

    @property
    def stage(self) -> str:
        """Return the name of its row among the stages of a report."""
        if self.graph.precision != "int8":
            return "float"
        return "int8 (QAT)" if self.is_qat else "int8"

    @property
    def entry(self) -> Entry:
        """Return the graph as it is listed for a measurement."""
        graph = self.graph
        return Entry(
            name=self.name, engine=self.engine, precision=graph.precision, scheme=graph.scheme or self.form,
            files=tuple(graph.files),
        )  # fmt: skip

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.engine, self.graph.precision, self.graph.scheme or self.form) if part)


# ---------------------------------------------------------------- graphs


def float_graphs(context: StageContext, source: ModelFile) -> dict[str, Graph]:
    """Return a student's float graph in every exported form of attention."""
    tokens = context.plan.export.tokens

    def make(folder: Path) -> None:
        student = source.student
        for form, graph in both_forms(student.vit, student.pixel, tokens=tokens, history=student.history).items():
            save_graph(folder, form, graph)

    key: dict[str, Any] = {"from": source.digest, "tools": versions("torch", "onnx")}
    key |= {"tokens": True} if tokens else {}  # graphs without them keep the key that they always had
    folder = context.work.run("graph", key, make)
    return {form: load_graph(folder, form) for form in ATTENTION_FORMS}


def int8_graph(
    context: StageContext, graph: Graph, scheme: str, pixel: PixelContract, scales: Scales | None = None
) -> Graph:
    """Return the int8 graph of one scheme, with `scales` where they are of its kind, else calibrated."""
    plan = context.plan.quantize

    def make(folder: Path) -> None:
        log.info("%s: %d calibration images", scheme, len(context.inputs.calibration))
        calibration = replace(calibration_of(context.inputs.calibration, pixel, context.plan.workers), scales=scales)
        save_graph(folder, "int8", SCHEMES[scheme](graph, calibration, plan))

    settings = {name: value for name, value in plan_tree(plan).items() if not name.startswith("qat")}
    key = {"scheme": scheme, "from": graph_digest(graph), "plan": settings, "seed": context.plan.seed,
           "calibration": context.inputs.calibration.fingerprint, "pixel": msgspec.to_builtins(pixel),
           "tools": versions("onnxruntime", "openvino", "nncf")}  # fmt: skip
    key |= {} if scales is None else {"scales": msgspec.to_builtins(scales)}
    return load_graph(context.work.run(f"int8-{scheme}", key, make), "int8")


def calibration_of(images: ImageSet, pixel: PixelContract, workers: int) -> Calibration:
    """Decode calibration images exactly as the device will."""
    loader = Loader(images, pixel, 32, workers=workers, train=False)
    return Calibration(np.concatenate([batch.pixels.numpy() for batch in loader.epoch()]), images.fingerprint)


def all_candidates(context: StageContext, target: Target, source: ModelFile) -> list[Candidate]:
    """Return what can be tried for a target: every float form, then every int8 scheme that fits its engines."""
    forms, pixel = float_graphs(context, source), source.student.pixel
    candidates: list[Candidate] = []
    for engine in target.engines:
        mine = {"explicit": to_fp16(forms["explicit"])} if engine == "tensorrt" else forms
        candidates += [_candidate(context, engine, graph, form, pixel) for form, graph in mine.items()]
    if "int8" in target.precisions:
        candidates += int8_candidates(context, source, schemes_for(target, context.plan.quantize))
    return candidates


def int8_candidates(context: StageContext, source: ModelFile, schemes: tuple[str, ...]) -> list[Candidate]:
    """Return a student's int8 graph of every scheme, with the scales that it was trained for if it has some."""
    student, candidates = source.student, []
    for scheme in schemes:
        graph = int8_graph(context, float_graphs(context, source)["explicit"], scheme, student.pixel, student.scales)
        owner = next(engine for engine, names in ENGINE_SCHEMES.items() if scheme in names)
        candidates.append(_candidate(context, owner, graph, "explicit", student.pixel))
    return candidates


def _candidate(context: StageContext, engine: str, graph: Graph, form: str, pixel: PixelContract) -> Candidate:
    """Return a graph as it would ship, with the input that the plan asks for."""
    if context.plan.graph_input == "uint8" and "model.onnx" in graph.files:
        graph = take_uint8(graph, pixel)
    elif context.plan.graph_input == "uint8":
        graph = with_uint8(graph, pixel, uint8_ir(graph.files, pixel))
    return Candidate(engine, graph, form, graph_digest(graph))


def build_checks(context: StageContext, target: Target, candidates: list[Candidate]) -> list[str]:
    """Return notes of lint and, where TensorRT is installed, of an ahead-of-time build of the graphs for a GPU."""
    notes = []
    for candidate in (c for c in candidates if c.engine == "tensorrt"):
        notes += [f"{candidate.name}: {f.rule} at {f.node or 'the graph'}: {f.message}" for f in lint(candidate.graph)]
        if (version := ENGINES["tensorrt"].version()) is None:
            notes.append(f"{candidate.name}: not built here, TensorRT is not installed")
            continue

        def make(folder: Path, candidate: Candidate = candidate) -> None:
            try:
                size = len(ENGINES["tensorrt"].compile(candidate.graph.files, target)) / 2**20
                result = f"{size:.2f} MiB plan built"
            except EngineRuntimeError as error:
                result = f"not built here: {error.what}"
            write_atomic(folder / "result.txt", result.encode())

        key = {"graph": candidate.digest, "target": msgspec.to_builtins(target), "tensorrt": version}
        result = (context.work.run(f"build-check-{candidate.name}", key, make) / "result.txt").read_text()
        notes.append(f"{candidate.name}: {result} (TensorRT {version}, compute capability {target.compute_capability})")
    return notes


def versions(*libraries: str) -> dict[str, str]:
    """Return the versions of edgemae and of libraries and engines by name, empty where one is missing."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"edgemae": __version__}
    for library in libraries:
        try:
            found[library] = ENGINES[library].version() or "" if library in ENGINES else version(library)
        except (PackageNotFoundError, MachineError):
            found[library] = ""
    return found
