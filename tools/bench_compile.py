"""The whole way on a folder of images: teacher, student, pruned, int8, and every engine beside torch eager.

    python tools/bench_compile.py --data clothing10 --output runs/clothing10 --json tools/results/clothing10.json
    python tools/bench_compile.py --quick

`--data` holds train/<class>/*, val/<class>/* and unlabelled/*. Finished stages of `--output` are kept, latency is
always measured anew. `--quick` takes scikit-learn's digits with a third of the demo's epochs.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from edgemae.evaluation.report.report import markdown_table
from edgemae.evaluation.report.tables import choices
from edgemae.pipeline.compile import CompileResult, compile_bundles
from edgemae.pipeline.demo import PLAN, run_demo
from edgemae.spec.errors import EdgemaeError
from edgemae.spec.plan_loading import load_plan
from edgemae.spec.report import Report
from edgemae.spec.target import find_target

ROOT = Path(__file__).resolve().parent.parent
STAGE_COLUMNS = ("Model", "Top-1", "Drop (points)", "Parameters", "MACs", "Size")
ENGINE_COLUMNS = ("Engine", "Precision", "p50", "× torch eager", "Cosine", "Top-1", "Size", "Choice")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/, val/ and unlabelled/")
    parser.add_argument("--teacher", type=Path, default=ROOT / "examples/teachers/clothing10-mae.safetensors")
    parser.add_argument("--plan", type=Path, default=ROOT / "examples/plan.toml")
    parser.add_argument("--target", default="laptop-x86-vnni")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-compile"))
    parser.add_argument("--quick", action="store_true", help="digits, ends within 5 minutes on two cores")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        if not args.quick and args.data is None:
            parser.error("--data is needed, or --quick")
        began = time.monotonic()
        built = quick(args.target) if args.quick else full(args)
    except EdgemaeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    command = shlex.join(["python", "tools/bench_compile.py", *sys.argv[1:]])
    result = {"command": command, "seconds": round(time.monotonic() - began, 1), **msgspec.to_builtins(built.report)}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    sys.stdout.write(tables(built.report) + "\n")
    return 0


def quick(target: str) -> CompileResult:
    """Compile the digits with a third of the demo's epochs, in a folder that is removed."""
    fewer = tuple(f"{key}={max(1, PLAN[key] // 3)}" for key in PLAN if key.endswith("epochs"))
    with tempfile.TemporaryDirectory() as folder:
        return run_demo(Path(folder) / "digits", find_target(target), fewer, None, overwrite=False)


def full(args: argparse.Namespace) -> CompileResult:
    """Compile the given folder; old latency stages are dropped so that this run measures."""
    for stale in (args.output / "stages").glob("latency-*"):
        shutil.rmtree(stale)
    folders = {"data.train": "train", "data.eval": "val", "data.unlabelled": "unlabelled"}
    plan = load_plan(args.plan, (), {key: str(args.data / name) for key, name in folders.items()})
    return compile_bundles(plan, [find_target(args.target)], args.teacher, args.output)[0]


def readme_table(result: dict[str, Any]) -> str:
    """Return both tables of a results file as Markdown."""
    return tables(msgspec.convert({k: v for k, v in result.items() if k not in ("command", "seconds")}, Report))


def tables(report: Report) -> str:
    stages = markdown_table(report, "stages", STAGE_COLUMNS)
    reasons = "\n".join(f"- {sentence}" for sentence in choices(report))
    return f"{stages}\n\n{markdown_table(report, 'engines', ENGINE_COLUMNS)}\n\n{reasons}"


if __name__ == "__main__":
    sys.exit(main())
