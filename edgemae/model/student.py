"""Student: a plain ViT with its pixels, labels and history. Pruning changes its shape and nothing else about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import msgspec
import torch
from torch import Tensor

from edgemae.model.file_checks import require_regular
from edgemae.model.model_file import FORMAT, corrupt, load_exactly, read_model, write_model
from edgemae.model.vit import ViT, ViTShape
from edgemae.spec.errors import CheckpointError
from edgemae.spec.graph import PixelContract, Scales, Step


@dataclass(frozen=True)
class Student:
    """Hold a small ViT and everything needed to use it. `labels` is empty for a model without a head.

    `scales` are those that its weights were trained for; whoever changes the weights drops them.
    """

    vit: ViT
    pixel: PixelContract
    labels: tuple[str, ...] = ()
    history: tuple[Step, ...] = field(default=())
    scales: Scales | None = None

    def save(self, path: Path) -> None:
        """Write an edgemae model file."""
        header = header_of("student", self.vit, self.pixel, self.labels, self.history)
        if self.scales is not None:
            header["scales"] = msgspec.to_builtins(self.scales)
        write_model(path, self.vit.state_dict(), header)


def load_student(path: Path) -> Student:
    """Read a student file. Raises CheckpointError for anything else."""
    require_regular(path)
    bundle = path.is_dir() or is_zipfile(path)
    read = None if bundle else read_model(path)
    if read is None or read[1].get("kind") != "student":
        raise CheckpointError(
            f"'{path}' is not an edgemae student",
            expected="a student.safetensors" + (", not a folder or a bundle of compiled graphs" if bundle else ""),
            fix="pass the one that `edgemae distill` or `edgemae compile` wrote under its --output",
        )
    tensors, header = read
    try:
        scales = msgspec.convert(header["scales"], Scales) if "scales" in header else None
        vit = vit_from(tensors, header, path)
        return Student(vit, *common_fields(header, vit.shape), scales)
    except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise corrupt(path, error) from error


def vit_from(tensors: dict[str, Tensor], header: dict[str, Any], path: str | Path = "") -> ViT:
    """Build the encoder that a header describes. Raises CheckpointError when the tensors do not fit it."""
    with torch.device("meta"):  # no memory, no random numbers drawn: every value comes from the file
        vit = ViT(ViTShape(**header["shape"]))
    load_exactly(vit, tensors, f"the encoder of '{path}'")
    return vit.eval()


def header_of(
    kind: str, vit: ViT, pixel: PixelContract, labels: tuple[str, ...], history: tuple[Step, ...]
) -> dict[str, Any]:
    """Return the header fields that teachers and students share."""
    return {
        "kind": kind,
        "format": FORMAT,
        "shape": vit.shape.as_dict(),
        "pixel": msgspec.to_builtins(pixel),
        "labels": list(labels),
        "history": msgspec.to_builtins(history),
    }


def common_fields(header: dict[str, Any], shape: ViTShape) -> tuple[PixelContract, tuple[str, ...], tuple[Step, ...]]:
    """Return (pixel, labels, history) of a header. Raises ValueError where they do not fit the network's shape."""
    pixel = msgspec.convert(header["pixel"], PixelContract)
    labels = msgspec.convert(header["labels"], tuple[str, ...])
    if (pixel.image_px, pixel.channels) != (shape.image_px, shape.channels):
        raise ValueError(f"pixels of {pixel.image_px} px, {pixel.channels} channels for another network")
    if not len(pixel.mean) == len(pixel.std) == shape.channels or not min(pixel.std) > 0:
        raise ValueError(f"mean {pixel.mean} and std {pixel.std} for {shape.channels} channels")
    if len(labels) != shape.classes:
        raise ValueError(f"{len(labels)} labels for {shape.classes} classes")
    return pixel, labels, msgspec.convert(header["history"], tuple[Step, ...])
