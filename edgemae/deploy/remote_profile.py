"""`--remote user@host`: what a device itself says about a bundle, brought back here.

The bundle is copied once and kept there below ~/.cache/edgemae/remote, named by its sha256; nothing else stays. The run
is a job of its own: a lost connection is opened again, and the job is waited for.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgemae.deploy.ssh import RemoteHost, parse_address
from edgemae.device.engine_cache import cache_folder
from edgemae.profiling.records import store
from edgemae.spec.bundle import open_bundle
from edgemae.spec.container import DIGEST, MANIFEST, write_zip
from edgemae.spec.errors import RemoteError, StorageError, error_of
from edgemae.version import __version__

log = logging.getLogger("edgemae")
FILES = {
    "--baseline": "",
    "--target": ".toml",
}  # options whose value may be a file with such an ending: it is copied along


def profile_remotely(
    bundle: Path, remote: str, options: Sequence[tuple[str, str]] = (), python: str = "python3"
) -> Path:  # fmt: skip
    """Finalize and profile a bundle on another machine; return the record of it, BUNDLE.HOST.profile.json beside it.

    `options` are those of `edgemae profile`, ("--runs", "300") and ("--per-layer", "") for a flag. Raises RemoteError
    for a machine that cannot be used, and what the other edgemae itself raises.
    """
    open_bundle(bundle)  # a corrupt bundle need not travel
    with RemoteHost(parse_address(remote), python) as host, tempfile.TemporaryDirectory() as draft:
        program = find_edgemae(host)
        remote_path = host.copy(_as_file(bundle, Path(draft)))
        passed: dict[str, list[str]] = {}
        for name, value in options:
            is_file = name in FILES and value.endswith(FILES[name])
            passed.setdefault(name, []).append(_copy_option_file(host, value, Path(draft)) if is_file else value)
        flat = [part for name, values in passed.items() for value in values for part in (name, value) if part]
        target = ["--target", passed["--target"][-1]] if "--target" in passed else []
        codes, outputs = host.run([
            [*program, "finalize", remote_path, *target, "--no-profile", "--json"],
            [*program, "profile", remote_path, *flat, "--json"],
        ])  # fmt: skip
        found = parse_answer(host, codes, outputs, commands=2)
    scenario = "" if found["scenario"] == "single" else f".{found['scenario']}"
    return _store(bundle.with_name(f"{bundle.name}.{host.address.name}{scenario}.profile.json"), found)


def find_edgemae(host: RemoteHost) -> list[str]:
    """Return the command that starts edgemae there. Raises RemoteError, with the line that installs it."""
    found = host.retry(lambda: host.ask("environment"))
    if found["edgemae"] is None:
        raise RemoteError(
            f"{host.address.host} has no edgemae for {found['program']} (Python {found['python']})",
            expected=f"edgemae {__version__} there, with an engine",
            fix="name the interpreter that has it: --remote-python ~/venv/bin/python; or bring a wheel there (pip "
            f"wheel --no-deps . in a checkout) and {found['program']} -m pip install 'WHEEL[camera,onnxruntime]'",
        )
    if found["edgemae"] != __version__:
        log.warning("%s has edgemae %s, here it is %s", host.address.host, found["edgemae"], __version__)
    return [found["program"], "-m", "edgemae"]


def _copy_option_file(host: RemoteHost, value: str, draft: Path) -> str:
    """Copy the file that an option names, alone or behind a kind (`onnx:student.onnx`); a name is left as it is."""
    kind, colon, place = value.partition(":")
    if Path(value).exists():
        return host.copy(_as_file(Path(value), draft))
    if colon and Path(place).exists():
        return f"{kind}:{host.copy(_as_file(Path(place), draft))}"
    return value


def _as_file(path: Path, draft: Path) -> Path:
    """Return a path of one file: a bundle that is a folder is written as the same in one piece."""
    if path.is_file():
        return path
    names = sorted(str(p.relative_to(path).as_posix()) for p in path.rglob("*") if p.is_file())
    order = [MANIFEST, DIGEST, *(name for name in names if name not in (MANIFEST, DIGEST))]
    whole = draft / path.name
    write_zip(whole, {name: (path / name).read_bytes() for name in order})
    return whole


def parse_answer(host: RemoteHost, codes: list[int], outputs: list[str], commands: int = 1) -> dict[str, Any]:
    """Return what the last of so many commands printed; raise the error that it reports, as if it came from here."""
    try:
        found = json.loads(outputs[-1])
        if not isinstance(found, dict) or (len(codes) < commands and "error" not in found):
            raise ValueError("no record")
    except (IndexError, ValueError) as error:
        raise RemoteError(
            f"edgemae on {host.address.host} ended with {codes[-1]} and without a record",
            expected="one JSON object on its stdout",
            fix="see its last lines above; try `edgemae doctor` there",
        ) from error
    if failed := found.get("error"):
        raise error_of({**failed, "what": f"on {host.address.host}: {failed['what']}"})
    return found


def _store(path: Path, found: dict[str, Any]) -> Path:
    """Write the record; where the bundle's folder refuses it, it goes to the cache: the run may have taken hours."""
    data = (json.dumps(found, indent=1) + "\n").encode()
    try:
        store(path, data)
    except StorageError as error:
        path = cache_folder() / "profiles" / path.name
        log.warning("%s: the record goes to the cache", error.what)
        store(path, data)
    log.info("the record is %s", path)
    return path
