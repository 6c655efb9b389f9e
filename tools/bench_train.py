"""Speed of training, from files on disk to the optimiser's step: ours beside transformers' ViTMAEForPreTraining.

    python tools/bench_train.py --quick --json train.json
    python tools/bench_train.py --threads 1 --data clothing10/train --json tools/results/train.json
    python tools/bench_train.py --threads 1 --only-large --json tools/results/train-large.json

Both compute the same loss (checked first, with the same weights and masks) with the same batch, precision and AdamW, in
turns. A ratio above 1 is faster than the reference. Those of bare steps and MFU are of processor time, which other work
on the machine hardly moves; wall time is beside them. Those from files are of wall time, of a fresh process for each
candidate and turn, whose peak of memory is its own. transformers attends in bf16 the way that is faster on a processor,
eagerly: torch's fused kernel, its default, is slow there.
transformers starts its positions at zero and frozen, which no speed depends on; the check sets them.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from support.as_command import as_command
from support.train_baselines import (
    CASES,
    LARGE,
    MAKERS,
    OURS,
    SHORT,
    SMALL,
    TEACHER,
    THEIRS,
    TINY,
    Candidate,
    Case,
    gemm_peak,
    memory_batch,
    parity,
    recipe,
)
from support.train_files import from_files, pictures
from support.train_goals import judge, lines
from support.train_tables import TABLES, readme_table  # noqa: F401
from torch import nn

from edgemae.data.loader import Batch
from edgemae.device.hardware.cpu_affinity import usable_cores
from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.distill.recipes import RECIPES
from edgemae.profiling.stats.comparison import Blocks, ratio
from edgemae.profiling.stats.percentiles import summarise
from edgemae.profiling.timing.interference import combined_verdict
from edgemae.profiling.timing.timer import LEAD_RUNS, Samples, interleave
from edgemae.train.distributed import bf16_is_fast
from edgemae.train.schedule import param_groups
from edgemae.train.step_context import whole

SCHEMA = "edgemae.bench-train/2"


@dataclass(frozen=True)
class Effort:
    """State what a run takes in: (case, candidates), the reference last, of bare steps and of steps from files."""

    bare: tuple[tuple[Case, tuple[str, ...]], ...]
    files: tuple[tuple[Case, tuple[str, ...]], ...]
    steps: int
    pictures: int
    rounds: int = 1  # turns that the candidates from files take


MAE_PAIR, RELATION_PAIR = (OURS, THEIRS), ("relation", OURS)
LESS = replace(SMALL, batch=32, rounds=8)
QUICK = Effort(
    ((LESS, MAE_PAIR), (LESS, RELATION_PAIR)), ((SMALL, (OURS, "relation", THEIRS)),), steps=15, pictures=256
)  # fmt: skip
FULL = Effort(
    (
        (SMALL, MAE_PAIR), (SMALL, RELATION_PAIR), (replace(TINY, batch=8), MAE_PAIR),
        (replace(TEACHER, batch=32), MAE_PAIR),
        (replace(LARGE, batch=2), RELATION_PAIR),
    ),
    ((SMALL, (OURS, "relation", THEIRS)), (TEACHER, MAE_PAIR)), steps=60, pictures=1024, rounds=3,
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest shapes only, within 5 minutes")
    parser.add_argument("--large", action="store_true", help="also one step of every recipe, ViT-Large to ViT-Tiny")
    parser.add_argument("--only-large", action="store_true", help="nothing but those steps")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--data", type=Path, help="folder of images; made up ones otherwise")
    parser.add_argument("--threads", type=int, default=len(usable_cores()), help="of torch")
    parser.add_argument("--note", default="", help="a sentence about the machine that goes into the results")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        print(json.dumps(child(*args.child)))
        return 0
    command = shlex.join(["python", "tools/bench_train.py", *shown(sys.argv[1:])])
    result = {
        "schema": SCHEMA, "command": command, "threads": args.threads, "note": args.note,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": fingerprint() | {"torch": torch.__version__},
    }  # fmt: skip
    for part, value in measure(args):
        result[part] = value
        result["goals"] = judge(result)
        print("\n".join(TABLES[part](value)), flush=True)
        if args.json is not None:  # after every part: a long run that is stopped keeps what it has
            args.json.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(lines(result["goals"])))
    return int(args.check and not all(goal["met"] for goal in result["goals"]))


def shown(arguments: Sequence[str]) -> list[str]:
    """Return the command line without the folders of this machine."""
    return [Path(word).name if word.startswith("/") else word for word in arguments]


def measure(args: argparse.Namespace) -> Any:
    """Yield (part, its result) as they come."""
    effort = QUICK if args.quick else FULL
    if not args.only_large:
        yield from usual(args, effort)
    large = []
    for name in RECIPES if args.large or args.only_large else ():
        large.append(spawn(args, "large", name))
        yield "large", large


def usual(args: argparse.Namespace, effort: Effort) -> Any:
    kinds = (torch.float32, torch.bfloat16) if bf16_is_fast(torch.device("cpu")) else (torch.float32,)
    peaks = {kind: gemm_peak(kind) for kind in kinds}
    yield "gemm_peak_gmacs_s", {SHORT[kind]: peak / 1e9 for kind, peak in peaks.items()}
    yield "parity", {case.name: parity(case) for case, names in effort.bare if names == MAE_PAIR}
    groups = []
    for case, names in effort.bare:
        for kind, peak in peaks.items():
            groups.append(bare(case, names, peak, kind))
            yield "bare", groups
    with tempfile.TemporaryDirectory() as made:
        folder = args.data or pictures(Path(made), effort.pictures)
        rows = []
        for case, names in effort.files:
            words = (case.name, str(folder), str(effort.steps))
            turns = []
            for turn in range(effort.rounds):
                order = names if turn % 2 == 0 else names[::-1]  # the first one finds the cache of files cold
                turns.append({name: spawn(args, "files", name, *words) for name in order})
            rows += [over_turns(turns, name, names[-1]) for name in names]
            yield "files", rows


def over_turns(turns: list[dict[str, dict[str, Any]]], name: str, reference: str) -> dict[str, Any]:
    """Return one candidate's figures from files over all turns: medians, its highest peak, and how it compares."""
    mine = [turn[name] for turn in turns]
    ratios = [turn[name]["images_s"] / turn[reference]["images_s"] for turn in turns]
    medians = {key: float(np.median([run[key] for run in mine])) for key in ("images_s", "wait_share", "first_batch_s")}
    return mine[0] | medians | {
        "peak_mib": max(run["peak_mib"] for run in mine), "reference": reference, "turns": mine,
        "ratio": float(np.median(ratios)), "ratio_least": min(ratios), "ratio_most": max(ratios),
    }  # fmt: skip


# ---------------------------------------------------------------- children


def spawn(args: argparse.Namespace, *words: str) -> dict[str, Any]:
    """Run one candidate in a process of its own, whose peak of memory is its alone."""
    command = [sys.executable, __file__, "--threads", str(args.threads), "--child", *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def child(kind: str, name: str, *rest: str) -> dict[str, Any]:
    before = peak_mib()
    if kind == "files":
        case = CASES[rest[0]]
        found: dict[str, Any] = {"case": case.name, "batch": case.batch} | from_files(
            name, case, Path(rest[1]), int(rest[2])
        )
    else:
        found = one_large_step(name)
    return {"name": name, **found, "imports_mib": before, "peak_mib": peak_mib()}


def one_large_step(name: str) -> dict[str, Any]:
    """Take one step of a recipe at the product's named shapes."""
    torch.manual_seed(0)
    module = recipe(name, LARGE)
    step = Step(Candidate(module, module.step, 0), memory_batch(LARGE))
    before = {key: value.detach().clone() for key, value in module.student.named_parameters()}
    began = time.perf_counter()
    step()
    seconds = time.perf_counter() - began
    moved = sum(not torch.equal(before[key], value) for key, value in module.student.named_parameters())
    return {"case": LARGE.name, "batch": LARGE.batch, "seconds": seconds, "tensors_moved": moved}


def peak_mib() -> float:
    """Return this process' peak of resident memory; getrusage would count the parent's, from before the exec."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows["VmHWM"].split()[0]) / 1024


# ---------------------------------------------------------------- bare steps


class Step:
    """Take a training step on a batch that lies in memory: loss, gradients, clipping as `fit` does it, AdamW."""

    def __init__(self, candidate: Candidate, batch: Batch, kind: torch.dtype = torch.float32) -> None:
        self.candidate, self.batch, self.bf16 = candidate, batch, kind == torch.bfloat16
        candidate.module.train()
        self.optimizer = torch.optim.AdamW(param_groups(candidate.module, 0.05), lr=1e-5, betas=(0.9, 0.95), fused=True)
        self.generator = torch.Generator().manual_seed(0)
        self.cpu_ns: list[int] = []

    def __call__(self) -> None:
        began = time.process_time_ns()
        context = whole(len(self.batch.pixels), self.generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            terms = self.candidate.loss(self.batch, context)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack([term.float() for term in terms.values()]).sum().backward()
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 3.0)
        self.optimizer.step()
        self.cpu_ns.append(time.process_time_ns() - began)

    def blocks(self, taken: Samples) -> Blocks:
        """Return processor times of the runs that `interleave` took, without the untimed one that leads each block."""
        blocks = len(np.unique(taken.blocks))
        runs = taken.n // blocks + LEAD_RUNS
        kept = np.array(self.cpu_ns[-blocks * runs :]).reshape(blocks, runs)[:, LEAD_RUNS:]
        return Blocks(kept.ravel(), taken.blocks)


def bare(case: Case, names: tuple[str, ...], peak: float, kind: torch.dtype) -> dict[str, Any]:
    """Compare bare steps taken interleaved; the last name is the reference, `peak` is in MACs a second of that kind."""
    torch.manual_seed(0)
    batch = memory_batch(case)
    steps = {name: Step(MAKERS[name](case, kind), batch, kind) for name in names}
    taken = interleave(steps, case.rounds, block_ms=1, warmup=2)
    rows = [row(name, taken, steps, case.batch, peak) for name in names]
    macs = [steps[name].candidate.macs for name in names]
    return {
        "title": f"{case.name}, batch {case.batch}, {SHORT[kind]}", "reference": names[-1],
        "case": asdict(case), "rows": rows,
        "verdict": combined_verdict(*(s.interference.verdict for s in taken.values())),
        "macs_ratio": macs[0] / macs[-1],
    }  # fmt: skip


def row(name: str, taken: dict[str, Samples], steps: dict[str, Step], batch: int, peak: float) -> dict[str, Any]:
    samples, step = taken[name], steps[name]
    reference = list(steps)[-1]
    cpu = step.blocks(samples)
    gain = ratio(steps[reference].blocks(taken[reference]), cpu)
    busy_s = float(np.median(cpu.ns)) / 1e9 / torch.get_num_threads()
    return {
        "name": name, "gmacs_a_step": step.candidate.macs * batch / 1e9, "busy_ms": 1e3 * busy_s,
        "images_s": batch / busy_s, "mfu": step.candidate.macs * batch / busy_s / peak, "ratio": gain.median,
        "ratio_low": gain.low, "ratio_high": gain.high, "rounds": gain.rounds,
        "wall": msgspec.to_builtins(summarise(samples.ns)),
        "wall_ratio": msgspec.to_builtins(ratio(taken[reference], samples)),
        "interference": msgspec.to_builtins(samples.interference),
    }  # fmt: skip


if __name__ == "__main__":
    as_command(main)
