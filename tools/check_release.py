"""Hand what other people might to an installed wheel, and see that every case ends as it has to.

    python tools/check_release.py                       # builds the wheel, makes the demo, runs all cases: some minutes
    python tools/check_release.py --only manifest --demo runs/demo --json release.json

Prints a table: how each case ended, after how many seconds, with how much memory. Exit 1 when one is wrong. No case may
end as a bug of edgemae, by a signal, after more than 10 s or with more than 1 GiB, or print what
a terminal would act on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from support import release_bundles, release_inputs
from support.as_command import as_command
from support.release_case import CASES
from support.release_runner import Workbench, installed

from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.terminal.progress import progress

SOURCES = (release_bundles, release_inputs)  # whose import filled CASES


def main(argv: list[str] | None = None) -> int:
    """Run the cases; return 1 when one of them is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="wheel to check; default: one built from this checkout")
    parser.add_argument(
        "--demo", type=Path, help="folder of a finished `edgemae demo`; default: made here, a minute or two"
    )
    parser.add_argument("--only", default="", help="part of `area: name`")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    asked = parser.parse_args(argv)
    chosen = [case for case in CASES if asked.only in f"{case.area}: {case.name}"]
    with tempfile.TemporaryDirectory(prefix="edgemae-release-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # some cases run as another user
        python = installed(asked.wheel, folder)
        bench = Workbench(python, folder, (asked.demo or folder / "demo").resolve())
        if asked.demo is None and (made := bench.edgemae("demo", "--output", bench.demo, killed_s=1200.0)).code:
            print(made.err, file=sys.stderr)
            return 1
        rows = []
        with progress("cases", len(chosen), shown=True) as counter:
            for case in chosen:
                outcome = case.run(bench.fresh(f"{case.area} {case.name}"))
                if wrong := case.faults(outcome):
                    print(ascii(f"{case.area}: {case.name}: {'; '.join(wrong)}")[1:-1], file=sys.stderr)
                rows.append({
                    "area": case.area, "case": case.name, "code": outcome.code, "wrong": wrong,
                    "seconds": round(outcome.seconds, 2), "peak_mib": round(outcome.peak_mib),
                    "first_line": outcome.first_line,
                })  # fmt: skip
                counter.advance(1)
    print_table(rows)
    if asked.json:
        asked.json.write_text(json.dumps({"machine": fingerprint(), "rows": rows}, indent=1))
    return int(any(row["wrong"] for row in rows))


def print_table(rows: list[dict[str, object]]) -> None:
    """Print a row a case, and how many are wrong in each area."""
    table = Table("Area", "Case", "Exit", "s", "MiB", "Wrong", "First line")
    for row in rows:
        cells = [row["area"], row["case"], row["code"], row["seconds"], row["peak_mib"], "; ".join(row["wrong"])]  # type: ignore[arg-type]
        table.add_row(*(escape(ascii(str(cell))[1:-1]) for cell in (*cells, str(row["first_line"])[:70])))
    Console(width=190).print(table)
    all_of, wrong = Counter(row["area"] for row in rows), Counter(row["area"] for row in rows if row["wrong"])
    print("; ".join(f"{area}: {wrong[area]} of {count} wrong" for area, count in all_of.items()))


if __name__ == "__main__":
    as_command(main)
