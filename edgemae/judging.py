"""Questions about finished things: how right is it, what is it, what does this machine have, what does it see."""

from __future__ import annotations

import json as json_library
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.data.images import ImageSet, scan
from edgemae.device.engines import ENGINES
from edgemae.device.model import Model, load
from edgemae.device.preprocess import preprocess, read_frame
from edgemae.measure.accuracy import predict, score
from edgemae.spec.bundle import open_bundle
from edgemae.spec.errors import DataError, InputError


def evaluate_path(path: Path, eval_data: str, engine: str, heads: int) -> dict[str, Any]:
    """Return accuracy of a bundle (through its engine, no torch) or of a model file (through torch)."""
    if _is_bundle(path):
        with load(path, engine=engine) as model:
            images = known_classes(scan(eval_data), model.labels)
            found = predict(model.session, _frames(images, model))
            row = score(
                model.rung.precision, found, None, params=0, macs=0, size_bytes=_size(path), label_names=model.labels
            )
            about = {"bundle": str(path), "engine": model.rung.engine, "precision": model.rung.precision}
    else:
        from edgemae.model.checkpoint import load_teacher
        from edgemae.model.vit import count_macs, count_params

        _must_exist(path)
        teacher = load_teacher(path, heads=heads)
        images = known_classes(scan(eval_data), teacher.labels)
        found = predict(_torch_run(teacher.vit), _batches(images, teacher.pixel))
        row = score("float", found, None, params=count_params(teacher.vit), macs=count_macs(teacher.vit.shape),
                    size_bytes=_size(path), label_names=teacher.labels)  # fmt: skip
        about = {"model": str(path), "engine": "torch", "precision": "fp32"}
    rest = {k: v for k, v in msgspec.to_builtins(row).items() if v not in (None, 0, {}) and k != "stage"}
    return {"top1": row.top1, "n": row.n, "ece": row.ece, **about, **rest, "skipped_files": len(images.skipped)}


def known_classes(images: ImageSet, labels: tuple[str, ...]) -> ImageSet:
    """Return the set with labels numbered as the model's. Raises DataError for a class that the model does not have."""
    if images.labels is None:
        return images
    if not labels:
        return images.unlabelled()
    unknown = sorted(set(images.classes) - set(labels))
    if unknown:
        raise DataError(
            f"'{images.folder}' has the class '{unknown[0]}', which the model does not know",
            expected=f"class folders among {', '.join(labels)}",
            fix="rename or remove that folder",
        )
    number = [labels.index(name) for name in images.classes]
    import dataclasses

    return dataclasses.replace(images, labels=tuple(number[i] for i in images.labels), classes=labels)


def run_frames(
    bundle: Path, source: str, policy: str, limit: int, engine: str, target: str | None, *, json: bool
) -> None:
    """Run a bundle on frames and print a line for each; a summary with drop counts goes to stderr at the end."""
    from edgemae.device.stream import stream

    with load(bundle, target, engine) as model:
        frames = stream(model, int(source) if source.isdigit() else source, None if policy == "auto" else policy)
        with frames:
            for number, seen in enumerate(frames, start=1):
                result, frame = seen.result, seen.frame
                if json:
                    row = {
                        "seq": frame.seq,
                        "label": result.label,
                        "score": result.score,
                        "age_ms": seen.age_ms,
                        **result.speed,
                    }
                    sys.stdout.write(json_library.dumps(row) + "\n")
                else:
                    said = (
                        f"{result.label} {100 * result.score:.1f} %"
                        if result.label is not None and result.score is not None
                        else "embedding"
                    )
                    sys.stdout.write(f"frame {frame.seq}: {said}  ({result.speed['infer_ms']:.1f} ms)\n")
                if limit and number >= limit:
                    break
            sys.stderr.write(f"{frames.camera.counters}, {frames.failed} failed\n")


def describe(path: Path, heads: int) -> dict[str, Any]:
    """Return what a bundle or a model file is."""
    _must_exist(path)
    if _is_bundle(path):
        bundle = open_bundle(path)
        rest = msgspec.to_builtins(bundle.manifest)
        rest["target"] = bundle.manifest.target.name
        rest["files"] = {name: entry["size"] for name, entry in rest["files"].items()}
        rest["history"] = [f"{s.stage} {s.scores}" for s in bundle.manifest.history]
        rest["latency"] = [
            f"{r.engine} {r.precision} p50 {r.p50_ms:.2f} ms ({r.n} runs)" for r in bundle.manifest.latency
        ]
        rest["machine"] = bundle.manifest.machine.get("cpu", "")
        return {"kind": "bundle", "sha256": bundle.sha256, **rest}
    from edgemae.model.checkpoint import load_teacher
    from edgemae.model.vit import count_macs, count_params

    teacher = load_teacher(path, heads=heads)
    return {
        "kind": "model", "source": teacher.source, "licence": teacher.licence, "params": count_params(teacher.vit),
        "macs": count_macs(teacher.vit.shape), "decoder": teacher.mae is not None, "labels": list(teacher.labels),
        "shape": teacher.vit.shape.as_dict(), "pixel": msgspec.to_builtins(teacher.pixel),
        "history": [f"{s.stage} {s.scores}" for s in teacher.history],
    }  # fmt: skip


def diagnose() -> dict[str, Any]:
    """Return what this machine has and what is missing for what."""
    import cv2

    from edgemae.device.cache import cache_folder
    from edgemae.device.latency import fingerprint

    engines = {
        name: {"version": engine.version() or "not installed", "needs": engine.needs, **engine.facts()}
        for name, engine in ENGINES.items()
    }
    video = [
        line.strip()
        for line in cv2.getBuildInformation().splitlines()
        if any(k in line for k in ("FFMPEG:", "GStreamer:", "v4l/v4l2:"))
    ]
    hints = []
    if any("GStreamer" in line and "NO" in line for line in video):
        hints.append(
            "this OpenCV has no GStreamer: Jetson CSI pipelines cannot be opened; use the system's OpenCV there"
        )
    return {"machine": fingerprint(), "engines": engines, "opencv": cv2.__version__, "video": video,
            "cache": str(cache_folder()), "hints": hints or ["nothing to mend"]}  # fmt: skip


def _is_bundle(path: Path) -> bool:
    return path.suffix == ".edgemae" or (path / "manifest.json").is_file()


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise InputError(f"'{path}' does not exist", expected="a bundle or a model file", fix="check the path")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _frames(images: ImageSet, model: Model) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None]]:
    for i, path in enumerate(images.paths):
        label = None if images.labels is None else np.array([images.labels[i]])
        yield preprocess(read_frame(path, model.pixel), model.pixel), label


def _batches(images: ImageSet, pixel: Any) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None]]:
    from edgemae.data.loader import Loader

    for batch in Loader(images, pixel, 32, train=False).epoch():
        yield batch.pixels.numpy(), None if images.labels is None else batch.labels.numpy()


def _torch_run(vit: Any) -> Any:
    import torch

    def run(pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            logits, embedding = vit.eval()(torch.from_numpy(pixels))
        return {"embedding": embedding.numpy()} | ({} if logits is None else {"logits": logits.numpy()})

    return run
