"""Questions about finished things: how right is it, what is it, does it run here.

A bundle is asked without torch, so all of this works on a device.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.data.decode import read_picture
from edgemae.data.images import ImageSet
from edgemae.data.shards import images_at
from edgemae.device.model import load
from edgemae.device.preprocess import preprocess
from edgemae.device.profiling.keep import keep
from edgemae.device.profiling.profiler import profile
from edgemae.measure.accuracy import Predictions, predict, score
from edgemae.spec.bundle import Bundle, open_bundle
from edgemae.spec.errors import DataError, EdgemaeError, EngineMissingError, EngineRuntimeError, InputError
from edgemae.spec.graph import PixelContract
from edgemae.spec.progress import progress
from edgemae.spec.report import StageScore

log = logging.getLogger("edgemae")
Batches = Iterator[tuple[NDArray[Any], NDArray[Any] | None]]
BATCH = 32  # of a model file under torch; engines of a bundle take one picture at a time


# ---------------------------------------------------------------- accuracy


def evaluate_path(path: Path, eval_data: str, loading: Mapping[str, Any], heads: int = 0) -> dict[str, Any]:
    """Return accuracy of a bundle (through its engine, no torch) or of a model file (through torch).

    `loading`: keyword arguments of `load`.
    """
    if is_bundle(path):
        with load(path, **loading) as model:
            images = known_classes(images_at(eval_data, checked=True), model.labels)
            found = predict(model.session, _frames(images, model.pixel, model.manifest.io.dtype))
            here = {"bundle": str(path), "engine": model.rung.engine, "precision": model.rung.precision}
            return _answer(here, found, images, labels=model.labels, size_bytes=_size(path))
    from edgemae.model.checkpoint import load_teacher
    from edgemae.model.vit import count_macs, count_params

    _must_exist(path)
    teacher = load_teacher(path, heads=heads)
    images = known_classes(images_at(eval_data, checked=True), teacher.labels)
    found = predict(_torch_run(teacher.vit), _batches(images, teacher.pixel))
    about: dict[str, Any] = {"model": str(path), "engine": "torch", "precision": "fp32"}
    about |= {"params": count_params(teacher.vit), "macs": count_macs(teacher.vit.shape)}
    return _answer(about, found, images, labels=teacher.labels, size_bytes=_size(path))


def known_classes(images: ImageSet, labels: tuple[str, ...]) -> ImageSet:
    """Return the set with labels numbered as the model's; without labels for a model that has none.

    Raises DataError for a class that the model does not have.
    """
    if images.labels is None or not labels:
        return images.unlabelled()
    unknown = sorted(set(images.classes) - set(labels))
    if unknown:
        raise DataError(
            f"'{images.folder}' has the class '{unknown[0]}', which the model does not know",
            expected=f"class folders among {', '.join(labels)}",
            fix="rename or remove that folder",
        )
    number = [labels.index(name) for name in images.classes]
    return replace(images, labels=tuple(number[i] for i in images.labels), classes=labels)


def _answer(
    about: dict[str, Any], found: Predictions, images: ImageSet, *, labels: tuple[str, ...], size_bytes: int
) -> dict[str, Any]:
    row: StageScore = score("", found, None, params=0, macs=0, size_bytes=size_bytes, label_names=labels)
    figures = {
        "top1_low": row.top1_low, "top1_high": row.top1_high, "confidence": row.confidence, "per_class": row.per_class,
        "size_bytes": size_bytes, "skipped_files": len(images.skipped),
    }  # fmt: skip
    if row.top1 is None:  # without labels there is nothing to be right about
        figures = {"size_bytes": size_bytes, "skipped_files": len(images.skipped)}
    return {"top1": row.top1, "n": row.n, "ece": row.ece, **about, **figures}


def _frames(images: ImageSet, pixel: PixelContract, dtype: str) -> Batches:
    with progress("evaluate", len(images)) as shown:
        for i, path in enumerate(images.paths):
            label = None if images.labels is None else np.array([images.labels[i]])
            yield preprocess(read_picture(path, pixel), pixel, dtype), label
            shown.advance()


def _batches(images: ImageSet, pixel: PixelContract) -> Batches:
    from edgemae.data.loader import Loader

    with progress("evaluate", len(images)) as shown:
        for batch in Loader(images, pixel, BATCH, train=False).epoch():
            yield batch.pixels.numpy(), None if images.labels is None else batch.labels.numpy()
            shown.advance(len(batch.pixels))


def _torch_run(vit: Any) -> Any:
    import torch

    def run(pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            logits, embedding = vit.eval()(torch.from_numpy(pixels))
        return {"embedding": embedding.numpy()} | ({} if logits is None else {"logits": logits.numpy()})

    return run


# ---------------------------------------------------------------- what it is


def describe(path: Path, heads: int = 0, decoder_heads: int = 0) -> dict[str, Any]:
    """Return what a bundle or a model file is."""
    _must_exist(path)
    if is_bundle(path):
        return _describe_bundle(open_bundle(path))
    from edgemae.flow import import_notes
    from edgemae.model.checkpoint import load_teacher
    from edgemae.model.vit import count_macs, count_params

    teacher = load_teacher(path, heads=heads, decoder_heads=decoder_heads)
    return {
        "kind": "model", "source": teacher.source, "licence": teacher.licence, "params": count_params(teacher.vit),
        "macs": count_macs(teacher.vit.shape), "decoder": teacher.mae is not None, "labels": list(teacher.labels),
        **import_notes(teacher), "shape": teacher.vit.shape.as_dict(), "pixel": msgspec.to_builtins(teacher.pixel),
        "history": [{"stage": s.stage, **s.scores} for s in teacher.history],
    }  # fmt: skip


def _describe_bundle(bundle: Bundle) -> dict[str, Any]:
    m = bundle.manifest
    size = sum(entry.size for entry in m.files.values())
    return {
        "kind": "bundle", "name": m.name, "version": m.version, "status": m.status, "created": m.created,
        "target": m.target.name, "sha256": bundle.sha256, "schema": m.schema, "licence": m.licence,
        "labels": list(m.labels), "pixel": msgspec.to_builtins(m.pixel),
        "outputs": {output.name: list(output.shape) for output in m.io.outputs},
        "ladder": [{"rung": r.id, "files": list(r.files), "reason": r.reason} for r in m.ladder],
        "gates": [{"gate": g.gate, "limit": g.limit, "value": g.value, "passed": g.passed} for g in m.gates],
        "latency": [
            {"engine": e.engine, "precision": e.precision, "scheme": e.scheme, "p50_ms": e.p50_ms, "n": e.n}
            for e in m.latency
        ],
        "profiles": [
            {"device": p.device, "verdict": p.verdict, "p50_ms": p.p50_ms, "p90_ms": p.p90_ms, "file": p.file}
            for p in m.profiles
        ],
        "machine": m.machine.get("cpu"), "history": [{"stage": s.stage, **s.scores} for s in m.history],
        "golden_frames": len(m.golden.frames), "files": len(m.files), "size_bytes": size,
    }  # fmt: skip


# ---------------------------------------------------------------- on the device


def finalize(path: Path, target: str | None, *, measure: bool = True) -> dict[str, Any]:
    """Make a bundle ready on this device: build its engines into the cache, prove each, profile the first that works.

    The profile stays in the bundle, with a page; without `measure` the bundle stays as it is. Raises EngineMissingError
    or EngineRuntimeError when no rung works; SelfCheckError as soon as one computes wrongly.
    """
    rungs, errors = [], []
    first = ""
    for engine in dict.fromkeys(rung.engine for rung in open_bundle(path).manifest.ladder):
        try:
            with load(path, target, engine) as model:
                rungs.append({"engine": engine, "rung": model.rung.id, "ready": True, **model.info["check"]})
                first = first or engine
        except (EngineMissingError, EngineRuntimeError) as error:
            rungs.append({"engine": engine, "ready": False, "reason": error.what})
            errors.append(error)
    if not first:
        raise errors[0]
    ready = {"bundle": str(path), "engine": first, "engines": rungs}
    if not measure:
        return ready
    try:
        found = profile(path, engine=first, target=target, per_layer=True)
    except EdgemaeError as error:  # what was built and proved is ready all the same
        log.warning("'%s' is ready, but could not be profiled: %s (%s)", path, error.what, error.fix)
        return ready
    if found.verdict == "INVALID":  # of the figures, not of the bundle: what was built and proved is ready all the same
        log.warning("'%s' is ready, its latencies are INVALID: %s", path, "; ".join(found.reasons))
    return {**ready, "verdict": found.verdict, "reasons": found.reasons, "cold_ms": found.start and found.start.cold_ms,
            "steady": msgspec.to_builtins(found.steady), "page": keep(path, found)}  # fmt: skip


def is_bundle(path: Path) -> bool:
    """Tell whether a path is meant as a bundle."""
    return path.suffix == ".edgemae" or (path / "manifest.json").is_file()


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise InputError(f"'{path}' does not exist", expected="a bundle or a model file", fix="check the path")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
