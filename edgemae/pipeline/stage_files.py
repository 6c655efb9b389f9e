"""Graphs and arrays as files of a stage. A graph is the network's own files, and one JSON with everything else."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.pipeline.stage_cache import digest_of
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.graph import Graph, IoContract, Step


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
