"""Batches: the same ones whoever decodes them and wherever reading began; failures of files and of workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import edgemae
from edgemae.data.augment import Augment, view
from edgemae.data.decode_worker import Views, joined, read_image
from edgemae.data.image_set import ImageSet, scan
from edgemae.data.loader import Batch, Loader
from edgemae.device.preprocess import normalise, preprocess
from edgemae.spec.errors import DataError, MachineError, PlanError
from edgemae.spec.graph import PixelContract

PIXEL = PixelContract(image_px=16)
Make = Callable[..., Path]


@pytest.fixture
def images(image_folder: Make) -> ImageSet:
    return scan(image_folder(per_class=7))


def training(images: ImageSet, workers: int = 0, seed: int = 0, batch: int = 4) -> Loader:
    return Loader(images, PIXEL, batch, Augment(crop_min=0.3, flip=True), seed, workers)


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.pixels, y.pixels) and torch.equal(x.labels, y.labels) and torch.equal(x.indices, y.indices)
        for x, y in zip(a, b, strict=True)
    )


# ---------------------------------------------------------------- which batches


def test_batches_do_not_depend_on_workers(images: ImageSet) -> None:
    alone, helped = training(images), training(images, workers=2)
    assert same(list(alone.batches(0, 7)), list(helped.batches(0, 7)))


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_on_gives_what_would_have_come(images: ImageSet, workers: int) -> None:
    loader = training(images, workers)
    whole = [list(loader.epoch(e)) for e in range(3)]
    assert [len(batches) for batches in whole] == [3, 3, 3]
    assert same(list(loader.epoch(1, first=2)), whole[1][2:])
    assert same(list(loader.batches(2, 8)), [*whole[0][2:], *whole[1], *whole[2][:2]])


@pytest.mark.parametrize(("room", "ahead"), [(2 << 30, 8), (3 * 4 * 16 * 16 * 3, 3), (1, 1)])
def test_batches_that_wait_have_bounded_memory(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, room: int, ahead: int
) -> None:
    """4,096 pictures of 224 px are 616 MB; 32 such batches would be 20 GB. The workers share what may wait."""
    monkeypatch.setattr("edgemae.data.loader.PREFETCH_BYTES", room)
    loader = training(images, workers=2)
    assert loader.prefetched == ahead
    assert same(list(loader.epoch()), list(training(images).epoch()))


def test_a_part_keeps_its_broken_rows() -> None:
    parts = [Views(np.full((n, 2, 2, 3), n, np.uint8), corrupt) for n, corrupt in ((2, (1,)), (3, ()), (1, (0,)))]
    together = joined(parts)
    assert together.corrupt == (1, 5)
    assert together.images[:, 0, 0, 0].tolist() == [2, 2, 3, 3, 3, 1]


def test_epochs_and_seeds_differ_and_repeat(images: ImageSet) -> None:
    first, second = list(training(images).epoch(0)), list(training(images).epoch(1))
    assert not same(first, second)
    assert not same(first, list(training(images, seed=1).epoch(0)))
    assert same(first, list(training(images).epoch(0)))
    # Not only the order: the views of one image differ too.
    row = {int(i): p for b in first for i, p in zip(b.indices, b.pixels, strict=True)}
    again = {int(i): p for b in second for i, p in zip(b.indices, b.pixels, strict=True)}
    assert all(not torch.equal(row[i], again[i]) for i in row.keys() & again.keys())


def test_an_epoch_shows_each_image_once_and_drops_the_rest(images: ImageSet) -> None:
    seen = torch.cat([b.indices for b in training(images).epoch(0)]).tolist()
    assert len(seen) == len(set(seen)) == 12
    over_many = {int(i) for e in range(5) for b in training(images).epoch(e) for i in b.indices}
    assert over_many == set(range(14))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order_and_complete(images: ImageSet, workers: int) -> None:
    loader = Loader(images, PIXEL, 4, workers=workers, train=False)
    batches = list(loader.epoch())
    assert loader.steps == 4
    assert [len(b.labels) for b in batches] == [4, 4, 4, 2]
    assert torch.cat([b.indices for b in batches]).tolist() == list(range(14))
    assert tuple(torch.cat([b.labels for b in batches]).tolist()) == images.labels
    for path, pixels in zip(images.paths, torch.cat([b.pixels for b in batches]), strict=True):
        np.testing.assert_array_equal(preprocess(read_image(path, PIXEL), PIXEL)[0], pixels.numpy())


def test_without_labels_they_are_minus_one(images: ImageSet) -> None:
    batch = next(Loader(images.unlabelled(), PIXEL, 4).epoch())
    assert batch.labels.tolist() == [-1] * 4
    assert (batch.labels.dtype, batch.indices.dtype, batch.pixels.dtype) == (torch.int64, torch.int64, torch.float32)


def test_gray_pictures(images: ImageSet) -> None:
    pixel = PixelContract(image_px=16, channels=1, color="GRAY", mean=(0.5,), std=(0.5,))
    assert next(Loader(images, pixel, 4).epoch()).pixels.shape == (4, 1, 16, 16)


def oriented(jpeg: bytes, orientation: int) -> bytes:
    """Put an EXIF header with the orientation tag before a JPEG."""
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00" + bytes([orientation, 0, 0, 0])
    exif = b"Exif\0\0II*\x00\x08\x00\x00\x00\x01\x00" + entry + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_training_views_as_it_turns_evaluation(tmp_path: Path, orientation: int) -> None:
    frame_bgr = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    jpeg = cv2.imencode(".jpg", frame_bgr, (cv2.IMWRITE_JPEG_QUALITY, 95))[1].tobytes()
    (tmp_path / "a.jpg").write_bytes(oriented(jpeg, orientation))
    images = scan(tmp_path)
    stored = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    upright = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1), 7: np.rot90(stored, 2).transpose(1, 0, 2), 8: np.rot90(stored, 1),
    }[orientation]  # fmt: skip
    upright = np.ascontiguousarray(upright)
    seen = next(Loader(images, PIXEL, 1, train=False).epoch()).pixels.numpy()
    np.testing.assert_array_equal(seen, preprocess(upright, PIXEL))
    augment = Augment(crop_min=0.3, flip=True)
    seen = next(Loader(images, PIXEL, 1, augment, seed=9).epoch(4)).pixels.numpy()
    expected = view(upright, PIXEL, augment, np.random.default_rng((9, 4, 0)))
    np.testing.assert_array_equal(seen, normalise(expected, PIXEL))


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(Path.unlink, "cannot be read any more: No such file", id="gone"),
        pytest.param(lambda path: path.write_bytes(b"x"), "is not a readable image", id="overwritten"),
    ],
)
def test_an_image_lost_after_the_scan_is_named(
    images: ImageSet, workers: int, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(Path(images.paths[5]))
    with pytest.raises(DataError, match=message) as caught:
        list(training(images, workers, batch=2).epoch())
    assert images.paths[5] in caught.value.what
    assert "Traceback" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_a_dead_worker_is_an_error_of_the_machine(images: ImageSet) -> None:
    batches = training(images, workers=2, batch=1).batches(0, 500)
    next(batches)
    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, signal.SIGKILL)
    with pytest.raises(MachineError, match="worker process that decodes images died") as caught:
        list(batches)
    assert "workers=0" in caught.value.fix


def test_stopping_early_ends_the_workers(images: ImageSet) -> None:
    batches = training(images, workers=2).batches(0, 500)
    assert len(list(islice(batches, 3))) == 3
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


SCRIPT = """
import multiprocessing, sys, time
import cv2
import numpy as np
import torch
from edgemae.data.image_set import scan
from edgemae.data.loader import Loader
from edgemae.spec.graph import PixelContract

print("script runs", flush=True)
# Both have threads, which sleep when the workers start: a plain fork hangs when it sets OpenCV's number of threads.
torch.set_num_threads(2)
(torch.randn(300, 300) @ torch.randn(300, 300)).sum()
cv2.setNumThreads(2)
for _ in range(5):
    cv2.resize(np.zeros((3000, 4000, 3), np.uint8), (1000, 800), interpolation=cv2.INTER_LINEAR)
time.sleep(0.5)
batches = Loader(scan(sys.argv[1]), PixelContract(image_px=16), 1, workers=2).batches(0, 10**6)
next(batches)
print(*[process.pid for process in multiprocessing.active_children()], flush=True)
for _ in batches:
    time.sleep(0.01)
"""


def test_workers_need_no_main_guard_and_do_not_outlive_a_killed_parent(image_folder: Make, tmp_path: Path) -> None:
    folder = image_folder()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    where = {name: value for name, value in os.environ.items() if "THREADS" not in name}
    where["PYTHONPATH"] = str(Path(edgemae.__file__).parent.parent)
    command = [sys.executable, script, folder]
    with (
        open(tmp_path / "errors", "w") as errors,  # the tracker of semaphores complains of the kill
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=where, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None
        give_up = threading.Timer(120, os.killpg, (process.pid, signal.SIGKILL))
        give_up.start()
        first, second = process.stdout.readline(), process.stdout.readline()
        give_up.cancel()
        assert first == "script runs\n", (tmp_path / "errors").read_text()
        workers = [int(pid) for pid in second.split()]
        assert len(workers) == 2, (tmp_path / "errors").read_text()
        assert all(is_alive(pid) for pid in workers)
        process.kill()
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in workers if is_alive(pid)] == []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_decoding_process_loads_no_torch() -> None:
    code = "import sys, edgemae.data.decode_worker; sys.exit('torch' in sys.modules)"
    root = Path(edgemae.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# ---------------------------------------------------------------- processes and views


def test_evaluation_is_shared_among_processes_too(images: ImageSet) -> None:
    """The last batch has two images of four: the first process gets both, the second none."""
    ranks = [list(Loader(images, PIXEL, 4, train=False, rank=rank, world=2).epoch()) for rank in range(2)]
    assert [[len(batch.indices) for batch in batches] for batches in ranks] == [[2, 2, 2, 2], [2, 2, 2, 0]]
    assert ranks[1][3].pixels.shape == (0, 3, 16, 16)
    seen = torch.cat([batch.indices for pair in zip(*ranks, strict=True) for batch in pair])
    assert seen.tolist() == list(range(14))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"world": 3}, "a batch of 4 images cannot be divided among 3 processes"),
        ({"world": 2, "rank": 2}, "rank 2 of 2 processes"),
        ({"rank": -1}, "rank -1"),
        ({"views": -1}, "with -1 views"),
    ],
)
def test_what_cannot_be_shared_is_refused(images: ImageSet, settings: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Loader(images, PIXEL, 4, **settings)  # type: ignore[arg-type]


def test_a_number_of_views_returns_in_turn(images: ImageSet) -> None:
    augment = Augment(crop_min=0.3, flip=True)
    loader = Loader(images, PIXEL, 4, augment, seed=5, views=2)
    seen: dict[int, list[dict[int, torch.Tensor]]] = {}
    for epoch in range(6):
        batches = list(loader.epoch(epoch))
        assert {batch.view for batch in batches} == {epoch % 2}
        rows = {int(i): p for batch in batches for i, p in zip(batch.indices, batch.pixels, strict=True)}
        seen.setdefault(epoch % 2, []).append(rows)
    for first, *others in seen.values():
        for rows in others:
            assert list(rows) != list(first)  # the order is new
            assert all(torch.equal(rows[i], first[i]) for i in rows.keys() & first.keys())
    even, odd = seen[0][0], seen[1][0]
    assert all(not torch.equal(even[i], odd[i]) for i in even.keys() & odd.keys())
    plain = next(Loader(images, PIXEL, 4, augment, seed=5).epoch())
    assert plain.view == -1
    assert torch.equal(plain.pixels, next(loader.epoch()).pixels)


def test_distorted_views_repeat(images: ImageSet) -> None:
    loader = Loader(images, PIXEL, 4, Augment(crop_min=0.3, randaug=6), workers=2)
    assert same(list(loader.batches(0, 3)), list(loader.batches(0, 3)))
    assert not same(list(loader.batches(0, 3)), list(Loader(images, PIXEL, 4, Augment(crop_min=0.3)).batches(0, 3)))
