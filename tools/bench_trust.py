"""Whether a latency verdict can be believed: planted slowdowns, planted hogs, and another program's clock.

    python tools/bench_trust.py --json tools/results/trust.json
    python tools/bench_trust.py --quick

Four questions, on one ViT-Tiny with random weights in one engine:
- A against A, and against an A that is made 5 % slower: how far from 1.00 and 1.05, how often "different"?
- A verdict beside nothing, beside a process that keeps one core busy, beside one that keeps all of them busy, and under
  a quota of half a core: how often TRUSTED, NOISY, INVALID?
- The median of the inference stage against that of OpenVINO's benchmark_app, in turns: how far apart?
Rates come with Wilson intervals: 20 repeats with none wrong still leave up to 16 % wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from bench_latency import PIXEL, TINY

from edgemae.device.engines import open_session
from edgemae.device.latency import fingerprint, measure, summarise
from edgemae.device.latency.machine import usable_cpus
from edgemae.device.profiling.versus import Contender, versus
from edgemae.export.to_onnx import to_onnx
from edgemae.measure.intervals import wilson
from edgemae.model.vit import ViT
from edgemae.spec.errors import EdgemaeError
from edgemae.spec.target import find_target

TOOLS = Path(__file__).resolve().parent
SLOWER = 0.05
TARGET = "laptop-x86-avx2"  # 2 threads: more than there are cores would switch one another out
HOG = "while True: pass"
QUOTA_V1 = Path("/sys/fs/cgroup/cpu")
QUOTA_V2 = Path("/sys/fs/cgroup")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 repeats of each in place of 20")
    parser.add_argument("--engine", default="openvino", choices=("openvino", "onnxruntime"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    args = parser.parse_args()
    repeats = 4 if args.quick else 20
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TOOLS), os.environ.get("PYTHONPATH", ""))))
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "tiny.onnx"
        torch.manual_seed(0)
        (data,) = to_onnx(ViT(TINY).eval(), PIXEL).files.values()
        graph.write_bytes(data)
        result = {
            "command": shlex.join(["python", "tools/bench_trust.py", *sys.argv[1:]]),
            "engine": args.engine, "repeats": repeats,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "ratios": [ratios(graph, args.engine, share, repeats) for share in (0.0, SLOWER)],
            "verdicts": verdicts(graph, args.engine, repeats),
            "benchmark_app": agreement(graph, 3 if args.quick else 10) if args.engine == "openvino" else None,
            "machine": fingerprint(),
        }  # fmt: skip
    if args.json is not None:
        args.json.write_text(json.dumps(msgspec.to_builtins(result), indent=1) + "\n")
    print(table(result))
    return 0


# ---------------------------------------------------------------- ratios


def ratios(graph: Path, engine: str, share: float, repeats: int) -> dict[str, Any]:
    """Return what repeated comparisons say of A against an A that is slower by `share`."""

    def contender(slower: float) -> Contender:
        job = json.dumps({"graph": str(graph), "engine": engine, "px": PIXEL.image_px, "slower": slower})
        return Contender("planted", job, target=TARGET, module="planted_contender")

    rows = []
    for number in range(repeats):
        found, evidence = versus(contender(0.0), contender(share))
        rows.append({"ratio": found.ratio, "low": found.ratio_low, "high": found.ratio_high,
                     "different": found.different, "verdict": evidence.verdict})  # fmt: skip
        say(f"{share:.0%} slower, {number + 1} of {repeats}: {found.ratio:.4f}, {evidence.verdict}")
    return {"slower": share, "all": rate_of(rows, 1 + share),
            "trusted": rate_of([r for r in rows if r["verdict"] == "TRUSTED"], 1 + share), "rows": rows}  # fmt: skip


def rate_of(rows: list[dict[str, Any]], expected: float) -> dict[str, Any]:
    """Return how often a difference was found, and how far from `expected` the ratios lie."""
    if not rows:
        return {"n": 0}
    off = [abs(row["ratio"] / expected - 1) for row in rows]
    found = sum(row["different"] for row in rows)
    return {"n": len(rows), "different": found, "interval": wilson(found, len(rows)), "worst_off": max(off),
            "median_off": float(np.median(off))}  # fmt: skip


# ---------------------------------------------------------------- verdicts


def verdicts(graph: Path, engine: str, repeats: int) -> list[dict[str, Any]]:
    """Return how often each verdict falls beside each kind of company."""
    everyone = sorted(usable_cpus())
    company: dict[str, Callable[[], Any]] = {
        "nothing": lambda: hogs([]), "a busy core": lambda: hogs(everyone[:1]), "all cores busy": lambda: hogs(everyone)
    }  # fmt: skip
    if quota_folder() is not None:
        company["a quota of half a core"] = quota
    rows = []
    with open_session(engine, {"graph.onnx": graph.read_bytes()}, find_target(TARGET)) as session:
        pixels = np.zeros((1, 3, PIXEL.image_px, PIXEL.image_px), np.float32)
        for name, lent in company.items():
            counts: Counter[str] = Counter()
            reasons: Counter[str] = Counter()
            for _ in range(repeats):
                with lent():
                    evidence = measure(lambda: session(pixels), min_runs=100, min_seconds=3.0).interference
                counts[evidence.verdict] += 1
                reasons.update(reason.lstrip("0123456789.% ") for reason in evidence.reasons)
            rows.append({"beside": name, "n": repeats, **{v: counts[v] for v in ("TRUSTED", "NOISY", "INVALID")},
                         "reasons": dict(reasons)})  # fmt: skip
            say(f"beside {name}: {dict(counts)}")
    return rows


@contextmanager
def hogs(cpus: list[int]) -> Iterator[None]:
    """Keep processors busy with a loop each."""
    started = [subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{cpu}}})\n{HOG}"])
               for cpu in cpus]  # fmt: skip
    try:
        time.sleep(0.5 if started else 0.0)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def quota_folder() -> Path | None:
    """Return where a control group with a processor quota can be made here, if it can."""
    for root, file in ((QUOTA_V1, "cpu.cfs_quota_us"), (QUOTA_V2, "cgroup.subtree_control")):
        if os.access(root, os.W_OK) and (root / file).exists():
            return root
    return None


@contextmanager
def quota() -> Iterator[None]:
    """Put this process into a control group that may use half a core."""
    root = quota_folder()
    assert root is not None
    group = root / "edgemae-bench-trust"
    group.mkdir(exist_ok=True)
    if root == QUOTA_V1:
        (group / "cpu.cfs_quota_us").write_text("50000")
    else:
        (group / "cpu.max").write_text("50000 100000")
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (root / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


# ---------------------------------------------------------------- another program's clock


def agreement(graph: Path, rounds: int) -> dict[str, Any]:
    """Return the ratio of our median to benchmark_app's, taken in turns (ours, theirs, theirs, ours)."""
    target, pixels = find_target(TARGET), np.zeros((1, 3, PIXEL.image_px, PIXEL.image_px), np.float32)
    ours, theirs = [], []

    def mine() -> float:
        with open_session("openvino", {"graph.onnx": graph.read_bytes()}, target) as session:
            return summarise(measure(lambda: session(pixels), min_runs=100, min_seconds=3.0).ns).p50_ms

    for number in range(rounds):
        pair = [mine, lambda: benchmark_app(graph, target.threads)]
        for take in pair if number % 2 == 0 else reversed(pair):
            (ours if take is mine else theirs).append(take())
        say(f"benchmark_app, {number + 1} of {rounds}: ours {ours[-1]:.3f} ms, theirs {theirs[-1]:.3f} ms")
    logs = np.log(np.array(ours) / np.array(theirs))
    return {"rounds": rounds, "ours_ms": ours, "theirs_ms": theirs, "ratio": float(np.exp(np.median(logs))),
            "low": float(np.exp(logs.min())), "high": float(np.exp(logs.max()))}  # fmt: skip


def benchmark_app(graph: Path, threads: int) -> float:
    """Return the median latency in ms that OpenVINO's own tool reports for the same graph and settings."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(Path(sys.executable).with_name("benchmark_app")), "-m", str(graph), "-d", "CPU", "-api", "sync",
            "-hint", "none", "-nstreams", "1", "-nthreads", str(threads), "-infer_precision", "f32", "-t", "3",
            "-json_stats", "-report_type", "no_counters", "-report_folder", folder,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        (report,) = Path(folder).glob("*.json")
        return float(json.loads(report.read_text())["execution_results"]["latency (ms)"])


# ---------------------------------------------------------------- table


def table(result: dict[str, Any]) -> str:
    head = ("A against", "comparisons", "called different", "furthest off", "of those TRUSTED", "different", "off")
    lines = [f"| {' | '.join(head)} |", "| --- | ---: | --- | ---: | ---: | --- | ---: |"]
    for row in result["ratios"]:
        name = "itself" if not row["slower"] else f"{row['slower']:.0%} slower"
        lines.append(f"| {name} | {cells(row['all'])} | {cells(row['trusted'])} |")
    lines += ["", "| Beside | measurements | TRUSTED | NOISY | INVALID |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {row['beside']} | {row['n']} | {row['TRUSTED']} | {row['NOISY']} | {row['INVALID']} |"
        for row in result["verdicts"]
    ]
    if found := result["benchmark_app"]:
        said = (
            f"Our inference median is {found['ratio']:.3f} times that of OpenVINO's benchmark_app "
            f"({found['low']:.3f} to {found['high']:.3f} over {found['rounds']} rounds in turns)."
        )
        lines += ["", said]
    return "\n".join(lines)


def cells(rate: dict[str, Any]) -> str:
    if not rate["n"]:
        return "0 | – | –"
    low, high = rate["interval"]
    return f"{rate['n']} | {rate['different']} ({low:.0%} to {high:.0%}) | {rate['worst_off']:.1%}"


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgemaeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
