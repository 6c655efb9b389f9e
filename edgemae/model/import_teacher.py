"""Import a teacher, recognised by what is in its file: every size is read from the tensors, the rest is asked for.

What a file cannot tell is never guessed in silence. The number of heads has to be given; what has a usual value (pixel
statistics, the kind of MAE loss) takes it and is listed as `assumed` in the import step of the history. LayerNorms are
always written with epsilon 1e-6: 1e-12 is zero in fp16, and the outputs of a float network move by about 5e-5.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from edgemae.model.known_models import check_config, known_heads, labels_of, licence_of, pixel_of, source_of
from edgemae.model.mae import DecoderShape
from edgemae.model.model_file import FORMAT, corrupt
from edgemae.model.name_mapping import refuse_relatives, translate
from edgemae.model.stated_config import StatedConfig, stated_config
from edgemae.model.teacher import Teacher, teacher_from
from edgemae.model.vit import LAYER_NORM_EPS, ViTShape, sincos_position
from edgemae.model.weight_files import WeightFile, read_weights
from edgemae.spec.errors import CheckpointError
from edgemae.spec.graph import PixelContract, Step

LOSSES = ("norm-pixel", "pixel", "bce")
# How far stored sine-cosine positions lie from ours: rounding of values up to 1 in each type, with a margin.
SINCOS_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@dataclass
class _Import:
    """Collect what is known while a file is translated; becomes a header of edgemae's own format."""

    path: Path
    file: WeightFile
    tensors: dict[str, Tensor]
    notes: dict[str, Any]
    stated: StatedConfig
    assumed: list[str] = field(default_factory=list)

    def error(self, what: str, *, expected: str, fix: str) -> CheckpointError:
        return CheckpointError(f"'{self.path}' {what}", expected=expected, fix=fix)

    def size(self, name: str, rank: int) -> tuple[int, ...]:
        """Return the shape of a tensor that must be there."""
        tensor = self.tensors.get(name)
        if tensor is None or tensor.dim() != rank:
            raise self.error(
                f"has no usable '{name}' ({'missing' if tensor is None else f'shape {tuple(tensor.shape)}'})",
                expected="all parts of a ViT: patch embedding, positions, blocks, final norm",
                fix="use the complete file; a head or a decoder alone is no teacher",
            )
        return tuple(tensor.shape)

    def blocks(self, stack: str) -> int:
        numbers = [int(m[1]) for k in self.tensors if (m := re.match(rf"{stack}\.blocks\.(\d+)\.", k))]
        return max(numbers, default=-1) + 1


def load_teacher(
    path: str | Path, *, heads: int = 0, decoder_heads: int = 0, pixel: PixelContract | None = None,
    loss_kind: str | None = None, licence: str | None = None, hashes: Mapping[Path, str] | None = None,
) -> Teacher:  # fmt: skip
    """Read a teacher: edgemae, Meta MAE, timm, or a Hugging Face ViTMAE or ViT folder.

    `heads`, `decoder_heads`, `pixel`, `loss_kind` (norm-pixel, pixel or bce) and `licence` say what the file cannot;
    `hashes` are the sha256 of files that were hashed already.
    A decoder whose heads stay unknown is left out, and the history says so. Raises CheckpointError, also for a path
    that does not exist.
    """
    path = Path(path)
    if loss_kind is not None and loss_kind not in LOSSES:
        raise CheckpointError(f"unknown MAE loss '{loss_kind}'", expected=", ".join(LOSSES), fix="pass one of those")
    file = read_weights(path, hashes)
    if file.header is not None:
        return _own(path, file, heads, pixel, licence, loss_kind)
    refuse_relatives(list(file.tensors), path)
    check_config(file, path)
    tensors, ignored = translate(file.tensors, path)
    notes = {"file": path.resolve().name, "sha256": file.sha256(), "ignored": [*file.ignored, *ignored]}
    job = _Import(path, file, tensors, notes, stated_config(file, path))
    shape = _shape(job, heads)
    decoder = _decoder(job, shape, decoder_heads)
    pixel = pixel_of(file, shape, pixel, path, job.assumed)
    known = licence or licence_of(file, shape)
    header = {
        "kind": "teacher", "format": FORMAT, "shape": shape.as_dict(), "pixel": msgspec.to_builtins(pixel),
        "labels": labels_of(file, shape, path, job.assumed), "history": [], "licence": known,
        "decoder": decoder.as_dict() if decoder else None, "loss": _loss(job, loss_kind) if decoder else "",
        "source": source_of(file),
    }  # fmt: skip
    teacher = teacher_from(job.tensors, header, path)
    return replace(teacher, history=(_step(job.notes | {"assumed": job.assumed}, known),))


def _step(plan: dict[str, Any], licence: str) -> Step:
    return Step(stage="import", plan=plan, tools={"torch": str(torch.__version__)}, licence=licence)


def _own(
    path: Path, file: WeightFile, heads: int, pixel: PixelContract | None, licence: str | None, loss_kind: str | None
) -> Teacher:
    """Return edgemae's own file as a teacher; a student file serves as one too."""
    header = dict(file.header or {})
    try:
        shape = ViTShape(**header["shape"])
        if heads and set(shape.heads) != {heads}:
            raise CheckpointError(
                f"'{path}' says that its blocks have {shape.heads} heads, not {heads}",
                expected="no --teacher-heads, or the file's own",
                fix="leave --teacher-heads out",
            )
        if header["kind"] == "student":
            past = [s.get("licence") for s in header["history"] if s.get("licence")]
            header |= {"decoder": None, "licence": past[-1] if past else "unknown", "source": "edgemae student"}
        if pixel is not None:
            header["pixel"] = msgspec.to_builtins(pixel_of(file, shape, pixel, path, []))
        if loss_kind is not None and header["decoder"]:
            header["loss"] = loss_kind
        teacher = teacher_from(file.tensors, header, path)
    except (KeyError, TypeError, ValueError, AttributeError, msgspec.ValidationError) as error:
        raise corrupt(path, error) from error
    if licence is None:
        return teacher
    step = _step({"file": path.resolve().name, "sha256": file.sha256()}, licence)
    return replace(teacher, licence=licence, history=(*teacher.history, step))


def _shape(job: _Import, heads: int) -> ViTShape:
    """Return the encoder's shape, every size read from the tensors; positions and norm are put into our form."""
    width, channels, patch_px, patch_w_px = job.size("encoder.patch_embed.weight", 4)
    if patch_px != patch_w_px or channels not in (1, 3) or width % 4:
        raise job.error(
            f"embeds patches of {patch_px}x{patch_w_px} pixels with {channels} channels into {width} values",
            expected="square patches, 1 or 3 channels, a width that divides by 4",
            fix="use another teacher",
        )
    depth = job.blocks("encoder")
    qkv = [job.size(f"encoder.blocks.{i}.attn.qkv.weight", 2)[0] for i in range(depth)]
    inner = qkv[0] // 3 if qkv else 0
    if not depth or set(qkv) != {inner * 3}:
        raise job.error(
            f"has attention of {sorted(set(qkv))} rows in {depth} blocks",
            expected="at least one block; query, key and value of the same width in all blocks",
            fix="use another teacher",
        )
    cls_token = "encoder.cls" in job.tensors
    grid = _positions(job, "encoder", cls_token)
    fc_norm = _final_norm(job)
    heads = _heads(job, inner, width, heads)
    classes = job.size("encoder.head.weight", 2)[0] if "encoder.head.weight" in job.tensors else 0
    sincos = _is_sincos(job.tensors["encoder.pos"], grid, cls_token)
    shape = ViTShape(
        image_px=grid * patch_px, patch_px=patch_px, width=width, heads=(heads,) * depth, head_dim=inner // heads,
        mlp=tuple(job.size(f"encoder.blocks.{i}.mlp.fc1.weight", 2)[0] for i in range(depth)), channels=channels,
        classes=classes, cls_token=cls_token, pool=_pool(job, cls_token, bool(classes), fc_norm),
        norm_after_pool=fc_norm, learned_pos=not sincos,
    )  # fmt: skip
    job.stated.check(shape)
    if not sincos and job.stated("image_px") is None:
        job.assumed.append(f"square images of {shape.image_px} px: {grid} x {grid} patches (the file does not say)")
    if job.stated("eps") not in (None, LAYER_NORM_EPS):
        job.notes["layer_norm_eps"] = f"{job.stated('eps')} written as {LAYER_NORM_EPS}"
    return shape


def _positions(job: _Import, stack: str, cls_token: bool) -> int:
    """Return the side of the square grid; give positions without a row for the class token their zero row."""
    name = f"{stack}.pos"
    _, rows, _ = job.size(name, 3)
    pos = job.tensors[name]
    for skip in (int(cls_token), 0):
        grid = math.isqrt(max(0, rows - skip))
        if grid and grid**2 == rows - skip:
            break
    else:
        raise job.error(
            f"has {rows} positions, which is no square grid{' and a class token' if cls_token else ''}",
            expected="a model for square images",
            fix="resample the positions to a square grid where it was trained, or use another teacher",
        )
    if not pos.any():
        raise job.error(
            f"has all-zero positions ('{name}'): so, and frozen, does transformers 5 start a ViTMAE made from a config",
            expected="sine-cosine or learned positions; without them a model cannot tell where a patch was",
            fix="pretrain again from positions that are set, for instance with `edgemae pretrain`",
        )
    if skip < int(cls_token):  # timm's no_embed_class: only patches have positions
        job.tensors[name] = torch.cat([torch.zeros(1, 1, pos.shape[2], dtype=pos.dtype), pos], dim=1)
    return grid


def _is_sincos(pos: Tensor, grid: int, cls_token: bool) -> bool:
    """Tell fixed sine-cosine positions in MAE's layout from learned ones (another layout counts as learned)."""
    ours = sincos_position(pos.shape[2], grid, cls_token)
    limit = SINCOS_TOLERANCE.get(pos.dtype, 1e-4)
    return pos.shape == ours.shape and bool((pos.float() - ours).abs().max() <= limit)


def _final_norm(job: _Import) -> bool:
    """Move `fc_norm` to our one final norm; return whether it stands behind the pooling."""
    if not any(k.startswith("encoder.fc_norm.") for k in job.tensors):
        return False
    if "encoder.norm.weight" in job.tensors:
        raise job.error(
            "has both 'norm' and 'fc_norm'",
            expected="one final LayerNorm: on all tokens (norm) or behind the pooling (fc_norm)",
            fix="export the fine-tuned model alone, without the norm of its pretraining",
        )
    for kind in ("weight", "bias"):
        if (tensor := job.tensors.pop(f"encoder.fc_norm.{kind}", None)) is not None:
            job.tensors[f"encoder.norm.{kind}"] = tensor
    return True


def _pool(job: _Import, cls_token: bool, has_head: bool, fc_norm: bool) -> str:
    """Return how tokens become one embedding: as the file says, else as a head was trained, or an MAE is used."""
    stated, kind = job.stated("pool"), job.file.config.get("model_type")
    if stated == "cls" and not cls_token:
        raise job.error(
            f"says that its embedding is the class token ({job.stated.where('pool')}), and has none",
            expected="a class token, or the mean of the patches",
            fix="use the configuration that was saved with these weights",
        )
    if stated is not None:
        return str(stated)
    if fc_norm or not cls_token or kind == "vit_mae":
        return "mean"
    pool = "cls" if has_head or kind == "vit" else "mean"
    if kind is None:
        what = "the class token" if pool == "cls" else "the mean of the patches"
        job.assumed.append(f"embedding: {what} (the file does not say)")
    return pool


def _heads(job: _Import, inner: int, width: int, given: int) -> int:
    """Return the number of heads. They are in no tensor's shape: 3, 6 and 12 heads of a ViT-Tiny look the same."""
    config = job.stated("heads")
    if given and config and given != config:
        raise job.error(
            f"says in {job.stated.where('heads')} that it has {config} heads, not {given}",
            expected="one truth",
            fix="leave --teacher-heads out",
        )
    by_name, _, name = known_heads(job.file, width)
    heads = given or config or by_name
    divisors = [h for h in range(1, inner + 1) if inner % h == 0 and 8 <= inner // h <= 128]
    if not isinstance(heads, int) or heads < 1 or inner % heads:
        raise job.error(
            f"cannot have {heads} heads" if heads else "does not say how many attention heads it has",
            expected=f"--teacher-heads with a divisor of {inner}: {', '.join(map(str, divisors))}",
            fix="look it up where the weights come from (ViT-B has 12, ViT-L and ViT-H 16)"
            + ("" if job.file.config else ", or pass the folder that holds config.json"),
        )
    job.notes["heads"] = "given" if given else job.stated.where("heads") if config else f"model name '{name}'"
    return heads


def _decoder(job: _Import, shape: ViTShape, given: int) -> DecoderShape | None:
    """Return the decoder's shape, or None when the file has none or its heads are unknown (then it is left out)."""
    names = [k for k in job.tensors if k.startswith("decoder.")]
    if not names:
        return None
    width, depth = job.size("decoder.embed.weight", 2)[0], job.blocks("decoder")
    stated = job.stated("decoder_heads") or known_heads(job.file, shape.width)[1]
    heads = given or stated
    if not heads:
        job.tensors = {k: v for k, v in job.tensors.items() if not k.startswith("decoder.")}
        job.notes["ignored"].append(f"decoder ({len(names)} tensors): its heads are unknown, pass decoder_heads")
        return None
    hidden = [job.size(f"decoder.blocks.{i}.mlp.fc1.weight", 2)[0] for i in range(depth)]
    fits = isinstance(heads, int) and heads > 0 and width % heads == 0 and width % 4 == 0
    if not fits or len(set(hidden)) != 1 or shape.norm_after_pool:
        raise job.error(
            f"has a decoder of width {width}, {depth} blocks, {heads} heads and hidden sizes {sorted(set(hidden))}",
            expected="a width that divides by the heads and by 4, blocks alike, an encoder that ends in 'norm'",
            fix="pass other decoder_heads, or remove the decoder's tensors: a teacher needs only its encoder",
        )
    if job.file.config.get("model_type") == "vit_mae":
        job.stated.compare({"decoder_width": width, "decoder_depth": depth, "decoder_mlp": hidden[0]})
    _positions(job, "decoder", shape.cls_token)
    return DecoderShape(width, depth, heads, hidden[0] / width)


def _loss(job: _Import, given: str | None) -> str:
    """Return what the decoder predicts; weights look the same, only a config or the training's options tell."""
    stated = job.file.config.get("norm_pix_loss", job.file.args.get("norm_pix_loss"))
    if given is None and stated is None:
        job.assumed.append("loss norm-pixel (Meta's *_visualize_* files were trained on plain pixels)")
    return given or ("norm-pixel" if stated in (None, True) else "pixel")
