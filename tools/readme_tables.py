"""Fill the tables of README.md and docs/benchmarks.md from tools/results: none of their numbers is typed by hand.

    python tools/readme_tables.py            write both pages
    python tools/readme_tables.py --check    exit 1 when one of them is not current

Between `<!-- table: NAME -->` and `<!-- end -->` stands what `readme_table`, of the benchmark that made
tools/results/NAME.json, makes of that file. Between `<!-- summary: NAME -->` and `<!-- end -->` stand a few rows of a
compile's report.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
TABLE = re.compile(r"(<!-- (table|summary): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
DASH = "–"


def filled(page: str, results: Path) -> str:
    """Return a page with each table made anew, and under it the command that made its results."""

    def table(match: re.Match[str]) -> str:
        opening, kind, name, closing = match.groups()
        result = json.loads((results / f"{name}.json").read_bytes())
        benchmark = importlib.import_module(Path(result["command"].split()[1]).stem)
        text = benchmark.readme_table(result) if kind == "table" else summary(result)
        return f"{opening}\n{text}\n\nMade by `{result['command']}`.\n\n{closing}"

    return TABLE.sub(table, page)


def summary(report: dict[str, Any]) -> str:
    """Return one row a model of a compile's report: accuracy, size, and the latency on its fastest engine."""
    rows = [
        "| Model | Top-1 | Drop (points) | MACs | Size | Fastest engine, p50 | × torch eager |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for stage in report["stages"]:
        row = (stage["stage"], *_accuracy(stage), *_latency(report, stage["stage"]))
        rows.append(f"| {' | '.join(row)} |")
    machine, verdicts = report["machine"], {row["verdict"] for row in report["engines"]}
    noise = next((name for name in ("INVALID", "NOISY") if name in verdicts), "TRUSTED")
    where = f"Latencies: {machine['cpu']}, {machine['cores']} cores, {report['created'][:10]}, verdict {noise}."
    return "\n".join([*rows, "", where])


def _accuracy(stage: dict[str, Any]) -> tuple[str, str, str, str]:
    low, high = (100 * stage[name] for name in ("top1_low", "top1_high"))
    drop = "reference" if stage["stage"] == "student" else DASH
    if stage["drop_pts"] is not None:
        drop = f"{stage['drop_pts']:+.2f} ({stage['drop_low_pts']:+.2f} to {stage['drop_high_pts']:+.2f})"
    sizes = f"{stage['macs'] / 1e6:.0f} M", f"{stage['size_bytes'] / 2**20:.2f} MiB"
    return f"{100 * stage['top1']:.1f} % ({low:.1f} to {high:.1f})", drop, *sizes


def _latency(report: dict[str, Any], stage: str) -> tuple[str, str]:
    """Return latency and speed-up of a stage. Of the float stages the last one is measured, in fp32."""
    stages = [row["stage"] for row in report["stages"]]
    int8 = [name for name in stages if name.startswith("int8")]
    measured = {[name for name in stages if name not in int8][-1]: "fp32"} | dict.fromkeys(int8[-1:], "int8")
    rows = [
        row for row in report["engines"] if row["engine"] != "torch-eager" and row["precision"] == measured.get(stage)
    ]
    if not rows:
        return DASH, DASH
    best = min(rows, key=lambda row: row["p50_ms"])
    ratio = f"{best['ratio_to_torch_eager']:.2f}× ({best['ratio_low']:.2f} to {best['ratio_high']:.2f})"
    return f"{best['engine']} {best['precision']}, {best['p50_ms']:.3f} ms", ratio


def main(arguments: list[str]) -> int:
    pages = {path: filled(path.read_text(encoding="utf-8"), ROOT / "tools" / "results") for path in PAGES}
    if arguments == ["--check"]:
        stale = [path.name for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
        if stale:
            sys.stderr.write(f"not current: {', '.join(stale)}; run `python tools/readme_tables.py`\n")
        return 1 if stale else 0
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
