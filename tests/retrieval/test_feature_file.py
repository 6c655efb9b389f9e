"""Feature files: what is corrupt, foreign, old or made by hand is refused, and a write is whole or not at all."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgemae.device.model import Model
from edgemae.retrieval import feature_file
from edgemae.retrieval import gallery as module
from edgemae.retrieval.gallery import SCHEMA, Gallery
from edgemae.spec.errors import GalleryError, StorageError
from edgemae.spec.provenance import Provenance
from tests.retrieval.samples import FRAMES


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
        ({}, {"embeddings": ROWS[:1]}, r" 2 entries .*\(1, 16\)"),
        ({}, {"embeddings": ROWS[:, :8]}, r"\(2, 8\)"),
        ({}, {"embeddings": ROWS.astype(np.float16)}, r"\(2, 16\)"),
        ({}, {"embeddings": ROWS, "more": ROWS}, r"\(2, 16\)"),
        ({}, {}, r"shape \(0,\)"),
        ({}, {"embeddings": ROWS * 2}, "length 1"),
        ({}, {"embeddings": ROWS * np.float32(np.nan)}, "NaN"),
        ({"next_id": 1}, {"embeddings": ROWS}, "do not rise"),
        ({"entries": (module.Entry(id=1, label="a"),) * 2}, {"embeddings": ROWS}, "do not rise"),
    ],
)
def test_a_file_whose_digest_is_right_but_makes_no_sense_is_refused(
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
    with pytest.raises(GalleryError, match=r"'edgemae\.gallery/2'") as error:
        Gallery.load(file, model)
    assert "update edgemae" in error.value.fix
    feature_file.write(file, "edgemae.normal/1", _facts(model), {})
    with pytest.raises(
        GalleryError, match=r"'edgemae\.normal/1'.* development version of edgemae before 0\.1\.0"
    ) as error:
        Gallery.load(file, model)
    assert "build it again" in error.value.fix
    feature_file.write(file, SCHEMA, _Odd(model.provenance), {})
    with pytest.raises(GalleryError, match="`surprise`"):
        Gallery.load(file, model)
    np.savez(tmp_path / "numpy.npz", a=ROWS)
    for other in (tmp_path / "numpy.npz", model.path):
        with pytest.raises(GalleryError, match=re.escape(f"'{other}' is not")):
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
        with pytest.raises(GalleryError, match="corrupt"):
            Gallery.load(tmp_path / "b.gallery", model)
    (tmp_path / "c.gallery").write_bytes(first + b"\n" + hashlib.sha256(first + b"\n").hexdigest().encode() + b"\n")
    with pytest.raises(GalleryError, match="corrupt"):
        Gallery.load(tmp_path / "c.gallery", model)


def test_a_file_of_another_kind_is_not_written_over(gallery: Gallery, model: Model, tmp_path: Path) -> None:
    """From Python too: the bundle itself, an image. Its own kind, an empty file and a new one are written."""
    file, bundle = tmp_path / "a.gallery", Path(model.path).read_bytes()
    for data in (bundle, b"\x89PNG\r\n", b"x"):
        file.write_bytes(data)
        with pytest.raises(GalleryError, match="is there already"):
            gallery.save(file)
        assert file.read_bytes() == data
    file.write_bytes(b"")
    gallery.save(file)
    gallery.save(file)
    assert len(Gallery.load(file, model)) == len(gallery)
