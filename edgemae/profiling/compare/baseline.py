"""What --baseline names: something to measure interleaved with the bundle, or a stored profile of this very machine."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from edgemae.device.hardware.fingerprint import differences
from edgemae.profiling.compare.ab_test import AB_WORKER, ABSide
from edgemae.profiling.records import BaselineComparison, Profile, read_profile
from edgemae.profiling.stats.percentiles import Summary
from edgemae.spec.errors import InputError

RATE_SLACK = 0.02  # between the rate of a camera that was asked for and that of the frames that came
WORKERS = {"bundle": AB_WORKER, "onnx": AB_WORKER}  # the module that a child process runs for each kind
WORKER_GROUP = "edgemae.baseline_workers"  # entry points of what is installed with them: PyTorch comes with the build


def baseline_of(text: str, pixels_of: Path, engine: str, target: str) -> ABSide:
    """Return what `--baseline` names: a bundle, `pytorch:student.safetensors` or `onnx:graph.onnx`.

    Raises InputError for another prefix and for a file that is not there.
    """
    kind, colon, rest = text.partition(":")
    if not colon or Path(text).exists():
        kind, rest = "bundle", text
    workers = WORKERS | {entry.name: entry.value for entry in entry_points(group=WORKER_GROUP)}
    if kind not in workers:
        raise InputError(
            f"--baseline '{text}' has the unknown prefix '{kind}:'",
            expected="a bundle, a stored profile (.json), pytorch:STUDENT.safetensors or onnx:GRAPH.onnx",
            fix="correct the prefix",
        )
    if not (Path(rest).exists() if kind == "bundle" else Path(rest).is_file()):
        raise _not_there(rest)
    return ABSide(kind, rest, engine if kind == "bundle" else "auto", target, str(pixels_of), workers[kind])


def stored_profile(baseline: str, machine: dict[str, Any], scenario: str, fps: float) -> Profile | None:
    """Return the stored profile (.json) that `baseline` names, if it does.

    Raises InputError for a file that is not there, and for a profile of another machine, scenario or camera.
    """
    if Path(baseline).suffix != ".json":
        return None
    if not Path(baseline).exists():
        raise _not_there(baseline)
    stored = read_profile(baseline)
    if found := differences(stored.machine, machine):
        raise InputError(
            f"'{baseline}' was taken on another machine (there / here): {'; '.join(found)}",
            expected="a profile of this machine in this state: latencies of two machines cannot be compared",
            fix="pass the other bundle itself; it is then measured here, interleaved with this one",
        )
    there_fps = stored.camera.source_fps if stored.camera else fps
    if stored.scenario != scenario or abs(there_fps / fps - 1) > RATE_SLACK:
        raise InputError(
            f"'{baseline}' was taken {_way(stored.scenario, there_fps)}, this profile {_way(scenario, fps)}",
            expected="a profile of the same scenario, behind a camera of the same rate",
            fix="correct --scenario or --fps, or pass the other bundle itself",
        )
    return stored


def compare_with_stored(steady: Summary, stored: Profile) -> BaselineComparison:
    """Compare medians that were not interleaved: the interval spans the corners of both medians' intervals.

    Whether they differ is left open: two sessions of one machine lie 1 % apart and more for reasons of their own, which
    no interval of either knows of.
    """
    theirs = stored.steady
    low, high = theirs.p50_low_ms / steady.p50_high_ms, theirs.p50_high_ms / steady.p50_low_ms
    return BaselineComparison(
        name=stored.name, kind="profile", engine=stored.engine, precision=stored.precision, p50_ms=theirs.p50_ms,
        n=theirs.n, ratio=theirs.p50_ms / steady.p50_ms, ratio_low=low, ratio_high=high, different=None, paired=False,
    )  # fmt: skip


def _way(scenario: str, fps: float) -> str:
    return f"behind a camera of {fps:.4g} frames a second" if scenario == "camera" else f"in scenario '{scenario}'"


def _not_there(path: str) -> InputError:
    return InputError(f"--baseline names '{path}', which does not exist", expected="a file", fix="check the path")
