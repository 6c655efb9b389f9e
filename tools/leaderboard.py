"""Many profiles as one table for each device and scenario, the fastest first. INVALID ones are refused.

    python tools/leaderboard.py profiles/*.json
    python tools/leaderboard.py profiles/*.json --by energy --json leaderboard.json

Profiles are of one device when nothing about the machine differs but its libraries: another governor, quota or memory
is another table. Neighbours whose medians' intervals overlap share a rank. NOISY rows are marked. Rows of one device
were not taken in turns, so a ratio between two of them is worth less than `edgemae profile A --against B`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from edgemae.device.profiling.record import Profile, read_profile
from edgemae.spec.errors import EdgemaeError, InputError

STATE = ("cpu", "cpu_id", "arch", "flags", "microcode", "governor", "cores", "cores_usable", "cpu_quota", "memory_mib",
         "gpu", "power_mode", "environment", "kernel", "os")  # fmt: skip
ORDERS = {"p50": "steady median", "p99": "steady 99th percentile", "energy": "energy of a call"}


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
        record = read_profile(path)
        if record.verdict == "INVALID":
            refused.append((str(path), f"INVALID: {'; '.join(record.reasons)}"))
        elif measured(record, by) is None:
            refused.append((str(path), f"it has no {ORDERS[by]}"))
        else:
            device = {name: record.machine.get(name) for name in STATE}
            groups[json.dumps([device, record.scenario], sort_keys=True)].append(record)
    if not groups:
        raise InputError(
            f"nothing is left of {len(paths)} profiles: {'; '.join(f'{path}: {why}' for path, why in refused)}",
            expected="at least one profile that can be believed",
            fix="quiet the machine and profile again",
        )
    boards = [board(records, by) for _, records in sorted(groups.items())]
    return boards, refused


def measured(record: Profile, by: str) -> tuple[float, float, float] | None:
    """Return (value, low, high) of what is compared, None where the profile does not have it."""
    if by == "energy":
        joule = record.power.energy_mj if record.power else None
        return None if joule is None else (joule, joule, joule)
    row = tuple(getattr(record.steady, f"{by}{end}_ms") for end in ("", "_low", "_high"))
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
            "age_p99_ms": record.camera.age.p99_ms if record.camera else None,
            "energy_mj": record.power.energy_mj if record.power else None, "verdict": record.verdict,
            "created": record.created, "sha256": record.bundle_sha256,
        })  # fmt: skip
    first = records[0].machine
    return {
        "device": first.get("gpu") or first.get("cpu"), "scenario": records[0].scenario,
        "machine": {name: first.get(name) for name in STATE}, "rows": rows,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Return one board as Markdown."""
    machine = found["machine"]
    state = [f"{machine['cores_usable']} cores", *(machine["flags"] or ())]
    state += [f"governor {machine['governor']}"] if machine["governor"] else []
    columns = ("rank", "name", "engine", "precision", "threads", "p50_ms", "p90_ms", "p99_ms", "fps", "age_p99_ms",
               "energy_mj", "verdict")  # fmt: skip
    shown = [c for c in columns if any(row[c] is not None for row in found["rows"])]
    lines = [f"### {found['device']} ({', '.join(state)}), scenario {found['scenario']}", ""]
    lines += [f"| {' | '.join(shown)} |", f"|{' --- |' * len(shown)}"]
    lines += [f"| {' | '.join(cell(row[c]) for c in shown)} |" for row in found["rows"]]
    return "\n".join(lines)


def cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
