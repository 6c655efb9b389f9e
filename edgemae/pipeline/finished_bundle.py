"""The bundle and its report as the last stage of a compile: kept among the stages, and put at the top of --output.

A compile with nothing changed finds them, and writes nothing: neither another date nor figures measured again, which
would be another hash under the same version.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.bundle import Bundle, open_bundle, write_bundle
from edgemae.spec.errors import BundleError
from edgemae.spec.report import Report

log = logging.getLogger("edgemae")
BUNDLE, DONE = "bundle.edgemae", "done.json"


def publish(stage: Path, folder: Path, name: str) -> tuple[Path, Report]:
    """Put report and bundle of a finished stage into `folder`, where they are not there; return the bundle and both.

    A bundle that `finalize` or `profile --keep` has added to since stays as it is.
    """
    stored, bundle = open_bundle(stage / BUNDLE), folder / f"{name}.edgemae"
    for file in sorted(stage.rglob("*")):
        if file.is_file() and file.name not in (BUNDLE, DONE):
            _write(folder / file.relative_to(stage), file.read_bytes())
    if _is_same_build(bundle, stored):
        log.info("bundle: '%s' is there, kept", bundle)
    else:
        write_bundle(bundle, stored.manifest, {file: stored.read(file) for file in stored.manifest.files})
    return bundle, msgspec.json.decode((stage / "report.json").read_bytes(), type=Report)


def _write(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        write_atomic(path, data)


def _is_same_build(path: Path, stored: Bundle) -> bool:
    """Tell whether a path holds a bundle of the same build; profiles may have come to it."""
    try:
        found = open_bundle(path).manifest
    except BundleError:
        return False
    return all(
        getattr(found, name) == getattr(stored.manifest, name)
        for name in ("name", "version", "created", "status", "target", "variants", "golden")
    )
