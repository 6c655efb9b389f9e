"""Student files keep shape, weights, pixels, labels and history."""

from __future__ import annotations

from zipfile import ZipFile

import pytest
import torch

from edgemae.model.import_teacher import load_teacher
from edgemae.model.mae import MAE, DecoderShape
from edgemae.model.model_file import read_model, write_model
from edgemae.model.student import Student, load_student
from edgemae.model.teacher import Teacher
from edgemae.spec.errors import CheckpointError
from edgemae.spec.graph import PixelContract, Step

PIXEL = PixelContract(image_px=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), resize="stretch")
HISTORY = (Step(stage="distill", plan={"epochs": 3}, scores={"top1": 0.5}, seed=1, licence="MIT"), Step(stage="prune"))


@pytest.fixture
def student(tiny) -> Student:
    return Student(tiny(heads=(3, 1), mlp=(40, 8), classes=2), PIXEL, ("no", "yes"), HISTORY)


def test_round_trip_of_a_pruned_student(tmp_path, student, pixels) -> None:
    student.save(tmp_path / "student.safetensors")
    back = load_student(tmp_path / "student.safetensors")
    assert (back.pixel, back.labels, back.history) == (PIXEL, ("no", "yes"), HISTORY)
    assert back.vit.shape == student.vit.shape
    assert torch.equal(back.vit(pixels)[0], student.vit(pixels)[0])
    assert not back.vit.training
    flags = {k: p.requires_grad for k, p in back.vit.named_parameters()}
    assert not flags.pop("pos")
    assert all(flags.values())


def test_loading_draws_no_random_numbers(tmp_path, student) -> None:
    student.save(tmp_path / "s")
    before = torch.random.get_rng_state()
    load_student(tmp_path / "s")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "teacher"}, "not an edgemae student"),
        ({"shape": {"image_px": 32}}, "damaged header"),
        ({"shape": None}, "damaged header"),
        ({"pixel": {"image_px": "big"}}, "damaged header"),
        ({"history": [{"stage": 3}]}, "damaged header"),
    ],
)
def test_a_header_that_makes_no_sense(tmp_path, student, change: dict, message: str) -> None:
    student.save(tmp_path / "s")
    tensors, header = read_model(tmp_path / "s")
    write_model(tmp_path / "s", tensors, header | change)
    with pytest.raises(CheckpointError, match=message):
        load_student(tmp_path / "s")


def test_a_bundle_and_a_folder_are_named_for_what_they_are(tmp_path) -> None:
    with ZipFile(tmp_path / "photos.edgemae", "w") as bundle:
        bundle.writestr("manifest.json", "{}")
    for path in (tmp_path / "photos.edgemae", tmp_path):
        with pytest.raises(CheckpointError, match="not an edgemae student") as caught:
            load_student(path)
        assert "bundle" in caught.value.expected


def test_tensors_that_do_not_fit_the_header(tmp_path, student) -> None:
    student.save(tmp_path / "s")
    tensors, header = read_model(tmp_path / "s")
    tensors["blocks.0.mlp.fc1.weight"] = torch.zeros(41, 32)
    del tensors["norm.bias"]
    write_model(tmp_path / "s", tensors, header)
    with pytest.raises(CheckpointError, match=r"norm.bias is missing; blocks.0.mlp.fc1.weight is \(41, 32\)"):
        load_student(tmp_path / "s")


# A field of a header that its own digest vouches for, and that no network has. Siblings: every size at 0, below, far
# above, of another type; labels and pixels of another network; a decoder that would take all memory.
SENSELESS = [
    ("shape.patch_px", 0), ("shape.patch_px", -8), ("shape.width", -4), ("shape.width", 0), ("shape.heads", []),
    ("shape.heads", [0, 0]), ("shape.heads", ["a", "a"]), ("shape.heads", [10**12] * 2), ("shape.mlp", [-1, -1]),
    ("shape.image_px", 33), ("shape.image_px", 32.5), ("shape.image_px", 10**9), ("shape.head_dim", 0),
    ("shape.channels", -1), ("shape.classes", -1), ("shape.classes", True), ("shape.pool", "x"), ("shape", None),
    ("shape.norm_after_pool", "maybe"), ("labels", ["a"]), ("labels", [1, 2]), ("labels", "ab"), ("labels", None),
    ("history", 3), ("pixel", {}), ("pixel.image_px", 0), ("pixel.mean", []), ("pixel.std", [0, 0, 0]), ("format", 2),
    ("decoder.width", 0), ("decoder.width", 4 * 10**6), ("decoder.depth", 10**7), ("decoder.heads", 3),
    ("decoder.mlp_ratio", -1), ("decoder", 5), ("loss", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), SENSELESS, ids=[f"{f}={str(v)[:12]}" for f, v in SENSELESS])
def test_a_header_that_makes_no_sense_is_a_damaged_file(tmp_path, student, field: str, value: object) -> None:
    path = tmp_path / "model.safetensors"
    if field.startswith(("decoder", "loss")):
        mae = MAE(student.vit, DecoderShape(16, 1, 2), loss_kind="norm-pixel", mean=PIXEL.mean, std=PIXEL.std)
        Teacher(student.vit, PIXEL, student.labels, mae=mae).save(path)
    else:
        student.save(path)
    tensors, header = read_model(path)
    node = header
    *parents, leaf = field.split(".")
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    write_model(path, tensors, header)
    with pytest.raises(CheckpointError):
        load_teacher(path)
    if header["kind"] == "student":
        with pytest.raises(CheckpointError):
            load_student(path)
