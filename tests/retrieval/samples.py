"""Frames, and a gallery of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import edgemae
from edgemae.device.model import Model
from edgemae.retrieval.gallery import Gallery

MakeBundle = Callable[..., Path]
RNG = np.random.default_rng(0)
FRAMES = [np.kron(RNG.integers(0, 255, (4, 4, 3), np.uint8), np.ones((10, 10, 1), np.uint8)) for _ in range(6)]


@pytest.fixture(scope="module")
def path(make_bundle: MakeBundle) -> Path:
    return make_bundle()


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with edgemae.load(path) as loaded:
        yield loaded


@pytest.fixture
def gallery(model: Model) -> Gallery:
    made = Gallery(model)
    for i, frame_bgr in enumerate(FRAMES):
        made.add(frame_bgr, "even" if i % 2 == 0 else "odd", {"number": i})
    return made
