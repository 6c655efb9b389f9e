"""Models, graphs and arrays as files of a stage. A graph is the network's own files, and one JSON with all else."""

from __future__ import annotations

import hashlib
import io
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.model.file_checks import require_regular
from edgemae.model.import_teacher import load_teacher
from edgemae.model.model_file import read_header
from edgemae.model.student import Student, load_student
from edgemae.model.teacher import Teacher
from edgemae.pipeline.stage_cache import digest_of, file_digest
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.graph import Graph, IoContract, Step
from edgemae.spec.plan_schema import Plan


class ModelFile:
    """A teacher or student on disk. What is asked of it is read once: its digest, its kind and its model.

    Stages take model files, not models: a stage is known by the digests of what went into it. What is returned is
    shared, so nobody changes it. `heads` and `decoder_heads` are for files that cannot tell; `digest` is given for a
    file that was hashed already.
    """

    def __init__(self, path: Path, *, heads: int = 0, decoder_heads: int = 0, digest: str = "") -> None:
        self.path, self._heads, self._decoder_heads = path, heads, decoder_heads
        if digest:
            self._hashes = {path: digest}

    @classmethod
    def of(cls, path: Path, plan: Plan) -> ModelFile:
        """Return a model file whose heads, where it cannot tell them, are the plan's."""
        return cls(path, heads=plan.teacher_heads, decoder_heads=plan.teacher_decoder_heads)

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of the file, or of all files of a folder by name."""
        hashes = self._hashes
        if not self.path.is_dir():
            return hashes[self.path]
        return digest_of({path.relative_to(self.path).as_posix(): digest for path, digest in hashes.items()})

    @cached_property
    def _hashes(self) -> dict[Path, str]:
        """Return the sha256 of the file, or of each file of a folder."""
        require_regular(self.path)
        files = sorted(p for p in self.path.rglob("*") if p.is_file()) if self.path.is_dir() else [self.path]
        return {path: file_digest(path) for path in files}

    @cached_property
    def is_student(self) -> bool:
        """Return whether the file is an edgemae student, by its header alone."""
        header = read_header(self.path) if self.path.suffix == ".safetensors" and self.path.is_file() else None
        return header is not None and header.get("kind") == "student"

    @cached_property
    def teacher(self) -> Teacher:
        """Return the file as a teacher, of any supported format. Raises CheckpointError."""
        hashes = self._hashes if self.path.exists() else None
        return load_teacher(self.path, heads=self._heads, decoder_heads=self._decoder_heads, hashes=hashes)

    @cached_property
    def student(self) -> Student:
        """Return the file as a student. Raises CheckpointError."""
        return load_student(self.path)


def save_graph(folder: Path, name: str, graph: Graph) -> None:
    for file, data in graph.files.items():
        write_atomic(folder / f"{name}.{file}", data)
    rest = {"io": graph.io, "precision": graph.precision, "scheme": graph.scheme, "history": graph.history,
            "files": sorted(graph.files)}  # fmt: skip
    write_atomic(folder / f"{name}.graph.json", json.dumps(msgspec.to_builtins(rest)).encode())


def load_graph(folder: Path, name: str) -> Graph:
    rest = json.loads((folder / f"{name}.graph.json").read_bytes())
    return Graph(
        files={file: (folder / f"{name}.{file}").read_bytes() for file in rest["files"]},
        io=msgspec.convert(rest["io"], IoContract), precision=rest["precision"], scheme=rest["scheme"],
        history=msgspec.convert(rest["history"], tuple[Step, ...]),
    )  # fmt: skip


def graph_digest(graph: Graph) -> str:
    return digest_of({name: hashlib.sha256(data).hexdigest() for name, data in graph.files.items()})


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write one .npy atomically. np.save into a file would not say that it is the disk that is full."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())
