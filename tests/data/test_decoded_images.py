"""What is evaluated again and again is decoded once for each pixel contract, within a limit of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgemae.data import decoded_images as module
from edgemae.data import loader as loader_module
from edgemae.data.decode_worker import Request, Views, decode
from edgemae.data.decoded_images import decoded_images
from edgemae.data.image_set import ImageSet, scan
from edgemae.data.loader import Loader
from edgemae.spec.graph import PixelContract

PIXEL = PixelContract(image_px=16)


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sets", type(module._sets)())


@pytest.fixture
def images(image_folder: Callable[..., Path]) -> ImageSet:
    return scan(image_folder(per_class=5))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return the paths that are decoded from here on."""
    paths: list[str] = []

    def counted(request: Request) -> Views:
        paths.extend(request.paths)
        return decode(request)

    monkeypatch.setattr(loader_module, "decode", counted)
    return paths


def test_a_second_epoch_decodes_nothing_and_is_the_same(images: ImageSet, decoded: list[str]) -> None:
    loader = Loader(images, PIXEL, 4, train=False)
    first = [batch.pixels.numpy() for batch in loader.epoch()]
    assert sorted(decoded) == sorted(images.paths)
    second = [batch.pixels.numpy() for batch in loader.epoch(1)]
    other_batch = [batch.pixels.numpy() for batch in Loader(images, PIXEL, 3, train=False).epoch()]
    assert len(decoded) == 10
    assert np.array_equal(np.concatenate(first), np.concatenate(second))
    assert np.array_equal(np.concatenate(first), np.concatenate(other_batch))


def test_graphs_of_either_input_type_share_what_is_decoded(images: ImageSet, decoded: list[str]) -> None:
    loader = Loader(images, PIXEL, 10, train=False)
    (plain,) = loader.epoch()
    (raw,) = replace(loader, raw=True).epoch()
    assert len(decoded) == 10
    assert raw.pixels.shape == (10, 16, 16, 3)
    assert plain.pixels.shape == (10, 3, 16, 16)


def test_another_pixel_contract_is_decoded_anew(images: ImageSet, decoded: list[str]) -> None:
    for px in (16, 24, 16, 24):
        list(Loader(images, PixelContract(image_px=px), 5, train=False).epoch())
    assert len(decoded) == 20


def test_an_epoch_that_was_left_early_is_finished_by_the_next(images: ImageSet, decoded: list[str]) -> None:
    loader = Loader(images, PIXEL, 4, train=False)
    next(iter(loader.epoch()))
    assert len(decoded) == 4
    assert sum(len(batch.pixels) for batch in loader.epoch()) == 10
    assert len(decoded) == 10


def test_training_is_decoded_every_time(images: ImageSet, decoded: list[str]) -> None:
    for epoch in range(2):
        list(Loader(images, PIXEL, 5).epoch(epoch))
    assert len(decoded) == 20


def test_a_set_beyond_the_limit_is_not_kept(
    images: ImageSet, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIMIT_BYTES", 10 * 16 * 16 * 3 - 1)
    for _ in range(2):
        list(Loader(images, PIXEL, 5, train=False).epoch())
    assert len(decoded) == 20
    assert decoded_images(images, PIXEL) is None


def test_the_set_used_longest_ago_makes_room(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT_BYTES", 2 * 10 * 16 * 16 * 3)
    colours = [PixelContract(image_px=16, color=color) for color in ("RGB", "BGR")]
    first, second = (decoded_images(images, pixel) for pixel in colours)
    assert decoded_images(images, colours[0]) is first
    decoded_images(images.pick(range(5)), PIXEL)  # the second goes: the first was asked for again
    assert decoded_images(images, colours[0]) is first
    assert decoded_images(images, colours[1]) is not second


def test_workers_fill_it_too(images: ImageSet) -> None:
    here = np.concatenate([batch.pixels.numpy() for batch in Loader(images, PIXEL, 2, train=False).epoch()])
    module._sets.clear()
    there = np.concatenate([batch.pixels.numpy() for batch in Loader(images, PIXEL, 2, train=False, workers=2).epoch()])
    assert np.array_equal(here, there)
    kept = decoded_images(images, PIXEL)
    assert kept is not None
    assert kept.has(list(range(10)))
