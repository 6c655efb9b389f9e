"""Provenance: which model made an embedding, and which graph of it. What was stored is compared with nothing else's."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from edgemae.spec.manifest import Manifest, Variant


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Say who made a result: bundle and variant for people, two digests for comparisons.

    `embedding` is of what an embedding depends on: pixels and every graph of the bundle. It outlives a new version,
    report, profile or threshold, and changes with weights, quantization or pixels. `graph` is of the one that ran.
    """

    bundle: str
    version: int
    variant: str
    embedding: str
    graph: str

    def __str__(self) -> str:
        return f"{self.bundle} version {self.version} (embedding {self.embedding[:12]})"


def provenance_of(manifest: Manifest, variant: Variant) -> Provenance:
    """Return the provenance of what one variant of a bundle says."""
    graphs = sorted({manifest.files[name].sha256 for each in manifest.variants for name in each.files})
    return Provenance(
        bundle=manifest.name,
        version=manifest.version,
        variant=variant.id,
        embedding=_digest({"pixel": manifest.pixel, "graphs": graphs}),
        graph=_digest(
            {"pixel": manifest.pixel, "graphs": sorted(manifest.files[name].sha256 for name in variant.files)}
        ),
    )


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()
