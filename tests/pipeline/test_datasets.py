"""Which images train, calibrate and judge; and that no image does two of these where it must not."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset

from edgemae.data.image_set import scan
from edgemae.pipeline.datasets import gather
from edgemae.pipeline.preflight import blank_teacher
from edgemae.spec.errors import DataError
from edgemae.spec.plan_loading import plan_from
from edgemae.spec.plan_schema import Plan
from tests.support.tiny_job import edgemae, write_shapes


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "train", 20, seed=1)


def plan(**data: object) -> Plan:
    folders = {name: str(value) for name, value in data.items()}
    return plan_from({"data": folders, "student": {"image_px": 32}})


def test_without_evaluation_data_a_part_of_each_class_is_held_out(train: Path) -> None:
    inputs = gather(plan(train=train))
    assert inputs.labelled is not None
    assert (len(inputs.labelled), len(inputs.evaluation)) == (32, 8)
    assert sorted(inputs.evaluation.labels or ()) == [0] * 4 + [1] * 4
    held = set(inputs.evaluation.hashes)
    for images in (inputs.labelled, inputs.unlabelled, inputs.calibration):
        assert not held & set(images.hashes)
    assert gather(plan(train=train)).evaluation.paths == inputs.evaluation.paths


def test_a_flat_folder_has_no_labels_anywhere(tmp_path: Path) -> None:
    flat, labelled = write_shapes(tmp_path / "flat", 20, 1, classes=()), write_shapes(tmp_path / "val", 4, 2)
    inputs = gather(plan(train=flat, eval=labelled))
    assert inputs.labelled is None
    assert inputs.classes == ()
    assert inputs.evaluation.labels is None
    assert inputs.unlabelled.labels is None


def test_more_images_without_labels_are_added_once(train: Path, tmp_path: Path) -> None:
    more = write_shapes(tmp_path / "more", 3, seed=5, classes=())
    shutil.copy(next(train.rglob("*.png")), more / "again.png")
    val = write_shapes(tmp_path / "val", 4, seed=2)
    inputs = gather(plan(train=train, eval=val, unlabelled=more))
    assert len(inputs.unlabelled) == 40 + 6
    assert len(set(inputs.unlabelled.paths)) == 46
    assert inputs.labelled is not None
    assert len(inputs.labelled) == 40


def test_evaluation_images_that_are_too_small_are_refused(train: Path, tmp_path: Path) -> None:
    val = write_shapes(tmp_path / "val", 4, seed=2)
    for path in val.rglob("*.png"):
        assert cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (4, 4)))
    with pytest.raises(DataError, match=r"8 of 8 images in '.*/val' are smaller than"):
        gather(plan(train=train, eval=val))


def test_a_class_of_small_images_is_refused_though_most_others_are_large(train: Path) -> None:
    for number in range(3):
        tiny = np.full((4, 4, 3), 80 * number, np.uint8)
        (train / "tiny").mkdir(exist_ok=True)
        assert cv2.imwrite(str(train / "tiny" / f"{number}.png"), tiny)
    with pytest.raises(DataError, match=r"all 3 images of class 'tiny' in '.*' are smaller than"):
        gather(plan(train=train))


def test_calibration_images_come_from_their_own_folder_when_there_is_one(train: Path, tmp_path: Path) -> None:
    own = write_shapes(tmp_path / "calib", 4, seed=9, classes=())
    inputs = gather(plan(train=train, calib=own))
    assert {Path(path).parent for path in inputs.calibration.paths} == {own}


@pytest.mark.parametrize("where", ["train", "unlabelled", "calib"])
def test_an_evaluation_image_that_is_used_elsewhere_is_refused(where: str, train: Path, tmp_path: Path) -> None:
    """Found by content: another name and another folder do not hide it."""
    val, other = write_shapes(tmp_path / "val", 4, seed=2), write_shapes(tmp_path / "other", 4, seed=3, classes=())
    target = train / "circle" if where == "train" else other
    shutil.copy(val / "circle" / "0-000.png", target / "renamed.png")
    folders = {"train": train, "eval": val} | ({} if where == "train" else {where: other})
    with pytest.raises(DataError, match="also in the evaluation set"):
        gather(plan(**folders))


def test_classes_of_evaluation_data_must_be_known_and_there(train: Path, tmp_path: Path) -> None:
    strange = write_shapes(tmp_path / "strange", 4, seed=2, classes=("circle", "triangle"))
    with pytest.raises(DataError, match="'triangle'"):
        gather(plan(train=train, eval=strange))
    with pytest.raises(DataError, match="has no class folders"):
        gather(plan(train=train, eval=write_shapes(tmp_path / "flat", 4, seed=2, classes=())))


def packed(folder: Path, root: Path) -> Path:
    """Pack a folder of classes into two shards with WebDataset's writer."""
    images = scan(folder)
    root.mkdir()
    with webdataset.ShardWriter(f"{root}/part-%06d.tar", maxcount=len(images) // 2, verbose=0) as sink:
        for number, path in enumerate(images.paths):
            row = {"__key__": f"{number:06d}", "png": Path(path).read_bytes()}
            sink.write(row | ({"cls": images.classes[images.labels[number]]} if images.labels else {}))
    return root


def test_shards_serve_wherever_folders_do(train: Path, tmp_path: Path) -> None:
    val, more = write_shapes(tmp_path / "val", 4, seed=2), write_shapes(tmp_path / "more", 3, seed=5, classes=("",))
    shards, others = packed(train, tmp_path / "shards"), packed(more, tmp_path / "others")
    inputs = gather(plan(train=shards, eval=packed(val, tmp_path / "judge"), unlabelled=others))
    assert inputs.classes == ("circle", "square")
    assert (len(inputs.unlabelled), len(inputs.evaluation), len(inputs.calibration)) == (43, 8, 40)
    assert inputs.summary()["training"]["images"] == 40
    assert gather(plan(train=shards, eval=val)).evaluation.labels == (0,) * 4 + (1,) * 4
    alone = gather(plan(train=shards))
    assert (len(alone.unlabelled), len(alone.evaluation)) == (32, 8)
    with pytest.raises(DataError, match=r"40 images of .* are also in the evaluation set"):
        gather(plan(train=shards, eval=train))
    with pytest.raises(DataError, match="cannot be mixed"):
        gather(plan(train=shards, eval=val, unlabelled=more))


def test_a_part_of_millions_of_pictures_is_not_held_out(
    train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemae.pipeline.datasets.HELD_OUT_FROM_MOST", 39)
    with pytest.raises(DataError) as caught:
        gather(plan(train=packed(train, tmp_path / "shards")))
    assert "40 images in shards" in caught.value.what
    assert "--eval-data" in caught.value.fix


def test_pictures_that_would_be_blown_up_are_refused(train: Path) -> None:
    sizes = {"image_px": 112}
    with pytest.raises(DataError, match="smaller than a third of the 112 px"):
        gather(plan_from({"data": {"train": str(train)}, "student": sizes, "teacher": sizes}))


@pytest.mark.parametrize("verb", ["finetune", "distill", "compile"])
def test_a_class_with_one_image_stops_every_verb_before_anything_is_written(
    verb: str, train: Path, tmp_path: Path
) -> None:
    lonely = train / "lonely"
    lonely.mkdir()
    shutil.copy(next((train / "circle").iterdir()), lonely / "one.png")
    small = {"image_px": 32, "width": 32, "depth": 1, "heads": 2, "head_dim": 16}
    blank_teacher(plan_from({"teacher": small})).save(tmp_path / "teacher.safetensors")
    source = [] if verb == "compile" else [tmp_path / "teacher.safetensors"]
    ran = edgemae(verb, *source, "--data", train, "--output", tmp_path / "out")
    assert ran.code == 2
    assert "class 'lonely'" in ran.err
    assert "has 1 different image" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_class_that_is_left_with_one_image_by_holding_out_is_refused(train: Path) -> None:
    (train / "rare").mkdir()
    for file in sorted((train / "circle").iterdir())[:2]:
        shutil.move(file, train / "rare" / file.name)
    with pytest.raises(
        DataError, match=r"'rare' in .* has 1 different image.* left, once a part is held out"
    ) as caught:
        gather(plan(train=train))
    assert "--eval-data" in caught.value.fix


def test_a_class_with_one_image_pretrains(train: Path) -> None:
    """Pretraining uses no labels, so it asks nothing of them."""
    (train / "lonely").mkdir()
    shutil.copy(next((train / "circle").iterdir()), train / "lonely" / "one.png")
    sizes = {"image_px": 32}
    found = gather(plan_from({"data": {"train": str(train)}, "student": sizes, "teacher": sizes}), labels=False)
    assert found.labelled is None


def test_no_folder_at_all() -> None:
    with pytest.raises(DataError) as caught:
        gather(plan())
    assert caught.value.expected == "--data DIR"


def test_the_summary_counts_names_and_fingerprints(train: Path) -> None:
    (train / "circle" / "empty.jpg").write_bytes(b"")
    (train / "square" / "text.jpg").write_text("no picture")
    inputs = gather(plan(train=train))
    summary = inputs.summary()
    assert summary["classes"] == ["circle", "square"]
    assert summary["training"]["images"] == 32
    assert summary["evaluation"]["images of each class"] == {"circle": 4, "square": 4}
    assert "classes without images" not in summary["evaluation"]
    assert summary["skipped"]["count"] == 2
    assert "empty.jpg" in summary["skipped"]["files"][0]
    assert summary["training"]["fingerprint"] != summary["evaluation"]["fingerprint"]


def test_one_image_cannot_be_held_out_from_itself(tmp_path: Path) -> None:
    write_shapes(tmp_path / "one", 1, seed=1, classes=("",))
    with pytest.raises(DataError, match="too few different images"):
        gather(plan(train=tmp_path / "one"))


def test_a_class_that_nothing_judges_is_named(train: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    judged = write_shapes(tmp_path / "val", 3, seed=9)
    shutil.rmtree(judged / "square")
    found = gather(plan(train=train, eval=judged))
    assert found.summary()["evaluation"]["classes without images"] == ["square"]
    assert "1 of 2 classes, which nothing judges: square" in caplog.text
