"""Export a ViT as ONNX: whole LayerNormalization and Gelu, scale folded into W_q, fused qkv, static shapes.

Two attention forms, the same numbers:

- `explicit` (opset 20): MatMul, Softmax, MatMul. Every engine fuses it.
- `fused` (opset 23): one ai.onnx Attention node a block. Tried: ONNX Runtime 1.31 (CPU), OpenVINO 2026.4 (CPU) and the
  parser and builder of TensorRT for RTX 1.7 (fp32 and fp16) all take it. TensorRT 10 on Jetson is not tried.

Which is faster is measured by the caller (`both_forms`). In CPU time of one thread on AVX2, ViT-Tiny at 224 px and a
4-block ViT at 96 px, the two forms and four ways to split q, k and v lay within 3 % of each other on both CPU engines.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemae.export.rewrite import rewrite
from edgemae.model.vit import Attention, Block, ViT
from edgemae.spec.errors import CheckpointError, InputError, InternalError
from edgemae.spec.graph import Graph, IoContract, PixelContract, Step, TensorSpec

ATTENTION_FORMS = ("explicit", "fused")
OPSET = {"explicit": 20, "fused": 23}  # 20: first with a whole Gelu; 23: first with Attention
TOLERANCE = 1e-4  # largest difference to torch, relative to the largest output


def to_onnx(
    vit: ViT,
    pixel: PixelContract,
    *,
    batch: int | None = 1,
    attention: str = "explicit",
    tokens: bool = False,
    history: tuple[Step, ...] = (),
) -> Graph:
    """Return the fp32 graph of a ViT, checked against torch.

    Input `pixels` (B, C, H, W) float32; outputs `logits` (B, classes), with a head only, `embedding` (B, D) and, when
    asked for, `tokens` (B, N, D): the patches behind the last block, row by row of the grid, as they are pooled.
    `batch=None` leaves B dynamic. The module is copied, never changed. Raises InputError for an unknown form or a
    pixel contract of another size, CheckpointError for weights that give NaN, InternalError when ONNX and torch differ.
    """
    _check_arguments(vit, pixel, batch, attention)
    model = copy.deepcopy(vit).eval().float().cpu()
    deployed = Deployed(model, attention, tokens)
    example = torch.zeros(batch or 2, pixel.channels, pixel.image_px, pixel.image_px)
    raw = _export(deployed, example, OPSET[attention], dynamic=batch is None)
    proto = rewrite(raw)
    io = _contract(vit, pixel, batch, tokens)
    _describe(proto, vit, pixel, attention, io)
    data = proto.SerializeToString(deterministic=True)
    largest = _compare(model, data, pixel, batch, tokens)
    step = Step(
        stage="export",
        plan={"attention": attention, "batch": batch, "opset": OPSET[attention]} | ({"tokens": True} if tokens else {}),
        scores={"max_relative_difference": float(f"{largest:.1e}")},
        tools={"torch": str(torch.__version__), "onnx": onnx.__version__},
    )
    return Graph(files={"model.onnx": data}, io=io, history=(*history, step))


def both_forms(
    vit: ViT, pixel: PixelContract, *, tokens: bool = False, history: tuple[Step, ...] = ()
) -> dict[str, Graph]:
    """Return the graph in every attention form, for a caller who measures which is faster."""
    return {form: to_onnx(vit, pixel, attention=form, tokens=tokens, history=history) for form in ATTENTION_FORMS}


class Deployed(nn.Module):
    """Write a ViT's forward the way engines like it; the weights are its own, attention scale folded into W_q.

    Tokens travel as (B * N, D): every linear is then one Gemm with its bias, which ONNX Runtime and OpenVINO quantize
    to one int8 kernel, where a 3-D MatMul plus Add would become two operators.
    """

    def __init__(self, vit: ViT, attention: str, tokens: bool) -> None:
        super().__init__()
        # Sub-modules sit at the top level so that ONNX names read `blocks.0.attn.qkv.weight`.
        self.patch_embed, self.blocks, self.norm, self.head = (
            vit.patch_embed,
            copy.deepcopy(vit.blocks),
            vit.norm,
            vit.head,
        )
        self.shape, self.fused, self.tokens = vit.shape, attention == "fused", tokens
        position = vit.pos.detach().clone()
        if vit.cls is not None:
            position[:, :1] += vit.cls.detach()
        self.register_buffer("position", position)
        if not self.fused:
            for block in self.blocks:
                _fold_scale(block.attn)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        shape = self.shape
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        if shape.cls_token:
            x = F.pad(
                x, (0, 0, 1, 0)
            )  # a zero row for cls: its value is inside `position`, so no Expand over the batch
        x = (x + self.position).reshape(-1, shape.width)
        for block in self.blocks:
            x = self._block(block, x)
        embedding, patches = self._pool(x.reshape(-1, shape.tokens, shape.width))
        outputs = (embedding, patches) if self.tokens else (embedding,)
        return outputs if self.head is None else (self.head(embedding), *outputs)

    def _block(self, block: Block, x: Tensor) -> Tensor:
        attn = block.attn
        n, h, d = self.shape.tokens, attn.heads, attn.head_dim
        q, k, v = (t.reshape(-1, n, h, d).transpose(1, 2) for t in attn.qkv(block.norm1(x)).split(h * d, dim=-1))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, scale=attn.scale)
        else:
            y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + attn.proj(y.transpose(1, 2).reshape(-1, h * d))
        return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding (B, D) and the patches (B, N, D) that a mean is taken of."""
        shape = self.shape
        if not shape.norm_after_pool:
            x = self.norm(x)
        patches = x[:, 1:] if shape.cls_token else x
        x = x[:, 0] if shape.pool == "cls" else patches.mean(dim=1)
        return (self.norm(x) if shape.norm_after_pool else x), patches


@torch.no_grad()
def _fold_scale(attn: Attention) -> None:
    """Multiply the q rows of the fused projection by the softmax scale."""
    inner = attn.heads * attn.head_dim
    attn.qkv.weight[:inner] *= attn.scale
    attn.qkv.bias[:inner] *= attn.scale


def _check_arguments(vit: ViT, pixel: PixelContract, batch: int | None, attention: str) -> None:
    if attention not in ATTENTION_FORMS:
        raise InputError(
            f"unknown attention form '{attention}'", expected=" or ".join(ATTENTION_FORMS), fix="pass one of those"
        )
    if batch is not None and batch < 1:
        raise InputError(f"batch is {batch}", expected="a number >= 1, or None for a dynamic batch", fix="pass batch=1")
    want, have = (vit.shape.channels, vit.shape.image_px), (pixel.channels, pixel.image_px)
    if want != have:
        raise InputError(
            f"the pixel contract has {have[0]} channels of {have[1]} px",
            expected=f"{want[0]} channels of {want[1]} px, as the model was built",
            fix="pass the contract that belongs to this model",
        )


def _export(model: nn.Module, example: Tensor, opset: int, *, dynamic: bool) -> onnx.ModelProto:
    shapes = {"pixels": {0: torch.export.Dim("batch", min=1)}} if dynamic else None
    names = ["embedding"] if model.head is None else ["logits", "embedding"]
    names += ["tokens"] if model.tokens else []
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model, (example,), dynamo=True, opset_version=opset, input_names=["pixels"], output_names=names,
            dynamic_shapes=shapes, external_data=False, verbose=False,
        )  # fmt: skip
    if program is None:  # only with fallbacks that are not asked for
        raise InternalError("torch exported nothing", expected="an ONNX program", fix="report the version of torch")
    proto: onnx.ModelProto = program.model_proto
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: it logs a line for every absent torchvision operator and warns of its own deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _contract(vit: ViT, pixel: PixelContract, batch: int | None, tokens: bool) -> IoContract:
    def spec(name: str, *shape: int) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=(batch or -1, *shape))

    logits = (spec("logits", vit.shape.classes),) if vit.head is not None else ()
    patches = (spec("tokens", vit.shape.patches, vit.shape.width),) if tokens else ()
    return IoContract(
        inputs=(spec("pixels", pixel.channels, pixel.image_px, pixel.image_px),),
        outputs=(*logits, spec("embedding", vit.shape.width), *patches),
    )


def _describe(proto: onnx.ModelProto, vit: ViT, pixel: PixelContract, attention: str, io: IoContract) -> None:
    """Write the facts that make a lone .onnx file readable in ten years."""
    facts: dict[str, Any] = {
        "edgemae.format": 1,
        "edgemae.attention": attention,
        "edgemae.shape": vit.shape.as_dict(),
        "edgemae.pixel": msgspec.to_builtins(pixel),
        "edgemae.io": msgspec.to_builtins(io),
    }
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        proto.metadata_props.add(key=key, value=text)


def _probes(pixel: PixelContract, batch: int) -> dict[str, np.ndarray]:
    """Return inputs that random noise alone would not cover: flat, ramp, checkerboard, one bright corner."""
    size = pixel.image_px
    row, column = np.mgrid[0:size, 0:size].astype(np.float32)
    corner = np.zeros((size, size), np.float32)
    corner[: size // 4, : size // 4] = 3.0
    planes = {
        "flat": np.full((size, size), -2.0, np.float32),
        "ramp": (row + 2 * column) / size - 1.5,
        "checkers": ((row + column) % 2 * 4 - 2).astype(np.float32),
        "corner": corner,
    }
    shape = (batch, pixel.channels, size, size)
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return {"noise": noise} | {name: np.broadcast_to(p, shape).copy() for name, p in planes.items()}


def _compare(model: ViT, data: bytes, pixel: PixelContract, batch: int | None, tokens: bool) -> float:
    """Return the largest relative difference between torch and the graph; raise when it exceeds TOLERANCE."""
    run = _session(data)
    largest = 0.0
    for name, pixels in _probes(pixel, batch or 3).items():
        with torch.no_grad():
            want = [t.numpy() for t in model(torch.from_numpy(pixels)) if t is not None]
            want += [model.patch_tokens(torch.from_numpy(pixels)).numpy()] if tokens else []
        for a, b in zip(want, run(pixels), strict=True):
            if not np.isfinite(a).all():
                raise CheckpointError(
                    f"the model gives NaN or infinity on a '{name}' image",
                    expected="finite outputs",
                    fix="training diverged: take an earlier checkpoint or lower the learning rate",
                )
            largest = max(largest, float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1e-6))
        if largest > TOLERANCE:
            raise InternalError(
                f"the exported graph differs from torch by {largest:.1e} on a '{name}' image",
                expected=f"at most {TOLERANCE:.0e} of the largest output",
                fix="report this, with the model's shape and the versions of torch and onnx",
            )
    return largest


def _session(data: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})
