"""Describe a bundle or a model file: what it is, where it comes from, what was measured. A bundle needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgemae.spec.bundle import Bundle, is_bundle, open_bundle


def describe(path: Path, heads: int = 0, decoder_heads: int = 0) -> dict[str, Any]:
    """Return what a bundle or a model file is."""
    if is_bundle(path):
        return _describe_bundle(open_bundle(path))
    from edgemae.model.import_teacher import load_teacher
    from edgemae.model.teacher import import_notes
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
        "variants": [{"variant": r.id, "files": list(r.files), "reason": r.reason} for r in m.variants],
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
