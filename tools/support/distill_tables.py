"""Margins and the table of `bench_distill.py`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np

from edgemae.evaluation.intervals import paired_interval, z_of

BASELINES = ("logit", "scratch")


def margins(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the paired gain of every method over the baselines, seed by seed, with 95 % intervals."""
    found = []
    for row in rows:
        for baseline in BASELINES:
            other = next((r for r in rows if r["method"] == baseline and r["seed"] == row["seed"]), None)
            if other is None or row["method"] == baseline:
                continue
            gained = sum(a > b for a, b in zip(row["right"], other["right"], strict=True))
            lost = sum(a < b for a, b in zip(row["right"], other["right"], strict=True))
            low, high = paired_interval(lost, gained, len(row["right"]))
            found.append({
                "method": row["method"], "over": baseline, "seed": row["seed"],
                "gain": (gained - lost) / len(row["right"]), "low": -high, "high": -low, "shown": high < 0,
            })  # fmt: skip
    return found


def together(rows: list[dict[str, Any]], method: str, over: str) -> tuple[float, float, float] | None:
    """Return (gain, low, high) over a baseline as the mean of all seeds that both have, with a 95 % interval."""
    right = [{row["seed"]: row["right"] for row in rows if row["method"] == name} for name in (method, over)]
    seeds = sorted(right[0].keys() & right[1].keys())
    if method == over or len(seeds) < 2:
        return None
    return over_photos([right[0][seed] for seed in seeds], [right[1][seed] for seed in seeds])


def over_photos(mine: list[str], other: list[str]) -> tuple[float, float, float]:
    """Return (gain, low, high) of trainings over others, the mean of all pairs, from where each is right.

    The 95 % interval is of other photos for these very trainings, not of other seeds. Each photo counts once, with its
    mean over the seeds, for their answers to it go together.
    """
    ours, theirs = (np.array([[c == "1" for c in text] for text in side], float) for side in (mine, other))
    gains = (ours - theirs).mean(axis=0)
    half = z_of(0.95) * float(gains.std(ddof=1)) / len(gains) ** 0.5
    return float(gains.mean()), float(gains.mean()) - half, float(gains.mean()) + half


def readme_table(result: dict[str, Any]) -> str:
    """Return the result as Markdown: a row for each method, seeds side by side."""
    rows, teacher = result["rows"], result["teacher"]
    head = ["Method", "Top-1 by seed (95 %)", "Mean", "Over logit", "Over scratch", "Steps to scratch (goal 33 %)",
            "Linear", "k-NN", "Stage 1", "Peak"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        top1 = [100 * row["top1"] for row in mine]
        cells = [
            method, " / ".join(scored_text(row) for row in mine), f"{statistics.mean(top1):.1f} %",
            *(gain_text(result["margins"], method, over, together(rows, method, over)) for over in BASELINES),
            steps_to(rows, mine),
            *(f"{100 * statistics.mean(row[name] for row in mine):.1f} %" for name in ("linear", "knn")),
            time_text(row["stage1_ms_image"] for row in mine),
            f"{max(row['peak_mib'] for row in mine):.0f} MiB",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    d, data, student = result["plan"]["distill"], result["data"], result["student"]
    lines.append("")
    lines.append(
        f"Teacher {100 * teacher['top1']:.1f} %, student {student['macs'] / 1e6:.0f} M of its "
        f"{teacher['macs'] / 1e6:.0f} M MACs. Stage 1: {d['epochs']} epochs of {data['stage 1']} images; stage 2: "
        f"{d['finetune']['epochs']} epochs of {data['train']}; {data['val']} for the score. Gains are paired, in "
        "points, bold where the 95 % interval is above 0, and in brackets the mean of these seeds with its "
        "interval over photos. Steps to scratch: the share of stage 2 after which a run is "
        "as right as training from scratch is at its end. Linear and k-NN are of the frozen features after stage 1."
    )
    return "\n".join(lines)


def scored_text(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{100 * row['top1']:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def time_text(found_ms: Iterable[float | None]) -> str:
    """Return the median of the runs whose time is known and not 0."""
    known = [ms for ms in found_ms if ms]
    return f"{statistics.median(known):.1f} ms" if known else "–"


def steps_to(rows: list[dict[str, Any]], mine: list[dict[str, Any]]) -> str:
    """Return, seed by seed, the share of stage 2 that reaches what `scratch` ends with; validated every tenth."""
    cells = []
    for row in mine:
        end = next((r["top1"] for r in rows if r["method"] == "scratch" and r["seed"] == row["seed"]), None)
        reached = [epoch for epoch, score in row["validation"] if end is not None and score >= end]
        cells.append(f"{100 * reached[0] / row['validation'][-1][0]:.0f} %" if reached else "–")
    return " / ".join(cells)


def gain_text(
    found: list[dict[str, Any]], method: str, over: str, mean: tuple[float, float, float] | None = None
) -> str:
    mine = [m for m in found if m["method"] == method and m["over"] == over]
    if not mine:
        return "–"
    cells = [f"**{100 * m['gain']:+.1f}**" if m["shown"] else f"{100 * m['gain']:+.1f}" for m in mine]
    told = "" if mean is None else " ({:+.1f}, {:+.1f} to {:+.1f})".format(*(100 * value for value in mean))
    return " / ".join(cells) + told
