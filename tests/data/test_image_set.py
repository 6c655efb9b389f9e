"""Scanning folders, what is refused, and splits: on real files, and by properties on made-up sets."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemae.data.image_set import ImageSet, sample, scan, split
from edgemae.spec.errors import DataError
from tests.support.encoded_images import encoded

Make = Callable[..., Path]


def with_thumbnail(jpeg: bytes) -> bytes:
    """Put a header before the picture that holds a JPEG of its own, as cameras do."""
    thumbnail = b"Exif\0\0" + encoded(side_px=8)
    return jpeg[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + jpeg[2:]


# ---------------------------------------------------------------- layouts


def test_class_folders(image_folder: Make) -> None:
    images = scan(image_folder(classes=("cat", "ant"), per_class=2))
    assert images.classes == ("ant", "cat")
    assert images.labels == (0, 0, 1, 1)
    assert [Path(p).parent.name for p in images.paths] == ["ant", "ant", "cat", "cat"]
    assert images.skipped == ()


def test_flat_folder(image_folder: Make) -> None:
    images = scan(image_folder(classes=(), per_class=3))
    assert images.labels is None
    assert images.classes == ()
    assert len(images) == 3


def test_nested_folders_belong_to_the_top_class(image_folder: Make) -> None:
    root = image_folder(classes=("ant/2023/may", "ant/2024", "cat"), per_class=1)
    images = scan(root)
    assert images.classes == ("ant", "cat")
    assert images.labels == (0, 0, 1)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".webp", ".bmp", ".PNG"])
def test_formats(image_folder: Make, suffix: str) -> None:
    root = image_folder(classes=(), per_class=2)
    (root / f"one{suffix}").write_bytes(encoded(suffix.lower()))
    assert len(scan(root)) == 3


def test_other_and_hidden_files_are_left_out_and_counted(image_folder: Make, caplog: pytest.LogCaptureFixture) -> None:
    root = image_folder(per_class=1)
    (root / "labels.csv").write_text("a,b")
    (root / "circle" / "phone.heic").write_bytes(b"x")
    (root / "circle" / "._000.png").write_bytes(b"x")
    (root / ".cache").mkdir()
    (root / ".cache" / "000.png").write_bytes(b"x")
    caplog.set_level(logging.INFO, "edgemae")
    images = scan(root)
    assert len(images) == 2
    assert [Path(path).name for path, _ in images.skipped] == ["phone.heic"]
    assert "2 files" in caplog.text
    assert ".heic (1)" in caplog.text


def test_links_to_folders_are_followed_once(image_folder: Make) -> None:
    store = image_folder("store", per_class=2)
    root = store.parent / "chosen"
    root.mkdir()
    (root / "round").symlink_to(store / "circle")
    (root / "edgy").symlink_to(store / "square")
    (store / "circle" / "again").symlink_to(root)
    images = scan(root)
    assert images.classes == ("edgy", "round")
    assert Counter(images.labels) == {0: 2, 1: 2}


def test_mixed_layout_is_refused(image_folder: Make) -> None:
    root = image_folder()
    (root / "loose.png").write_bytes(encoded(".png"))
    with pytest.raises(DataError, match=r"mixes 1 loose images with class folders circle, square"):
        scan(root)


def test_a_folder_of_splits_is_refused(image_folder: Make) -> None:
    root = image_folder(classes=("train/ant", "train/cat", "val/ant", "unlabelled"), per_class=1)
    with pytest.raises(DataError, match="parts of a data set") as caught:
        scan(root)
    assert str(root / "train") in caught.value.fix
    assert scan(root / "train").classes == ("ant", "cat")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        pytest.param(lambda root: root.rmdir(), "does not exist", id="missing"),
        pytest.param(lambda root: (root.rmdir(), root.write_text("x")), "is a file, not a folder", id="file"),
        pytest.param(lambda root: None, "no image in", id="empty"),
        pytest.param(
            lambda root: (root / "a.jpg").write_text("x"), r"no readable image in .* \(1 corrupt", id="corrupt"
        ),
    ],
)
def test_folders_without_images(tmp_path: Path, prepare: Callable[[Path], object], message: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    prepare(root)
    with pytest.raises(DataError, match=message):
        scan(root)


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """Give a folder to somebody for whom permissions count, which they do not for root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    for part in folder.rglob("*"):
        part.chmod(0o700)
    shutil.rmtree(folder)


def test_what_may_not_be_read(ordinary_user: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "b.png"):
        (ordinary_user / name).write_bytes(encoded(".png"))
    (ordinary_user / "b.png").chmod(0)
    images = scan(ordinary_user)
    assert [Path(p).name for p in images.paths] == ["a.png"]
    assert "cannot be read (Permission denied)" in caplog.text
    closed = ordinary_user / "closed"
    closed.mkdir(mode=0)
    for folder in (ordinary_user, closed):
        with pytest.raises(DataError, match=r"folder '.*closed' cannot be read: Permission denied"):
            scan(folder)


# ---------------------------------------------------------------- corrupt files


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        pytest.param("a.jpg", b"", "empty file", id="empty"),
        pytest.param("a.jpg", b"not an image at all\n" * 20, "it is no JPEG", id="text"),
        pytest.param("a.jpg", encoded()[:20] + bytes(500) + b"\xff\xd9", "its header", id="corrupt"),
        pytest.param("a.jpg", encoded()[:-200], "truncated", id="truncated jpg"),
        pytest.param("a.jpg", encoded()[:-2], "truncated", id="jpg without its end"),
        pytest.param("a.jpg", with_thumbnail(encoded())[:-200], "truncated", id="truncated jpg with a thumbnail"),
        pytest.param("a.jpg", encoded(options=(cv2.IMWRITE_JPEG_PROGRESSIVE, 1))[:-200], "truncated", id="progressive"),
        pytest.param("a.jpg", encoded()[:9], "its header", id="jpg of nine bytes"),
        pytest.param("a.png", encoded(".png")[:-200], "not a readable", id="truncated png"),
        pytest.param("a.webp", encoded(".webp")[:-200], "not a readable", id="truncated webp"),
        pytest.param("a.bmp", encoded(".bmp")[:-200], "not a readable", id="truncated bmp"),
    ],
)
def test_broken_files_are_named_and_counted(
    image_folder: Make, caplog: pytest.LogCaptureFixture, name: str, data: bytes, why: str
) -> None:
    root = image_folder(per_class=1)
    bad = root / "circle" / name
    bad.write_bytes(data)
    images = scan(root)
    assert len(images) == 2
    assert [path for path, _ in images.skipped] == [str(bad)]
    assert images.skipped[0][1].startswith(why)
    assert f"skipped {bad}: {why}" in caplog.text
    assert f"1 of 3 files in {root} were skipped" in caplog.text


def test_whole_pictures_of_odd_kinds_are_kept(image_folder: Make) -> None:
    root = image_folder(classes=(), per_class=1)
    for side_px in (1, 2, 7, 8):
        for suffix in (".jpg", ".png", ".webp", ".bmp"):
            (root / f"{side_px}{suffix}").write_bytes(encoded(suffix, side_px))
    (root / "trailer.jpg").write_bytes(encoded() + b"a maker's own data behind the end")
    (root / "thumbnail.jpg").write_bytes(with_thumbnail(encoded()))
    (root / "progressive.jpg").write_bytes(encoded(options=(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)))
    (root / "png called.jpg").write_bytes(encoded(".png"))
    gray16 = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    (root / "gray16.png").write_bytes(cv2.imencode(".png", gray16)[1].tobytes())
    assert scan(root).skipped == ()


def test_opencv_keeps_quiet_and_is_left_as_it_was(image_folder: Make, capfd: pytest.CaptureFixture[str]) -> None:
    root = image_folder(per_class=1)
    (root / "circle" / "a.bmp").write_bytes(encoded(".bmp")[:-200])
    before = cv2.utils.logging.getLogLevel()
    scan(root)
    assert capfd.readouterr().err == ""
    assert cv2.utils.logging.getLogLevel() == before


# ---------------------------------------------------------------- requirements


def test_a_class_of_broken_files_is_no_class(image_folder: Make) -> None:
    root = image_folder()
    for path in (root / "square").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        scan(root)
    assert "class 'square'" in caught.value.what
    assert "4 of its 4" in caught.value.what


GIF = b"GIF89a" + (60000).to_bytes(2, "little") * 2 + bytes(40)


@pytest.mark.parametrize("ending", [".gif", ".tif", ".avif", ".heic", ".png"])
def test_a_class_that_would_vanish_is_refused(image_folder: Make, ending: str) -> None:
    """Siblings: most of a class (not all), formats behind a wrong ending; all verbs scan alike."""
    root = image_folder(per_class=4)
    for path in sorted((root / "square").iterdir())[:3]:
        path.unlink()
        path.with_suffix(ending).write_bytes(GIF)
    with pytest.raises(DataError) as caught:
        scan(root)
    assert "class 'square'" in caught.value.what
    assert "3 of its 4" in caught.value.what
    assert ending in caught.value.what


def test_images_are_known_by_content_where_the_ending_is_not(image_folder: Make) -> None:
    root = image_folder(per_class=3)
    for path, ending in zip(sorted((root / "square").iterdir()), (".jfif", "", ".image"), strict=True):
        path.rename(path.with_suffix(ending))
    images = scan(root)
    assert (len(images), images.skipped) == (6, ())


@pytest.mark.parametrize("kind", ["fifo", "zero", "loop", "socket"])
def test_what_is_no_regular_file_is_named_and_not_waited_for(image_folder: Make, kind: str) -> None:
    root = image_folder(per_class=2)
    odd = root / "circle" / "odd.png"
    if kind == "fifo":
        os.mkfifo(odd)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(odd))
    else:
        odd.symlink_to("/dev/zero" if kind == "zero" else odd)
    images = scan(root)
    assert [path for path, _ in images.skipped] == [str(odd)]


@pytest.mark.parametrize("leftover", ["@eaDir", "$RECYCLE.BIN", "__MACOSX", "lost+found"])
def test_what_systems_leave_behind_is_no_class(image_folder: Make, leftover: str) -> None:
    root = image_folder(per_class=2)
    shutil.copytree(root / "circle", root / leftover)
    assert scan(root).classes == ("circle", "square")


@pytest.mark.parametrize("parts", [("Training", "Testing"), ("train", "val"), ("TRAIN", "Test", "Validation")])
def test_parts_of_a_data_set_are_no_classes(image_folder: Make, parts: tuple[str, ...]) -> None:
    root = image_folder(classes=parts, per_class=2)
    with pytest.raises(DataError) as caught:
        scan(root)
    assert str(root / parts[0]) in caught.value.fix


def test_sizes_are_known(image_folder: Make) -> None:
    root = image_folder(classes=(), per_class=1, image_hw=(300, 401))
    for side_px in (1, 4, 8, 31, 120):
        (root / f"{side_px}.jpg").write_bytes(encoded(side_px=side_px))
    images = scan(root)
    sides = {Path(path).stem: side_px for path, side_px in zip(images.paths, images.sides_px, strict=True)}
    assert abs(sides.pop("000") - 300) < 8
    assert sides == {str(side_px): side_px for side_px in (1, 4, 8, 31, 120)}
    assert images.pick([1, 0]).sides_px == (images.sides_px[1], images.sides_px[0])


# ---------------------------------------------------------------- fingerprint


def test_fingerprint_is_of_contents_and_labels(image_folder: Make) -> None:
    here = image_folder("here")
    there = here.parent / "elsewhere" / "deep"
    shutil.copytree(here, there)
    (there / "circle" / "000.png").rename(there / "circle" / "zzz.png")
    mine, moved = scan(here), scan(there)
    assert mine.fingerprint == moved.fingerprint
    assert mine.unlabelled().fingerprint != mine.fingerprint
    assert mine.pick(range(len(mine) - 1)).fingerprint != mine.fingerprint
    (there / "circle" / "001.png").rename(there / "square" / "new.png")
    assert scan(there).fingerprint != mine.fingerprint
    (here / "circle").rename(here / "disc")
    assert scan(here).fingerprint != mine.fingerprint


# ---------------------------------------------------------------- splits


def made_up(contents: list[tuple[int, int]], classes: int) -> ImageSet:
    """Return a set with (label, content number) rows and no files behind them."""
    return ImageSet(
        "made up",
        tuple(f"{i}.png" for i in range(len(contents))),
        tuple(f"{content:04d}" for _, content in contents),
        tuple(label for label, _ in contents),
        tuple(f"class {k}" for k in range(classes)),
    )


@st.composite
def labelled_sets(draw: st.DrawFn) -> ImageSet:
    """Draw sets of 1 to 4 classes of at least two contents each, some of them copied within their class."""
    classes = draw(st.integers(1, 4))
    rows = []
    for label in range(classes):
        kinds = draw(st.integers(2, 12))
        copies = draw(st.lists(st.integers(0, kinds - 1), max_size=5))
        rows += [(label, 100 * label + kind) for kind in [*range(kinds), *copies]]
    return made_up(draw(st.permutations(rows)), classes)


@given(labelled_sets(), st.floats(0.05, 0.9), st.integers(0, 2**31))
def test_split_is_a_stratified_partition_by_content(images: ImageSet, fraction: float, seed: int) -> None:
    rest, held = split(images, fraction, seed)
    assert sorted(rest.paths + held.paths) == sorted(images.paths)
    assert not set(rest.hashes) & set(held.hashes)
    for label in set(images.labels or ()):
        kinds = {h for h, k in zip(images.hashes, images.labels or (), strict=True) if k == label}
        taken = {h for h, k in zip(held.hashes, held.labels or (), strict=True) if k == label}
        assert len(taken) == min(len(kinds) - 1, max(1, round(fraction * len(kinds))))
    again = split(images, fraction, seed)
    assert again == (rest, held)


def test_split_depends_on_the_seed() -> None:
    images = made_up([(0, k) for k in range(40)], 1)
    assert split(images, 0.5, 1)[1].paths != split(images, 0.5, 2)[1].paths


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([(0, 1)], id="one image"),
        pytest.param([(0, 1), (0, 1), (0, 1)], id="copies of one image"),
        pytest.param([(0, 1), (0, 2), (1, 1), (1, 2)], id="the same images in two classes"),
    ],
)
def test_split_refuses_what_it_cannot_part(rows: list[tuple[int, int]]) -> None:
    with pytest.raises(DataError, match="too few different images"):
        [split(made_up(rows, 2), 0.9, seed) for seed in range(4)]  # the draw says which copied class comes away empty


def test_split_of_a_flat_set() -> None:
    rest, held = split(made_up([(0, k) for k in range(10)], 1).unlabelled(), 0.2, 0)
    assert (len(rest), len(held)) == (8, 2)
    assert held.labels is None


@given(labelled_sets(), st.integers(1, 60), st.integers(0, 2**31))
def test_sample_spreads_over_the_classes(images: ImageSet, count: int, seed: int) -> None:
    chosen = sample(images, count, seed)
    assert len(chosen) == min(count, len(images))
    assert len(set(chosen.paths)) == len(chosen)
    assert chosen == sample(images, count, seed)
    have, got = Counter(images.labels), Counter(chosen.labels)
    short = [label for label in have if got[label] < have[label]]  # classes that could have given more
    if short:
        assert max(got.values()) - min(got[label] for label in short) <= 1


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\x1b[31m", b"a\nb", "\u202egnp".encode()])
def test_a_class_whose_name_cannot_be_printed_is_refused_before_any_work(image_folder: Make, name: bytes) -> None:
    root = image_folder(per_class=1)
    os.rename(os.fsencode(root / "circle"), os.fsencode(root) + b"/" + name)
    with pytest.raises(DataError) as caught:
        scan(root)
    assert "cannot be printed" in caught.value.what
    assert str(caught.value).isprintable() or str(caught.value).count("\n") == 2


def test_two_spellings_of_one_class_are_told_apart(image_folder: Make) -> None:
    """A Mac writes the second, most others the first: to the eye they are one name."""
    root = image_folder(classes=("caf\u00e9", "cafe\u0301"), per_class=1)
    with pytest.raises(DataError) as caught:
        scan(root)
    assert "caf\\xe9" in caught.value.what
    assert "cafe\\u0301" in caught.value.what
    assert scan(image_folder("fine", classes=("caf\u00e9", "cafe"), per_class=1)).classes == ("cafe", "caf\u00e9")
