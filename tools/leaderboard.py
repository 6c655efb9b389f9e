"""Many profiles as one table for each device and scenario, the fastest first. INVALID ones are refused.

    python tools/leaderboard.py profiles/*.json
    python tools/leaderboard.py profiles/*.json --by energy --json leaderboard.json

Profiles are of one device when nothing about the machine differs but its libraries: another governor, quota, pinning or
memory is another table, and so is a camera of another rate. Behind a camera the age of the results is what is ranked,
otherwise the whole call. Neighbours whose medians' intervals overlap share a rank. NOISY rows are marked. Rows of one
device were not interleaved, so a ratio between two of them is worth less than `edgemae profile A --baseline B`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from edgemae.profiling.records import Profile, read_profile
from edgemae.spec.errors import EdgemaeError, InputError

# Of a fingerprint: all but the libraries, which belong to what is compared, and the threads, which its target sets.
NO_STATE = ("libraries", "threads")
ORDERS = {"p50": "median", "p99": "99th percentile", "energy": "energy of a call"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "profiles", nargs="+", type=Path, metavar="PROFILE", help="what `edgemae profile --json` printed"
    )
    parser.add_argument("--by", choices=ORDERS, default="p50", help="what is best")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the tables there")
    args = parser.parse_args()
    try:
        boards, refused = collect(args.profiles, args.by)
    except EdgemaeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    for path, why in refused:
        sys.stderr.write(f"refused: {path}: {why}\n")
    sys.stdout.write("\n\n".join(table(board) for board in boards) + "\n")
    if args.json:
        args.json.write_text(json.dumps({"by": args.by, "boards": boards, "refused": refused}, indent=1) + "\n")
    return 0


def collect(paths: list[Path], by: str = "p50") -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Return (boards, refused) of profile files. Raises InputError when nothing is left to compare."""
    groups: dict[str, list[Profile]] = defaultdict(list)
    refused: list[tuple[str, str]] = []
    for path in paths:
        try:
            record = read_profile(path)
        except InputError as error:
            refused.append((str(path), error.what))
            continue
        if record.verdict == "INVALID":
            refused.append((str(path), f"INVALID: {'; '.join(record.reasons)}"))
        elif measured(record, by) is None:
            refused.append((str(path), f"it has no {ORDERS[by]}"))
        else:
            groups[json.dumps([state(record), way(record)], sort_keys=True)].append(record)
    if not groups:
        raise InputError(
            f"nothing is left of {len(paths)} profiles: {'; '.join(f'{path}: {why}' for path, why in refused)}",
            expected="at least one profile that can be believed",
            fix="quiet the machine and profile again",
        )
    boards = [board(records, by) for _, records in sorted(groups.items())]
    return boards, refused


def state(record: Profile) -> dict[str, Any]:
    """Return what makes two machines one device in one state."""
    return {name: value for name, value in record.machine.items() if name not in NO_STATE}


def way(record: Profile) -> str:
    """Return how the calls came: the scenario, and the rate of its camera."""
    return record.scenario + (f" at {record.camera.source_fps:.0f} frames/s" if record.camera else "")


def measured(record: Profile, by: str) -> tuple[float, float, float] | None:
    """Return (value, low, high) of what is compared, None where the profile does not have it."""
    if by == "energy":
        joule = record.power.energy_mj if record.power else None
        return None if joule is None else (joule, joule, joule)
    ranked = record.camera.age if record.camera else record.steady
    row = tuple(getattr(ranked, f"{by}{end}_ms") for end in ("", "_low", "_high"))
    return None if row[0] is None else row


def board(records: list[Profile], by: str) -> dict[str, Any]:
    """Return the table of one device: rows with ranks, best first."""
    rows: list[dict[str, Any]] = []
    best_high, rank = 0.0, 0
    for place, record in enumerate(sorted(records, key=lambda r: measured(r, by) or ()), start=1):
        value, low, high = measured(record, by) or (0.0, 0.0, 0.0)
        if not rows or low > best_high:  # slower than the first of its rank, and shown to be
            rank, best_high = place, high
        libraries = record.machine.get("libraries", {})
        rows.append({
            "rank": rank, "name": record.name, "version": record.version, "engine": record.engine,
            "engine_version": libraries.get(record.engine, ""), "precision": record.precision, "scheme": record.scheme,
            "threads": record.machine.get("threads"), "value": value, "low": low, "high": high,
            "p50_ms": record.steady.p50_ms, "p90_ms": record.steady.p90_ms, "p99_ms": record.steady.p99_ms,
            "fps": record.throughput.fps if record.throughput else None,
            "age_p50_ms": record.camera.age.p50_ms if record.camera else None,
            "age_p99_ms": record.camera.age.p99_ms if record.camera else None,
            "energy_mj": record.power.energy_mj if record.power else None, "verdict": record.verdict,
            "created": record.created, "sha256": record.bundle_sha256,
        })  # fmt: skip
    first = records[0].machine
    return {
        "device": first.get("gpu") or first.get("cpu"), "scenario": way(records[0]),
        "machine": state(records[0]), "rows": rows,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Return one board as Markdown."""
    machine = found["machine"]
    message = [f"{machine.get('cores_usable')} cores", *(machine.get("flags") or ())]
    message += [f"governor {machine['governor']}"] if machine.get("governor") else []
    columns = ("rank", "name", "engine", "precision", "threads", "p50_ms", "p90_ms", "p99_ms", "fps", "age_p50_ms",
               "age_p99_ms", "energy_mj", "verdict")  # fmt: skip
    shown = [c for c in columns if any(row[c] is not None for row in found["rows"])]
    lines = [f"### {found['device']} ({', '.join(message)}), scenario {found['scenario']}", ""]
    lines += [f"| {' | '.join(shown)} |", f"|{' --- |' * len(shown)}"]
    lines += [f"| {' | '.join(cell(row[c]) for c in shown)} |" for row in found["rows"]]
    return "\n".join(lines)


def cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
