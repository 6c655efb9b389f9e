"""Teacher outputs that are kept on disk: asked for once, checked before they are believed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgemae.data.loader import Batch
from edgemae.distill import teacher_cache as module
from edgemae.distill.teacher_cache import TeacherCache, require_folder
from edgemae.spec.errors import StorageError


def batch(indices: list[int], view: int) -> Batch:
    pixels = torch.tensor([float(10 * i + view) for i in indices]).view(-1, 1, 1, 1)
    return Batch(pixels, torch.zeros(len(indices)), torch.tensor(indices), view)


def answer(pixels: Tensor) -> Tensor:
    return pixels.flatten()[:, None, None] * torch.tensor([[1.0, 0.1], [0.0, -1.0]])


def asked(cache: TeacherCache, indices: list[int], view: int) -> int:
    """Return how many images the teacher was asked for, after checking what came back."""
    before, given = cache.computed, batch(indices, view)
    torch.testing.assert_close(cache.cached("tokens", given, answer), answer(given.pixels), rtol=1e-3, atol=0)
    return cache.computed - before


def test_each_view_of_each_image_is_asked_for_once(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path / "kept", 6, 2)
    assert [asked(cache, [0, 3], 0), asked(cache, [0, 3], 1), asked(cache, [3, 0], 0), asked(cache, [0, 3], 1)] == [
        2, 2, 0, 0,
    ]  # fmt: skip
    assert asked(cache, [3, 5], 0) == 2  # one of them is new
    assert asked(cache, [5, 3, 0], 0) == 0
    cache.close()
    assert asked(TeacherCache(tmp_path / "kept", 6, 2), [5, 3], 0) == 0  # a later run


def test_what_comes_back_does_not_depend_on_what_was_kept(tmp_path: Path) -> None:
    cache, given = TeacherCache(tmp_path / "kept", 6, 1), batch([1, 2], 0)
    first = cache.cached("x", given, lambda pixels: answer(pixels) / 3)
    assert torch.equal(first, cache.cached("x", given, lambda _: pytest.fail("asked again")))
    assert torch.equal(first, (answer(given.pixels) / 3).half().float())


@pytest.mark.parametrize("end", ["f16", "crc"])
def test_a_torn_row_is_asked_for_again(tmp_path: Path, end: str) -> None:
    cache = TeacherCache(tmp_path / "kept", 6, 1)
    asked(cache, [0, 1, 2], 0)
    cache.close()
    file = tmp_path / "kept" / f"tokens.{end}"
    data = bytearray(file.read_bytes())
    size = len(data) // 3
    data[size] ^= 1  # a byte of the row of image 1
    file.write_bytes(data)
    again = TeacherCache(tmp_path / "kept", 6, 1)
    assert asked(again, [0, 2], 0) == 0
    assert asked(again, [1], 0) == 1
    assert asked(again, [0, 1, 2], 0) == 0


def test_zeros_are_an_answer_too(tmp_path: Path) -> None:
    cache, given = TeacherCache(tmp_path / "kept", 6, 1), batch([4], 0)
    for _ in range(2):
        assert not cache.cached("logits", given, lambda pixels: torch.zeros(len(pixels), 3)).any()
    assert cache.computed == 1


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    cache = TeacherCache(tmp_path / "kept", 1000, 4)
    with pytest.raises(StorageError, match="0 MiB are needed") as caught:
        asked(cache, [0], 0)
    assert caught.value.expected == "a folder with room for 4 views of 1000 images"
    assert not list((tmp_path / "kept").iterdir())


def test_a_disk_that_fills_up_is_an_error_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Callable[..., int]:
        raise OSError(28, "No space left on device")

    cache = TeacherCache(tmp_path / "kept", 6, 1)
    asked(cache, [0], 0)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="No space left on device"):
        asked(cache, [1], 0)
    monkeypatch.undo()
    assert asked(cache, [0, 1], 0) == 2  # nothing half written is believed


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/views"])
def test_a_place_that_is_no_folder_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=rf"cannot be kept in '.*{place}'") as caught:
        require_folder(str(tmp_path / place))
    assert "scale.views_folder" in caught.value.fix
    with pytest.raises(StorageError, match="cannot be kept in"):
        asked(TeacherCache(tmp_path / place, 6, 1), [0], 0)


def test_the_place_that_a_plan_names_is_made(tmp_path: Path) -> None:
    require_folder(str(tmp_path / "a" / "b"))
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]
    assert not list((tmp_path / "a" / "b").iterdir())
    require_folder("")
