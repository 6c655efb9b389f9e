"""A profile kept in the bundle that it is of: its JSON, its page, and a line in the manifest."""

from __future__ import annotations

import hashlib
import logging
from html import escape
from pathlib import Path

import msgspec

from edgemae.device.engine_cache import cache_folder
from edgemae.profiling.output.html_report import page
from edgemae.profiling.records import Profile, store
from edgemae.spec.bundle import amend_bundle, open_bundle
from edgemae.spec.errors import StorageError
from edgemae.spec.report import ProfileSummary

REPORT = "report.html"
PLACE = ("<!-- profiles -->", "<!-- /profiles -->")  # in the report, for the table of profiles
COLUMNS = ("Device", "Engine", "Scenario", "p50", "Runs", "Verdict", "Taken")
MOST = 8  # profiles that a bundle carries; the oldest go first
log = logging.getLogger("edgemae.device")


def keep(path: Path, record: Profile) -> str:
    """Put a profile into its bundle, in place of an older one of the same machine and scenario; return where its page
    lies.

    That is a name within the bundle, which is a folder or a zip. An INVALID profile replaces no better one: the page of
    that one is returned, and the log says so.

    A bundle on a read-only or full disk stays as it is: the profile then lies in the cache folder, and the log says so.
    """
    name = f"profiles/{_machine(record)}" + ("" if record.scenario == "single" else f"-{record.scenario}")
    parts = {".json": msgspec.json.format(msgspec.json.encode(record)), ".html": page(record).encode()}
    row = ProfileSummary(
        file=f"{name}.json", device=str(record.machine.get("gpu") or record.machine.get("cpu") or "unknown"),
        engine=record.engine, precision=record.precision, scenario=record.scenario, verdict=record.verdict,
        p50_ms=record.steady.p50_ms, p90_ms=record.steady.p90_ms, p99_ms=record.steady.p99_ms, n=record.steady.n,
        created=record.created,
    )  # fmt: skip
    bundle = open_bundle(path)
    before = next((old for old in bundle.manifest.profiles if old.file == row.file), row)
    if record.verdict == "INVALID" != before.verdict:
        why = "; ".join(record.reasons)
        log.warning("the %s profile in '%s' stays: the new one is INVALID (%s)", before.verdict, path, why)
        return f"{name}.html"
    rows = [*(old for old in bundle.manifest.profiles if old.file != row.file), row]
    gone = {end for old in rows[:-MOST] for end in (old.file, old.file.removesuffix(".json") + ".html")}
    added = {name + end: part for end, part in parts.items()}
    if REPORT in bundle.manifest.files:
        added[REPORT] = linked(bundle.read(REPORT).decode(), rows[-MOST:]).encode()
    try:
        amend_bundle(path, added, gone, profiles=tuple(rows[-MOST:]))
    except (StorageError, PermissionError) as error:
        stem = cache_folder() / "profiles" / f"{record.name}-{record.bundle_sha256[:12]}"
        for end, part in parts.items():
            store(Path(f"{stem}{end}"), part)
        log.warning("the profile could not be put into '%s' (%s): it lies in %s", path, error, stem.parent)
        return f"{stem}.html"
    return f"{name}.html"


def linked(report: str, rows: list[ProfileSummary]) -> str:
    """Return the bundle's report with a table of its profiles, each a link to its page; one without a place for it
    stays as it is."""
    head, mark, rest = report.partition(PLACE[0])
    _, end, tail = rest.partition(PLACE[1])
    if not end:
        return report
    lines = "".join(
        f'<tr><th scope="row" class="free"><a href="{escape(row.file.removesuffix(".json"))}.html">{escape(row.device)}'
        f"</a></th><td>{escape(row.engine)} {escape(row.precision)}</td><td>{escape(row.scenario)}</td>"
        f"<td>{row.p50_ms:.2f} ms</td><td>{row.n}</td><td>{escape(row.verdict)}</td><td>{escape(row.created)}</td></tr>"
        for row in reversed(rows)
    )
    header = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    table = f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{lines}</tbody></table></div>'
    return f"{head}{mark}<section><h2>Profiles on devices</h2>{table}</section>{end}{tail}"


def _machine(record: Profile) -> str:
    """Return a short name of the machine and its state."""
    return hashlib.sha256(msgspec.json.encode(record.machine, order="sorted")).hexdigest()[:12]
