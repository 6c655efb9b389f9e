"""Make a bundle ready on the device that this runs on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec

from edgemae.deploy.first_run import first_run
from edgemae.profiling.bundle_profile import keep
from edgemae.profiling.profiler import profile
from edgemae.spec.bundle import open_bundle
from edgemae.spec.errors import EdgemaeError, EngineMissingError, EngineRuntimeError

log = logging.getLogger("edgemae")


def finalize(path: Path, target: str | None, *, measure: bool = True) -> dict[str, Any]:
    """Make a bundle ready on this device: build its engines into the cache, prove each, profile the first that works.

    The profile stays in the bundle, with a page; without `measure` the bundle stays as it is. Raises EngineMissingError
    or EngineRuntimeError when no variant works; SelfCheckError as soon as one computes wrongly.
    """
    variants, errors = [], []
    first = ""
    for engine in dict.fromkeys(variant.engine for variant in open_bundle(path).manifest.variants):
        try:
            info = first_run(path, target=target, engine=engine)
            variants.append({"engine": engine, "variant": info["variant"], "ready": True, **info["check"]})
            first = first or engine
        except (EngineMissingError, EngineRuntimeError) as error:
            variants.append({"engine": engine, "ready": False, "reason": error.what})
            errors.append(error)
    if not first:
        raise errors[0]
    ready = {"bundle": str(path), "engine": first, "engines": variants}
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
