"""What a set of images must be: labels, classes, sizes, and nothing in common with another set."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemae.data.image_bytes import content, key_of_file
from edgemae.data.image_set import scan
from edgemae.data.shards import images_at
from edgemae.data.validation import require_class_sizes, require_disjoint, require_labels, require_size, same_classes
from edgemae.spec.errors import DataError
from tests.support.encoded_images import encoded
from tests.support.shard_files import pictures, write, write_set

Make = Callable[..., Path]


def test_labels_are_required_of_shards_too(tmp_path: Path) -> None:
    one, two = pictures(2)
    rows = [{"jpg": one, "cls": 0}, {"jpg": two, "cls": 0}, {"jpg": one, "cls": 1}, {"jpg": one, "cls": 1}]
    with pytest.raises(DataError, match=r"class '1' in .* has 1 different image"):
        require_labels(images_at(str(write(tmp_path / "a.tar", rows))), "training")
    with pytest.raises(DataError, match=r"one class only \(0\)"):
        require_labels(images_at(str(write(tmp_path / "b.tar", rows[:2]))), "training")


def test_overlap_is_found_between_shards_and_folders(shards: Path, tmp_path: Path) -> None:
    images, folder = images_at(str(shards)), tmp_path / "judge"
    folder.mkdir()
    for number, data in enumerate(pictures(4, seed=5)):
        (folder / f"{number}.jpg").write_bytes(data)
    require_disjoint(images, scan(folder))
    require_disjoint(scan(folder), images)
    require_disjoint(images, images_at(str(write_set(tmp_path / "other", seed=1))))
    (folder / "copy.jpg").write_bytes(content(images.paths[14]))
    assert key_of_file(str(folder / "copy.jpg")) == images.keys()[14]
    with pytest.raises(DataError, match=r"1 images of .* \(same content, for example '000001.jpg' in"):
        require_disjoint(images, scan(folder))
    with pytest.raises(DataError, match=r"1 images of .* for example '.*copy.jpg'"):
        require_disjoint(scan(folder), images)
    # Equal at both ends and in size, and not in between: read, compared, and found to be another.
    data = bytearray((folder / "copy.jpg").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "copy.jpg").write_bytes(bytes(data))
    assert key_of_file(str(folder / "copy.jpg")) == images.keys()[14]
    require_disjoint(images, scan(folder))


def test_small_pictures_in_shards_are_found_by_a_sample(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = images_at(str(shards))
    require_size(images, 60, 0)
    assert caplog.text == ""
    with pytest.raises(DataError, match=r"38 of 38 images .* than a third of the 64 px .*'\d+.jpg' in .* 20 px"):
        require_size(images, 64, 0)


def test_labels_are_required(image_folder: Make) -> None:
    require_labels(scan(image_folder("fine", per_class=2)), "training")
    with pytest.raises(DataError, match="no class folders, and training needs labels"):
        require_labels(scan(image_folder("flat", classes=())), "training")
    with pytest.raises(DataError, match=r"one class only \(cat\)"):
        require_labels(scan(image_folder("single", classes=("cat",))), "training")
    few = image_folder("few")
    for path in list((few / "circle").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DataError, match=r"class 'circle' in '.*few' has 1 different image"):
        require_labels(scan(few), "training")
    for path in (few / "circle").iterdir():
        shutil.copy(path, path.with_name("copy.png"))
    with pytest.raises(DataError, match="class 'circle'") as caught:
        require_labels(scan(few), "training")
    assert "different images" in caught.value.expected


def test_overlap_is_found_by_content(image_folder: Make) -> None:
    train, judge = image_folder("train"), image_folder("judge", seed=1)
    require_disjoint(scan(train), scan(judge))
    shutil.copy(train / "circle" / "001.png", judge / "square" / "renamed.png")
    with pytest.raises(DataError, match=r"1 images of '.*train' are also in the evaluation set '.*judge'") as caught:
        require_disjoint(scan(train), scan(judge))
    assert "001.png" in caught.value.what


def test_labels_follow_the_training_classes(image_folder: Make) -> None:
    train = scan(image_folder("train", classes=("ant", "bee", "cat")))
    other = scan(image_folder("other", classes=("bee", "cat"), per_class=1))
    assert other.labels == (0, 1)
    renamed = same_classes(train, other)
    assert (renamed.labels, renamed.classes) == ((1, 2), train.classes)
    with pytest.raises(DataError, match=r"'.*train' has the class 'ant', which '.*other' has not"):
        same_classes(other, train)
    flat = other.unlabelled()
    assert same_classes(train, flat) is flat


def test_small_images_are_told_of_and_most_are_refused(image_folder: Make, caplog: pytest.LogCaptureFixture) -> None:
    root = image_folder(per_class=5)
    for number in range(3):
        (root / "circle" / f"small{number}.png").write_bytes(encoded(".png", 4))
    require_size(scan(root), 16, 0)
    assert caplog.text == ""  # three are nobody's trouble
    for number in range(3, 10):
        (root / "circle" / f"small{number}.png").write_bytes(encoded(".png", 4))
    require_size(scan(root), 12, 0)
    assert caplog.text == ""  # a third is enough
    require_size(scan(root), 16, 0)
    assert "10 of 20 images" in caplog.text
    assert "small0.png' with 4 px: they are enlarged" in caplog.text
    (root / "circle" / "small.png").write_bytes(encoded(".png", 5))
    with pytest.raises(DataError, match=r"11 of 21 images in .* smaller than a third of the 16 px") as caught:
        require_size(scan(root), 16, 0)
    assert "image_px" in caught.value.fix


def test_a_class_of_small_images_is_refused_however_few_they_are(image_folder: Make) -> None:
    root = image_folder(per_class=5)
    (root / "blurred").mkdir()
    for number in range(2):
        (root / "blurred" / f"{number}.png").write_bytes(encoded(".png", 4))
    require_size(scan(root), 16, 0)
    with pytest.raises(DataError, match=r"all 2 images of class 'blurred' in .* smaller than a third of the 16 px"):
        require_class_sizes(scan(root), 16)
    require_class_sizes(scan(root).unlabelled(), 16)  # without labels nothing is told by blur
    (root / "blurred" / "large.png").write_bytes(encoded(".png", 16))
    require_class_sizes(scan(root), 16)


def test_a_few_small_images_are_refused_where_there_are_no_others(image_folder: Make) -> None:
    root = image_folder(classes=(), per_class=2)
    (root / "small.png").write_bytes(encoded(".png", 4))
    require_size(scan(root), 32, 0, 8)
    (root / "000.png").unlink()
    (root / "001.png").unlink()
    with pytest.raises(DataError, match=r"1 of 1 images in .* smaller than a third"):
        require_size(scan(root), 32, 0, 8)


def test_images_smaller_than_a_patch_are_refused(image_folder: Make) -> None:
    root = image_folder(classes=(), per_class=1)
    for number in range(8):
        (root / f"small{number}.png").write_bytes(encoded(".png", 12))
    require_size(scan(root), 32, 0)
    require_size(scan(root), 32, 0, 12)
    with pytest.raises(DataError, match=r"8 of 9 images in .* smaller than a patch of 16 px that") as caught:
        require_size(scan(root), 32, 0, 16)
    assert "student.patch_px" in caught.value.fix
