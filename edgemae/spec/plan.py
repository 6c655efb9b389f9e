"""Plan: every number of a compile, each with a default. Command line > file > default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgemae.spec.errors import PlanError, nearest


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all plan tables: immutable, and unknown keys are refused."""


class ShapePlan(Section, frozen=True):
    """Shape of a plain ViT. `heads` x `head_dim` need not equal `width`."""

    image_px: int = 96
    patch_px: int = 8
    channels: int = 3
    width: int = 192
    depth: int = 4
    heads: int = 3
    head_dim: int = 64
    mlp_ratio: float = 4.0


class PretrainPlan(Section, frozen=True):
    """MAE pretraining without labels (He et al. 2022, section 3 and appendix A.1)."""

    epochs: int = 100
    batch: int = 256
    lr: float = 1.5e-4  # per 256 images: the step's rate is lr * batch / 256
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1
    mask_ratio: float = 0.75
    mask: str = "random"  # random | block | grid
    loss: str = "norm-pixel"  # norm-pixel | bce
    decoder_width: int = 96
    decoder_depth: int = 1
    decoder_heads: int = 3
    crop_min: float = 0.2
    flip: bool = True
    bf16: bool = True


class FinetunePlan(Section, frozen=True):
    """Supervised training of a teacher or a student; with a teacher attached, half of the loss is its logits."""

    epochs: int = 30
    batch: int = 64
    lr: float = 1e-3  # per 256 images
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1
    layer_decay: float = 0.85
    mixup: float = 0.0
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    token_keep: float = 1.0  # part of the patches that every second step sees; 1.0 switches this off
    teacher_weight: float = 0.5  # share of the knowledge-distillation term, when there is a teacher
    teacher_temperature: float = 1.0
    crop_min: float = 0.35
    flip: bool = True
    bf16: bool = True


class DistillPlan(Section, frozen=True):
    """Stage 1 of distillation (no labels); stage 2 is `finetune` with the teacher's logits."""

    recipe: str = "relation"  # relation | logit
    epochs: int = 100
    batch: int = 256
    lr: float = 1.5e-4
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1
    mask_ratio: float = 0.75
    mask: str = "random"
    teacher_block: int = 0  # counted from 1; 0: the last block, or three quarters when the teacher is deeper
    decoder_width: int = 96
    decoder_heads: int = 3
    pixel_weight: float = 1.0
    relation_weight: float = 1.0
    crop_min: float = 0.2
    flip: bool = True
    bf16: bool = True
    finetune: FinetunePlan = FinetunePlan()


class PrunePlan(Section, frozen=True):
    """Structured pruning of whole heads and MLP units; `keep_macs = 1.0` switches it off."""

    keep_macs: float = 0.85
    criterion: str = "taylor"
    steps: int = 3
    score_batches: int = 20
    heal: FinetunePlan = FinetunePlan(epochs=10, lr=5e-4)


class QuantizePlan(Section, frozen=True):
    """Post-training quantization candidates. `schemes` empty: those that fit the target's engines."""

    schemes: tuple[str, ...] = ()
    calibration_images: int = 256
    smooth_alphas: tuple[float, ...] = (-1.0, 0.5)  # -1.0 is "off"
    percentile: float = 99.99
    min_speedup: float = 1.02  # int8 ships only if it is at least this much faster than float


class GatePlan(Section, frozen=True):
    """Limits that a bundle must be shown to meet. Zero switches a limit off."""

    max_drop_pts: float = 0.0
    confidence: float = 0.95
    p90_ms: float = 0.0
    size_mib: float = 0.0
    min_agreement: float = 0.0


class DataPlan(Section, frozen=True):
    """Folders of images. `train` may be flat (no labels); `eval` and `calib` default to parts of `train`."""

    train: str = ""
    unlabelled: str = ""
    eval: str = ""
    calib: str = ""
    eval_fraction: float = 0.2  # of `train`, only when `eval` is not given
    resize: str = "short-side"
    mean: tuple[float, ...] = ()  # empty: the teacher's
    std: tuple[float, ...] = ()


class Plan(Section, frozen=True):
    """Everything that decides a compile, apart from the target and the files themselves."""

    name: str = "model"
    version: int = 1
    seed: int = 0
    workers: int = 2
    threads: int = 2  # of training; inference threads are the target's
    teacher_heads: int = 0  # for weight files that cannot tell
    teacher_decoder_heads: int = 0  # likewise; unknown, the decoder is left out
    data: DataPlan = DataPlan()
    student: ShapePlan = ShapePlan()
    teacher: ShapePlan = ShapePlan(depth=8)
    pretrain: PretrainPlan = PretrainPlan()
    finetune: FinetunePlan = FinetunePlan()
    distill: DistillPlan = DistillPlan()
    prune: PrunePlan = PrunePlan()
    quantize: QuantizePlan = QuantizePlan()
    gates: GatePlan = GatePlan()


def load_plan(
    path: str | Path | None = None, overrides: tuple[str, ...] = (), flags: Mapping[str, Any] | None = None
) -> Plan:
    """Return the plan of a TOML file (or the defaults), then flags {"a.b": value}, then `a.b=value` texts.

    Flags that are None were not given. Raises PlanError with the path of the wrong field.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = msgspec.toml.decode(Path(path).read_bytes())
        except OSError as error:
            raise PlanError(
                f"plan file '{path}' cannot be read: {error.strerror}",
                expected="a TOML file",
                fix="check the path of --plan",
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PlanError(
                f"plan file '{path}' is not valid TOML: {error}",
                expected="TOML tables such as [distill] and [gates]",
                fix="see examples/plan.toml",
            ) from error
    for key, value in (flags or {}).items():
        if value is not None:
            _put(tree, key, value)
    for text in overrides:
        key, sign, raw = text.partition("=")
        if not sign or not key.strip():
            raise PlanError(
                f"override '{text}' has no '='", expected="--set table.field=value", fix="e.g. --set distill.epochs=50"
            )
        _put(tree, key.strip().replace("-", "_"), _value(raw))
    return plan_from(tree)


def plan_from(tree: dict[str, Any]) -> Plan:
    """Return a validated plan from nested dictionaries."""
    try:
        plan = msgspec.convert(tree, Plan)
    except msgspec.ValidationError as error:
        raise PlanError(
            f"the plan is not valid: {_explain(str(error))}",
            expected="fields and types as in examples/plan.toml",
            fix="correct that field in the plan file, the flag or --set",
        ) from error
    _check(plan)
    return plan


def plan_tree(value: msgspec.Struct) -> dict[str, Any]:
    """Return a plan or one of its sections as plain dictionaries (TOML- and JSON-ready)."""
    tree: dict[str, Any] = msgspec.to_builtins(value)
    return tree


def _value(raw: str) -> Any:
    """Return a TOML value; a bare word is a string."""
    try:
        return msgspec.toml.decode(f"value = {raw}")["value"]
    except msgspec.DecodeError:
        return raw


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise PlanError(
                f"override '{key}': '{parent}' is a value, not a table",
                expected="--set table.field=value",
                fix="see examples/plan.toml for the tables",
            )
    node[leaf] = value


def _explain(message: str) -> str:
    """Add the nearest known field to msgspec's `unknown field` message."""
    if "unknown field `" not in message:
        return message
    wrong = message.split("unknown field `")[1].split("`")[0]
    struct: type[msgspec.Struct] = Plan
    if "`$." in message:
        for part in message.split("`$.")[1].rstrip("`").split("."):
            struct = next(f.type for f in msgspec.structs.fields(struct) if f.name == part)
    return message + nearest(wrong, list(struct.__struct_fields__))


def _check(plan: Plan) -> None:
    """Refuse numbers that no stage can work with."""
    rules = (
        (
            "student.width",
            plan.student.width,
            plan.student.width % 4 == 0 and plan.student.width > 0,
            "a multiple of 4",
        ),
        (
            "student.image_px",
            plan.student.image_px,
            plan.student.patch_px > 0 and plan.student.image_px % plan.student.patch_px == 0,
            f"a multiple of patch_px={plan.student.patch_px}",
        ),
        ("student.depth", plan.student.depth, plan.student.depth >= 1, ">= 1"),
        ("pretrain.mask_ratio", plan.pretrain.mask_ratio, 0 < plan.pretrain.mask_ratio < 1, "between 0 and 1"),
        ("distill.mask_ratio", plan.distill.mask_ratio, 0 < plan.distill.mask_ratio < 1, "between 0 and 1"),
        ("prune.keep_macs", plan.prune.keep_macs, 0.1 <= plan.prune.keep_macs <= 1, "between 0.1 and 1"),
        ("gates.confidence", plan.gates.confidence, 0.5 <= plan.gates.confidence < 1, "between 0.5 and 1"),
        (
            "quantize.calibration_images",
            plan.quantize.calibration_images,
            plan.quantize.calibration_images >= 32,
            ">= 32",
        ),
        ("workers", plan.workers, plan.workers >= 0, ">= 0"),
        ("threads", plan.threads, plan.threads >= 1, ">= 1"),
        ("data.eval_fraction", plan.data.eval_fraction, 0 < plan.data.eval_fraction < 1, "between 0 and 1"),
    )
    for name, value, fine, expected in rules:
        if not fine:
            raise PlanError(f"{name} is {value}", expected=expected, fix=f"pass --set {name}=... or edit the plan file")
