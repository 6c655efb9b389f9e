"""Put a measured model into a bundle: variants, golden frames, gates, report."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.data.decode_worker import read_image
from edgemae.data.image_set import ImageSet, sample
from edgemae.device.engines import open_session
from edgemae.device.preprocess import ImageBGR, preprocess, resize
from edgemae.device.selfcheck import golden_files, golden_name, some_tokens
from edgemae.evaluation.parity import COSINE_MIN, tolerance_for
from edgemae.pipeline.benchmark import LOCAL
from edgemae.pipeline.candidate_graphs import Candidate
from edgemae.pipeline.selection import Choice
from edgemae.spec.graph import PixelContract
from edgemae.spec.manifest import Golden, Manifest, Tolerance, Variant
from edgemae.spec.target import Target

GOLDEN_FRAMES = 8
# A reference computed on other arithmetic than the target's (or by another engine) proves less: 8-bit products that
# saturate move a small ViT's cosine to 0.998, so what is refused is what lies beyond that.
LOOSE_COSINE = {"fp32": 0.999, "fp16": 0.995, "int8": 0.98}


@dataclass(frozen=True)
class BundleParts:
    """Everything of a bundle but its verdicts and its report."""

    variants: tuple[Variant, ...]
    golden: Golden
    files: dict[str, bytes]


def pack(choices: list[Choice], target: Target, pixel: PixelContract, images: ImageSet, seed: int) -> BundleParts:
    """Return variants, golden set and graph files; reference outputs come from a variant's engine if it runs here."""
    frames, dtype = golden_frames(images, pixel, seed), choices[0].candidate.graph.io.dtype
    variants: list[Variant] = []
    files: dict[str, bytes] = {}
    outputs: dict[str, NDArray[Any]] = {}
    tokens: dict[str, NDArray[Any]] = {}
    for choice in choices:
        candidate = choice.candidate
        names = _names(candidate)
        files |= {name: candidate.graph.files[part] for name, part in names.items()}
        own = candidate.engine in LOCAL.machine.engines
        engine = candidate.engine if own else "onnxruntime"
        with open_session(engine, candidate.graph.files, target) as session:
            rows = [session(preprocess(frame, pixel, dtype)) for frame in frames]
        output = "logits" if "logits" in rows[0] else "embedding"
        reference = np.concatenate([row[output] for row in rows])
        precision = candidate.graph.precision
        cosine_min, max_abs = tolerance_for(precision, reference)
        if not own or LOCAL.machine.mismatch(target):
            max_abs *= float(np.sqrt((1 - LOOSE_COSINE[precision]) / (1 - COSINE_MIN[precision])))
            cosine_min = LOOSE_COSINE[precision]
        variant = Variant(
            engine=candidate.engine, files=tuple(names), precision=precision, scheme=candidate.graph.scheme,
            reason=choice.reason, tolerance=Tolerance(cosine_min=cosine_min, max_abs=max_abs, top1=output == "logits"),
        )  # fmt: skip
        outputs[variant.id] = reference
        if "tokens" in rows[0]:
            tokens[variant.id] = np.stack([some_tokens(row["tokens"]) for row in rows])
        variants.append(msgspec.structs.replace(variant, golden=golden_name(variant.id)))
    golden, golden_data = golden_files(frames, pixel, outputs, tokens, dtype)
    return BundleParts(tuple(variants), golden, files | golden_data)


def golden_frames(images: ImageSet, pixel: PixelContract, seed: int) -> list[ImageBGR]:
    """Return frames of calibration images, at most twice the input's size: enough to prove the resize too."""
    frames = []
    for path in sample(images, GOLDEN_FRAMES, seed).paths:
        frame = read_image(path, pixel)
        scale = 2 * pixel.image_px / min(frame.shape[:2])
        if scale < 1:
            frame = resize(frame, (round(frame.shape[0] * scale), round(frame.shape[1] * scale)), pixel)
        frames.append(frame)
    return frames


def baseline_stats(logits: NDArray[Any] | None, embedding: NDArray[Any]) -> dict[str, Any]:
    """Return what ordinary inputs look like to the model, for monitoring on the device."""
    norms = np.linalg.norm(embedding, axis=1)
    stats: dict[str, Any] = {
        "images": len(embedding),
        "embedding_norm": {"mean": float(norms.mean()), "std": float(norms.std())},
    }
    if logits is not None:
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        confidence = (shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1)
        stats["confidence"] = {"mean": float(confidence.mean()), "std": float(confidence.std())}
    return stats


def bundle_readme(manifest: Manifest) -> bytes:
    """Return the page that a person who unzips the bundle reads first."""
    variants = "\n".join(f"{i + 1}. {r.engine}, {r.precision}: {r.reason}" for i, r in enumerate(manifest.variants))
    gates = (
        "\n".join(f"- {g.gate}: {'passed' if g.passed else 'MISSED'} ({g.note})" for g in manifest.gates)
        or "- none set"
    )
    return (
        f"# {manifest.name}, version {manifest.version}\n\nMade by edgemae for {manifest.target.title}. "
        f"Status: {manifest.status}. Licence of the teacher's weights: {manifest.licence}.\n\n"
        f"    import edgemae\n    model = edgemae.load('{manifest.name}.edgemae')\n    print(model(frame_bgr))\n\n"
        f"## Engines, best first\n\n{variants}\n\n## Gates\n\n{gates}\n\n"
        "See report.html for how it was made and measured.\n"
    ).encode()


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def report_files(folder: Path) -> dict[str, bytes]:
    """Return the report as it goes into the bundle."""
    return {name: (folder / name).read_bytes() for name in ("report.json", "report.md", "report.html")}


def _names(candidate: Candidate) -> dict[str, str]:
    """Map names inside the bundle to the graph's own file names."""
    graph = candidate.graph
    stem = "-".join(part for part in (graph.precision, graph.scheme or candidate.form) if part)
    stem = stem.replace("=", "").replace("(", "-").replace(")", "").replace("+", "-")
    room = "graph" if "model.onnx" in graph.files else "openvino"
    return {f"{room}/{stem}{Path(name).suffix}": name for name in graph.files}
