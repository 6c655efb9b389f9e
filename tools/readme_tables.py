"""Fill the tables of README.md from the files in tools/results: none of their numbers is typed by hand.

    python tools/readme_tables.py

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; it is what `readme_table`, of the benchmark that made
tools/results/NAME.json, makes of that file.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, results: Path) -> str:
    """Return a page with each table made anew, and under it the command that made its results."""

    def table(match: re.Match[str]) -> str:
        result = json.loads((results / f"{match[2]}.json").read_bytes())
        benchmark = importlib.import_module(Path(result["command"].split()[1]).stem)
        return f"{match[1]}\n{benchmark.readme_table(result)}\n\nMade by `{result['command']}`.\n\n{match[3]}"

    return TABLE.sub(table, page)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(), ROOT / "tools/results"))
