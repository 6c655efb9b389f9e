"""The checksummed feature file: facts and arrays under one digest. Galleries and reference sets are kept in it.

    edgemae.gallery/1                           schema, and a newline
    <sha256 of everything else>                 64 hex digits, and a newline
    <size of the header, 8 bytes, little-endian><header, JSON><arrays, one after the other, little-endian>

No code, no pickle, no compression; nothing is parsed before the digest agrees. It proves that a file is what was
written, not who wrote it.
"""

from __future__ import annotations

import hashlib
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import GalleryError

MAX_BYTES = 1 << 30  # all of it is held in memory
SCHEMAS = {"edgemae.gallery/1": "a labelled gallery", "edgemae.reference/1": "a reference set"}
OLD_SCHEMAS = ("edgemae.normal/1",)  # of versions before 0.1.0, which nobody was given
MAGIC = b"edgemae."  # of all schemas
_DTYPES = {"float32": "<f4", "float16": "<f2"}
_SIZE = 8
F = TypeVar("F", bound=msgspec.Struct)


class _Array(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    dtype: Literal["float32", "float16"]
    shape: tuple[Annotated[int, msgspec.Meta(ge=0, le=MAX_BYTES)], ...]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    facts: msgspec.Raw
    arrays: tuple[_Array, ...]


def write(path: Path, schema: str, facts: msgspec.Struct, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a file that appears whole or not at all; equal values give equal bytes.

    Raises StorageError, and GalleryError for a file of another kind in its place: a bundle, or an image.
    """
    _refuse_other_kind(path)
    listed = tuple(_Array(name, array.dtype.name, array.shape) for name, array in arrays.items())
    header = msgspec.json.encode(_Header(msgspec.Raw(msgspec.json.encode(facts, order="sorted")), listed))
    body = [len(header).to_bytes(_SIZE, "little"), header]
    body += [np.ascontiguousarray(array, _DTYPES[array.dtype.name]).tobytes() for array in arrays.values()]
    first = f"{schema}\n".encode()
    write_atomic(path, first, f"{_digest(first, *body)}\n".encode(), *body)


def _refuse_other_kind(path: Path) -> None:
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            first = file.read(len(MAGIC))
        if first != MAGIC:
            raise GalleryError(
                f"'{path}' is there already, and is no file of edgemae galleries",
                expected="a new file, or a gallery or reference set that may be replaced",
                fix="choose another name, or remove that file",
            )


def read(path: Path, schema: str, kind: type[F]) -> tuple[F, dict[str, NDArray[Any]]]:
    """Return the facts and the arrays of a feature file, after its digest agreed.

    Raises GalleryError for a file that is missing, foreign, of another schema, or not what was written.
    """
    first, _, rest = _read_bytes(path).partition(b"\n")
    if first.decode("latin-1") != schema:
        raise _foreign(path, first, schema)
    digest, _, body = rest.partition(b"\n")
    if digest.decode("latin-1") != _digest(first + b"\n", body):
        raise corrupt(path, "it does not have the digest that it was written with")
    end = _SIZE + int.from_bytes(body[:_SIZE], "little")
    try:
        header = msgspec.json.decode(body[_SIZE:end], type=_Header)
        facts = msgspec.json.decode(header.facts, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise corrupt(path, str(error)) from error
    arrays, at = {}, end
    for array in header.arrays:
        size = math.prod(array.shape) * np.dtype(_DTYPES[array.dtype]).itemsize
        if at + size > len(body):
            raise corrupt(path, f"it ends inside '{array.name}'")
        flat = np.frombuffer(body, _DTYPES[array.dtype], math.prod(array.shape), at)
        arrays[array.name] = flat.reshape(array.shape).astype(array.dtype)  # aligned, writable, in native order
        if not np.isfinite(arrays[array.name]).all():
            raise corrupt(path, f"'{array.name}' holds NaN or infinity")
        at += size
    if at != len(body):
        raise corrupt(path, f"{len(body) - at} bytes lie behind its arrays")
    return facts, arrays


def corrupt(path: Path, why: str) -> GalleryError:
    """Return the error for a file that is not what `save` wrote."""
    return GalleryError(
        f"'{path}' is corrupt: {why}", expected="the bytes that were saved", fix="copy it again, or build it again"
    )


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _read_bytes(path: Path) -> bytes:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_BYTES:
            raise GalleryError(
                f"'{path}' is no file of a gallery's kind or size", expected=f"a file of at most {MAX_BYTES >> 20} MiB",
                fix="pass what `edgemae gallery build` wrote",
            )  # fmt: skip
        return path.read_bytes()
    except OSError as error:
        raise GalleryError(
            f"'{path}' cannot be read: {error.strerror}",
            expected="a file that `edgemae gallery build` wrote",
            fix="check the path",
        ) from error


def _foreign(path: Path, first: bytes, schema: str) -> GalleryError:
    found = first[:40].decode("latin-1")
    if found in SCHEMAS:
        what, fix = (
            f"'{path}' is {SCHEMAS[found]}",
            "a gallery is searched, a reference set scores: pass the other file",
        )
    elif found in OLD_SCHEMAS:
        what = f"'{path}' has schema '{found}', written by a development version of edgemae before 0.1.0"
        fix = "build it again from the same images with `edgemae gallery build`"
    elif found.partition("/")[0] == schema.partition("/")[0]:
        what, fix = f"'{path}' has schema '{found}'", "update edgemae on this machine, or build it again"
    else:
        what, fix = f"'{path}' is not a file of edgemae galleries", "pass what `edgemae gallery build` wrote"
    return GalleryError(what, expected=f"{SCHEMAS[schema]}, schema '{schema}'", fix=fix)
