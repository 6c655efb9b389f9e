"""Anomalies without labels: how far is each patch of a frame from all normal ones? (PatchCore, Roth et al. 2022)

A threshold is the score of a held-out normal frame, so it needs no distribution: if frames of the field are like those,
the chance that a normal one scores above it is at most the rate that was asked for. That is a claim from
`frames_needed(rate)` held-out frames on (99 for 1 %); with fewer, the threshold is the largest score seen.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.device.camera.multi_camera import Sources
from edgemae.device.model import Model, Result
from edgemae.device.stream import Stream, stream
from edgemae.retrieval import feature_file
from edgemae.retrieval.coreset import k_center
from edgemae.retrieval.feature_file import corrupt
from edgemae.retrieval.heatmap import spread
from edgemae.spec.errors import GalleryError, InputError
from edgemae.spec.provenance import Provenance

SCHEMA = "edgemae.reference/1"
MIN_FRAMES = 4  # to remember, and as many to hold out
LIMIT_KIB = 512  # of fp16 core-set: 1,365 patches of 192 values; scoring holds them as fp32, 1 MiB
MOST_KIB = 1 << 20
CONFIDENCE = 0.95  # of `rate_high`
Floats = NDArray[np.float32]
log = logging.getLogger("edgemae.device")


@dataclass(frozen=True, eq=False)
class Anomaly:
    """What is unusual about one frame. `map` (H, W) is 0 for an ordinary patch, 0.5 at the threshold, at most 1."""

    score: float  # distance of the most unusual patch to the nearest normal one, 0..2
    is_anomaly: bool
    map: Floats
    patches: Floats  # (G, G), distance of each patch
    result: Result


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """State where the threshold comes from, and what may be said of it.

    `is_claim`: the asked rate holds, on average over reference sets like this one. `rate_high`: the true rate of this
    threshold is below it with 95 % confidence.
    """

    false_alarm_rate: float
    threshold: float
    ordinary: float  # distance of an ordinary patch: the median of all held-out frames
    frames: int  # held out
    frames_needed: int
    is_claim: bool
    rate_high: float


class _Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    provenance: Provenance
    calibration: Calibration
    normal_frames: int
    patches_seen: int


def frames_needed(false_alarm_rate: float) -> int:
    """Return how many held-out normal frames make a threshold of this rate a claim."""
    return math.ceil(1 / false_alarm_rate - 1e-9) - 1


def calibrate(scores: Iterable[float], false_alarm_rate: float, ordinary: float = 0.0) -> Calibration:
    """Return the threshold from scores of held-out normal frames: the smallest one that the asked rate allows.

    Of n + 1 exchangeable scores the last is above the k-th smallest of the others with chance at most 1 - k / (n + 1).
    `ordinary` is where the map begins.
    """
    ordered = sorted(scores)
    n = len(ordered)
    above = min(math.floor((n + 1) * false_alarm_rate + 1e-9), n)  # of n + 1 scores, as many may lie above
    is_claim = above >= 1
    rank = n - max(above - 1, 0)
    return Calibration(
        false_alarm_rate=false_alarm_rate, threshold=float(ordered[rank - 1]), ordinary=ordinary, frames=n,
        frames_needed=frames_needed(false_alarm_rate), is_claim=is_claim, rate_high=_rate_high(n, n - rank),
    )  # fmt: skip


class AnomalyDetector:
    """Score frames by their most unusual patch. Made by `fit` from normal frames alone, or by `load`.

    It belongs to the very graph that ran: a threshold of another quantization would give other false alarms.
    """

    def __init__(
        self, model: Model, memory: Floats, moments: Floats, calibration: Calibration, *, normal_frames: int = 0,
        patches_seen: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.pixel, self.calibration = model, model.pixel, calibration
        self.normal_frames, self.patches_seen = normal_frames, patches_seen
        self._memory = memory  # (M, D), normal patches at length 1
        self._moments = moments  # (2, D), mean and deviation of a normal patch

    @classmethod
    def fit(
        cls, model: Model, normal: Iterable[Result | NDArray[Any]], *,
        held_out: Iterable[Result | NDArray[Any]] | None = None, false_alarm_rate: float = 0.01,
        limit_kib: int = LIMIT_KIB, seed: int = 0,
    ) -> AnomalyDetector:  # fmt: skip
        """Remember normal frames (BGR uint8, or Results of this model) and set the threshold on others of them.

        Without `held_out` a random half of `normal` is held out: right for single images. Neighbours in a video are
        near copies of each other, so pass frames of another recording, or the threshold is too low. While it works it
        holds the tokens of all frames, 32 KiB each at 64 patches of 128. Raises InputError for too few frames or
        another rate than 0..0.5 or another size than 1 KiB to 1 GiB, GalleryError for a model without tokens.
        """
        if not 0 < false_alarm_rate <= 0.5:
            raise InputError(
                f"a false-alarm rate of {false_alarm_rate}", expected="above 0, up to 0.5", fix="pass 0.01 for 1 %"
            )
        if not 1 <= limit_kib <= MOST_KIB:
            raise InputError(
                f"a reference set of {limit_kib} KiB", expected=f"1 to {MOST_KIB}", fix=f"pass {LIMIT_KIB}, the default"
            )
        kept, others = _parted(model, normal, held_out, seed)
        if min(len(kept), len(others)) < MIN_FRAMES:
            raise InputError(
                f"{len(kept)} normal frames to remember and {len(others)} to hold out",
                expected=f"{MIN_FRAMES} of each at least; {frames_needed(false_alarm_rate)} held out make a claim",
                fix="pass more normal frames",
            )
        rows = np.concatenate(kept)
        moments = np.stack([rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-6)])
        rows = _unit(rows, moments)
        chosen = k_center(rows, max(1, limit_kib * 1024 // (2 * rows.shape[1])), seed)
        memory = rows[chosen].astype(np.float16).astype(np.float32)  # what a saved one remembers
        seen = np.stack([_distances(tokens, memory, moments) for tokens in others])
        calibration = calibrate(seen.max(axis=1), false_alarm_rate, float(np.median(seen)))
        if not calibration.is_claim:
            log.warning(
                "%d held-out frames are too few for a claim of %g %% false alarms (it takes %d): the threshold is the "
                "largest score seen", calibration.frames, 100 * false_alarm_rate, calibration.frames_needed,
            )  # fmt: skip
        return cls(model, memory, moments, calibration, normal_frames=len(kept), patches_seen=len(rows))

    def __call__(self, frame_bgr: NDArray[np.uint8], color: str = "BGR") -> Anomaly:
        """Return what is unusual about one frame; its map has the frame's size."""
        return self.judge(self.model(frame_bgr, color), frame_bgr.shape)

    def judge(self, result: Result, frame_hw: tuple[int, ...] | None = None) -> Anomaly:
        """Return what is unusual about a frame that the model has seen; without `frame_hw` the map is (G, G)."""
        distances = _distances(_tokens(self.model, result), self._memory, self._moments)
        side = math.isqrt(len(distances))
        patches, threshold = distances.reshape(side, side), self.calibration.threshold
        step = 2 * max(threshold - self.calibration.ordinary, 1e-6)
        heat = np.clip((patches - np.float32(self.calibration.ordinary)) / np.float32(step), 0.0, 1.0)
        score = float(distances.max())
        return Anomaly(
            score=score, is_anomaly=score > threshold, patches=patches, result=result,
            map=heat if frame_hw is None else spread(heat, frame_hw, self.pixel),
        )  # fmt: skip

    def stream(self, source: Sources, policy: str | None = None, **options: Any) -> Stream[Anomaly]:
        """Return a stream over the Anomaly of each frame; sources and options are those of `Model.stream`."""
        return stream(self, source, policy, **options)

    @property
    def size_bytes(self) -> int:
        """Return the size of the core-set as it is saved."""
        return 2 * self._memory.size

    def save(self, path: str | Path) -> None:
        """Write the reference set, core-set in fp16, so that it appears whole or not at all. Raises StorageError."""
        facts = _Facts(
            provenance=self.model.provenance, calibration=self.calibration, normal_frames=self.normal_frames,
            patches_seen=self.patches_seen,
        )  # fmt: skip
        feature_file.write(
            Path(path), SCHEMA, facts, {"memory": self._memory.astype(np.float16), "moments": self._moments}
        )

    @classmethod
    def load(cls, path: str | Path, model: Model) -> AnomalyDetector:
        """Open a reference set that this very graph made. Raises GalleryError for a corrupt, foreign or other one."""
        path = Path(path)
        facts, arrays = feature_file.read(path, SCHEMA, _Facts)
        _refuse_other(facts.provenance, model, f"the reference set '{path}'")
        memory, moments = arrays.get("memory", np.zeros(0)), arrays.get("moments", np.zeros(0))
        width = _width(model)
        if memory.ndim != 2 or not len(memory) or memory.shape[1] != width or moments.shape != (2, width):
            raise corrupt(path, f"it holds arrays of shape {memory.shape} and {moments.shape}")
        return cls(model, memory.astype(np.float32), moments.astype(np.float32), facts.calibration,
                   normal_frames=facts.normal_frames, patches_seen=facts.patches_seen)  # fmt: skip


def _parted(
    model: Model, normal: Iterable[Result | NDArray[Any]], held_out: Iterable[Result | NDArray[Any]] | None, seed: int
) -> tuple[list[Floats], list[Floats]]:
    """Return the tokens of frames to remember and of those held out: given ones, or a random half."""
    _width(model)  # refused before any frame is read
    kept = [_tokens(model, frame) for frame in normal]
    if held_out is not None:
        return kept, [_tokens(model, frame) for frame in held_out]
    order = np.random.default_rng(seed).permutation(len(kept))
    half = len(kept) // 2
    return [kept[i] for i in order[half:]], [kept[i] for i in order[:half]]


def _rate_high(n: int, above: int) -> float:
    """Return the largest rate with which `above` of n scores or fewer are still over the threshold in 5 % of cases."""
    k = np.arange(above + 1)
    ways = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(above + 1)])
    low, high = 0.0, 1.0
    for _ in range(40):
        rate = (low + high) / 2
        so_few = float(np.exp(ways + k * math.log(rate) + (n - k) * math.log1p(-rate)).sum())
        low, high = (rate, high) if so_few > 1 - CONFIDENCE else (low, rate)
    return high


def _tokens(model: Model, seen: Result | NDArray[Any]) -> Floats:
    """Return the patches (N, D) of a frame or a result."""
    result = seen if isinstance(seen, Result) else model(seen)
    if result.provenance is None or result.tokens is None:
        raise InputError(
            "a result without tokens or provenance was given", expected="what a loaded model returned",
            fix="pass the frame, or the Result of edgemae.load(...)(frame)",
        )  # fmt: skip
    _refuse_other(result.provenance, model, "the result")
    return result.tokens


def _width(model: Model) -> int:
    """Return D of the model's tokens. Raises GalleryError for a bundle that gives none."""
    for spec in model.manifest.io.outputs:
        if spec.name == "tokens":
            return spec.shape[-1]
    raise GalleryError(
        f"the bundle '{model.path}' gives no tokens, and anomalies are found patch by patch",
        expected="a bundle whose graphs have the output 'tokens'",
        fix="compile it again with --set export.tokens=true (in a plan: [export] tokens = true)",
    )


def _refuse_other(made_by: Provenance, model: Model, what: str) -> None:
    here = model.provenance
    if made_by.graph != here.graph:
        same = made_by.embedding == here.embedding
        raise GalleryError(
            f"{what} was made by {made_by} on {made_by.variant}, the model here is {here} on {here.variant}",
            expected="the graph that it was made by: a threshold holds for no other",
            fix=f"load the bundle with engine='{made_by.variant.partition('-')[0]}', or fit it again here" if same
            else "load the bundle that made it, or fit it again from normal frames with this one",
        )  # fmt: skip


def _unit(rows: Floats, moments: Floats) -> Floats:
    """Return patches by their deviation from an average normal one, each value in its own spread, at length 1."""
    away = np.asarray((rows - moments[0]) / moments[1], np.float32)
    away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), np.float32(1e-6))
    return away


def _distances(tokens: Floats, memory: Floats, moments: Floats) -> Floats:
    """Return the distance (N,) of each patch to the nearest remembered one, 0..2."""
    nearest: Floats = (_unit(tokens, moments) @ memory.T).max(axis=1)
    distances: Floats = np.sqrt(np.maximum(2 - 2 * nearest, np.float32(0)))
    return distances
