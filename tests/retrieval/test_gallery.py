"""Galleries: digits are recognised from a few examples, other models are refused, files are whole or refused."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemae
from edgemae.device.model import Model
from edgemae.retrieval.gallery import Gallery
from edgemae.spec.bundle import amend_bundle
from edgemae.spec.errors import GalleryError, InputError
from tests.retrieval.samples import FRAMES, MakeBundle

# ------------------------------------------------------------------------------------------------ what it finds


def test_what_is_in_it_is_found_first(gallery: Gallery, model: Model) -> None:
    for i, frame_bgr in enumerate(FRAMES):
        found = gallery.search(frame_bgr, top=3)
        assert (found[0].label, found[0].id, found[0].metadata) == (("even", "odd")[i % 2], i, {"number": i})
        assert found[0].score == pytest.approx(1, abs=1e-5)
        assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)
    seen = model(FRAMES[1])
    assert gallery.search(seen) == gallery.search(FRAMES[1])
    assert gallery.search(seen.embedding * 7, provenance=seen.provenance)[0].id == 1
    assert len(gallery.search(seen, top=99)) == 6
    for top in (0, -1):
        with pytest.raises(InputError, match=f"top is {top}"):
            gallery.search(seen, top=top)
    assert Gallery(model).search(seen) == []


def test_scores_are_cosines(gallery: Gallery, model: Model) -> None:
    vectors = np.stack([model(frame_bgr).embedding for frame_bgr in FRAMES]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = {match.id: match.score for match in gallery.search(FRAMES[2], top=6)}
    np.testing.assert_allclose([scores[i] for i in range(6)], vectors @ vectors[2], atol=1e-6)


def test_entries_leave_by_number_or_label_and_numbers_are_never_given_twice(gallery: Gallery) -> None:
    assert gallery.labels == ("even", "odd")
    assert gallery.remove(5) == 1
    assert gallery.search(FRAMES[5])[0].id != 5
    assert gallery.remove("even") == 3
    assert [entry.id for entry in gallery.entries] == [1, 3]
    assert gallery.add(FRAMES[0], "new") == 6
    for gone in (5, "even", True):
        with pytest.raises(InputError, match=re.escape(f"{gone!r}")):
            gallery.remove(gone)
    assert len(gallery) == 3


def test_threads_may_add_and_search_results(model: Model) -> None:
    gallery, seen = Gallery(model), [model(frame_bgr) for frame_bgr in FRAMES]

    def work() -> None:
        for i in range(60):
            number = gallery.add(seen[i % 6], str(i % 6))
            assert gallery.search(seen[i % 6])[0].label == str(i % 6)
            if i % 2:
                gallery.remove(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(gallery) == 4 * 30
    assert len({entry.id for entry in gallery.entries}) == 120


def test_digits_are_recognised_from_ten_examples_each(tmp_path: Path) -> None:
    """A student of seconds, without its head, on scikit-learn's digits; chance is one in seven."""
    frames, labels, vit = _trained_on_digits()
    from tests.support.tiny_job import write_bundle_of

    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(40):
        _write(folder / f"{i}.png", frames[i])
    rows = np.flatnonzero(labels < 7)[-300:]  # not trained on
    kept = np.concatenate([rows[labels[rows] == digit][:10] for digit in range(7)])
    with edgemae.load(write_bundle_of(tmp_path / "digits.edgemae", vit, folder)) as model:
        assert model.labels == ()
        gallery = Gallery(model)
        for i in kept:
            gallery.add(frames[i], str(labels[i]))
        asked = np.setdiff1d(rows, kept)[:150]
        right = [gallery.search(frames[i])[0].label == str(labels[i]) for i in asked]
    assert np.mean(right) >= 0.75


def _write(path: Path, frame_bgr: Any) -> None:
    import cv2

    assert cv2.imwrite(str(path), frame_bgr)


def _trained_on_digits() -> tuple[list[Any], np.ndarray, Any]:
    """Return frames (32 px), their labels, and a headless ViT that has learned 0 to 6; about 5 s."""
    import cv2
    import torch
    from sklearn.datasets import load_digits

    from edgemae.device.preprocess import preprocess
    from edgemae.model.vit import ViT, ViTShape
    from edgemae.spec.graph import PixelContract

    x, y = load_digits(return_X_y=True)
    tiles = (x.reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    frames = [np.repeat(cv2.resize(tile, (32, 32))[:, :, None], 3, axis=2) for tile in tiles]
    known = np.flatnonzero(y[:1200] < 7)
    pixels = torch.from_numpy(np.concatenate([preprocess(frames[i], PixelContract(image_px=32)) for i in known]))
    targets = torch.from_numpy(y[known])
    torch.manual_seed(0)
    vit = ViT(ViTShape.uniform(image_px=32, patch_px=8, width=32, depth=2, heads=2, classes=7))
    optimizer = torch.optim.AdamW(vit.parameters(), 3e-3)
    for _ in range(120):
        some = torch.randint(len(known), (64,))
        loss = torch.nn.functional.cross_entropy(vit(pixels[some])[0], targets[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bare = ViT(ViTShape.uniform(image_px=32, patch_px=8, width=32, depth=2, heads=2))
    bare.load_state_dict({name: value for name, value in vit.state_dict().items() if not name.startswith("head.")})
    return frames, y, bare.eval()


# ------------------------------------------------------------------------------------------------ other models


def test_another_models_embeddings_are_refused(gallery: Gallery, make_bundle: MakeBundle, tmp_path: Path) -> None:
    gallery.save(tmp_path / "a.gallery")
    with edgemae.load(make_bundle(head=False)) as other:
        assert other(FRAMES[0]).embedding.shape == gallery._model(FRAMES[0]).embedding.shape
        for act in (gallery.search, lambda seen: gallery.add(seen, "x")):
            with pytest.raises(GalleryError, match=r"embedding .*block version 1") as error:
                act(other(FRAMES[0]))
            assert "build the gallery again from its images" in error.value.fix
        with pytest.raises(GalleryError, match=r"a\.gallery' .*block version 1"):
            Gallery.load(tmp_path / "a.gallery", other)
    assert len(gallery) == 6


def test_an_update_that_keeps_the_embedding_keeps_the_gallery(gallery: Gallery, path: Path, tmp_path: Path) -> None:
    """As `finalize` and a new release of the same graphs do: another manifest, another digest of the bundle."""
    gallery.save(tmp_path / "a.gallery")
    newer = tmp_path / "newer.edgemae"
    newer.write_bytes(path.read_bytes())
    amend_bundle(newer, {"README.md": b"new"}, version=2, created="2026-01-01T00:00:00Z")
    with edgemae.load(newer) as updated:
        assert updated.sha256 != gallery._model.sha256
        assert Gallery.load(tmp_path / "a.gallery", updated).search(FRAMES[3])[0].id == 3


def test_other_pixels_are_another_embedding(gallery: Gallery, make_bundle: MakeBundle) -> None:
    from edgemae.spec.graph import PixelContract

    with edgemae.load(make_bundle(pixel=PixelContract(image_px=32, resize="stretch"))) as other:
        assert other.provenance.embedding != gallery.provenance.embedding
        with pytest.raises(GalleryError):
            gallery.search(other(FRAMES[0]))


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (np.ones(16, np.float32), "without the model that made it"),
        ([1.0] * 16, "without the model"),
        (np.ones((2, 2), np.int64), "without the model"),
    ],
)
def test_a_bare_array_must_say_who_made_it(gallery: Gallery, seen: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gallery.search(seen)


@pytest.mark.parametrize(
    "vector", [np.ones(15), np.zeros(16), np.full(16, np.nan), np.ones((16, 1)), np.float32(3), "x", {}]
)
def test_what_is_no_embedding_is_refused(gallery: Gallery, vector: Any) -> None:
    with pytest.raises(InputError, match="is no embedding of this model"):
        gallery.add(vector, "x", provenance=gallery.provenance)
    assert len(gallery) == 6


def test_metadata_must_be_what_json_can_hold(gallery: Gallery) -> None:
    with pytest.raises(InputError, match="'x'"):
        gallery.add(FRAMES[0], "x", {"model": object()})
    with pytest.raises(InputError, match=r"'\\ud800x'"):
        gallery.add(FRAMES[0], "\ud800x")
    kept = {"place": ["a", 1], "seen": None}
    assert gallery.search(FRAMES[0], top=9)[0].metadata == {"number": 0}
    gallery.remove(0)
    gallery.add(FRAMES[0], "x", kept)
    kept["place"] = "changed later"
    found = gallery.search(FRAMES[0])[0].metadata
    assert found == {"place": ["a", 1], "seen": None}
    found["place"] = "changed later"
    assert gallery.search(FRAMES[0])[0].metadata == kept | {"place": ["a", 1]}


# ------------------------------------------------------------------------------------------------ files


def test_a_saved_gallery_finds_the_same(gallery: Gallery, model: Model, tmp_path: Path) -> None:
    gallery.remove(1)
    gallery.save(tmp_path / "a.gallery")
    again = Gallery.load(tmp_path / "a.gallery", model)
    for frame_bgr in FRAMES:
        assert again.search(frame_bgr) == gallery.search(frame_bgr)
    assert again.entries == gallery.entries
    assert again.add(FRAMES[0], "x") == 6, "the number of the removed entry is not given again"
    Gallery(model).save(tmp_path / "empty.gallery")
    assert len(Gallery.load(tmp_path / "empty.gallery", model)) == 0
