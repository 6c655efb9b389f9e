"""What bench_train.py compares: shapes, two MAEs, `relation` around random weights, and what each computes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgemae.data.loader import Batch
from edgemae.distill.recipes import RECIPES
from edgemae.model.mae import MAE, DecoderShape, keep_count
from edgemae.model.name_mapping import translate
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT, ViTShape
from edgemae.spec.errors import InternalError
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import DistillPlan
from edgemae.train.step_context import StepContext

OURS, THEIRS = "edgemae", "transformers"
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
RATIO = 0.75  # of the patches are hidden


@dataclass(frozen=True)
class Case:
    """State the shapes of one comparison; encoders are (width, depth, heads), the decoder of stage 1 is 96x1."""

    name: str
    image_px: int
    patch_px: int
    student: tuple[int, int, int]
    teacher: tuple[int, int, int]
    batch: int
    rounds: int = 8

    @property
    def pixel(self) -> PixelContract:
        return PixelContract(image_px=self.image_px)

    def vit(self, sizes: tuple[int, int, int], classes: int = 0) -> ViT:
        width, depth, heads = sizes
        shape = ViTShape.uniform(
            image_px=self.image_px, patch_px=self.patch_px, width=width, depth=depth, heads=heads, cls_token=True,
            norm_after_pool=False, classes=classes,
        )  # fmt: skip
        return ViT(shape)


SMALL = Case("128x4, 96 px", 96, 12, (128, 4, 2), (192, 8, 3), 64)
TEACHER = Case("192x8, 96 px", 96, 12, (192, 8, 3), (192, 8, 3), 64)
TINY = Case("ViT-Tiny/16, 224 px", 224, 16, (192, 12, 3), (1024, 24, 16), 16)
LARGE = replace(TINY, name="ViT-Large/16 to ViT-Tiny/16, 224 px", batch=8)
CASES = {case.name: case for case in (SMALL, TEACHER, TINY, LARGE)}


# ---------------------------------------------------------------- candidates


@dataclass(frozen=True)
class Candidate:
    """Hold what a step trains. `loss(batch)` returns a scalar; `macs` are of one image, forward and backward."""

    module: nn.Module
    loss: Callable[[Batch, StepContext], dict[str, Tensor]]
    macs: int


def ours(case: Case, kind: torch.dtype = torch.float32) -> Candidate:
    mae = MAE(case.vit(case.student), decoder(), loss_kind="norm-pixel", mean=case.pixel.mean, std=case.pixel.std)

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        return {"pixel": mae.loss(batch.pixels, context.keep(mae.encoder.shape.grid, RATIO, "random"))}

    return Candidate(mae, loss, 3 * mae_macs(mae.encoder.shape, mae.decoder.shape))


def relation(case: Case, kind: torch.dtype = torch.float32) -> Candidate:
    module = recipe("relation", case, bf16=kind == torch.bfloat16)  # of the teacher's weights
    return Candidate(module, module.step, 3 * mae_macs(module.student.shape, decoder()) + relation_macs(module))


def theirs(case: Case, kind: torch.dtype = torch.float32) -> Candidate:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    width, depth, heads = case.student
    dec = decoder()
    # The faster of its two ways on a processor; a dict, because the config's signature does not name it.
    attention: dict[str, Any] = {"attn_implementation": "eager" if kind == torch.bfloat16 else "sdpa"}
    config = ViTMAEConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width,
        image_size=case.image_px, patch_size=case.patch_px, layer_norm_eps=1e-6, mask_ratio=RATIO, norm_pix_loss=True,
        decoder_hidden_size=dec.width, decoder_num_hidden_layers=dec.depth, decoder_num_attention_heads=dec.heads,
        decoder_intermediate_size=4 * dec.width,
        **attention,
    )  # fmt: skip
    model = ViTMAEForPreTraining(config)

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        return {"pixel": model(batch.pixels).loss}

    shape = case.vit(case.student).shape
    return Candidate(model, loss, 3 * mae_macs(shape, dec))


MAKERS: dict[str, Callable[[Case, torch.dtype], Candidate]] = {OURS: ours, THEIRS: theirs, "relation": relation}


def decoder() -> DecoderShape:
    plan = DistillPlan()
    return DecoderShape(plan.decoder_width, 1, plan.decoder_heads)


def recipe(name: str, case: Case, *, bf16: bool = True) -> Any:
    """Return a recipe's module around random weights; the teacher has a head where the recipe needs one."""
    classes = 10 if RECIPES[name].needs_head else 0
    labels = tuple(str(number) for number in range(classes))
    teacher = Teacher(case.vit(case.teacher, classes).eval(), case.pixel, labels)
    return RECIPES[name](case.vit(case.student, classes), teacher, case.pixel, DistillPlan(recipe=name, bf16=bf16))


def mae_macs(shape: ViTShape, dec: DecoderShape) -> int:
    """Return multiply-accumulates of one image forward: what the definition asks for, visible patches embedded only."""
    seen = keep_count(shape.patches, RATIO)
    n, d, pixels = shape.tokens, dec.width, shape.channels * shape.patch_px**2
    hidden = round(d * dec.mlp_ratio)
    block = n * d * (4 * d + 2 * hidden) + 2 * n * n * d
    return encoder_macs(shape, shape.depth) + (seen + 1) * shape.width * d + dec.depth * block + (
        shape.patches - seen
    ) * d * pixels  # fmt: skip


def encoder_macs(shape: ViTShape, depth: int) -> int:
    """Return multiply-accumulates of `depth` blocks over the visible patches and the class token."""
    seen = keep_count(shape.patches, RATIO)
    n = seen + int(shape.cls_token)
    cut = replace(shape, heads=shape.heads[:depth], mlp=shape.mlp[:depth])
    macs = seen * shape.channels * shape.patch_px**2 * shape.width
    for heads, units in zip(cut.heads, cut.mlp, strict=True):
        inner = heads * shape.head_dim
        macs += n * shape.width * (4 * inner + 2 * units) + 2 * n * n * inner
    return macs


def relation_macs(module: Any) -> int:
    """Return what `relation` adds to the student's step: the teacher's blocks forward, the probe three times."""
    teacher, student = module.view.vit.shape, module.student.shape
    parts = 0
    for shape, times in ((teacher, 1), (student, 3)):
        n, inner = keep_count(shape.patches, RATIO) + 1, shape.heads[-1] * shape.head_dim
        parts += times * (2 * n * shape.width * inner + n * n * inner)
    return encoder_macs(teacher, teacher.depth - 1) + parts


# ---------------------------------------------------------------- the same work


def memory_batch(case: Case) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(case.batch, 3, case.image_px, case.image_px, generator=generator)
    return Batch(pixels, torch.zeros(case.batch, dtype=torch.long), torch.arange(case.batch))


def parity(case: Case) -> dict[str, float]:
    """Return both losses for the same weights, positions and masks. Raises InternalError when they differ."""
    torch.manual_seed(0)
    mine: Any = ours(case).module
    other, batch = theirs(case).module, memory_batch(case)
    for vit, name in (
        (mine.encoder, "vit.embeddings.position_embeddings"),
        (mine.decoder, "decoder.decoder_pos_embed"),
    ):
        other.get_parameter(name).data.copy_(vit.pos)
    tensors, _ = translate(dict(other.state_dict()), "transformers")
    for part, module in (("encoder.", mine.encoder), ("decoder.", mine.decoder)):
        module.load_state_dict({k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)})
    patches = mine.encoder.shape.patches
    noise = torch.rand(case.batch, patches, generator=torch.Generator().manual_seed(2))
    keep = noise.argsort(1)[:, : keep_count(patches, RATIO)].sort(1).values
    with torch.no_grad():
        losses = {OURS: float(mine.loss(batch.pixels, keep)), THEIRS: float(other(batch.pixels, noise=noise).loss)}
    if abs(losses[OURS] - losses[THEIRS]) > 1e-4 * losses[THEIRS]:
        raise InternalError(
            f"the losses of the same weights differ: {losses}", expected="the same work", fix="report this as a bug"
        )
    return losses


def gemm_peak(kind: torch.dtype) -> float:
    """Return multiply-accumulates a second of the fastest of some square products, of processor time as well."""
    best = 0.0
    for size in (512, 1024, 2048):
        a, b = (torch.randn(size, size).to(kind) for _ in range(2))
        for _ in range(10):
            began = time.process_time()
            torch.mm(a, b)
            best = max(best, size**3 * torch.get_num_threads() / (time.process_time() - began))
    return best
