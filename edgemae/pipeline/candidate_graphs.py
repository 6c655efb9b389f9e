"""The measuring half of a compile as cached stages: graphs, int8 candidates, their accuracy and their latency."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgemae.data.image_set import ImageSet
from edgemae.data.loader import Loader
from edgemae.device.engines import ENGINES, open_session
from edgemae.device.hardware.cpu_features import machine_facts
from edgemae.evaluation.accuracy import Predictions, predict
from edgemae.export.lint import lint
from edgemae.export.to_onnx import ATTENTION_FORMS, both_forms
from edgemae.export.uint8_input import take_uint8, with_uint8
from edgemae.model.student import load_student
from edgemae.model.vit import ViT
from edgemae.pipeline.benchmark import HERE, Bench
from edgemae.pipeline.stage_cache import digest_of, file_digest
from edgemae.pipeline.stage_files import graph_digest, load_graph, save_array, save_graph
from edgemae.pipeline.training_stages import Flow
from edgemae.profiling.compare.graph_benchmark import Entry, Latencies
from edgemae.quantize.calibrate import Calibration
from edgemae.quantize.fp16 import to_fp16
from edgemae.quantize.openvino_int8 import uint8_ir
from edgemae.quantize.range_search import QAT
from edgemae.quantize.schemes import ENGINE_SCHEMES, SCHEMES, candidates
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
    def aware(self) -> bool:
        """Tell whether its scales were trained."""
        return self.graph.scheme.endswith(QAT)

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


def graphs(flow: Flow, student_path: Path) -> dict[str, Graph]:
    """Return the student's float graph in every exported form of attention."""
    tokens = flow.plan.export.tokens

    def make(folder: Path) -> None:
        student = load_student(student_path)
        for form, graph in both_forms(student.vit, student.pixel, tokens=tokens, history=student.history).items():
            save_graph(folder, form, graph)

    key: dict[str, Any] = {"from": file_digest(student_path), "tools": _versions("torch", "onnx")}
    key |= {"tokens": True} if tokens else {}  # graphs without them keep the key that they always had
    folder = flow.work.run("graph", key, make)
    return {form: load_graph(folder, form) for form in ATTENTION_FORMS}


def quantized(flow: Flow, graph: Graph, scheme: str, pixel: PixelContract, scales: Scales | None = None) -> Graph:
    """Return the int8 graph of one scheme, with `scales` where they are of its kind, else calibrated."""
    plan = flow.plan.quantize

    def make(folder: Path) -> None:
        log.info("%s: %d calibration images", scheme, len(flow.inputs.calibration))
        calibration = replace(calibration_of(flow.inputs.calibration, pixel, flow.plan.workers), scales=scales)
        save_graph(folder, "int8", SCHEMES[scheme](graph, calibration, plan))

    settings = {name: value for name, value in plan_tree(plan).items() if not name.startswith("aware")}
    key = {"scheme": scheme, "from": graph_digest(graph), "plan": settings, "seed": flow.plan.seed,
           "calibration": flow.inputs.calibration.fingerprint, "pixel": msgspec.to_builtins(pixel),
           "tools": _versions("onnxruntime", "openvino", "nncf")}  # fmt: skip
    key |= {} if scales is None else {"scales": msgspec.to_builtins(scales)}
    return load_graph(flow.work.run(f"int8-{scheme}", key, make), "int8")


def calibration_of(images: ImageSet, pixel: PixelContract, workers: int) -> Calibration:
    """Decode calibration images exactly as the device will."""
    loader = Loader(images, pixel, 32, workers=workers, train=False)
    return Calibration(np.concatenate([batch.pixels.numpy() for batch in loader.epoch()]), images.fingerprint)


def all_candidates(flow: Flow, target: Target, student_path: Path) -> list[Candidate]:
    """Return what can be tried for a target: every float form, then every int8 scheme that fits its engines."""
    forms, pixel = graphs(flow, student_path), load_student(student_path).pixel
    found: list[Candidate] = []
    for engine in target.engines:
        mine = {"explicit": to_fp16(forms["explicit"])} if engine == "tensorrt" else forms
        found += [_candidate(flow, engine, graph, form, pixel) for form, graph in mine.items()]
    if "int8" in target.precisions:
        found += int8_candidates(flow, student_path, candidates(target, flow.plan.quantize))
    return found


def int8_candidates(flow: Flow, student_path: Path, schemes: tuple[str, ...]) -> list[Candidate]:
    """Return a student's int8 graph of every scheme, with the scales that it was trained for if it has some."""
    student, found = load_student(student_path), []
    for scheme in schemes:
        graph = quantized(flow, graphs(flow, student_path)["explicit"], scheme, student.pixel, student.scales)
        owner = next(engine for engine, names in ENGINE_SCHEMES.items() if scheme in names)
        found.append(_candidate(flow, owner, graph, "explicit", student.pixel))
    return found


def _candidate(flow: Flow, engine: str, graph: Graph, form: str, pixel: PixelContract) -> Candidate:
    """Return a graph as it would ship, with the input that the plan asks for."""
    if flow.plan.graph_input == "uint8" and "model.onnx" in graph.files:
        graph = take_uint8(graph, pixel)
    elif flow.plan.graph_input == "uint8":
        graph = with_uint8(graph, pixel, uint8_ir(graph.files, pixel))
    return Candidate(engine, graph, form, graph_digest(graph))


def rehearsals(flow: Flow, target: Target, found: list[Candidate]) -> list[str]:
    """Return what lint and, where TensorRT is installed, an ahead-of-time build say of the graphs meant for a GPU."""
    notes = []
    for candidate in (c for c in found if c.engine == "tensorrt"):
        notes += [f"{candidate.name}: {f.rule} at {f.node or 'the graph'}: {f.message}" for f in lint(candidate.graph)]
        if (version := ENGINES["tensorrt"].version()) is None:
            notes.append(f"{candidate.name}: not built here, TensorRT is not installed")
            continue

        def make(folder: Path, candidate: Candidate = candidate) -> None:
            try:
                said = f"{len(ENGINES['tensorrt'].compile(candidate.graph.files, target)) / 2**20:.2f} MiB plan built"
            except EngineRuntimeError as error:
                said = f"not built here: {error.what}"
            write_atomic(folder / "said.txt", said.encode())

        key = {"graph": candidate.digest, "target": msgspec.to_builtins(target), "tensorrt": version}
        said = (flow.work.run(f"rehearsal-{candidate.name}", key, make) / "said.txt").read_text()
        notes.append(f"{candidate.name}: {said} (TensorRT {version}, compute capability {target.compute_capability})")
    return notes


# ---------------------------------------------------------------- accuracy


def torch_predictions(flow: Flow, name: str, model_path: Path, vit: ViT, pixel: PixelContract) -> Predictions:
    """Return what a float model says about the evaluation images, run by torch."""

    @torch.inference_mode()
    def run(pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        logits, embedding = vit.eval()(torch.from_numpy(pixels))
        return {"embedding": embedding.numpy()} | ({} if logits is None else {"logits": logits.numpy()})

    key = {"from": file_digest(model_path), "tools": _versions("torch")}
    return _predictions(flow, name, key, lambda: run, Loader(flow.inputs.evaluation, pixel, 32, train=False), 32)


def engine_predictions(flow: Flow, candidate: Candidate, target: Target, pixel: PixelContract) -> Predictions:
    """Return what a graph says through the engine that ships it; a TensorRT graph goes through ONNX Runtime here."""
    engine = candidate.engine if candidate.engine in HERE.machine.engines else "onnxruntime"
    key = {"graph": candidate.digest, "engine": engine, "target": msgspec.to_builtins(target),
           "machine": machine_facts(), "tools": _versions(engine)}  # fmt: skip
    loader = Loader(flow.inputs.evaluation, pixel, 32, train=False, raw=candidate.graph.io.dtype == "uint8")
    return _predictions(
        flow, candidate.name, key, lambda: open_session(engine, candidate.graph.files, target), loader, 1
    )


def _predictions(
    flow: Flow, name: str, key: dict[str, Any], run: Callable[[], Any], loader: Loader, batch: int
) -> Predictions:
    images = loader.images

    def make(folder: Path) -> None:
        def batches() -> Iterator[tuple[NDArray[Any], NDArray[Any] | None]]:
            for item in replace(loader, workers=flow.plan.workers).epoch():
                labels = item.labels.numpy() if images.labels is not None else None
                for i in range(0, len(item.pixels), batch):
                    yield item.pixels[i : i + batch].numpy(), None if labels is None else labels[i : i + batch]

        found = predict(run(), batches())
        for part in ("logits", "embedding", "labels"):
            if getattr(found, part) is not None:
                save_array(folder / f"{part}.npy", getattr(found, part))

    key = {**key, "evaluation": images.fingerprint, "pixel": msgspec.to_builtins(loader.pixel)}
    folder = flow.work.run(f"scores-{name}", key, make)
    parts = [np.load(f) if (f := folder / f"{p}.npy").exists() else None for p in ("logits", "embedding", "labels")]
    return Predictions(*parts)  # type: ignore[arg-type]


# ---------------------------------------------------------------- latency


def latencies(flow: Flow, target: Target, student_path: Path, found: list[Candidate], bench: Bench) -> Latencies:
    """Measure every candidate that runs on the bench, all in turns; INVALID figures are taken again by the next run."""
    able = [c for c in found if c.engine in bench.machine.engines]

    def make(folder: Path) -> None:
        entries = [(c.entry, c.graph) for c in able]
        taken = bench.measure(target, load_student(student_path).vit, entries) if entries else Latencies()
        write_atomic(folder / "latency.json", msgspec.json.format(msgspec.json.encode(taken), indent=1))

    key = {"graphs": [[c.name, c.digest] for c in able], "student": file_digest(student_path),
           "target": msgspec.to_builtins(target), "machine": digest_of(bench.machine.fingerprint)}  # fmt: skip
    folder = flow.work.run(f"latency-{target.name}", key, make)
    taken = msgspec.json.decode((folder / "latency.json").read_bytes(), type=Latencies)
    if any(row.verdict == "INVALID" for row in taken.rows.values()):
        log.warning("%s was too busy while candidates were measured: run this again when it is quiet", bench.name)
        flow.work.forget(folder)
    return taken


def _versions(*libraries: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"edgemae": __version__}
    for library in libraries:
        try:
            versions[library] = ENGINES[library].version() or "" if library in ENGINES else version(library)
        except (PackageNotFoundError, MachineError):
            versions[library] = ""
    return versions
