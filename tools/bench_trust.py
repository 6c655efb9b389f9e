"""Whether a latency verdict can be believed: planted slowdowns, planted hogs, and another program's clock.

    python tools/bench_trust.py --json tools/results/trust.json
    python tools/bench_trust.py --quick

Four questions, on one ViT-Tiny with random weights in one engine:
- A/A tests, and A/B tests beside an A that is made 5 % slower: how far from 1.00 and 1.05, how often "different"?
- A verdict beside nothing, beside a process that keeps one core busy, beside one that keeps all of them busy, and under
  a quota of half a core: how often TRUSTED, NOISY, INVALID?
- The median of the inference stage of `edgemae profile` against that of OpenVINO's benchmark_app, of the graph of the
  same bundle, interleaved: how far apart?
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
from bench_latency import PIXEL
from support.as_command import as_command
from support.tiny_bundles import GRAPH, tiny_bundle

from edgemae.device.engines import open_session
from edgemae.device.hardware.cpu_affinity import usable_cores
from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.evaluation.intervals import wilson
from edgemae.profiling.compare.ab_test import ABSide, ab_test
from edgemae.profiling.profiler import profile
from edgemae.profiling.timing.timer import measure
from edgemae.spec.bundle import open_bundle
from edgemae.spec.target import find_target

TOOLS = Path(__file__).resolve().parent
SLOWER = 0.05
TARGET = "laptop-x86-avx2"  # 2 threads: more than there are cores would switch one another out
PARTS = ("ratios", "verdicts", "benchmark_app")
HOG = "while True: pass"
QUOTA_V1 = Path("/sys/fs/cgroup/cpu")
QUOTA_V2 = Path("/sys/fs/cgroup")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 repeats of each in place of 20")
    parser.add_argument("--engine", default="openvino", choices=("openvino", "onnxruntime"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these anew, keep the others of --json")
    args = parser.parse_args()
    if args.only and args.json is None:
        parser.error("--only wants --json, the earlier results")
    repeats = 4 if args.quick else 20
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TOOLS), os.environ.get("PYTHONPATH", ""))))
    result: dict[str, Any] = {
        "command": shlex.join(["python", "tools/bench_trust.py", *sys.argv[1:]]), "engine": args.engine,
        "repeats": repeats, "machine": fingerprint(), "created": {},
    }  # fmt: skip
    if args.only:
        before = json.loads(args.json.read_bytes())
        if any(before[name] != result[name] for name in ("engine", "repeats")):
            parser.error("--only wants the engine and the repeats of the earlier results")
        result = before
    with tempfile.TemporaryDirectory() as folder:
        bundle = tiny_bundle(Path(folder) / "tiny.edgemae", args.engine, find_target(TARGET))
        graph = Path(folder) / "tiny.onnx"
        graph.write_bytes(open_bundle(bundle).read(GRAPH))
        parts: dict[str, Callable[[], Any]] = {
            "ratios": lambda: [ratios(graph, args.engine, share, repeats) for share in (0.0, SLOWER)],
            "verdicts": lambda: verdicts(graph, args.engine, repeats),
            "benchmark_app": lambda: agreement(bundle, graph, 3 if args.quick else 10)
            if args.engine == "openvino" else None,
        }  # fmt: skip
        for name in args.only or parts:
            result[name] = parts[name]()
            result["created"][name] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            if args.json is not None:  # after every part: a long run that is stopped keeps what it has
                args.json.write_text(json.dumps(msgspec.to_builtins(result), indent=1) + "\n")
    print(readme_table(result))
    return 0


# ---------------------------------------------------------------- ratios


def ratios(graph: Path, engine: str, share: float, repeats: int) -> dict[str, Any]:
    """Return what repeated A/B tests say of A beside an A that is slower by `share`."""

    def side(slower: float) -> ABSide:
        job = json.dumps({"graph": str(graph), "engine": engine, "px": PIXEL.image_px, "slower": slower})
        return ABSide("planted", job, target=TARGET, module="support.planted_baseline")

    rows = []
    for number in range(repeats):
        found, evidence = ab_test(side(0.0), side(share))
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
    everyone = sorted(usable_cores())
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
    group, name, home = root / "edgemae-bench-trust", "cpu" if root == QUOTA_V1 else "", root
    for line in Path("/proc/self/cgroup").read_text().splitlines():  # number:controllers:/folder
        if name in line.split(":")[1].split(","):
            home = root / line.split(":", 2)[2].lstrip("/")
    group.mkdir(exist_ok=True)
    try:
        if root == QUOTA_V1:
            (group / "cpu.cfs_quota_us").write_text("50000")
        else:
            (group / "cpu.max").write_text("50000 100000")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


# ---------------------------------------------------------------- another program's clock


def agreement(bundle: Path, graph: Path, rounds: int) -> dict[str, Any]:
    """Return the ratio of our inference stage's median to benchmark_app's, interleaved (ours, theirs, theirs, ours)."""
    ours: list[float] = []
    theirs: list[float] = []
    verdicts_: list[str] = []

    def mine() -> None:
        found = profile(bundle)
        ours.append(found.stages["infer"].p50_ms)
        verdicts_.append(found.verdict)

    def other() -> None:
        theirs.append(benchmark_app(graph, find_target(TARGET).threads))

    for number in range(rounds):
        for take in (mine, other) if number % 2 == 0 else (other, mine):
            take()
        say(f"benchmark_app, {number + 1} of {rounds}: ours {ours[-1]:.3f} ms, theirs {theirs[-1]:.3f} ms, "
            f"{verdicts_[-1]}")  # fmt: skip
    ratios_ = [a / b for a, b in zip(ours, theirs, strict=True)]
    trusted = [ratio for ratio, verdict in zip(ratios_, verdicts_, strict=True) if verdict == "TRUSTED"]
    return {"rounds": rounds, "ours_ms": ours, "theirs_ms": theirs, "verdicts": verdicts_, "all": spread(ratios_),
            "trusted": spread(trusted)}  # fmt: skip


def spread(values: list[float]) -> dict[str, Any]:
    """Return the median of some ratios and how far they lie apart."""
    if not values:
        return {"n": 0}
    return {"n": len(values), "ratio": float(np.median(values)), "low": min(values), "high": max(values)}


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


def readme_table(result: dict[str, Any]) -> str:
    head = ("A beside", "comparisons", "called different", "furthest off", "of those TRUSTED", "different", "off")
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
        lines += ["", "| Inference stage / benchmark_app, p50 | interleaved rounds | median | lowest | highest |",
                  "| --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
        for name, row in (("all", found["all"]), ("of those TRUSTED", found["trusted"])):
            figures = [f"{row[key]:.3f}" if row["n"] else "–" for key in ("ratio", "low", "high")]
            lines.append(f"| {name} | {row['n']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def cells(rate: dict[str, Any]) -> str:
    if not rate["n"]:
        return "0 | – | –"
    low, high = rate["interval"]
    return f"{rate['n']} | {rate['different']} ({low:.0%} to {high:.0%}) | {rate['worst_off']:.1%}"


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    as_command(main)
