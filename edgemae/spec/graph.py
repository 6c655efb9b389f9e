"""Graph: an ONNX model and the contract of what goes in and comes out.

`PixelContract` is the only description of how an image becomes a tensor. Training, calibration, evaluation and the
device all hand it to the same function (`edgemae.device.preprocess.preprocess`), so they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
COLORS = {3: ("RGB", "BGR"), 1: ("GRAY",)}  # channels -> their orders
RESIZES = ("short-side", "stretch")
EXIF = ("apply", "ignore")
ROTATIONS_DEG = (0, 90, 180, 270)
KERNELS = ("area-linear", "halve-linear", "linear", "cubic", "area")


class PixelContract(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """State how a frame becomes the (1, C, H, W) float32 input of the graph.

    Order of work: EXIF rotation (files only) -> colour -> resize -> centre crop -> scale to 0..1 -> (x - mean) / std.
    `resize = "short-side"` scales the short side to `image_px / crop_fraction` and crops the centre;
    `resize = "stretch"` maps the whole frame to `image_px` x `image_px`.
    `kernel = "area-linear"`: OpenCV INTER_AREA when shrinking, INTER_LINEAR when growing.
    `kernel = "halve-linear"`: crop, then halve each side (rounded mean of 2 x 2) while it stays at `image_px` or above,
    then INTER_LINEAR: a tenth of the time of INTER_AREA for large frames, other bytes.
    """

    image_px: int
    channels: int = 3
    color: str = "RGB"  # order of the tensor's channels; "GRAY" when channels == 1
    resize: str = "short-side"
    kernel: str = "area-linear"
    crop_fraction: float = 1.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    exif: str = "apply"  # "apply" | "ignore"
    rotation_deg: int = 0  # clockwise, applied after EXIF: 0, 90, 180 or 270


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Name, dtype and shape of one input or output; `-1` marks the batch axis of a dynamic graph."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class IoContract(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tensors of the graph: one input `pixels`; outputs `logits` (only with a head) and `embedding`.

    `pixels` is (B, C, H, W) float32, normalised, or (B, H, W, C) uint8 for a graph that normalises by itself.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def dtype(self) -> str:
        """Return the input's, as `preprocess` takes it."""
        return self.inputs[0].dtype if self.inputs else "float32"


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of provenance: what was done to a value, with what, and what came of it."""

    stage: str
    plan: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    tools: dict[str, str] = {}
    seed: int | None = None
    data: str | None = None  # fingerprint of the images that were used
    licence: str | None = None  # licence of a model that came in at this step


class Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """State the integers of one linear layer: input = (integer - zero) * scale, weight row = integer * weight_scale.

    All scales are float32 values, written out so that reading them gives the same bits.
    """

    scale: float
    zero: int
    weight_scale: tuple[float, ...]  # one an output row, of the weight as it stands in the graph


class Scales(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """State the grids that a model was trained for, by the name of the layer; other layers stay float.

    `symmetric`: int8 around zero for inputs and 127 levels for weights, as GPUs want it; else uint8 with a zero point
    and 64 levels. They hold for the very weights that they were trained with, and for no others.
    """

    symmetric: bool
    linears: dict[str, Grid]


@dataclass(frozen=True)
class Graph:
    """Hold one serialized network for engines that read ONNX, or OpenVINO IR as a second form.

    `files` maps file names to bytes: {"model.onnx": ...} or {"model.xml": ..., "model.bin": ...}.
    `precision` is one of fp32, fp16, int8; `scheme` names how int8 was reached ("" for float).
    """

    files: dict[str, bytes]
    io: IoContract
    precision: str = "fp32"
    scheme: str = ""
    history: tuple[Step, ...] = field(default=())

    @property
    def onnx(self) -> bytes:
        return self.files["model.onnx"]

    @property
    def size_bytes(self) -> int:
        return sum(len(data) for data in self.files.values())
