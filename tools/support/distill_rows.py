"""Rows of `bench_distill.py` on disk: what each was made from, and whether it can be taken for another run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgemae.distill.recipes import RECIPES
from edgemae.distill.stages import Images
from edgemae.pipeline.stage_cache import digest_of, file_digest
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_loading import plan_from, plan_tree
from edgemae.spec.plan_schema import Plan
from edgemae.train.distributed import bf16_is_fast


def plan_for(tree: dict[str, Any], method: str, seed: int, views_folder: str = "") -> Plan:
    """Return the plan that one row runs."""
    tree = json.loads(json.dumps(tree))
    tree["seed"] = seed
    tree["scale"]["views_folder"] = views_folder
    # Every epoch has views of its own: nothing repeats within a run, and the runs of a seed ask the teacher once.
    tree["distill"]["finetune"]["views"] = tree["distill"]["finetune"]["epochs"]
    if method in RECIPES:
        tree["distill"]["recipe"] = method
    if method in RECIPES and not RECIPES[method].whole_views:
        tree["distill"]["views"] = 0
    return plan_from(tree)


def digest(
    plan: Plan, images: Images, pixel: PixelContract, teachers: tuple[Path, Path], method: str, seed: int
) -> str:
    """Return what stands for all that a row is made from.

    `pixel` are the student's; teachers count where they teach; bf16 is taken where the processor is fast in it.
    """
    tree = plan_tree(plan_for(plan_tree(plan), method, seed))
    sets = (images.unlabelled, images.labelled, images.evaluation)
    return digest_of({
        "method": method, "seed": seed, "distill": tree["distill"], "student": tree["student"],
        "pixels": msgspec.to_builtins(pixel), "bf16": bf16_is_fast(torch.device("cpu")),
        "images": [part.fingerprint if part else "" for part in sets],
        "teachers": [file_digest(file) for file in teachers] if method in RECIPES else [],
    })[:16]  # fmt: skip


def alike(old: dict[str, Any], new: dict[str, Any], *more: str) -> bool:
    """Tell whether two plans make the same rows, as far as can be told of rows without a digest."""
    old, new = (json.loads(json.dumps(tree)) for tree in (old, new))
    for tree in (old, new):
        tree["distill"]["finetune"].pop("views")  # set for each run
    return all(old[part] == new[part] for part in ("distill", "student", "seed", *more))


def kept(
    file: Path | None, plan: Plan, images: Images, teacher: str, wanted: Callable[[str, int], str]
) -> list[dict[str, Any]]:
    """Return the rows of an earlier result that were made from the same, marked with their digest.

    `teacher` says image by image where the fine-tuned one is right. Rows without a digest are of an earlier version:
    there plan, teacher and the number of images have to be the same.
    """
    if file is None or not file.exists():
        return []
    old = json.loads(file.read_bytes())
    same = old["teacher"]["right"] == teacher and old["data"] == counts(images) and alike(old["plan"], plan_tree(plan))
    rows = []
    for row in old["rows"]:
        identity = wanted(row["method"], row["seed"])
        if row.get("digest", identity if same else "") == identity:
            rows.append(row | {"digest": identity})
    return rows


def adopt(output: Path, rows: list[dict[str, Any]], wanted: Callable[[str, int], str], *, trusted: bool) -> None:
    """Put known rows into the output folder, and mark those there without a digest where they are `trusted`."""
    for row in rows:
        folder = output / f"{row['method']}-{row['seed']}"
        folder.mkdir(exist_ok=True)
        write_atomic(folder / "row.json", json.dumps(row).encode())
    for file in output.glob("*-*/row.json") if trusted else ():
        row = json.loads(file.read_bytes())
        if "digest" not in row:
            write_atomic(file, json.dumps(row | {"digest": wanted(row["method"], row["seed"])}).encode())


def finished(folder: Path, identity: str) -> dict[str, Any] | None:
    """Return the row of a folder, where it was made from that; else make the folder ready for it and return None."""
    file, mark = folder / "row.json", folder / "digest.txt"
    row: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {}
    if row.get("digest") == identity:
        return row
    folder.mkdir(exist_ok=True)
    if row or (mark.exists() and mark.read_text() != identity):
        logging.info("%s was made from another plan, images or teacher: it is made again", folder.name)
        for old in (file, *folder.glob("*.ckpt")):
            old.unlink(missing_ok=True)
    mark.write_text(identity)
    return None


def finish(folder: Path, identity: str) -> dict[str, Any]:
    """Mark the row that a run has left, and return it."""
    row: dict[str, Any] = json.loads((folder / "row.json").read_bytes()) | {"digest": identity}
    write_atomic(folder / "row.json", json.dumps(row).encode())
    return row


def trained_s(folder: Path) -> float:
    """Return the seconds that stage 1 took, over all the runs that it needed: of its events, not of this process."""
    total_s, before_s = 0.0, 0.0
    (file,) = (path for path in folder.glob("train*.events.jsonl") if path.name != "train-2.events.jsonl")
    for line in map(json.loads, file.read_text().splitlines()):
        total_s += line["time"] - before_s if line["event"] != "start" else 0.0
        before_s = line["time"]
    return total_s


def counts(images: Images) -> dict[str, int]:
    return {
        "train": len(images.labelled or ()), "stage 1": len(images.unlabelled), "val": len(images.evaluation or ())
    }  # fmt: skip
