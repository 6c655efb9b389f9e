"""What embeddings and tokens are good for, on photos: retrieval by a gallery, and anomalies without labels.

    python tools/bench_gallery.py --data clothing10 --model student.safetensors --json tools/results/gallery.json
    python tools/bench_gallery.py --data clothing10 --quick

`--data` holds train/<class>/* and val/<class>/*. `--model` are students or teachers (default: the MAE of this
repository, which has seen no label); each runs as a bundle does, through ONNX Runtime in fp32 and in int8.
Retrieval: top-1 and the vote of 10 neighbours for val photos in a gallery of train photos. Anomalies: each class is
normal once, against val photos of the others (AUROC), and against its own val photos with a patch of another photo
pasted in (AUROC, and how often the map's peak lies in the patch). Tokens: latency of the graph with them over without,
taken interleaved.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgemae.data.decode_worker import read_image
from edgemae.data.image_set import ImageSet, sample, scan
from edgemae.device.engines import open_session
from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.device.model import Model, Result, load
from edgemae.device.preprocess import crop
from edgemae.evaluation.intervals import wilson
from edgemae.export.to_onnx import to_onnx
from edgemae.model.import_teacher import load_teacher
from edgemae.model.teacher import Teacher
from edgemae.pipeline.candidate_graphs import Candidate, calibration_of
from edgemae.pipeline.packaging import now, pack
from edgemae.pipeline.selection import Choice
from edgemae.pipeline.stage_files import graph_digest
from edgemae.profiling.stats.comparison import ratio
from edgemae.profiling.timing.timer import interleave
from edgemae.quantize.calibrate import Calibration
from edgemae.quantize.schemes import SCHEMES
from edgemae.retrieval.anomaly import Anomaly, AnomalyDetector
from edgemae.retrieval.gallery import Gallery
from edgemae.spec.bundle import write_bundle
from edgemae.spec.errors import EdgemaeError
from edgemae.spec.graph import PixelContract
from edgemae.spec.manifest import Manifest
from edgemae.spec.plan_schema import QuantizePlan
from edgemae.spec.target import Target, find_target
from edgemae.terminal.progress import progress

ROOT = Path(__file__).resolve().parent.parent
MAE = ROOT / "examples/teachers/clothing10-mae.safetensors"
CLASSES = ("pants", "shoes", "t-shirt")  # normal once each
PASTED = 0.25  # side of a planted defect, of the image's
ROUNDS = 40
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--model", type=Path, nargs="+", default=[MAE], help="students or teachers")
    parser.add_argument("--quick", action="store_true", help="300 photos of train and 100 of val, one class, fp32 only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    args = parser.parse_args()
    try:
        if args.data is None:
            parser.error("--data is needed")
        result = measure(args)
    except EdgemaeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    print(readme_table(result))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(args: argparse.Namespace) -> Row:
    """Return all figures of every model on one folder."""
    began, target = time.monotonic(), msgspec.structs.replace(find_target("cpu-onnxruntime"), threads=1)
    train, val = scan(args.data / "train"), scan(args.data / "val")
    if args.quick:
        train, val = sample(train, 300, 0), sample(val, 100, 0)
    rows: list[Row] = []
    for path in args.model:
        teacher = load_teacher(path)
        about = {"model": path.parent.name if path.stem == "student" else path.stem,
                 "history": [step.stage for step in teacher.history]}  # fmt: skip
        for row in of_model(teacher, target, train, val, quick=args.quick):
            rows.append({**about, **row})
    return {
        "command": shlex.join(["python", "tools/bench_gallery.py", *sys.argv[1:]]),
        "seconds": round(time.monotonic() - began, 1), "machine": fingerprint(), "train": len(train), "val": len(val),
        "rows": rows, "tokens": tokens_cost(load_teacher(args.model[0]), target),
    }  # fmt: skip


def of_model(teacher: Teacher, target: Target, train: ImageSet, val: ImageSet, *, quick: bool) -> Iterator[Row]:
    """Yield a row for fp32 and, unless `quick`, one for int8."""
    with tempfile.TemporaryDirectory() as folder:
        path = as_bundle(teacher, target, train, Path(folder) / "model.edgemae", int8=not quick)
        for variant in range(1 if quick else 2):
            with load(one_variant(path, variant), target) as model:
                seen = {name: results(model, images, name) for name, images in (("train", train), ("val", val))}
                row = {"precision": model.variant.precision, **retrieval(model, train, val, seen), "anomaly": []}
                for name in CLASSES[: 1 if quick else None]:
                    row["anomaly"].append(anomalies(model, name, train, val, seen))
                yield row


def as_bundle(teacher: Teacher, target: Target, images: ImageSet, path: Path, *, int8: bool) -> Path:
    """Write a bundle of a model as it is, with tokens: fp32, and int8 behind it."""
    graph = to_onnx(teacher.vit, teacher.pixel, tokens=True)
    graphs = [graph]
    if int8:
        calibration = Calibration.of(calibration_of(sample(images, 128, 0), teacher.pixel, 0).images)
        graphs.append(SCHEMES["ort-static"](graph, calibration, QuantizePlan()))
    choices = [Choice(Candidate("onnxruntime", g, "explicit", graph_digest(g)), "benchmark") for g in graphs]
    packed = pack(choices, target, teacher.pixel, images, seed=0)
    manifest = Manifest(
        name=path.stem, version=1, created=now(), status="passed", target=target, io=graph.io, pixel=teacher.pixel,
        variants=packed.variants, golden=packed.golden, labels=teacher.labels,
    )  # fmt: skip
    return write_bundle(path, manifest, packed.files)


def one_variant(path: Path, variant: int) -> Path:
    """Return a copy of a bundle whose variants begins at a variant."""
    from edgemae.spec.bundle import amend_bundle, open_bundle

    copy = path.with_name(f"{variant}.edgemae")
    copy.write_bytes(path.read_bytes())
    return amend_bundle(copy, {}, variants=open_bundle(path).manifest.variants[variant:])


def results(model: Model, images: ImageSet, name: str) -> list[Result]:
    """Return what the model says of every photo."""
    return list(walk(model, images, name))


def walk(model: Model, images: ImageSet, name: str) -> Iterator[Result]:
    with progress(name, len(images)) as counted:
        for path in images.paths:
            yield model(read_image(path, model.pixel))
            counted.advance()


def retrieval(model: Model, train: ImageSet, val: ImageSet, seen: dict[str, list[Result]]) -> Row:
    """Return top-1 and the vote of 10 neighbours, with intervals."""
    gallery = Gallery(model)
    for k, result in zip(train.labels or (), seen["train"], strict=True):
        gallery.add(result, train.classes[k])
    first = votes = 0
    for k, result in zip(val.labels or (), seen["val"], strict=True):
        found = gallery.search(result, top=10)
        weights: Counter[str] = Counter()
        for match in found:
            weights[match.label] += np.exp(match.score / 0.07)
        first += found[0].label == val.classes[k]
        votes += weights.most_common(1)[0][0] == val.classes[k]
    n = len(val)
    return {
        "n": n, "entries": len(gallery), "top1": first / n, "top1_interval": wilson(first, n), "vote10": votes / n,
        "vote10_interval": wilson(votes, n),
    }  # fmt: skip


def anomalies(model: Model, name: str, train: ImageSet, val: ImageSet, seen: dict[str, list[Result]]) -> Row:
    """Return how well a class's reference set tells other classes, and photos of its own with something pasted in."""
    k = train.classes.index(name)
    normal = [result for label, result in zip(train.labels or (), seen["train"], strict=True) if label == k]
    began = time.perf_counter()
    detector = AnomalyDetector.fit(model, normal, false_alarm_rate=0.05)
    fitted = time.perf_counter() - began
    own = [i for i, label in enumerate(val.labels or ()) if label == k]
    judged = {i: detector.judge(result) for i, result in enumerate(seen["val"])}
    mine, others = [judged[i] for i in own], [judged[i] for i in judged if i not in own]
    rng = np.random.default_rng(0)
    planted = [plant(detector, val, i, rng) for i in own]
    return {
        "normal": name, "frames": detector.normal_frames, "core_set_kib": detector.size_bytes / 1024,
        "fit_s": round(fitted, 1), "held_out": detector.calibration.frames, "own": len(own),
        "auroc_classes": auroc(mine, others), "auroc_planted": auroc(mine, [anomaly for anomaly, _ in planted]),
        "peak_inside": sum(inside for _, inside in planted) / len(planted),
        "false_alarms": sum(anomaly.is_anomaly for anomaly in mine) / len(own), "asked": 0.05,
        "found": sum(anomaly.is_anomaly for anomaly, _ in planted) / len(planted),
    }  # fmt: skip


def plant(detector: AnomalyDetector, val: ImageSet, i: int, rng: np.random.Generator) -> tuple[Anomaly, bool]:
    """Judge what the model sees of photo i with a square of another one pasted in; is the peak of the map inside?"""
    pixel = msgspec.structs.replace(detector.pixel, color="BGR")
    frame, other = (squared(val.paths[j], pixel) for j in (i, (i + 1 + rng.integers(len(val) - 1)) % len(val)))
    side = round(PASTED * len(frame))
    (y, x), (v, u) = rng.integers(0, len(frame) - side, (2, 2))
    frame[y : y + side, x : x + side] = other[v : v + side, u : u + side]
    anomaly = detector(frame)
    row, column = np.unravel_index(anomaly.patches.argmax(), anomaly.patches.shape)
    patch = len(frame) / len(anomaly.patches)
    middle = np.array([row + 0.5, column + 0.5]) * patch
    return anomaly, bool((np.abs(middle - (y + side / 2, x + side / 2)) <= side / 2 + patch / 2).all())


def squared(path: str, pixel: PixelContract) -> Any:
    """Return the square of a photo that the model sees, BGR."""
    return crop(read_image(path, pixel), pixel).copy()


def auroc(normal: list[Anomaly], unusual: list[Anomaly]) -> float:
    difference = np.array([a.score for a in unusual])[:, None] - np.array([a.score for a in normal])
    return round(float((np.sign(difference) / 2 + 0.5).mean()), 4)


def tokens_cost(teacher: Teacher, target: Target) -> Row:
    """Return latency with the output `tokens` over latency without, on each engine, interleaved."""
    rng, found = np.random.default_rng(0), {}
    shape = to_onnx(teacher.vit, teacher.pixel).io.inputs[0].shape
    pixels = rng.standard_normal(shape).astype(np.float32)
    for engine in ("onnxruntime", "openvino"):
        sessions = {
            wanted: open_session(engine, to_onnx(teacher.vit, teacher.pixel, tokens=wanted).files, target)
            for wanted in (False, True)
        }
        taken = interleave({str(k): (lambda s=s: s(pixels)) for k, s in sessions.items()}, ROUNDS)
        gain = ratio(taken["True"], taken["False"])
        found[engine] = {"ratio": gain.median, "low": gain.low, "high": gain.high, "rounds": gain.rounds,
                         "machine": taken["True"].interference.verdict}  # fmt: skip
        for session in sessions.values():
            session.close()
    return found


def readme_table(result: Row) -> str:
    """Return the tables as Markdown, and what tokens cost in a sentence."""

    def pair(row: Row, name: str) -> str:
        low, high = row[f"{name}_interval"]
        return f"{100 * row[name]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"

    lines = ["| Model | Precision | Top-1 | Vote of 10 |", "| --- | --- | ---: | ---: |"]
    for r in result["rows"]:
        cells: tuple[str, ...] = (r["model"], r["precision"], pair(r, "top1"), pair(r, "vote10"))
        lines.append(f"| {' | '.join(cells)} |")
    heads = ("Model", "Precision", "Normal", "Core-set", "AUROC, other classes", "AUROC, planted", "Peak inside",
             "False alarms")  # fmt: skip
    lines += ["", f"| {' | '.join(heads)} |", f"| --- | --- | --- |{' ---: |' * 5}"]
    for r in result["rows"]:
        for a in r["anomaly"]:
            cells = (r["model"], r["precision"], a["normal"], f"{a['core_set_kib']:.0f} KiB",
                     f"{a['auroc_classes']:.3f}", f"{a['auroc_planted']:.3f}", f"{100 * a['peak_inside']:.0f} %",
                     f"{100 * a['false_alarms']:.0f} % of {a['own']}")  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    cost = "; ".join(
        f"{engine} {c['ratio']:.3f}x ({c['low']:.3f} to {c['high']:.3f}, machine {c['machine']})"
        for engine, c in result["tokens"].items()
    )
    return "\n".join([*lines, "", f"Latency with the output `tokens` over that without: {cost}."])


if __name__ == "__main__":
    sys.exit(main())
