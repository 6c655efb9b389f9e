"""Compiled blobs, kept between runs and never trusted: each is hashed against its side file before an engine sees it.

Engines take flipped bits in their own caches without a word (OpenVINO: 18 of 24 trials), and a TensorRT plan is an
executable artefact. A key holds everything a blob depends on, so a new driver or processor means a new key.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from edgemae.device.hardware.cpu_features import machine_facts
from edgemae.device.session import Engine
from edgemae.spec.atomic_file import replace_file
from edgemae.spec.errors import EngineMissingError
from edgemae.spec.regular_file import read_regular
from edgemae.spec.target import Target

KEEP = 24  # blobs; the oldest go first, so that years of updates do not fill a device's flash
_PROSE = ("name", "title", "source", "notes")  # target keys that no engine reads
_log = logging.getLogger("edgemae.device")
_warned: set[str] = set()


def cache_folder() -> Path:
    """Return the folder of edgemae's caches: EDGEMAE_CACHE_DIR, or `edgemae` below the XDG cache folder.

    A user without a home, as in a container that runs under a number, gets one below the folder of temporary files.
    """
    if own := os.environ.get("EDGEMAE_CACHE_DIR"):
        return Path(own)
    if below := os.environ.get("XDG_CACHE_HOME"):
        return Path(below) / "edgemae"
    home = os.path.expanduser("~")  # returned as it is when nothing names a home
    if home == "~":
        return Path(tempfile.gettempdir()) / f"edgemae-{os.getuid()}"
    return Path(home) / ".cache" / "edgemae"


def cache_key(engine: Engine, files: Mapping[str, bytes], target: Target) -> str:
    """Return the sha256 of graph bytes, engine and its version, target facts, processor flags and GPU."""
    facts = {
        "format": 2,
        "engine": engine.name,
        "version": engine.version(),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "target": {key: value for key, value in msgspec.to_builtins(target).items() if key not in _PROSE},
        "machine": machine_facts(),
        "device": engine.facts(),
    }
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()


def compiled(engine: Engine, files: Mapping[str, bytes], target: Target) -> bytes:
    """Return the engine's blob for these graph files, from the cache when its digest is right, else made anew."""
    blob = find(engine, files, target)
    return make(engine, files, target) if blob is None else blob


def find(engine: Engine, files: Mapping[str, bytes], target: Target) -> bytes | None:
    """Return a blob from the cache whose digest is right. Raises EngineMissingError."""
    if engine.version() is None:
        raise EngineMissingError(
            f"the engine '{engine.name}' is not installed", expected="an engine that can be imported", fix=engine.needs
        )
    path = _path(engine, files, target)
    try:
        return _read(path)
    except OSError as error:
        _warn_once(path.parent, error)
        return None


def make(engine: Engine, files: Mapping[str, bytes], target: Target) -> bytes:
    """Compile a blob and keep it, in place of one that may be there.

    A device with a read-only or full disk still runs: that is logged once, and the blob stays in memory.
    """
    path, blob = _path(engine, files, target), engine.compile(files, target)
    try:
        _write(path, blob)
    except OSError as error:
        _warn_once(path.parent, error)
    return blob


def _path(engine: Engine, files: Mapping[str, bytes], target: Target) -> Path:
    return cache_folder() / "engines" / f"{cache_key(engine, files, target)}.blob"


def kept(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield every blob under a cache folder, and whether its side file agrees with it. Raises OSError."""
    for path in sorted((folder / "engines").glob("*.blob")):
        side = path.with_suffix(".sha256")
        yield path, side.is_file() and _bytes(side) == _digest_line(path, _bytes(path))


def _read(path: Path) -> bytes | None:
    """Return a blob whose side file agrees with it; one that does not is deleted. None: not there."""
    if not path.parent.is_dir():
        return None
    check_private(path.parent)
    side = path.with_suffix(".sha256")
    try:
        blob, line = _bytes(path), _bytes(side)
    except FileNotFoundError:
        return None
    if line == _digest_line(path, blob):
        return blob
    _log.warning("the cached %s does not match its digest: deleted, compiling again", path.name)
    path.unlink(missing_ok=True)
    side.unlink(missing_ok=True)
    return None


def _write(path: Path, blob: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_private(path.parent)
    replace_file(path, [blob], private=True)
    # Last: without it the blob does not count.
    replace_file(path.with_suffix(".sha256"), [_digest_line(path, blob)], private=True)
    for old in sorted(path.parent.glob("*.blob"), key=lambda p: p.stat().st_mtime_ns, reverse=True)[KEEP:]:
        old.with_suffix(".sha256").unlink(missing_ok=True)
        old.unlink(missing_ok=True)


def _bytes(path: Path) -> bytes:
    return read_regular(path, follow=False)


def _digest_line(path: Path, blob: bytes) -> bytes:
    return f"{hashlib.sha256(blob).hexdigest()}  {path.name}\n".encode("ascii")


def check_private(folder: Path) -> None:
    """Refuse a folder in which someone else may write: whoever can write a blob can write its digest too."""
    facts = folder.lstat()
    if os.name == "posix" and (
        not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o022
    ):
        raise PermissionError(f"others can write to '{folder}'")


def _warn_once(folder: Path, error: OSError) -> None:
    if str(folder) not in _warned:
        _warned.add(str(folder))
        _log.warning("the engine cache '%s' is not used (%s): every start compiles again", folder, error)
