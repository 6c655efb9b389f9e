"""What `bench_train.py` prints of each part of its result, as it comes, and of the whole for docs/benchmarks.md."""

from __future__ import annotations

from typing import Any


def bare_table(groups: list[dict[str, Any]]) -> list[str]:
    """Return the newest comparison as Markdown."""
    group = groups[-1]
    lines = [
        f"\n{group['title']}: machine {group['verdict']}; MACs {group['macs_ratio']:.2f} times the reference's\n",
        f"| bare step | busy ms | wall p50 ms | images/s | MFU | times as fast as {group['reference']} | 95 % |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for r in group["rows"]:
        lines.append(
            f"| {r['name']} | {r['busy_ms']:.1f} | {r['wall']['p50_ms']:.1f} | {r['images_s']:.0f} | {r['mfu']:.0%} | "
            f"{r['ratio']:.3f} | {r['ratio_low']:.3f} to {r['ratio_high']:.3f} |"
        )
    return lines


def files_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the newest comparison from files, a line each."""
    return [
        f"from files: {label(r)}: {r['images_s']:.0f} images/s, {times(r)} times {r['reference']}, waiting "
        f"{r['wait_share']:.1%}, first batch {r['first_batch_s']:.1f} s, peak "
        f"{r['peak_mib']:.0f} MiB ({r['imports_mib']:.0f} before)"
        for r in rows if r["case"] == rows[-1]["case"]
    ]  # fmt: skip


def label(row: dict[str, Any]) -> str:
    return f"{row['name']}, {row['case']}, batch {row['batch']}, {row['precision']}"


def times(row: dict[str, Any]) -> str:
    """Return how many times as fast as its reference a candidate is, with the range over the turns."""
    if row["name"] == row["reference"]:
        return "1.00"
    return f"{row['ratio']:.2f} ({row['ratio_least']:.2f} to {row['ratio_most']:.2f})"


def large_table(rows: list[dict[str, Any]]) -> list[str]:
    r = rows[-1]
    line = (
        f"large: {r['name']}, {r['case']}, batch {r['batch']}: one step {r['seconds']:.1f} s, "
        f"peak {r['peak_mib'] / 1024:.2f} GiB, {r['tensors_moved']} tensors moved"
    )
    return [line]


TABLES: dict[str, Any] = {
    "gemm_peak_gmacs_s": lambda peaks: [f"GEMM peak, {kind}: {peak:.1f} GMAC/s" for kind, peak in peaks.items()],
    "parity": lambda value: [f"parity of the loss: {value}"],
    "bare": bare_table, "files": files_table, "large": large_table,
}  # fmt: skip


def readme_table(result: dict[str, Any]) -> str:
    """Return the comparisons of bare steps and of training from files as two Markdown tables."""
    head = ("One step, no files", "images/s", "MFU", "beside", "their MFU", "times as fast (95 %)", "machine")
    lines = [f"| {' | '.join(head)} |", "| --- | ---: | ---: | --- | ---: | ---: | --- |"]
    for group in result["bare"]:
        ours, other = group["rows"]
        lines.append(
            f"| {ours['name']}, {group['title']} | {ours['images_s']:.0f} | {ours['mfu']:.0%} | {other['name']} | "
            f"{other['mfu']:.0%} | {ours['ratio']:.2f} ({ours['ratio_low']:.2f} to {ours['ratio_high']:.2f}) | "
            f"{group['verdict']} |"
        )
    columns = ("From files on disk", "images/s", "times transformers' (range)", "waiting for data", "peak memory")
    lines += ["", f"| {' | '.join(columns)} |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {label(r)} | {r['images_s']:.0f} | {times(r)} | {r['wait_share']:.1%} | {r['peak_mib']:.0f} MiB |"
        for r in result["files"]
    ]  # fmt: skip
    return "\n".join(lines)
