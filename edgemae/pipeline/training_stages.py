"""The training half of a compile as cached stages: teacher -> fine-tuned teacher -> student -> pruned student.

Each function takes and returns model files, so that a stage is known by the digest of what went into it.
"""

from __future__ import annotations

import json
import logging
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
from edgemae.model.import_teacher import load_teacher
from edgemae.model.model_file import read_model
from edgemae.model.student import Student, load_student
from edgemae.model.teacher import Teacher, import_notes
from edgemae.model.vit import ViTShape
from edgemae.pipeline.datasets import Inputs, gather
from edgemae.pipeline.stage_cache import Workdir, check_output, file_digest
from edgemae.prune import prune
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import CheckpointError, InputError
from edgemae.spec.graph import IMAGENET_MEAN, IMAGENET_STD, KERNELS, PixelContract
from edgemae.spec.plan_loading import plan_tree
from edgemae.spec.plan_schema import Plan
from edgemae.train.distributed import ProcessGroup
from edgemae.train.job import Curve
from edgemae.version import __version__

log = logging.getLogger("edgemae")
TEACHER, STUDENT, ELASTIC_CURVE = "teacher.safetensors", "student.safetensors", "curve.json"


@dataclass(frozen=True)
class Flow:
    """Bundle what every stage needs: the plan, the output folder and the images."""

    plan: Plan
    work: Workdir
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

    def keep(self, path: Path, model: Teacher | Student, curves: dict[str, Curve]) -> None:
        """Write a model with its loss curves beside it; of several processes only the first does."""
        if self.work.processes.first:
            model.save(path)
            write_atomic(path.parent / "curves.json", json.dumps(curves, indent=1).encode())


def open_flow(
    plan: Plan, output: Path, *, overwrite: bool = False, resume: bool = False, together: bool = False,
    labels: bool = True, reads: ViTShape | None = None,
) -> Flow:  # fmt: skip
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
    inputs = processes.from_first(lambda: gather(plan, labels=labels, reads=reads))  # every picture is decoded once
    require_folder(plan.scale.views_folder)
    work = Workdir(output, overwrite=overwrite, resume=resume)
    work.keep_plan(plan)
    return Flow(plan, work, inputs)


def is_student(path: Path) -> bool:
    """Tell whether a file is an edgemae student."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    read = read_model(path)
    return read is not None and read[1].get("kind") == "student"


def read_teacher(path: Path, plan: Plan) -> Teacher:
    """Read a teacher of any supported format. Raises CheckpointError for a missing path."""
    if not path.exists():
        raise CheckpointError(
            f"checkpoint '{path}' does not exist",
            expected="a .pth, .safetensors or .bin file, or a Hugging Face folder",
            fix="check the path",
        )
    return load_teacher(path, heads=plan.teacher_heads, decoder_heads=plan.teacher_decoder_heads)


def log_import(teacher: Teacher) -> None:
    """Log what a teacher is, and what its file did not say: what was assumed and what was left out."""
    shape = teacher.vit.shape
    log.info("teacher: %s, %d blocks, width %d, licence of the weights: %s",
             teacher.source, shape.depth, shape.width, teacher.licence)  # fmt: skip
    for kind, notes in import_notes(teacher).items():
        for note in notes:
            log.info("teacher: %s: %s", kind, note)


def pretrained(flow: Flow, start: Path | None) -> Path:
    """Pretrain an MAE on all images without labels, from scratch or onwards from `start`; return its file."""
    plan = flow.plan
    key = {"pretrain": plan_tree(plan.pretrain), "start": file_digest(start) if start else plan_tree(plan.teacher)}
    # What decides the result only sometimes is in the key only then, so that earlier runs stay valid.
    rest: dict[str, Any] = {"heads": plan.teacher_heads, "decoder_heads": plan.teacher_decoder_heads}
    if start is None:
        resize = "" if plan.data.resize == "short-side" else plan.data.resize
        rest = {"resize": resize, "kernel": plan.data.kernel, "mean": plan.data.mean, "std": plan.data.std}
    key |= {name: value for name, value in rest.items() if value}

    def make(folder: Path) -> None:
        teacher = read_teacher(start, plan) if start else None
        pixel = teacher.pixel if teacher else teacher_pixel(plan)
        trained, curve = pretrain(plan, flow.inputs.unlabelled, pixel, teacher, folder / "train.ckpt")
        flow.keep(folder / TEACHER, trained, {"pretrain": curve})

    return flow.work.run("pretrain", flow.key(**key), make) / TEACHER


def finetuned(flow: Flow, source: Path) -> Path:
    """Train a classification head and the whole teacher on labels; return its file."""

    def make(folder: Path) -> None:
        finetuned_teacher, curve = finetune(
            read_teacher(source, flow.plan), flow.plan, flow.images, folder / "train.ckpt"
        )
        flow.keep(folder / TEACHER, finetuned_teacher, {"finetune": curve})

    key = {"finetune": plan_tree(flow.plan.finetune), "from": file_digest(source), "heads": flow.plan.teacher_heads}
    return flow.work.run("finetune", flow.key_with_labels(**key), make) / TEACHER


def distilled(flow: Flow, source: Path, finetuned_path: Path | None) -> Path:
    """Distill a student from the teacher, then train it with labels, guided by the fine-tuned one; return its file."""
    plan, labelled = flow.plan, flow.inputs.labelled is not None
    first = _stage_one(flow, source, finetuned_path, "stage-1" if labelled else "student")
    if not labelled:
        return first

    def make(folder: Path) -> None:
        finetuned_teacher = read_teacher(finetuned_path, plan) if finetuned_path else None
        student, curve = supervise(load_student(first), plan, flow.images, finetuned_teacher, folder / "train.ckpt")
        flow.keep(folder / STUDENT, student, read_curves(first) | {student.history[-1].stage: curve})
        if plan.elastic.on and flow.work.processes.first:
            rows = elastic_curve(student, flow.inputs.evaluation, plan.workers)
            write_atomic(folder / ELASTIC_CURVE, json.dumps(rows, indent=1).encode())

    key = {"finetune": plan_tree(plan.distill.finetune), "from": file_digest(first),
           "guide": file_digest(finetuned_path) if finetuned_path else "", "heads": plan.teacher_heads}  # fmt: skip
    if plan.elastic.on:
        key["elastic"] = plan_tree(msgspec.structs.replace(plan.elastic, shape=()))
    return flow.work.run("student", flow.key_with_labels(**key), make) / STUDENT


def _stage_one(flow: Flow, source: Path, finetuned_path: Path | None, name: str) -> Path:
    """Distill a student by the plan's recipe, without labels; return its file."""
    plan = flow.plan
    teacher, finetuned_teacher = (
        read_teacher(source, plan),
        read_teacher(finetuned_path, plan) if finetuned_path else None,
    )
    recipe, chosen = choose_recipe(
        plan.distill, teacher, finetuned_teacher or (teacher if teacher.vit.head is not None else None)
    )

    def make(folder: Path) -> None:
        images = replace(flow.images, labelled=None)
        student, curves = distill(teacher, plan, images, folder / "train.ckpt", finetuned_teacher)
        flow.keep(folder / STUDENT, student, curves)

    settings = plan_tree(plan.distill)
    temperature = settings.pop("finetune")["teacher_temperature"]
    key = {"distill": settings, "student": plan_tree(plan.student), "heads": plan.teacher_heads,
           "from": file_digest(finetuned_path if finetuned_path and chosen is finetuned_teacher else source),
           "pixels": plan.data.resize,
           "mean": plan.data.mean, "std": plan.data.std}  # fmt: skip
    key |= {"temperature": temperature} if recipe.needs_head else {}
    key |= {"kernel": plan.data.kernel} if plan.data.kernel else {}
    if plan.elastic.on:
        sizes = ("depths", "heads", "mlp_ratios", "image_pxs", "samples")
        key["elastic"] = {name: plan_tree(plan.elastic)[name] for name in sizes}
    return flow.work.run(name, flow.key(**key), make) / STUDENT


def extracted(flow: Flow, source: Path) -> Path:
    """Return the sub-network of an elastic student that the plan names, or the student itself; a student's file."""
    shape = flow.plan.elastic.shape
    if not flow.plan.elastic.on or not shape:
        return source

    def make(folder: Path) -> None:
        extract(load_student(source), shape).save(folder / STUDENT)

    return flow.work.run("extract", {"from": file_digest(source), "shape": shape}, make) / STUDENT


def pruned(flow: Flow, source: Path, finetuned_path: Path | None, width_multiple: int) -> Path:
    """Prune heads and MLP units, healing by distillation after each cut; return the student's file."""
    plan = flow.plan
    if plan.prune.keep_macs >= 1:
        return source

    def make(folder: Path) -> None:
        student = load_student(source)
        teacher = read_teacher(finetuned_path, plan) if finetuned_path else None
        curves: dict[str, Curve] = {}
        images = flow.inputs.labelled or flow.inputs.unlabelled

        def heal(cut: Student, step: int) -> Student:
            checkpoint = folder / f"heal-{step}.ckpt"
            if flow.inputs.labelled is None:
                healed, curve = heal_embedding(cut, student, plan.prune.heal, plan, flow.inputs.unlabelled, checkpoint)
            else:
                healed, curve = train_further(cut, plan.prune.heal, plan, flow.images, teacher, checkpoint, "heal")
            curves[f"heal {step}"] = curve
            return healed

        small = prune(
            student, plan.prune, width_multiple=width_multiple, batches=lambda: pruning_batches(images, student, plan),
            loss=pruning_loss(student, teacher), heal=heal if plan.prune.heal.epochs else None,
        )  # fmt: skip
        flow.keep(folder / STUDENT, small, curves)

    key = {"heads": plan.teacher_heads, "prune": plan_tree(plan.prune), "from": file_digest(source),
           "multiple": width_multiple, "guide": file_digest(finetuned_path) if finetuned_path else ""}  # fmt: skip
    return flow.work.run("pruned", flow.key_with_labels(**key), make) / STUDENT


def teacher_pixel(plan: Plan) -> PixelContract:
    """Return the pixel contract of a teacher that is trained from scratch."""
    gray = plan.teacher.channels == 1
    usual = ((0.5,), (0.5,)) if gray else (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = (plan.data.mean, plan.data.std) if plan.data.mean and plan.data.std else usual
    return PixelContract(
        image_px=plan.teacher.image_px, channels=plan.teacher.channels, color="GRAY" if gray else "RGB",
        resize=plan.data.resize, kernel=plan.data.kernel or KERNELS[0], mean=mean, std=std,
    )  # fmt: skip


def read_curves(*models: Path) -> dict[str, Curve]:
    """Return the loss curves that lie beside model files, in order."""
    files = [model.parent / "curves.json" for model in models]
    return {name: curve for file in files if file.exists() for name, curve in json.loads(file.read_bytes()).items()}
