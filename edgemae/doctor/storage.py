"""The cache of compiled engines: whether it is used at all, and whether what lies there is still what was written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgemae.device.engine_cache import cache_folder, check_private, kept
from edgemae.doctor.finding import Finding

AREA = "cache"
LITTLE_MIB = 200  # of free disk: a handful of compiled blobs
ELSEWHERE = "or set EDGEMAE_CACHE_DIR to a folder that this user may write"


def examine_cache() -> tuple[dict[str, Any], list[Finding]]:
    """Return the facts of the cache folder and what to say of it. Nothing is written and nothing mended."""
    folder = cache_folder()
    engines = folder / "engines"
    facts: dict[str, Any] = {"folder": str(folder), "exists": engines.is_dir(), "blobs": 0, "spoilt": [], "mib": 0.0}
    try:
        facts |= {"free_mib": shutil.disk_usage(_existing(folder)).free >> 20}
        if engines.is_dir():
            blobs = dict(kept(folder))
            size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
            spoilt = [path.name for path, intact in blobs.items() if not intact]
            facts |= {"blobs": len(blobs), "spoilt": spoilt, "mib": round(size / 2**20, 1)}
    except OSError as error:
        fix = f"sudo chown -R $USER '{folder}', {ELSEWHERE}"
        return facts, [Finding(AREA, "folder", "yellow", f"{folder} cannot be read: {error.strerror}", fix)]
    return facts, [_folder(folder, engines, facts), *_contents(engines, facts)]


def _folder(folder: Path, engines: Path, facts: dict[str, Any]) -> Finding:
    again = "so every start compiles again"
    try:
        if engines.is_dir():
            check_private(engines)
    except PermissionError as error:
        return Finding(AREA, "folder", "yellow", f"not used, {again}: {error}",
                       f"chmod go-w '{engines}' where it is yours, {ELSEWHERE}")  # fmt: skip
    nearest = _existing(engines)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Finding(AREA, "folder", "yellow", f"'{nearest}' cannot be written, {again}",
                       f"make it writable for this user, {ELSEWHERE}")  # fmt: skip
    if facts["free_mib"] < LITTLE_MIB:
        return Finding(AREA, "folder", "yellow", f"{folder}: {facts['free_mib']} MiB free on its disk",
                       f"free some space, {ELSEWHERE}")  # fmt: skip
    state = f"{facts['mib']} MiB, private" if facts["exists"] else "made when the first engine is compiled"
    return Finding(AREA, "folder", "green", f"{folder}: {state}, {facts['free_mib']} MiB free")


def _contents(engines: Path, facts: dict[str, Any]) -> Iterator[Finding]:
    if spoilt := facts["spoilt"]:
        files = " ".join(f"'{engines / name}'" for name in spoilt)
        yield Finding(AREA, "blobs", "yellow", f"{len(spoilt)} of {facts['blobs']} are not what was written there",
                      f"rm {files}; if it happens again, check the disk and who else may write there")  # fmt: skip
    elif facts["blobs"]:
        yield Finding(AREA, "blobs", "green", f"{facts['blobs']}, each as it was written")


def _existing(path: Path) -> Path:
    """Return the path or the nearest folder above it that exists."""
    return next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
