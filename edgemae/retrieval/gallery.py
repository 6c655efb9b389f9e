"""Gallery: embeddings with labels, searched by cosine. One image makes a new thing known; nothing is trained."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.device.model import Model, Result
from edgemae.retrieval import feature_file
from edgemae.retrieval.feature_file import corrupt
from edgemae.spec.errors import GalleryError, InputError
from edgemae.spec.provenance import Provenance

Floats = NDArray[np.float32]
SCHEMA = "edgemae.gallery/1"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One image of a gallery: its number (never given twice), its label, and what you want to remember about it."""

    id: int
    label: str
    metadata: dict[str, Any] = {}


@dataclass(frozen=True)
class Match:
    """One entry that was found. `score` is the cosine of its embedding to the one searched for, -1..1."""

    label: str
    score: float
    id: int
    metadata: dict[str, Any]


class _Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    provenance: Provenance
    next_id: int
    entries: tuple[Entry, ...]


class Gallery:
    """Hold labelled embeddings of one model, and find the nearest to another. Results may come from several threads.

    It belongs to the model's embedding: a bundle whose pixels and graphs are the same (a new version, report or
    profile) opens it; one with other weights or another quantization is refused, and the images have to be added
    again. A search compares with every entry.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.provenance = model.provenance
        self._lock = threading.Lock()
        self._entries: dict[int, Entry] = {}
        self._vectors: dict[int, Floats] = {}  # of length 1
        self._stacked: tuple[list[Entry], Floats] | None = None  # the same as one matrix, for searches
        self._next_id = 0

    def add(
        self, seen: Result | NDArray[Any], label: str, metadata: Mapping[str, Any] | None = None, *,
        provenance: Provenance | None = None,
    ) -> int:  # fmt: skip
        """Add a frame (BGR uint8), a `Result` of this model, or its embedding (D,) float; return the entry's number.

        A bare embedding says nothing of its model: pass the `provenance` of its Result. `metadata` is kept as JSON.
        Raises GalleryError for another model's embedding, InputError for what is none.
        """
        vector = self._vector_of(seen, provenance)
        try:
            kept = msgspec.json.decode(msgspec.json.encode({"label": str(label), "metadata": dict(metadata or {})}))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"label {label!r} with metadata {metadata!r} cannot be stored: {error}", expected="what JSON can hold",
                fix="use texts in UTF-8, numbers and lists",
            ) from error  # fmt: skip
        with self._lock:
            entry = Entry(id=self._next_id, **kept)
            self._next_id += 1
            self._entries[entry.id], self._vectors[entry.id] = entry, vector
            self._stacked = None
        return entry.id

    def search(self, seen: Result | NDArray[Any], top: int = 5, *, provenance: Provenance | None = None) -> list[Match]:
        """Return the `top` nearest entries, the nearest first; fewer when the gallery is smaller.

        Raises as `add`, and InputError for a `top` below 1.
        """
        if top < 1:
            raise InputError(f"top is {top}", expected="1 or more", fix="correct the number")
        vector = self._vector_of(seen, provenance)
        with self._lock:
            if self._stacked is None and self._entries:
                self._stacked = (list(self._entries.values()), np.stack(list(self._vectors.values())))
            stacked = self._stacked
        if stacked is None:
            return []
        entries, matrix = stacked
        scores = matrix @ vector
        best = np.argsort(-scores, kind="stable")[:top]
        return [Match(entries[i].label, float(scores[i]), entries[i].id, dict(entries[i].metadata)) for i in best]

    def remove(self, entry: int | str) -> int:
        """Remove one entry by its number, or all of a label; return how many. Raises InputError when there is none."""
        with self._lock:
            by_id = isinstance(entry, int) and not isinstance(entry, bool)  # True == 1
            gone = [i for i, e in self._entries.items() if (i if by_id else e.label) == entry]
            for i in gone:
                del self._entries[i], self._vectors[i]
            self._stacked = None
        if not gone:
            raise InputError(
                f"the gallery has no entry {entry!r}", expected="a number from `add` or `entries`, or one of `labels`",
                fix="look into `gallery.entries`",
            )  # fmt: skip
        return len(gone)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Return all entries in the order they were added."""
        with self._lock:
            return tuple(self._entries.values())

    @property
    def labels(self) -> tuple[str, ...]:
        """Return every label once, in the order of their first entries."""
        return tuple(dict.fromkeys(entry.label for entry in self.entries))

    def __len__(self) -> int:
        return len(self._entries)

    def save(self, path: str | Path) -> None:
        """Write the gallery so that it appears whole or not at all. Raises StorageError."""
        with self._lock:
            facts = _Facts(provenance=self.provenance, next_id=self._next_id, entries=tuple(self._entries.values()))
            width = self._width
            rows = np.array(list(self._vectors.values()), np.float32).reshape(-1, width)
        feature_file.write(Path(path), SCHEMA, facts, {"embeddings": rows})

    @classmethod
    def load(cls, path: str | Path, model: Model) -> Gallery:
        """Open a gallery that this model's embedding made. Raises GalleryError for a corrupt, foreign or other one."""
        path = Path(path)
        facts, arrays = feature_file.read(path, SCHEMA, _Facts)
        gallery = cls(model)
        gallery._refuse_other(facts.provenance, f"the gallery '{path}'")
        ids = [entry.id for entry in facts.entries]
        rows = arrays.get("embeddings", np.zeros(0))
        if rows.shape != (len(ids), gallery._width) or rows.dtype != np.float32 or len(arrays) != 1:
            raise corrupt(path, f"it lists {len(ids)} entries and holds an array of shape {rows.shape}")
        if ids != sorted(set(ids)) or (ids and not 0 <= ids[0] <= ids[-1] < facts.next_id):
            raise corrupt(path, "the numbers of its entries do not rise")
        if (np.abs(np.linalg.norm(rows, axis=1) - 1) > 1e-3).any():
            raise corrupt(path, "an embedding does not have the length 1")
        gallery._entries = dict(zip(ids, facts.entries, strict=True))
        gallery._vectors = dict(zip(ids, rows, strict=True))
        gallery._next_id = facts.next_id
        return gallery

    @property
    def _width(self) -> int:
        return next(spec.shape[-1] for spec in self._model.manifest.io.outputs if spec.name == "embedding")

    def _vector_of(self, seen: Result | NDArray[Any], provenance: Provenance | None) -> Floats:
        """Return the embedding of a frame, a result or itself, at length 1."""
        if isinstance(seen, np.ndarray) and seen.dtype == np.uint8:
            seen = self._model(seen)
        if isinstance(seen, Result):
            given, provenance = seen.embedding, seen.provenance
        else:
            given = seen
        if provenance is None:
            raise InputError(
                "an embedding was given without the model that made it",
                expected="a frame, a Result, or an embedding with its provenance",
                fix="pass provenance=result.provenance beside result.embedding",
            )
        self._refuse_other(provenance, "the embedding")
        try:
            vector = np.array(given, np.float32)
        except (TypeError, ValueError):
            vector = np.zeros(0, np.float32)
        length = float(np.linalg.norm(vector))
        if vector.shape != (self._width,) or not 0 < length < np.inf:
            raise InputError(
                f"{type(given).__name__} of shape {vector.shape} and length {length} is no embedding of this model",
                expected=f"({self._width},) finite values, not all 0",
                fix="pass the embedding of a Result",
            )
        vector /= np.float32(length)
        return vector

    def _refuse_other(self, made_by: Provenance, what: str) -> None:
        if made_by.embedding != self.provenance.embedding:
            raise GalleryError(
                f"{what} was made by {made_by}, the model here is {self.provenance}",
                expected="one model's embeddings: cosines between two models' mean nothing",
                fix="load the bundle that made it, or build the gallery again from its images with this one",
            )
