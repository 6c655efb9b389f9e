"""The training half of a compile as cached stages: teacher -> fine-tuned teacher -> student -> pruned student.

Each takes and returns model files, so that a stage is known by the digests of what went into it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgemae.distill.elastic import curve as elastic_curve
from edgemae.distill.elastic import extract
from edgemae.distill.pruning_loss import pruning_batches, pruning_loss
from edgemae.distill.recipes import choose_recipe
from edgemae.distill.stages import Images, distill, finetune, heal_embedding, pretrain, supervise, train_further
from edgemae.distill.teacher_cache import require_folder
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViTShape
from edgemae.pipeline.datasets import Inputs, gather
from edgemae.pipeline.stage_cache import StageCache, check_output
from edgemae.pipeline.stage_files import ModelFile
from edgemae.prune import prune
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import InputError
from edgemae.spec.graph import IMAGENET_MEAN, IMAGENET_STD, KERNELS, PixelContract
from edgemae.spec.plan_loading import plan_tree
from edgemae.spec.plan_schema import Plan
from edgemae.train.distributed import ProcessGroup
from edgemae.train.job import Curve
from edgemae.version import __version__

log = logging.getLogger("edgemae")
TEACHER, STUDENT, ELASTIC_CURVE = "teacher.safetensors", "student.safetensors", "curve.json"


@dataclass(frozen=True)
class StageContext:
    """Bundle what every stage needs: the plan, the output folder and the images."""

    plan: Plan
    work: StageCache
    inputs: Inputs

    @property
    def images(self) -> Images:
        return Images(self.inputs.unlabelled, self.inputs.labelled, self.inputs.evaluation)

    def key(self, **more: Any) -> dict[str, Any]:
        """Return what decides any training stage: seed, data, versions, and `more`."""
        tools = {"edgemae": __version__, "torch": str(torch.__version__)}
        return {"seed": self.plan.seed, "data": self.inputs.unlabelled.fingerprint, "tools": tools, **more}

    def key_with_labels(self, **more: Any) -> dict[str, Any]:
        """Return what decides a stage that learns from labels; the evaluation set is scored along the way."""
        labels = self.inputs.labelled.fingerprint if self.inputs.labelled else ""
        return self.key(labels=labels, evaluation=self.inputs.evaluation.fingerprint, **more)

    def model_stage(self, name: str, key: dict[str, Any], make: Callable[[Path], None], file: str) -> ModelFile:
        """Return the model file of a stage, made with `make(folder)` unless its key is done already."""
        folder = self.work.run(name, key, make)
        return ModelFile(folder / file, digest=self.work.digests(folder)[file])

    def keep(self, path: Path, model: Teacher | Student, curves: dict[str, Curve]) -> None:
        """Write a model with its loss curves beside it; of several processes only the first does."""
        if self.work.processes.first:
            model.save(path)
            write_atomic(path.parent / "curves.json", json.dumps(curves, indent=1).encode())


def open_stage_context(
    plan: Plan, output: Path, *, overwrite: bool = False, resume: bool = False, together: bool = False,
    labels: bool = True, reads: ViTShape | None = None,
) -> StageContext:  # fmt: skip
    """Read the images, then open the output folder: a mistyped --data leaves no folder behind.

    `together` allows several processes; without `labels` class folders are not looked at; `reads` is the shape of the
    model that is trained, by default the plan's student. Raises InputError for more processes than allowed.
    """
    processes = ProcessGroup()
    if processes.world > 1 and not together:
        raise InputError(
            f"{processes.world} processes were started, and this verb works alone",
            expected="pretrain, finetune or distill under torchrun or accelerate launch",
            fix="distill in many processes, then run this verb on the result in one",
        )
    torch.set_num_threads(plan.threads)
    check_output(output, overwrite=overwrite, resume=resume)
    inputs = processes.from_first(lambda: gather(plan, labels=labels, reads=reads))  # every image is decoded once
    require_folder(plan.scale.views_folder)
    work = StageCache(output, overwrite=overwrite, resume=resume)
    work.keep_plan(plan)
    return StageContext(plan, work, inputs)


def pretrain_stage(context: StageContext, start: ModelFile | None) -> ModelFile:
    """Pretrain an MAE on all images without labels, from scratch or onwards from `start`."""
    plan = context.plan
    key = {"pretrain": plan_tree(plan.pretrain), "start": start.digest if start else plan_tree(plan.teacher)}
    # What decides the result only sometimes is in the key only then, so that earlier runs stay valid.
    rest: dict[str, Any] = {"heads": plan.teacher_heads, "decoder_heads": plan.teacher_decoder_heads}
    if start is None:
        resize = "" if plan.data.resize == "short-side" else plan.data.resize
        rest = {"resize": resize, "kernel": plan.data.kernel, "mean": plan.data.mean, "std": plan.data.std}
    key |= {name: value for name, value in rest.items() if value}

    def make(folder: Path) -> None:
        teacher = start.teacher if start else None
        pixel = teacher.pixel if teacher else teacher_pixel(plan)
        trained, curve = pretrain(plan, context.inputs.unlabelled, pixel, teacher, folder / "train.ckpt")
        context.keep(folder / TEACHER, trained, {"pretrain": curve})

    return context.model_stage("pretrain", context.key(**key), make, TEACHER)


def finetune_stage(context: StageContext, source: ModelFile) -> ModelFile:
    """Train a classification head and the whole teacher on labels."""

    def make(folder: Path) -> None:
        finetuned, curve = finetune(source.teacher, context.plan, context.images, folder / "train.ckpt")
        context.keep(folder / TEACHER, finetuned, {"finetune": curve})

    key = {"finetune": plan_tree(context.plan.finetune), "from": source.digest, "heads": context.plan.teacher_heads}
    return context.model_stage("finetune", context.key_with_labels(**key), make, TEACHER)


def distill_stages(context: StageContext, source: ModelFile, finetuned: ModelFile | None) -> ModelFile:
    """Distill a student from the teacher, then train it with labels and the logits of the fine-tuned teacher."""
    plan, labelled = context.plan, context.inputs.labelled is not None
    first = _stage_one(context, source, finetuned, "stage-1" if labelled else "student")
    if not labelled:
        return first

    def make(folder: Path) -> None:
        teacher = finetuned.teacher if finetuned else None
        student, curve = supervise(first.student, plan, context.images, teacher, folder / "train.ckpt")
        context.keep(folder / STUDENT, student, read_curves(first) | {student.history[-1].stage: curve})
        if plan.elastic.on and context.work.processes.first:
            rows = elastic_curve(student, context.inputs.evaluation, plan.workers)
            write_atomic(folder / ELASTIC_CURVE, json.dumps(rows, indent=1).encode())

    key = {"finetune": plan_tree(plan.distill.finetune), "from": first.digest,
           "finetuned": finetuned.digest if finetuned else "", "heads": plan.teacher_heads}  # fmt: skip
    if plan.elastic.on:
        key["elastic"] = plan_tree(msgspec.structs.replace(plan.elastic, shape=()))
    return context.model_stage("student", context.key_with_labels(**key), make, STUDENT)


def _stage_one(context: StageContext, source: ModelFile, finetuned: ModelFile | None, name: str) -> ModelFile:
    """Distill a student by the plan's recipe, without labels."""
    plan, teacher = context.plan, source.teacher
    with_head = finetuned.teacher if finetuned else (teacher if teacher.vit.head is not None else None)
    recipe, chosen = choose_recipe(plan.distill, teacher, with_head)

    def make(folder: Path) -> None:
        images = replace(context.images, labelled=None)
        own = finetuned.teacher if finetuned else None
        student, curves = distill(teacher, plan, images, folder / "train.ckpt", own)
        context.keep(folder / STUDENT, student, curves)

    settings = plan_tree(plan.distill)
    temperature = settings.pop("finetune")["teacher_temperature"]
    origin = finetuned if finetuned and chosen is finetuned.teacher else source
    key = {"distill": settings, "student": plan_tree(plan.student), "heads": plan.teacher_heads,
           "from": origin.digest, "pixels": plan.data.resize, "mean": plan.data.mean, "std": plan.data.std}  # fmt: skip
    key |= {"temperature": temperature} if recipe.needs_head else {}
    key |= {"kernel": plan.data.kernel} if plan.data.kernel else {}
    if plan.elastic.on:
        sizes = ("depths", "heads", "mlp_ratios", "image_pxs", "samples")
        key["elastic"] = {name: plan_tree(plan.elastic)[name] for name in sizes}
    return context.model_stage(name, context.key(**key), make, STUDENT)


def extract_stage(context: StageContext, source: ModelFile) -> ModelFile:
    """Return the sub-network of an elastic student that the plan names, or the student itself."""
    shape = context.plan.elastic.shape
    if not context.plan.elastic.on or not shape:
        return source

    def make(folder: Path) -> None:
        extract(source.student, shape).save(folder / STUDENT)

    return context.model_stage("extract", {"from": source.digest, "shape": shape}, make, STUDENT)


def prune_stage(
    context: StageContext, source: ModelFile, finetuned: ModelFile | None, width_multiple: int
) -> ModelFile:
    """Prune heads and MLP units, healing by distillation after each cut."""
    plan = context.plan
    if plan.prune.keep_macs >= 1:
        return source

    def make(folder: Path) -> None:
        student = source.student
        teacher = finetuned.teacher if finetuned else None
        curves: dict[str, Curve] = {}
        images = context.inputs.labelled or context.inputs.unlabelled

        def heal(cut: Student, step: int) -> Student:
            checkpoint = folder / f"heal-{step}.ckpt"
            if context.inputs.labelled is None:
                healed, curve = heal_embedding(
                    cut, student, plan.prune.heal, plan, context.inputs.unlabelled, checkpoint
                )
            else:
                healed, curve = train_further(cut, plan.prune.heal, plan, context.images, teacher, checkpoint, "heal")
            curves[f"heal {step}"] = curve
            return healed

        small = prune(
            student, plan.prune, width_multiple=width_multiple, batches=lambda: pruning_batches(images, student, plan),
            loss=pruning_loss(student, teacher), heal=heal if plan.prune.heal.epochs else None,
        )  # fmt: skip
        context.keep(folder / STUDENT, small, curves)

    key = {"heads": plan.teacher_heads, "prune": plan_tree(plan.prune), "from": source.digest,
           "multiple": width_multiple, "finetuned": finetuned.digest if finetuned else ""}  # fmt: skip
    return context.model_stage("pruned", context.key_with_labels(**key), make, STUDENT)


def teacher_pixel(plan: Plan) -> PixelContract:
    """Return the pixel contract of a teacher that is trained from scratch."""
    gray = plan.teacher.channels == 1
    usual = ((0.5,), (0.5,)) if gray else (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = (plan.data.mean, plan.data.std) if plan.data.mean and plan.data.std else usual
    return PixelContract(
        image_px=plan.teacher.image_px, channels=plan.teacher.channels, color="GRAY" if gray else "RGB",
        resize=plan.data.resize, kernel=plan.data.kernel or KERNELS[0], mean=mean, std=std,
    )  # fmt: skip


def read_curves(*models: ModelFile) -> dict[str, Curve]:
    """Return the loss curves that lie beside model files, in order."""
    files = [model.path.parent / "curves.json" for model in models]
    return {name: curve for file in files if file.exists() for name, curve in json.loads(file.read_bytes()).items()}
