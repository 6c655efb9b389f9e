"""Teacher: an encoder to learn from, with its MAE decoder and its classification head where the file had them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemae.model.mae import MAE, DecoderShape
from edgemae.model.model_file import load_exactly, write_model
from edgemae.model.student import common_fields, header_of, vit_from
from edgemae.model.vit import ViT
from edgemae.spec.graph import PixelContract, Step


@dataclass(frozen=True)
class Teacher:
    """Hold a teacher. `mae` shares its encoder with `vit`; it is None when the file had no decoder.

    `licence` is what is known of the weights' licence ("unknown" when nothing is); it travels into the manifest.
    """

    vit: ViT
    pixel: PixelContract
    labels: tuple[str, ...] = ()
    history: tuple[Step, ...] = field(default=())
    mae: MAE | None = None
    licence: str = "unknown"
    source: str = "edgemae"

    def save(self, path: Path, *, half: bool = False) -> None:
        """Write an edgemae model file, decoder included; `half` stores fp16."""
        header = header_of("teacher", self.vit, self.pixel, self.labels, self.history)
        header |= {"licence": self.licence, "source": self.source, "decoder": None}
        tensors = {f"encoder.{k}": v for k, v in self.vit.state_dict().items()}
        if self.mae is not None:
            header |= {"decoder": self.mae.decoder.shape.as_dict(), "loss": self.mae.loss_kind}
            tensors |= {f"decoder.{k}": v for k, v in self.mae.decoder.state_dict().items()}
        write_model(path, tensors, header, half=half)


def teacher_from(tensors: dict[str, Any], header: dict[str, Any], path: str | Path = "") -> Teacher:
    """Build a Teacher from the tensors and header of an edgemae model file. Raises CheckpointError."""
    vit = vit_from(
        {k.removeprefix("encoder."): v for k, v in tensors.items() if not k.startswith("decoder.")}, header, path
    )
    pixel, labels, history = common_fields(header, vit.shape)
    mae = None
    if header["decoder"] is not None:
        shape = DecoderShape(**header["decoder"])
        _check_decoder(tensors, shape)
        mae = MAE(vit, shape, loss_kind=header["loss"], mean=pixel.mean, std=pixel.std)
        load_exactly(
            mae.decoder, {k[8:]: v for k, v in tensors.items() if k.startswith("decoder.")}, f"the decoder of '{path}'"
        )
        mae.eval()
    return Teacher(vit, pixel, labels, history, mae, header["licence"], header["source"])


def _check_decoder(tensors: dict[str, Any], shape: DecoderShape) -> None:
    """Raise ValueError for a decoder that the tensors are not of, before memory is taken for it."""
    blocks = {name.split(".")[2] for name in tensors if name.startswith("decoder.blocks.")}
    embed = tensors.get("decoder.embed.weight")
    if embed is None or len(embed) != shape.width or len(blocks) != shape.depth:
        raise ValueError(f"a decoder of width {shape.width} and {shape.depth} blocks, and the weights of another")


def import_notes(teacher: Teacher) -> dict[str, list[str]]:
    """Return what the import of a teacher's file assumed and ignored; empty for one that edgemae trained."""
    plan = next((step.plan for step in teacher.history if step.stage == "import"), {})
    return {kind: [str(note) for note in plan[kind]] for kind in ("assumed", "ignored") if plan.get(kind)}
