"""Model: a bundle, verified, loaded on the first of its engines that works, and proved right on this machine."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.device.engines import ENGINES, find_engine, open_session
from edgemae.device.hardware.cpu_affinity import checked_cores
from edgemae.device.hardware.heap import trim_heap
from edgemae.device.outputs import top_classes
from edgemae.device.preprocess import as_bgr, preprocess
from edgemae.device.process_end import MODEL, CallGate, close_at_exit
from edgemae.device.selfcheck import Check, check
from edgemae.device.session import Session
from edgemae.device.stream_result import MAX_FAILURES, StreamResult
from edgemae.spec.bundle import Bundle, open_bundle
from edgemae.spec.errors import EdgemaeError, EngineMissingError, EngineRuntimeError, InputError, nearest
from edgemae.spec.manifest import Variant
from edgemae.spec.provenance import Provenance, provenance_of
from edgemae.spec.target import Target, find_target

if TYPE_CHECKING:
    from edgemae.device.camera.multi_camera import Sources
    from edgemae.device.stream import Stream

_log = logging.getLogger("edgemae.device")
FALLBACKS = {
    "never": logging.ERROR,
    "warn": logging.WARNING,
    "auto": logging.INFO,
}  # log level of a skip


@dataclass(frozen=True)
class Result:
    """What the model says of one frame. Without a head `label`, `score` and `logits` are None and `topk` is empty."""

    label: str | None
    score: float | None  # softmax, 0..1
    topk: list[tuple[str, float]]
    embedding: NDArray[np.float32] | None  # (D,)
    logits: NDArray[np.float32] | None  # (K,)
    speed: dict[str, float]  # pre_ms, infer_ms, post_ms
    tokens: NDArray[np.float32] | None = None  # (N, D), patches row by row; None in a bundle without them
    provenance: Provenance | None = None  # of the embedding and the tokens


class Model:
    """Run a loaded bundle frame by frame, from any thread, one call at a time.

    Made by `load`; close it, or use it in a `with` block.
    """

    def __init__(self, bundle: Bundle, target: Target, variant: Variant, session: Session, proof: Check) -> None:
        self.manifest, self.path, self.sha256 = bundle.manifest, bundle.path, bundle.sha256
        self.target, self.variant, self.session, self.check = target, variant, session, proof
        self.pixel, self.labels = bundle.manifest.pixel, bundle.manifest.labels
        self.provenance = provenance_of(bundle.manifest, variant)
        self._dtype = bundle.manifest.io.dtype
        self.skipped: tuple[tuple[str, str], ...] = ()  # (variant id, reason), in their order
        self._gate = CallGate()
        close_at_exit(MODEL, self)
        self._turn = threading.Lock()  # a session reuses its buffers: two threads in it would mix their frames up

    def __call__(self, frame_bgr: NDArray[np.uint8], color: str = "BGR", top: int = 5) -> Result:
        """Return the result for one (H, W), (H, W, 3) or (H, W, 4) uint8 frame whose channel order is `color`.

        Raises InputError for what is no frame, EngineRuntimeError when the engine fails or computes what is no number.
        """
        with self._gate:
            return self._call(frame_bgr, color, top)

    def _call(self, frame_bgr: NDArray[np.uint8], color: str, top: int) -> Result:
        start = time.perf_counter_ns()
        pixels = preprocess(as_bgr(frame_bgr, color), self.pixel, self._dtype)
        before = time.perf_counter_ns()
        with self._turn:
            outputs = self.session(pixels)
        after = time.perf_counter_ns()
        _require_finite(outputs, self.variant)
        logits, embedding, tokens = (outputs.get(name) for name in ("logits", "embedding", "tokens"))
        topk = [] if logits is None else top_classes(logits[0], self.labels, top)
        label, score = topk[0] if topk else (None, None)
        end = time.perf_counter_ns()
        return Result(
            label=label,
            score=score,
            topk=topk,
            embedding=None if embedding is None else embedding[0],
            logits=None if logits is None else logits[0],
            speed={
                "pre_ms": (before - start) / 1e6,
                "infer_ms": (after - before) / 1e6,
                "post_ms": (end - after) / 1e6,
            },
            tokens=None if tokens is None else tokens[0],
            provenance=self.provenance,
        )

    def stream(
        self, source: Sources, policy: str | None = None, *, realtime: bool = False,
        on_result: Callable[[StreamResult[Result]], object] | None = None, max_age_ms: float | None = None,
        max_failures: int | None = MAX_FAILURES,
    ) -> Stream[Result]:  # fmt: skip
        """Return a stream of results for a camera index, a video file, a URL, an image folder, or several of them.

        Take them by `for`, by `async for`, or with `on_result` by `.run()` here or `.start()` in a thread. Without
        `policy` a live source gives its newest frame and a file every frame; `realtime` plays a file at its own rate.
        A mapping or a list of sources is read round-robin; `seen.source` names the one. A result whose frame is older
        than `max_age_ms` is withheld. After `max_failures` failures in a row the stream raises (None: never). Close it,
        or use a `with` block. Raises CameraError, InputError.
        """
        from edgemae.device.stream import stream

        return stream(
            self, source, policy, realtime=realtime, on_result=on_result, max_age_ms=max_age_ms,
            max_failures=max_failures,
        )  # fmt: skip

    @property
    def info(self) -> dict[str, Any]:
        """Return what runs here and why, JSON-ready."""
        return {
            "name": self.manifest.name,
            "version": self.manifest.version,
            "status": self.manifest.status,
            "sha256": self.sha256,
            "target": self.target.name,
            "variant": self.variant.id,
            "engine": self.variant.engine,
            "engine_version": ENGINES[self.variant.engine].version(),
            "precision": self.variant.precision,
            "scheme": self.variant.scheme,
            "reason": self.variant.reason,
            "threads": self.target.threads,
            "cores": list(self.session.cores),  # empty: where the system puts it
            "image_px": self.pixel.image_px,
            "labels": list(self.labels),
            "check": {"frames": self.check.frames, "cosine": self.check.cosine, "max_abs": self.check.max_abs},
            "skipped": [{"variant": variant, "reason": reason} for variant, reason in self.skipped],
        }

    def close(self) -> None:
        """Free the engine, after the call that another thread is in; a second call does nothing, nor one in a fork."""
        if self._gate.is_forked:
            return
        with self._turn:
            self.session.close()

    def end(self) -> None:
        """Close at the end of the interpreter."""
        self._gate.end(self.close)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _require_finite(outputs: Mapping[str, NDArray[np.float32]], variant: Variant) -> None:
    """Raise EngineRuntimeError for NaN or infinity: any label made of that would be a wrong one."""
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise EngineRuntimeError(
                f"{variant.id} gave {np.count_nonzero(~np.isfinite(values))} of {values.size} {name} not finite",
                expected="finite outputs",
                fix="run `edgemae verify` on the bundle; another of its engines (--engine) may compute it right",
            )


def load(
    path: str | Path, target: str | Target | None = None, engine: str = "auto", *, threads: int | None = None,
    cores: Collection[int] | None = None, fallback: str = "warn",
) -> Model:  # fmt: skip
    """Verify a bundle, load it on the first of its engines that works here, and prove it with the golden frames.

    `target` defaults to the bundle's own; `engine` names one of the bundle's instead of "auto". `threads` replaces the
    target's; `cores` keeps the engine to those cores, with as many threads where `threads` does not say.

    `fallback` says what happens where an engine is not installed or cannot build the graph: "never" raises its error,
    "warn" takes the next variant, with a warning in the log, "auto" with a line of information; `Model.skipped` keeps
    every reason. The default is "warn": every variant was measured and is proved here, a camera on its second engine
    still sees, and one that stays dark needs a visit; but nobody's fleet shall become slower without a line in its log.
    An engine that computes something else is never skipped over: SelfCheckError. A bundle that missed a gate loads
    with a warning, because finding out why needs it running; `manifest.status` stays "failed".

    Raises BundleError, InputError for an engine without a variant or a core that is not there, EngineMissingError,
    EngineRuntimeError.
    """
    if fallback not in FALLBACKS:
        raise InputError(
            f"unknown fallback '{fallback}'.{nearest(fallback, list(FALLBACKS))}",
            expected=f"one of {', '.join(FALLBACKS)}",
            fix="correct `fallback`",
        )
    bundle = open_bundle(path)
    goal = bundle.manifest.target if target is None else target if isinstance(target, Target) else find_target(target)
    placed = checked_cores(cores)
    model = _load_first_working(bundle, engine, _with_threads(goal, threads, placed), placed, fallback)
    del bundle  # with every byte of it
    trim_heap()
    return model


def _load_first_working(bundle: Bundle, engine: str, goal: Target, cores: tuple[int, ...], fallback: str) -> Model:
    manifest = bundle.manifest
    if manifest.status == "failed":
        missed = ", ".join(gate.gate for gate in manifest.gates if not gate.passed)
        _log.warning("'%s' missed its gates (%s): do not ship it", bundle.path, missed or "not listed")
    failures: list[tuple[Variant, EdgemaeError]] = []
    for variant in _variants(bundle, engine):
        try:
            session = _open(bundle, variant, goal, cores)
        except (EngineMissingError, EngineRuntimeError) as error:
            if fallback == "never":
                raise
            _log.log(FALLBACKS[fallback], "%s is skipped: %s (%s)", variant.id, error.what, error.fix)
            failures.append((variant, error))
            continue
        try:
            model = Model(bundle, goal, variant, session, check(session, bundle, variant))
        except BaseException:
            session.close()
            raise
        model.skipped = tuple((variant.id, error.what) for variant, error in failures)
        return model
    raise _no_variant_error(bundle, failures)


def _variants(bundle: Bundle, engine: str) -> list[Variant]:
    known = bundle.manifest.variants
    if engine == "auto":
        return list(known)
    find_engine(engine)
    if not (variants := [variant for variant in known if variant.engine == engine]):
        raise InputError(
            f"the bundle '{bundle.path}' has nothing for engine '{engine}'",
            expected=f"one of {', '.join(sorted({variant.engine for variant in known}))}",
            fix=f"choose one of those, or compile for a target that lists '{engine}'",
        )
    return variants


def _with_threads(target: Target, threads: int | None, cores: tuple[int, ...]) -> Target:
    """Return the target with the threads that were asked for, or with no more than there are cores for them."""
    asked = min(target.threads, len(cores) or target.threads) if threads is None else threads
    if asked < 1 or (cores and asked > len(cores)):
        raise InputError(
            f"{asked} threads were asked for" + (f", on {len(cores)} cores" if cores else ""),
            expected=f"1 to {len(cores)}" if cores else "1 or more",
            fix="correct `threads`; more of them than cores only switch one another out",
        )
    return msgspec.structs.replace(target, threads=asked)


def _open(bundle: Bundle, variant: Variant, target: Target, cores: tuple[int, ...]) -> Session:
    if variant.engine not in ENGINES:
        raise EngineMissingError(
            f"this version does not know the engine '{variant.engine}'",
            expected=f"one of {', '.join(ENGINES)}",
            fix="update edgemae on this machine",
        )
    return open_session(variant.engine, bundle.variant_files(variant), target, cores)


def _no_variant_error(bundle: Bundle, failures: list[tuple[Variant, EdgemaeError]]) -> EdgemaeError:
    """Return the one error when there was one variant, else an error that lists every variant's reason."""
    if len(failures) == 1:
        return failures[0][1]
    reasons = "; ".join(f"{variant.id}: {error.what}" for variant, error in failures)
    fixes = list(dict.fromkeys(error.fix for _, error in failures))
    kind = EngineMissingError if all(isinstance(e, EngineMissingError) for _, e in failures) else EngineRuntimeError
    return kind(
        f"no engine can run '{bundle.path}' here: {reasons}",
        expected="one of its engines that is installed and works",
        fix=" or ".join(fixes),
    )
