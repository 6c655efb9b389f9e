"""The tables of a plan and their defaults: every number of a compile."""

from __future__ import annotations

import msgspec


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all plan tables: immutable, and unknown keys are refused."""


class ShapePlan(Section, frozen=True):
    """Shape of a plain ViT. `heads` x `head_dim` need not equal `width`."""

    image_px: int = 96  # side of the square input
    patch_px: int = 8  # side of a patch; it divides image_px
    channels: int = 3  # 3, or 1 for gray images
    width: int = 192  # size of a token (embedding width)
    depth: int = 4  # number of blocks
    heads: int = 3  # attention heads of each block
    head_dim: int = 64  # width of one head
    mlp_ratio: float = 4.0  # hidden units of the MLP, as a multiple of width


class PretrainPlan(Section, frozen=True):
    """MAE pretraining without labels (He et al. 2022, section 3 and appendix A.1)."""

    epochs: int = 100  # passes over the images
    batch: int = 256  # images a step, over all processes
    lr: float = 1.5e-4  # per 256 images: the step's rate is lr * batch / 256
    weight_decay: float = 0.05  # weight decay of AdamW
    warmup_fraction: float = 0.1  # share of the steps in which the rate rises
    mask_ratio: float = 0.75  # share of the patches that are hidden
    mask_ratio_end: float = 0.0  # the ratio moves there in a straight line; 0: it stays
    mask: str = "random"  # random | block | grid | attention; "grid>random": one after the other
    loss: str = "norm-pixel"  # norm-pixel | pixel | bce
    decoder_width: int = 96  # token width of the MAE decoder; a multiple of 4
    decoder_depth: int = 1  # blocks of the decoder
    decoder_heads: int = 3  # a divisor of decoder_width
    crop_min: float = 0.2  # least share of the image that a random crop keeps
    flip: bool = True  # mirror half of the images
    bf16: bool = True  # train in bfloat16 where the processor multiplies it


class FinetunePlan(Section, frozen=True):
    """Supervised training of a teacher or a student; with a teacher attached, half of the loss is its logits."""

    epochs: int = 30  # passes over the labelled images
    batch: int = 64  # images a step, over all processes
    lr: float = 1e-3  # per 256 images
    weight_decay: float = 0.05  # weight decay of AdamW
    warmup_fraction: float = 0.1  # share of the steps in which the rate rises
    layer_decay: float = 0.85  # factor on the rate for each block further from the head; 1.0: the same rate everywhere
    mixup: float = 0.0  # alpha of the Beta distribution, 0: off
    cutmix: float = 0.0  # likewise; with both on, each batch takes one of them
    label_smoothing: float = 0.0  # share of the label that is spread over all classes
    drop_path: float = 0.0  # probability that a block is skipped, rising to this with depth
    randaug: float = 0.0  # magnitude of colour and shape changes, 0 (off) to 10
    ema: float = 0.0  # decay of the running mean of the weights that is returned, 0: off
    token_keep: float = 1.0  # part of the patches that every second step sees; 1.0 switches this off
    teacher_weight: float = 0.5  # share of the knowledge-distillation term, when there is a teacher
    teacher_temperature: float = 1.0  # softens both distributions of the distillation term
    views: int = 0  # an image has that many views, whose teacher logits are kept on disk; 0: a new one every epoch
    crop_min: float = 0.35  # least share of the image that a random crop keeps
    flip: bool = True  # mirror half of the images
    bf16: bool = True  # train in bfloat16 where the processor multiplies it


class DistillPlan(Section, frozen=True):
    """Stage 1 of distillation (no labels); stage 2 is `finetune` with the teacher's logits."""

    recipe: str = "relation"  # relation | relation-full | feature | logit
    learn_from: str = "auto"  # pretrained | finetuned: the teacher before or after fine-tuning; auto: by the recipe
    epochs: int = 100  # passes over all images, labelled and not
    batch: int = 256  # images a step, over all processes
    lr: float = 1.5e-4  # per 256 images: the step's rate is lr * batch / 256
    weight_decay: float = 0.05  # weight decay of AdamW
    warmup_fraction: float = 0.1  # share of the steps in which the rate rises
    mask_ratio: float = 0.75  # share of the patches that are hidden (relation)
    mask_ratio_end: float = 0.0  # the ratio moves there in a straight line; 0: it stays
    mask: str = "random"  # random | block | grid | attention; "grid>random": one after the other
    teacher_block: int = 0  # counted from 1; 0: the last block, or three quarters when the teacher is deeper
    decoder_width: int = 96  # token width of the pixel decoder (relation); a multiple of 4
    decoder_heads: int = 3  # a divisor of decoder_width
    pixel_weight: float = 1.0  # relation: weight of the pixel loss
    relation_weight: float = 1.0  # relation: weight of the attention loss
    query_key_weight: float = 1.0  # relation-full: weight of the query-key relations
    value_weight: float = 1.0  # relation-full: weight of the value-value relations
    pooled_weight: float = 1.0  # feature: weight of the embedding
    patch_weight: float = 1.0  # feature: weight of the patch tokens
    drop_path: float = 0.0  # probability that a block is skipped, rising to this with depth
    randaug: float = 0.0  # magnitude of colour and shape changes, 0 (off) to 10
    ema: float = 0.0  # decay of the running mean of the weights that is returned, 0: off
    views: int = 0  # fixed views of an image whose teacher outputs are kept on disk; 0: a new view every epoch
    crop_min: float = 0.2  # least share of the image that a random crop keeps
    flip: bool = True  # mirror half of the images
    bf16: bool = True  # train in bfloat16 where the processor multiplies it
    finetune: FinetunePlan = FinetunePlan()


class ElasticPlan(Section, frozen=True):
    """Nested sub-networks, trained along in both stages. Empty: sensible sizes; the student's own always count.

    Smaller images, `lr_scale` and `largest_weight` count in stage 2 only.
    """

    on: bool = False  # train the sub-networks; `--elastic` sets it
    depths: tuple[int, ...] = ()  # numbers of blocks
    heads: tuple[int, ...] = ()  # numbers of heads
    mlp_ratios: tuple[float, ...] = ()  # MLP widths, as multiples of width
    image_pxs: tuple[int, ...] = ()  # a smaller image has fewer tokens
    samples: int = 3  # random sub-networks a step, beside the largest and the smallest
    lr_scale: float = 2.5  # times distill.finetune.lr: the largest, on digits, 89 % at 1.25, 93 % at 2.5, 90 % at 3.75
    largest_weight: float = 0.3  # share of the largest one's word in what the others learn
    shape: tuple[int, ...] = ()  # depth, heads, MLP units, image_px of what is compiled; empty: the largest


class PrunePlan(Section, frozen=True):
    """Structured pruning of whole heads and MLP units; `keep_macs = 1.0` switches it off."""

    keep_macs: float = 0.85  # share of the multiply-accumulates that stays; 1.0: nothing is cut
    criterion: str = "taylor"  # taylor | magnitude
    steps: int = 3  # cuts, each followed by new scores
    score_batches: int = 20  # batches that the scores are taken from
    heal: FinetunePlan = FinetunePlan(epochs=10, lr=5e-4)


class ExportPlan(Section, frozen=True):
    """What the graphs give beside logits and embedding."""

    tokens: bool = False  # the patches behind the last block, of which `edgemae gallery` finds anomalies


class QuantizePlan(Section, frozen=True):
    """Post-training quantization candidates. `schemes` empty: those that fit the target's engines."""

    schemes: tuple[str, ...] = ()  # names among ort-static, ort-dynamic, openvino-static, tensorrt-qdq
    calibration_images: int = 256  # images that the activation ranges are taken from
    smooth_alphas: tuple[float, ...] = (-1.0, 0.5)  # -1.0 is "off"
    percentile: float = 99.99  # where activations are clipped; not clipping is tried too
    min_speedup: float = 1.02  # int8 ships only if it is at least this much faster than float
    qat_when: str = "on_accuracy_loss"  # train when no int8 graph is within the accuracy limit; or always
    qat: FinetunePlan = FinetunePlan(epochs=8, layer_decay=1.0)  # quantization-aware training; 0 epochs: never


class GatePlan(Section, frozen=True):
    """Limits that a bundle must be shown to meet. One that is left out is off; 0 is the strictest that can be asked."""

    max_drop_pts: float | None = None  # points of top-1 that the shipped graph may lose to the float student
    confidence: float = 0.95  # confidence of the intervals that decide the gates
    p90_ms: float | None = None  # 90th percentile of one inference, in milliseconds
    size_mib: float | None = None  # size of the bundle, in MiB
    min_agreement: float | None = None  # share of evaluation images on which shipped graph and float student agree


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

    train: str = ""  # `--data`: images to train on, with class sub-folders or flat
    unlabelled: str = ""  # `--unlabelled`: more images for the stages that need no labels
    eval: str = ""  # `--eval-data`: images to evaluate on; empty: a part of `train`
    calib: str = ""  # `--calib-data`: images to calibrate int8 with; empty: from `train`
    eval_fraction: float = 0.2  # share of `train`, only when `eval` is not given
    resize: str = "short-side"  # short-side (then a centre crop) | stretch
    kernel: str = ""  # area-linear | halve-linear | linear | cubic | area; empty: the teacher's
    mean: tuple[float, ...] = ()  # empty: the teacher's
    std: tuple[float, ...] = ()  # empty: the teacher's


class Plan(Section, frozen=True):
    """Everything that decides a compile, apart from the target and the files themselves."""

    name: str = "model"  # names the bundle and its file
    preset: str = "auto"  # training preset: auto (by the student's size and the number of images), none, or its name
    version: int = 1  # of the bundle; it must rise with every release of a name
    seed: int = 0  # seeds everything random
    workers: int = 2  # processes that decode images
    threads: int = 2  # threads of training; those of inference are the target's
    graph_input: str = "float32"  # float32: normalised (B, C, H, W); or uint8: (B, H, W, C), the graph normalises
    teacher_heads: int = 0  # attention heads of the teacher, for weight files that do not tell them; 0: from the file
    teacher_decoder_heads: int = 0  # likewise of its MAE decoder, which is left out where they are unknown
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
