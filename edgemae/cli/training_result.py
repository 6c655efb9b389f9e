"""The result of a training verb: copied to the top of its output folder, with how right it is and what to do next."""

from __future__ import annotations

import json as json_library
import sys
from pathlib import Path
from typing import Any

from edgemae.cli.output import write_json


def print_training_result(kind: str, model: Path, output: Path, following: str, *, json: bool) -> None:
    """Copy a stage's model to the top of the output folder; say how right it is and what to do with it ({0}).

    Of several processes the first one does.
    """
    from edgemae.spec.atomic_file import write_atomic
    from edgemae.train.distributed import ProcessGroup

    final = output / model.name
    if not ProcessGroup().first:
        return
    write_atomic(final, model.read_bytes())
    summary: dict[str, Any] = {kind: str(final)} | _found_beside(model)
    if json:
        write_json(summary)
        return
    lines = [f"{kind}: {final}"]
    if "top1" in summary:
        lines.append(f"top-1: {100 * summary['top1']:.1f} % of the evaluation images")
    for row in summary.get("sub_networks", ()):
        top1 = f"{100 * row['top1']:.1f} %"
        lines.append(f"  depth {row['depth']}  heads {row['heads']}  MLP {row['mlp']}  {row['image_px']} px"
                     f"  {row['macs'] / 1e6:.1f} M MACs  top-1 {top1}")  # fmt: skip
    sys.stdout.write("\n".join([*lines, f"next: {following.replace('{0}', str(final))}"]) + "\n")


def _found_beside(model: Path) -> dict[str, Any]:
    """Return what a training left beside its model: the last validation score, and an elastic student's curve."""
    found: dict[str, Any] = {}
    curves, elastic = model.parent / "curves.json", model.parent / "curve.json"
    if curves.exists():
        scores = [row["validation"] for curve in json_library.loads(curves.read_bytes()).values() for row in curve
                  if "validation" in row]  # fmt: skip
        found |= {"top1": scores[-1]} if scores else {}
    if elastic.exists():
        found["sub_networks"] = json_library.loads(elastic.read_bytes())
    return found
