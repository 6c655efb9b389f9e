"""Teacher files keep the decoder, the kind of loss, the licence and where it all came from."""

from __future__ import annotations

import pytest
import torch

from edgemae.model.import_teacher import load_teacher
from edgemae.model.mae import MAE, DecoderShape, make_keep
from edgemae.model.model_file import read_model, write_model
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher
from edgemae.spec.errors import CheckpointError
from edgemae.spec.graph import PixelContract, Step

PIXEL = PixelContract(image_px=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


@pytest.fixture
def teacher(tiny) -> Teacher:
    vit = tiny(cls_token=True, norm_after_pool=False)
    mae = MAE(vit, DecoderShape(16, 2, 2, 3.0), loss_kind="bce", mean=PIXEL.mean, std=PIXEL.std).eval()
    return Teacher(vit, PIXEL, (), (Step(stage="pretrain", seed=3),), mae, "CC0-1.0", "made here")


def test_round_trip_with_decoder(tmp_path, teacher, pixels, generator) -> None:
    teacher.save(tmp_path / "t.safetensors")
    back = load_teacher(tmp_path / "t.safetensors")
    assert (back.pixel, back.labels, back.history) == (PIXEL, (), teacher.history)
    assert (back.licence, back.source, back.mae.loss_kind) == ("CC0-1.0", "made here", "bce")
    assert back.mae.encoder is back.vit
    assert back.mae.decoder.shape == teacher.mae.decoder.shape
    assert torch.equal(back.mae.mean.flatten(), torch.tensor(PIXEL.mean))
    keep = make_keep(3, 4, 0.75, "random", generator)
    assert torch.equal(back.mae(pixels, keep), teacher.mae(pixels, keep))


def test_half_precision_moves_outputs_by_fp16_rounding_only(tmp_path, teacher, pixels) -> None:
    teacher.save(tmp_path / "t", half=True)
    moved = (load_teacher(tmp_path / "t").vit(pixels)[1] - teacher.vit(pixels)[1]).abs().max()
    assert 0 < moved < 5e-3


def test_without_decoder(tmp_path, tiny) -> None:
    Teacher(tiny(classes=2), PIXEL, ("a", "b")).save(tmp_path / "t")
    back = load_teacher(str(tmp_path / "t"))
    assert back.mae is None
    assert back.labels == ("a", "b")
    assert back.licence == "unknown"


def test_a_student_is_a_teacher_too_and_keeps_its_teachers_licence(tmp_path, tiny, pixels) -> None:
    history = (Step(stage="import", licence="CC-BY-NC-4.0"), Step(stage="distill"))
    student = Student(tiny(heads=(3, 1), classes=2), PIXEL, ("a", "b"), history)
    student.save(tmp_path / "s")
    back = load_teacher(tmp_path / "s")
    assert (back.licence, back.source, back.labels) == ("CC-BY-NC-4.0", "edgemae student", ("a", "b"))
    assert torch.equal(back.vit(pixels)[0], student.vit(pixels)[0])


def test_what_the_caller_says_replaces_what_the_file_says(tmp_path, teacher) -> None:
    teacher.save(tmp_path / "t")
    pixel = PixelContract(image_px=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    back = load_teacher(tmp_path / "t", pixel=pixel, loss_kind="pixel", licence="MIT", heads=4)
    assert (back.pixel, back.mae.loss_kind, back.licence) == (pixel, "pixel", "MIT")
    assert torch.equal(back.mae.std.flatten(), torch.full((3,), 0.25))
    assert (back.history[-1].stage, back.history[-1].licence) == ("import", "MIT")
    for wrong in ({"heads": 2}, {"pixel": PixelContract(image_px=64)}, {"loss_kind": "l1"}):
        with pytest.raises(CheckpointError):
            load_teacher(tmp_path / "t", **wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": {"width": 16}}, "damaged header"),
        ({"loss": "l1"}, "damaged header"),
        ({"decoder": {"width": 20, "depth": 2, "heads": 2}}, "a decoder of width 20"),
        ({"history": "none"}, "damaged header"),
    ],
)
def test_a_header_that_makes_no_sense(tmp_path, teacher, change: dict, message: str) -> None:
    teacher.save(tmp_path / "t")
    tensors, header = read_model(tmp_path / "t")
    write_model(tmp_path / "t", tensors, header | change)
    with pytest.raises(CheckpointError, match=message):
        load_teacher(tmp_path / "t")
