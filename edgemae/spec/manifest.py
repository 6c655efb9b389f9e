"""The manifest's types: what is written about a bundle. docs/bundle-format.md has the format and the reasons."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from edgemae.spec.graph import IoContract, PixelContract, Step
from edgemae.spec.report import EngineLatency, GateVerdict, ProfileSummary
from edgemae.spec.target import Target

SCHEMA = "edgemae.bundle/2"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the manifest's own tables: immutable, and unknown keys are refused."""


class FileEntry(Entry, frozen=True):
    """Digest and size in bytes of one file."""

    sha256: str
    size: Annotated[int, msgspec.Meta(ge=0)]


class Tolerance(Entry, frozen=True):
    """How far an engine's outputs may move from the stored reference before the bundle is refused."""

    cosine_min: float
    max_abs: float
    top1: bool = True  # the label of every golden frame must stay the same (only with a head)


class Variant(Entry, frozen=True):
    """One way to run the model; the manifest lists them in order of preference."""

    engine: str
    files: tuple[str, ...]  # ("graph/int8.onnx",) or ("openvino/int8.xml", "openvino/int8.bin")
    precision: str
    tolerance: Tolerance
    scheme: str = ""
    reason: str = ""  # why it stands at this place
    golden: str = ""  # .npy of reference logits (embeddings, without a head), a row a frame; always set when written

    @property
    def id(self) -> str:
        """Return a name that tells the variants of one bundle apart, such as `openvino-int8-static`."""
        return "-".join(part for part in (self.engine, self.precision, self.scheme) if part)


class Golden(Entry, frozen=True):
    """Frames to prove the pixels and the engine with, and the exact tensor that each frame must become."""

    frames: tuple[str, ...]
    tensors: tuple[str, ...]
    color: str = "BGR"


class Manifest(Entry, frozen=True):
    """Everything a device has to know about the bundle, and the digest of every other file in it."""

    name: str
    version: Annotated[int, msgspec.Meta(ge=0)]  # rises with every release of the same name
    created: str
    status: Literal["passed", "failed", "untested"]  # untested: no limit was asked for
    target: Target
    io: IoContract
    pixel: PixelContract
    variants: tuple[Variant, ...]
    golden: Golden
    labels: tuple[str, ...] = ()
    history: tuple[Step, ...] = ()
    gates: tuple[GateVerdict, ...] = ()
    latency: tuple[EngineLatency, ...] = ()
    machine: dict[str, Any] = {}
    profiles: tuple[ProfileSummary, ...] = ()  # taken on devices, the newest last
    licence: str = ""
    baseline_stats: dict[str, Any] = {}
    previous: str | None = None  # sha256 of the manifest this one replaces
    files: dict[str, FileEntry] = {}
    schema: str = SCHEMA
