"""The bundle: the file that leaves the workstation. docs/bundle-format.md has the format and the reasons."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from edgemae.spec.atomic_file import write_folder_atomic
from edgemae.spec.container import (
    DIGEST,
    MANIFEST,
    MAX_FILES,
    check_total,
    corrupt,
    open_source,
    write_zip,
)
from edgemae.spec.errors import BundleError, BundleSchemaError, InternalError, StorageError
from edgemae.spec.manifest import SCHEMA, FileEntry, Manifest, Variant
from edgemae.spec.manifest_rules import wrong_in_manifest
from edgemae.spec.names import WINDOWS_DEVICES

WRITERS = {"edgemae.bundle/1": "a development version of edgemae before 0.1.0"}  # of schemas that are read no more
EXTENSIONS = (".json", ".onnx", ".xml", ".bin", ".npy", ".png", ".md", ".html")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){0,3}\Z")


@dataclass(frozen=True)
class Bundle:
    """Hold a verified bundle. Every byte was hashed when it was opened; `read` never touches the disk again."""

    path: Path
    manifest: Manifest
    sha256: str  # of the manifest's bytes: one digest for the whole bundle
    _data: Mapping[str, bytes] = field(repr=False)

    def read(self, name: str) -> bytes:
        """Return the bytes of one file. Raises BundleError for a name that the manifest does not list."""
        try:
            return self._data[name]
        except KeyError:
            raise BundleError(
                f"the bundle has no file '{name}'", expected=", ".join(sorted(self._data)), fix="use one of those names"
            ) from None

    def variant_files(self, variant: Variant) -> dict[str, bytes]:
        """Return the graph files of one variant, as engines take them."""
        return {name: self.read(name) for name in variant.files}


def open_bundle(path: str | Path, min_version: int = 0) -> Bundle:
    """Open a bundle after checking every byte of it; nothing but the manifest is parsed before all hashes agree.

    `min_version` refuses older ones (a rollback). Raises BundleCorruptError, BundleSchemaError for a manifest that
    this version cannot read, and BundleError for a path where no bundle is.
    """
    path = Path(path)
    source = open_source(path)
    try:
        raw = source.take(MANIFEST)
        digest = source.take(DIGEST)
        sha256 = hashlib.sha256(raw).hexdigest()
        if digest != _digest_line(sha256):
            raise corrupt(f"the manifest of '{path}' does not have the digest in {DIGEST}")
        manifest = _parse(raw)
        sizes = {MANIFEST: len(raw), DIGEST: len(digest)}
        source.expect(sizes | {name: manifest.files[name].size for name in sorted(manifest.files)})
        data = {name: source.take(name, manifest.files[name].size) for name in sorted(manifest.files)}
        for name, content in data.items():
            if hashlib.sha256(content).hexdigest() != manifest.files[name].sha256:
                raise corrupt(f"'{name}' in '{path}' does not have the digest of the manifest")
        source.finish()
    except OSError as error:
        raise BundleError(
            f"the bundle '{path}' cannot be read: {error.strerror}", expected="a readable disk", fix="check the disk"
        ) from error
    finally:
        source.close()
    if manifest.version < min_version:
        raise BundleError(
            f"'{path}' holds version {manifest.version} of '{manifest.name}'",
            expected=f"version {min_version} or later",
            fix="install a newer bundle; going back is refused here",
        )
    return Bundle(path=path, manifest=manifest, sha256=sha256, _data=data)


def write_bundle(path: str | Path, manifest: Manifest, files: Mapping[str, bytes], as_zip: bool | None = None) -> Path:
    """Write manifest and files so that the bundle appears whole or not at all; the same input gives the same bytes.

    A folder is written for `as_zip=False`, for a path that ends in '/' and for one that is a folder already; else a
    stored zip. `manifest.files` is filled in here. Raises StorageError when the disk is full or read-only.
    """
    folder = as_zip is False or (as_zip is None and (str(path).endswith("/") or Path(path).is_dir()))
    path = Path(path)
    listed = {name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for name, data in files.items()}
    raw = encode_manifest(msgspec.structs.replace(manifest, files=listed))
    entries = {MANIFEST: raw, DIGEST: _digest_line(hashlib.sha256(raw).hexdigest())}
    entries |= {name: files[name] for name in sorted(files)}
    check_total({name: len(data) for name, data in entries.items()})
    if path.is_dir():
        _check_replaceable(path, folder)
    (write_folder_atomic if folder else write_zip)(path, entries)
    return path


def amend_bundle(path: str | Path, added: Mapping[str, bytes], dropped: Collection[str] = (), **changes: Any) -> Path:
    """Write a bundle again, whole or not at all, with files added or dropped and fields of its manifest changed.

    `previous` becomes the digest of the manifest that is replaced. Raises what opening and writing raise.
    """
    old = open_bundle(path)
    kept = {name: old.read(name) for name in old.manifest.files if name not in dropped}
    manifest = msgspec.structs.replace(old.manifest, previous=old.sha256, **changes)
    return write_bundle(path, manifest, kept | dict(added))


def encode_manifest(manifest: Manifest) -> bytes:
    """Return canonical JSON: keys sorted, no spaces, one newline at the end. Raises InternalError for a wrong field."""
    try:
        tree = msgspec.json.decode(msgspec.json.encode(manifest))  # NaN becomes null here, and is refused below
        checked = msgspec.convert(tree, Manifest)
        _check(checked)
    except (msgspec.ValidationError, TypeError, BundleError) as error:
        raise InternalError(
            f"the manifest of '{manifest.name}' is not valid: {error}",
            expected="fields as in docs/bundle-format.md",
            fix="report this",
        ) from error
    tree = msgspec.json.decode(msgspec.json.encode(checked))  # 1 in a float field is 1.0 from here on
    return msgspec.json.encode(tree, order="sorted") + b"\n"


def _digest_line(sha256: str) -> bytes:
    """Return the line that `sha256sum --check` reads, so that a shell can verify a folder too."""
    return f"{sha256}  {MANIFEST}\n".encode("ascii")


def _parse(raw: bytes) -> Manifest:
    """Return the manifest of canonical JSON bytes, all its rules checked."""
    try:
        tree = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise corrupt(f"the manifest is not JSON: {error}") from error
    schema = tree.get("schema") if isinstance(tree, dict) else None
    if schema != SCHEMA:
        writer = WRITERS.get(str(schema), "no version up to this one")
        raise _schema(f"the bundle has schema {schema!r}, which {writer} writes")
    # Duplicate keys, spaces and a second spelling of a number all fail here: one manifest has one form.
    if msgspec.json.encode(tree, order="sorted") + b"\n" != raw:
        raise corrupt("the manifest is not canonical JSON", "sorted keys, no spaces, no key twice")
    try:
        manifest = msgspec.convert(tree, Manifest)
    except msgspec.ValidationError as error:
        raise _schema(f"the manifest cannot be read: {error}") from error
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """Refuse unsafe names, and a variant or golden set that points outside the bundle."""
    if len(manifest.files) > MAX_FILES:
        raise corrupt(f"the manifest lists {len(manifest.files)} files", f"at most {MAX_FILES}")
    taken = {MANIFEST, DIGEST}
    for name in manifest.files:
        _check_name(name)
        if name.casefold() in taken:
            raise corrupt(f"the name '{name}' occurs twice when upper and lower case are one")
        taken.add(name.casefold())
    for name in taken:
        if any(str(parent) in taken for parent in PurePosixPath(name).parents):
            raise corrupt(f"'{name}' lies inside a name that is a file")
    used = [name for variant in manifest.variants for name in (*(variant.files or ("",)), variant.golden)]
    for name in (*used, *manifest.golden.frames, *manifest.golden.tensors):
        if name not in manifest.files:
            raise corrupt(f"the manifest uses '{name}' and does not list it")
    if len(manifest.golden.frames) != len(manifest.golden.tensors):
        raise corrupt("the golden set has not one tensor for each frame")
    if (wrong := next(wrong_in_manifest(manifest), None)) is not None:
        raise BundleSchemaError(
            f"the manifest cannot be used: {wrong}",
            expected="values that have a meaning on a device, as docs/bundle-format.md lists them",
            fix="compile the bundle again, or ask whoever wrote it",
        )


def _check_name(name: str) -> None:
    parts = name.casefold().split("/")
    fine = len(name) <= 200 and _NAME.match(name) and name.endswith(EXTENSIONS)
    if not fine or any(WINDOWS_DEVICES.match(part) or part.endswith(".") for part in parts):
        raise corrupt(
            f"the manifest lists the name {name!r}",
            f"at most four parts of letters, digits, '.', '_', '-', ending in one of {' '.join(EXTENSIONS)}",
        )


def _check_replaceable(path: Path, folder: bool) -> None:
    """Refuse to delete a folder that is neither empty nor a whole bundle."""
    try:
        if folder and any(path.iterdir()):
            open_bundle(path)
        elif not folder:
            raise BundleError(f"'{path}' is a folder", expected="a file", fix="choose another path")
    except BundleError as error:
        raise StorageError(
            f"'{path}' cannot be replaced: it is a folder with other things in it",
            expected="no folder, an empty one, or a bundle",
            fix="choose another --output or remove that folder",
        ) from error


def _schema(what: str) -> BundleSchemaError:
    return BundleSchemaError(
        what,
        expected=f"schema '{SCHEMA}' as this version knows it",
        fix="compile again with this version, or update edgemae here if the bundle is newer",
    )


def is_bundle(path: Path) -> bool:
    """Tell whether a path is meant as a bundle."""
    return path.suffix == ".edgemae" or (path / "manifest.json").is_file()
