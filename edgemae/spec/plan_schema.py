"""The tables of a plan and their defaults: every number of a compile."""

from __future__ import annotations

import msgspec


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
    mask_ratio_end: float = 0.0  # the ratio moves there in a straight line; 0: it stays
    mask: str = "random"  # random | block | grid | attention; "grid>random": one after the other
    loss: str = "norm-pixel"  # norm-pixel | pixel | bce
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
    mixup: float = 0.0  # alpha of the Beta distribution, 0: off
    cutmix: float = 0.0  # likewise; with both on, each batch takes one of them
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    randaug: float = 0.0  # magnitude of colour and shape changes, 0 (off) to 10
    ema: float = 0.0  # decay of the running mean of the weights that is returned, 0: off
    token_keep: float = 1.0  # part of the patches that every second step sees; 1.0 switches this off
    teacher_weight: float = 0.5  # share of the knowledge-distillation term, when there is a teacher
    teacher_temperature: float = 1.0
    views: int = 0  # an image has that many views, whose teacher logits are kept on disk; 0: a new one every epoch
    crop_min: float = 0.35
    flip: bool = True
    bf16: bool = True


class DistillPlan(Section, frozen=True):
    """Stage 1 of distillation (no labels); stage 2 is `finetune` with the teacher's logits."""

    recipe: str = "relation"  # relation | relation-full | feature | logit
    learn_from: str = "auto"  # pretrained | tuned: the teacher before or after fine-tuning; auto: as the recipe likes
    epochs: int = 100
    batch: int = 256
    lr: float = 1.5e-4
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1
    mask_ratio: float = 0.75
    mask_ratio_end: float = 0.0
    mask: str = "random"
    teacher_block: int = 0  # counted from 1; 0: the last block, or three quarters when the teacher is deeper
    decoder_width: int = 96
    decoder_heads: int = 3
    pixel_weight: float = 1.0
    relation_weight: float = 1.0
    query_key_weight: float = 1.0  # relation-full
    value_weight: float = 1.0
    pooled_weight: float = 1.0  # feature
    patch_weight: float = 1.0
    drop_path: float = 0.0
    randaug: float = 0.0
    ema: float = 0.0
    views: int = 0
    crop_min: float = 0.2
    flip: bool = True
    bf16: bool = True
    finetune: FinetunePlan = FinetunePlan()


class ElasticPlan(Section, frozen=True):
    """Nested sub-networks, trained along in both stages. Empty: sensible sizes; the student's own always count.

    Smaller pictures, `lr_scale` and `largest_weight` count in stage 2 only.
    """

    on: bool = False
    depths: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    mlp_ratios: tuple[float, ...] = ()
    image_pxs: tuple[int, ...] = ()  # a smaller picture has fewer tokens
    samples: int = 3  # random sub-networks a step, beside the largest and the smallest
    lr_scale: float = 2.5  # times distill.finetune.lr: the largest, on digits, 89 % at 1.25, 93 % at 2.5, 90 % at 3.75
    largest_weight: float = 0.3  # share of the largest one's word in what the others learn
    shape: tuple[int, ...] = ()  # depth, heads, MLP units, image_px of what is compiled; empty: the largest


class PrunePlan(Section, frozen=True):
    """Structured pruning of whole heads and MLP units; `keep_macs = 1.0` switches it off."""

    keep_macs: float = 0.85
    criterion: str = "taylor"
    steps: int = 3
    score_batches: int = 20
    heal: FinetunePlan = FinetunePlan(epochs=10, lr=5e-4)


class ExportPlan(Section, frozen=True):
    """What the graphs give beside logits and embedding."""

    tokens: bool = False  # the patches behind the last block, of which `edgemae gallery` finds anomalies


class QuantizePlan(Section, frozen=True):
    """Post-training quantization candidates. `schemes` empty: those that fit the target's engines."""

    schemes: tuple[str, ...] = ()
    calibration_images: int = 256
    smooth_alphas: tuple[float, ...] = (-1.0, 0.5)  # -1.0 is "off"
    percentile: float = 99.99
    min_speedup: float = 1.02  # int8 ships only if it is at least this much faster than float
    qat_when: str = "on_accuracy_loss"  # train when no int8 graph is within the accuracy limit; or always
    qat: FinetunePlan = FinetunePlan(epochs=8, layer_decay=1.0)  # quantization-aware training; 0 epochs: never


class GatePlan(Section, frozen=True):
    """Limits that a bundle must be shown to meet. Zero switches a limit off."""

    max_drop_pts: float = 0.0
    confidence: float = 0.95
    p90_ms: float = 0.0
    size_mib: float = 0.0
    min_agreement: float = 0.0


class ScalePlan(Section, frozen=True):
    """How a training is spread over the machine. Nothing here changes what is computed, beyond rounding."""

    accumulate: int = 1  # parts that a batch is computed in, one after the other
    compile: bool = False  # torch.compile of the training step
    shard_teacher: bool = False  # a teacher that does not fit one device is spread over all processes (FSDP)
    views_folder: str = ""  # where teacher outputs of fixed views are kept for later runs; empty: only while it trains
    tensorboard: bool = False  # curves for TensorBoard beside the events file


class DataPlan(Section, frozen=True):
    """Folders of images, or tar shards: a folder of them, one, or a pattern such as train-{000000..000146}.tar.

    `train` may be flat (no labels); `eval` and `calib` default to parts of `train`.
    """

    train: str = ""
    unlabelled: str = ""
    eval: str = ""
    calib: str = ""
    eval_fraction: float = 0.2  # of `train`, only when `eval` is not given
    resize: str = "short-side"
    kernel: str = ""  # area-linear | halve-linear | linear | cubic | area; empty: the teacher's
    mean: tuple[float, ...] = ()  # empty: the teacher's
    std: tuple[float, ...] = ()


class Plan(Section, frozen=True):
    """Everything that decides a compile, apart from the target and the files themselves."""

    name: str = "model"
    preset: str = "auto"  # of training: auto (by the student's size and the number of images), none, or its name
    version: int = 1
    seed: int = 0
    workers: int = 2
    threads: int = 2  # of training; inference threads are the target's
    graph_input: str = "float32"  # float32: normalised (B, C, H, W); or uint8: (B, H, W, C), the graph normalises
    teacher_heads: int = 0  # for weight files that cannot tell
    teacher_decoder_heads: int = 0  # likewise; unknown, the decoder is left out
    data: DataPlan = DataPlan()
    student: ShapePlan = ShapePlan()
    teacher: ShapePlan = ShapePlan(depth=8)
    pretrain: PretrainPlan = PretrainPlan()
    scale: ScalePlan = ScalePlan()
    finetune: FinetunePlan = FinetunePlan()
    distill: DistillPlan = DistillPlan()
    elastic: ElasticPlan = ElasticPlan()
    prune: PrunePlan = PrunePlan()
    export: ExportPlan = ExportPlan()
    quantize: QuantizePlan = QuantizePlan()
    gates: GatePlan = GatePlan()
