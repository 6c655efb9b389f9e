"""Galleries: digits are recognised from a few examples, other models are refused, files are whole or refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import edgemae
from edgemae.device.model import Model
from edgemae.retrieval import feature_file
from edgemae.retrieval import gallery as module
from edgemae.retrieval.gallery import SCHEMA, Gallery
from edgemae.spec.bundle import amend_bundle
from edgemae.spec.errors import GalleryError, InputError, StorageError
from edgemae.spec.provenance import Provenance

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
    assert len(gallery.search(seen, top=0)) == 1
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
        with pytest.raises(InputError, match="has no entry"):
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
            with pytest.raises(GalleryError, match="the embedding was made by block version 1") as error:
                act(other(FRAMES[0]))
            assert "build the gallery again from its images" in error.value.fix
        with pytest.raises(GalleryError, match=r"the gallery '.*a\.gallery' was made by block version 1"):
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
    with pytest.raises(InputError, match=r"label 'x' with metadata .* cannot be stored"):
        gallery.add(FRAMES[0], "x", {"model": object()})
    with pytest.raises(InputError, match=r"label '\\ud800x' .* cannot be stored"):
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


def test_every_flipped_bit_and_every_cut_is_refused(gallery: Gallery, model: Model, tmp_path: Path) -> None:
    file = tmp_path / "a.gallery"
    gallery.save(file)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    bits = [*range(8 * 100), *rng.integers(0, 8 * len(whole), 200).tolist()]
    for bit in bits:  # the first hundred bytes are schema, digest and size
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        with pytest.raises(GalleryError):
            Gallery.load(file, model)
    for spoiled in (b"", whole[:-1], whole + b"x", whole[: len(whole) // 2], b"PK\3\4" + whole, b"\x80\x04."):
        file.write_bytes(spoiled)
        with pytest.raises(GalleryError):
            Gallery.load(file, model)


def _facts(model: Model, **changes: Any) -> module._Facts:
    entries = tuple(module.Entry(id=i, label="a") for i in range(2))
    return module._Facts(**({"provenance": model.provenance, "next_id": 2, "entries": entries} | changes))


ROWS = np.eye(2, 16, dtype=np.float32)


@pytest.mark.parametrize(
    ("changes", "arrays", "message"),
    [
        ({}, {"embeddings": ROWS[:1]}, r"lists 2 entries and holds an array of shape \(1, 16\)"),
        ({}, {"embeddings": ROWS[:, :8]}, r"\(2, 8\)"),
        ({}, {"embeddings": ROWS.astype(np.float16)}, "holds an array"),
        ({}, {"embeddings": ROWS, "more": ROWS}, "holds an array"),
        ({}, {}, r"shape \(0,\)"),
        ({}, {"embeddings": ROWS * 2}, "length 1"),
        ({}, {"embeddings": ROWS * np.float32(np.nan)}, "NaN"),
        ({"next_id": 1}, {"embeddings": ROWS}, "do not rise"),
        ({"entries": (module.Entry(id=1, label="a"),) * 2}, {"embeddings": ROWS}, "do not rise"),
    ],
)
def test_a_well_sealed_file_that_makes_no_sense_is_refused(
    changes: Any, arrays: Any, message: str, model: Model, tmp_path: Path
) -> None:
    feature_file.write(tmp_path / "a.gallery", SCHEMA, _facts(model, **changes), arrays)
    with pytest.raises(GalleryError, match=message):
        Gallery.load(tmp_path / "a.gallery", model)


class _Odd(msgspec.Struct):
    provenance: Provenance
    surprise: int = 1


def test_foreign_files_and_other_schemas_say_what_they_are(gallery: Gallery, model: Model, tmp_path: Path) -> None:
    file = tmp_path / "a.gallery"
    feature_file.write(file, "edgemae.reference/1", _facts(model), {})
    with pytest.raises(GalleryError, match="is a reference set"):
        Gallery.load(file, model)
    feature_file.write(file, "edgemae.gallery/2", _facts(model), {})
    with pytest.raises(GalleryError, match=r"has schema 'edgemae\.gallery/2'") as error:
        Gallery.load(file, model)
    assert "update edgemae" in error.value.fix
    feature_file.write(file, "edgemae.normal/1", _facts(model), {})
    with pytest.raises(
        GalleryError, match=r"'edgemae\.normal/1'.* development version of edgemae before 0\.1\.0"
    ) as error:
        Gallery.load(file, model)
    assert "build it again" in error.value.fix
    feature_file.write(file, SCHEMA, _Odd(model.provenance), {})
    with pytest.raises(GalleryError, match="unknown field `surprise`"):
        Gallery.load(file, model)
    np.savez(tmp_path / "numpy.npz", a=ROWS)
    for other in (tmp_path / "numpy.npz", model.path):
        with pytest.raises(GalleryError, match="is not a file of edgemae galleries"):
            Gallery.load(other, model)
    for missing in (tmp_path / "none.gallery", tmp_path):
        with pytest.raises(GalleryError):
            Gallery.load(missing, model)


def test_a_write_that_fails_leaves_the_old_file(
    gallery: Gallery, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.gallery"
    gallery.save(file)
    before = file.read_bytes()
    gallery.add(FRAMES[0], "x")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        gallery.save(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    monkeypatch.undo()
    gallery.save(file)
    assert len(Gallery.load(file, model)) == 7


def test_headers_that_lie_are_refused(tmp_path: Path, gallery: Gallery, model: Model) -> None:
    """Valid digests over a header that promises other arrays than there are."""
    import hashlib

    gallery.save(tmp_path / "a.gallery")
    data = (tmp_path / "a.gallery").read_bytes()
    first, _, body = data.split(b"\n", 2)
    body = data[len(first) + 66 :]
    size = int.from_bytes(body[:8], "little")
    for old, new in ((b'"shape":[6,16]', b'"shape":[9,16]'), (b'"shape":[6,16]', b'"shape":[6,15]'),
                     (b'"float32"', b'"float16"'), (b'"float32"', b'"object0"'), (b"[6,16]", b"[-6,6]")):  # fmt: skip
        header = body[8 : 8 + size].replace(old, new)
        assert header != body[8 : 8 + size]
        changed = body[:8] + header + body[8 + size :]
        digest = hashlib.sha256(first + b"\n" + changed).hexdigest().encode()
        (tmp_path / "b.gallery").write_bytes(first + b"\n" + digest + b"\n" + changed)
        with pytest.raises(GalleryError, match="is corrupt"):
            Gallery.load(tmp_path / "b.gallery", model)
    (tmp_path / "c.gallery").write_bytes(first + b"\n" + hashlib.sha256(first + b"\n").hexdigest().encode() + b"\n")
    with pytest.raises(GalleryError, match="is corrupt"):
        Gallery.load(tmp_path / "c.gallery", model)
