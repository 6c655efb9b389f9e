"""Presets: training settings by the student's size and the number of images. They lie under a plan's own values.

Sources: MAE-Lite (Wang et al. 2023) for tiny students at ImageNet's size: weak regularisation, layer decay 0.85; MAE
(He et al. 2022, appendix A) and TinyMIM (Ren et al. 2023) for small and base ones; and for thousands of images the
project's own runs on 3,068 photos of clothing: small batches, higher rates, no mixing, and as many epochs of stage 2 as
of stage 1. Measured with a tiny student, epochs of both stages -> mean top-1: 15 and 20 -> 74.3 % (three seeds), 40 and
40 -> 80.6 % (two), the teacher 80.4 %; 40 and 40 -> 82.5 % (three) with a teacher of 85.0 %, which had 348 epochs of
pretraining in place of 148. `relation-full` came to 83.2 % there (three), for three times the work of stage 1. Not
measured: longer ones, small and base students, and all rows for more images. Those keep the equal parts and take their
length from TinyMIM's 300 epochs of 1.3 million images; between the two sizes 100.
"""

from __future__ import annotations

from typing import Any

SIZES = (("tiny", 10e6), ("small", 40e6), ("base", float("inf")))  # parameters, below
COUNTS = (("thousands", 50_000), ("hundred-thousands", 1_000_000), ("millions", float("inf")))  # images, below

_BY_COUNT: dict[str, dict[str, Any]] = {
    "thousands": {
        "pretrain.epochs": 400, "pretrain.batch": 64, "pretrain.lr": 2e-3, "pretrain.crop_min": 0.25,
        "finetune.epochs": 24, "finetune.lr": 2e-3, "finetune.layer_decay": 0.8, "finetune.token_keep": 0.5,
        "distill.epochs": 40, "distill.batch": 64, "distill.lr": 2e-3, "distill.crop_min": 0.25,
        "distill.finetune.epochs": 40, "distill.finetune.lr": 3e-3, "distill.finetune.teacher_temperature": 2.0,
    },
    "hundred-thousands": {
        "pretrain.epochs": 400, "pretrain.batch": 512, "pretrain.lr": 3e-4,
        "finetune.epochs": 100, "finetune.batch": 256, "finetune.mixup": 0.8, "finetune.cutmix": 1.0,
        "distill.epochs": 100, "distill.batch": 512, "distill.lr": 3e-4,
        "distill.finetune.epochs": 100, "distill.finetune.batch": 256,
    },
    "millions": {
        "pretrain.epochs": 400, "pretrain.batch": 4096, "pretrain.lr": 1.5e-4,
        "finetune.epochs": 100, "finetune.batch": 1024, "finetune.lr": 5e-4, "finetune.mixup": 0.8,
        "finetune.cutmix": 1.0, "finetune.drop_path": 0.1, "finetune.layer_decay": 0.65,
        "distill.epochs": 300, "distill.batch": 4096, "distill.lr": 1.5e-4,
        "distill.finetune.epochs": 300, "distill.finetune.batch": 1024,
    },
}  # fmt: skip
_MILD = {"mixup": 0.2, "layer_decay": 0.85}
_STRONG = {"mixup": 0.8, "cutmix": 1.0, "layer_decay": 0.75, "randaug": 9.0, "ema": 0.9999}
_BY_BOTH: dict[tuple[str, str], dict[str, Any]] = {
    ("tiny", "thousands"): {"layer_decay": 0.9},
    ("small", "thousands"): _MILD | {"randaug": 5.0},
    ("base", "thousands"): _MILD | {"randaug": 5.0, "drop_path": 0.1},
    ("tiny", "hundred-thousands"): _MILD,
    ("small", "hundred-thousands"): _STRONG,
    ("base", "hundred-thousands"): _STRONG | {"drop_path": 0.1, "label_smoothing": 0.1},
    ("tiny", "millions"): _MILD,
    ("small", "millions"): _STRONG,
    ("base", "millions"): _STRONG | {"drop_path": 0.1, "label_smoothing": 0.1},
}

NAMES = tuple(f"{size}-{count}" for size, _ in SIZES for count, _ in COUNTS)


def preset(name: str, labelled: str = "") -> dict[str, Any]:
    """Return the settings of one of NAMES by their dotted fields.

    `labelled` is the name for the images with labels alone, by which the trainings that need them go: 3,000 beside two
    million without make two steps of the millions' batch.
    """
    size, _, count = name.partition("-")
    count_labelled = (labelled or name).partition("-")[2]
    stage_two = {f"distill.finetune.{field}": value for field, value in _BY_BOTH[size, count_labelled].items()}
    stage_one = {field: value for field, value in _BY_COUNT[count].items() if "finetune" not in field}
    supervised = {field: value for field, value in _BY_COUNT[count_labelled].items() if "finetune" in field}
    return stage_one | supervised | stage_two


def preset_for(parameters: float, images: int) -> str:
    """Return the name for a student of so many parameters and so many images to train on."""
    size = next(name for name, below in SIZES if parameters < below)
    return f"{size}-{next(name for name, below in COUNTS if images < below)}"
