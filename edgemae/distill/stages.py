"""The training stages: pretrain, finetune, distill, heal. Each takes a value and a plan and returns a new value."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from edgemae.data.augment import Augment
from edgemae.data.image_set import ImageSet
from edgemae.data.loader import Batch, Loader
from edgemae.data.validation import require_classes
from edgemae.distill.elastic import STAGE as ELASTIC
from edgemae.distill.elastic import Space, space_of
from edgemae.distill.elastic_training import in_stage_one, in_stage_two, sub_networks
from edgemae.distill.frozen_teacher import FrozenTeacher, TeacherConfig, received, require_colours
from edgemae.distill.masking import masking
from edgemae.distill.recipe import Recipe
from edgemae.distill.recipes import choose_recipe
from edgemae.distill.supervised import DRAWN, SMALLEST, Run, fitting, train_classifier
from edgemae.distill.teacher_cache import kept_views, views_root
from edgemae.model.mae import MAE, DecoderShape
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT, ViTShape, with_head
from edgemae.spec.errors import DataError, PlanError
from edgemae.spec.graph import PixelContract, Step
from edgemae.spec.plan_loading import plan_tree
from edgemae.spec.plan_schema import FinetunePlan, Plan, ShapePlan
from edgemae.train.checkpoints import checkpoint_identity
from edgemae.train.job import Curve, Job
from edgemae.train.loop import fit
from edgemae.train.schedule import param_groups
from edgemae.train.step_context import StepContext

log = logging.getLogger("edgemae")


@dataclass(frozen=True)
class Images:
    """Group the images of a training: `unlabelled` holds everything that may be seen without labels."""

    unlabelled: ImageSet
    labelled: ImageSet | None = None
    evaluation: ImageSet | None = None


def shape_of(plan: ShapePlan, **rest: object) -> ViTShape:
    """Return the ViTShape that a plan's table describes."""
    return ViTShape.uniform(
        image_px=plan.image_px, patch_px=plan.patch_px, width=plan.width, depth=plan.depth, heads=plan.heads,
        head_dim=plan.head_dim, mlp_ratio=plan.mlp_ratio, channels=plan.channels, **rest,
    )  # fmt: skip


def pretrain(plan: Plan, images: ImageSet, pixel: PixelContract, start: Teacher | None = None,
             checkpoint: Path | None = None) -> tuple[Teacher, Curve]:  # fmt: skip
    """Train an MAE without labels, from scratch or onwards from `start`, and return it with its loss curve."""
    p = plan.pretrain
    torch.manual_seed(plan.seed)
    encoder = _without_head(start.vit) if start else ViT(shape_of(plan.teacher, norm_after_pool=False))
    hidden = masking(p, "pretrain", encoder.shape.patches)
    decoder, kind = DecoderShape(p.decoder_width, p.decoder_depth, p.decoder_heads), p.loss
    if start is not None and start.mae is not None:
        own = start.mae.decoder.shape, start.mae.loss_kind
        if own != (decoder, kind):
            log.info("pretrain: going on with the MAE's own decoder and loss, %s and %s, not with the plan's", *own)
        decoder, kind = own
    mae = MAE(encoder, decoder, loss_kind=kind, mean=pixel.mean, std=pixel.std)
    if start is not None and start.mae is not None:
        mae.decoder.load_state_dict(start.mae.decoder.state_dict())

    @torch.no_grad()
    def own_attention(pixels: Tensor) -> Tensor:
        return received(encoder, encoder.encode(pixels, blocks=-1))

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        keep = hidden.keep(batch.pixels, encoder.shape.grid, context, own_attention)
        return {"pixel": mae.loss(batch.pixels, keep)}

    loader = _loader(plan, images, pixel, p.batch, Augment(crop_min=p.crop_min, flip=p.flip))
    curve = fit(Job(
        name="pretrain", module=mae, groups=param_groups(mae, p.weight_decay), loss=loss, loader=loader,
        epochs=p.epochs, lr=p.lr, warmup_fraction=p.warmup_fraction, seed=plan.seed, bf16=p.bf16, checkpoint=checkpoint,
        scale=plan.scale,
        checkpoint_identity=checkpoint_identity(checkpoint, plan_tree(p), teacher=start.vit if start else None),
    ))  # fmt: skip
    used = {"loss": kind} | {f"decoder_{name}": getattr(decoder, name) for name in ("width", "depth", "heads")}
    step = _step("pretrain", plan, plan_tree(p) | used, images, curve)
    before = start.history if start else ()
    licence = start.licence if start else "your own (trained from scratch)"
    return Teacher(encoder.eval(), pixel, (), (*before, step), mae, licence), curve


def finetune(teacher: Teacher, plan: Plan, images: Images, checkpoint: Path | None = None) -> tuple[Teacher, Curve]:
    """Return the teacher with a classification head trained on labels, and the loss curve."""
    labelled = _need_labels(images, "fine-tuning")
    torch.manual_seed(plan.seed)
    vit = with_head(teacher.vit, len(labelled.classes))
    run = Run(labelled, teacher.pixel, plan.seed, plan.workers, plan.scale, checkpoint, images.evaluation,
              views_root(plan, checkpoint),
              checkpoint_identity(checkpoint, plan_tree(plan.finetune), teacher=teacher.vit))  # fmt: skip
    curve = train_classifier(vit, plan.finetune, run, None, "finetune")
    step = _step("finetune", plan, plan_tree(plan.finetune), labelled, curve)
    finetuned = replace(teacher, vit=vit, labels=labelled.classes, history=(*teacher.history, step), mae=None)
    return finetuned, curve


def distill(teacher: Teacher, plan: Plan, images: Images, checkpoint: Path | None = None,
            finetuned: Teacher | None = None) -> tuple[Student, dict[str, Curve]]:  # fmt: skip
    """Train a student: stage 1 by the plan's recipe without labels, stage 2 with labels when there are any.

    `finetuned` is the teacher whose logits are learnt in stage 2 (and by the `logit` recipe); without it `teacher`
    itself is used when it has a head. A set without labels ends after stage 1 with a student that gives embeddings.
    With an elastic plan sub-networks are trained along, in both stages.
    """
    d = plan.distill
    finetuned = finetuned or (teacher if teacher.vit.head is not None else None)
    if finetuned is not None and images.labelled is not None:
        require_classes("the teacher", finetuned.labels, images.labelled)
    recipe, source = choose_recipe(d, teacher, finetuned)
    pixel = student_pixel(teacher.pixel, plan)
    if finetuned is not None:
        require_colours(finetuned, pixel)  # now, and not after hours of stage 1
    torch.manual_seed(plan.seed)
    labels = source.labels if recipe.needs_head else ()
    vit = ViT(shape_of(plan.student, classes=source.vit.shape.classes if recipe.needs_head else 0))
    space = space_of(plan.elastic, vit.shape) if plan.elastic.on else None
    curves = {"distill": _stage_one(recipe, vit, source, pixel, plan, images.unlabelled, checkpoint, space)}
    settings = plan_tree(d) | (sub_networks(space, plan.elastic) if space else {})
    step = _step("distill", plan, settings, images.unlabelled, curves["distill"], teacher.licence)
    student = Student(vit.eval(), pixel, labels, (*teacher.history, step))
    if images.labelled is None:
        return student, curves
    student, curve = supervise(student, plan, images, finetuned, _beside(checkpoint, "2"))
    return student, curves | {student.history[-1].stage: curve}


def supervise(student: Student, plan: Plan, images: Images, finetuned: Teacher | None,
              checkpoint: Path | None = None) -> tuple[Student, Curve]:  # fmt: skip
    """Return the student after stage 2: labels, and the logits of `finetuned`. One without a head gets one.

    With an elastic plan its sub-networks are trained along.
    """
    labelled = _need_labels(images, "stage 2")
    torch.manual_seed(plan.seed + 1)
    if student.vit.head is None:
        student = replace(student, vit=with_head(student.vit, len(labelled.classes)), labels=labelled.classes)
    settings, space, name = plan.distill.finetune, None, "finetune-student"
    if plan.elastic.on:
        space, name = space_of(plan.elastic, student.vit.shape), ELASTIC
        settings = msgspec.structs.replace(settings, lr=settings.lr * plan.elastic.lr_scale)
    return train_further(student, settings, plan, images, finetuned, checkpoint, name, space)


def train_further(student: Student, settings: FinetunePlan, plan: Plan, images: Images, finetuned: Teacher | None,
                  checkpoint: Path | None = None, name: str = "finetune-student", space: Space | None = None,
                  ) -> tuple[Student, Curve]:  # fmt: skip
    """Return the student trained on with labels, and with the logits of `finetuned` when that has a head.

    Serves stage 2 and healing; with a `space` the sub-networks in it are trained along. The input is not changed.
    Raises DataError when student, finetuned and images do not have the same classes in the same order.
    """
    vit = copy.deepcopy(student.vit)
    labelled = _need_labels(images, "stage 2")
    require_classes("the student", student.labels, labelled)
    view = None
    if finetuned is not None and finetuned.vit.head is not None:
        require_classes("the teacher", finetuned.labels, labelled)
        view = FrozenTeacher(finetuned, student.pixel, TeacherConfig(bf16=settings.bf16))
        view.shard = plan.scale.shard_teacher
    identity = plan_tree(settings)
    if space is not None:
        identity |= sub_networks(space, plan.elastic) | {"largest_weight": plan.elastic.largest_weight}
    # Its blocks: a new head's random numbers may differ in the last bit on another kind of processor.
    checked = checkpoint_identity(
        checkpoint, identity, student=student.vit.get_submodule("blocks"), teacher=finetuned.vit if finetuned else None
    )
    run = Run(labelled, student.pixel, plan.seed, plan.workers, plan.scale, checkpoint, images.evaluation,
              views_root(plan, checkpoint), checked)  # fmt: skip
    inner = None if space is None else in_stage_two(vit, space, plan.elastic)
    curve = train_classifier(vit, settings, run, view, name, inner)
    step = _step(name, plan, identity, labelled, curve)
    return replace(student, vit=vit, history=(*student.history, step), scales=None), curve


def heal_embedding(student: Student, original: Student, settings: FinetunePlan, plan: Plan, images: ImageSet,
                   checkpoint: Path | None = None, name: str = "heal") -> tuple[Student, Curve]:  # fmt: skip
    """Return a changed student trained without labels to give the embeddings of the one before the change."""
    vit, reference = copy.deepcopy(student.vit), copy.deepcopy(original.vit).eval().requires_grad_(False)

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        with torch.no_grad():
            wanted = reference.to(batch.pixels.device)(batch.pixels)[1]
        _, mine = vit(batch.pixels, drop=context.drop_path(vit.shape.depth, settings.drop_path))
        return {"embedding": F.mse_loss(mine.float(), wanted.float())}

    augment = Augment(crop_min=settings.crop_min, flip=settings.flip, randaug=settings.randaug)
    loader = _loader(plan, images, student.pixel, settings.batch, augment)
    curve = fit(Job(
        name=name, module=vit, groups=param_groups(vit, settings.weight_decay), loss=loss, loader=loader,
        epochs=settings.epochs, lr=settings.lr, warmup_fraction=settings.warmup_fraction, seed=plan.seed,
        bf16=settings.bf16, ema=settings.ema, checkpoint=checkpoint, scale=plan.scale,
        all_used=False,  # a head learns nothing here
        checkpoint_identity=checkpoint_identity(
            checkpoint, plan_tree(settings), student=student.vit.get_submodule("blocks"), teacher=original.vit
        ),
    ))  # fmt: skip
    step = _step(name, plan, plan_tree(settings), images, curve)
    return replace(student, vit=vit, history=(*student.history, step), scales=None), curve


def student_pixel(pixel: PixelContract, plan: Plan) -> PixelContract:
    """Return the student's pixel contract: the teacher's at the student's size, unless the plan says otherwise."""
    if plan.student.channels != pixel.channels:
        raise PlanError(
            f"the teacher reads {pixel.channels} channels ({pixel.color}), the student {plan.student.channels}",
            expected="the same channels",
            fix=f"pass --set student.channels={pixel.channels}",
        )
    for name, values in (("mean", plan.data.mean), ("std", plan.data.std)):
        if values and len(values) != pixel.channels:
            raise PlanError(
                f"data.{name} has {len(values)} values",
                expected=f"one for each of {pixel.channels} channels",
                fix=f"correct --set data.{name}=..., or leave it out to take the teacher's",
            )
    return msgspec.structs.replace(
        pixel, image_px=plan.student.image_px, resize=plan.data.resize, kernel=plan.data.kernel or pixel.kernel,
        mean=plan.data.mean or pixel.mean, std=plan.data.std or pixel.std,
    )  # fmt: skip


def _stage_one(recipe: type[Recipe], vit: ViT, source: Teacher, pixel: PixelContract, plan: Plan, images: ImageSet,
               checkpoint: Path | None, space: Space | None) -> Curve:  # fmt: skip
    d = plan.distill
    augment = Augment(crop_min=d.crop_min, flip=d.flip, randaug=d.randaug)
    loader = replace(_loader(plan, images, pixel, d.batch, augment), views=d.views)
    identity = plan_tree(d)  # of stage 2 the temperature alone counts here
    identity["temperature"] = identity.pop("finetune")["teacher_temperature"] if recipe.needs_head else 0
    off = [name.removesuffix("_weight") for name, value in identity.items() if name.endswith("_weight") and value == 0]
    module = recipe(vit, source, pixel, d)
    module.view.shard = plan.scale.shard_teacher
    loss: Callable[[Batch, StepContext], dict[str, Tensor]] = module.step
    if space is not None:
        loss = in_stage_one(module, space, plan.elastic)
        identity |= sub_networks(space, plan.elastic)
    with kept_views(views_root(plan, checkpoint), module.view, loader) as module.cache:
        return fit(Job(
            name=f"distill ({d.recipe})", module=module, groups=param_groups(module, d.weight_decay), loss=loss,
            loader=loader, epochs=d.epochs, lr=d.lr, warmup_fraction=d.warmup_fraction, seed=plan.seed, bf16=d.bf16,
            ema=d.ema, checkpoint=_beside(checkpoint, "1"), scale=plan.scale, all_used=module.all_used,
            off=(*off, DRAWN, SMALLEST),
            checkpoint_identity=checkpoint_identity(checkpoint, identity, teacher=source.vit),
        ))  # fmt: skip


def _loader(plan: Plan, images: ImageSet, pixel: PixelContract, batch: int, augment: Augment) -> Loader:
    return Loader(images, pixel, fitting(batch, images, plan.scale), augment, plan.seed, plan.workers)


def _without_head(vit: ViT) -> ViT:
    """Return a copy without the classification head, which would not fit any more after training on pixels."""
    new = copy.deepcopy(vit)
    new.head, new.shape = None, replace(vit.shape, classes=0)
    return new


def _beside(checkpoint: Path | None, suffix: str) -> Path | None:
    return None if checkpoint is None else checkpoint.with_name(f"{checkpoint.stem}-{suffix}{checkpoint.suffix}")


def _need_labels(images: Images, purpose: str) -> ImageSet:
    if images.labelled is None:
        raise DataError(
            f"{purpose} needs labels, and '{images.unlabelled.folder}' has none",
            expected="one sub-folder for each class",
            fix="sort the images into class folders",
        )
    return images.labelled


def _step(stage: str, plan: Plan, settings: dict[str, object], images: ImageSet, curve: Curve,
          licence: str = "") -> Step:  # fmt: skip
    scores = {k: v for k, v in (curve[-1] if curve else {}).items() if k != "epoch"}
    return Step(
        stage=stage, plan=settings, scores=scores, tools={"torch": str(torch.__version__)}, seed=plan.seed,
        data=images.fingerprint, licence=licence,
    )  # fmt: skip
