"""What `edgemae profile` is asked for: the request, how much its scenario has to measure, and its command line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgemae.profiling.records import SCENARIOS
from edgemae.profiling.scenarios import FEWEST_RUNS, ScenarioOptions
from edgemae.profiling.slo import Slo, runs_for
from edgemae.profiling.soak import parse_soak
from edgemae.profiling.stats.percentiles import runs_needed, too_few
from edgemae.spec.errors import InputError, nearest

if TYPE_CHECKING:
    from edgemae.device.model import Model

MIN_RUNS = {"single": 100, "offline": 600, "camera": 100}  # 600: from here on a block interval at 95 % holds 94 %
MIN_SECONDS = 3.0
MOST_RUNS = 20_000_000  # 2 GB of notes
FPS, FASTEST_FPS = 25.0, 1000.0  # of a camera: the default, and the highest


@dataclass(frozen=True, kw_only=True)
class ProfileRequest:
    """State what to profile and how, as `edgemae.profile` describes it."""

    source: str | Path | Model
    baseline: str | Path | None = None
    runs: int | None = None
    engine: str = "auto"
    target: str | None = None
    scenario: str = "single"
    slo: Sequence[str] = ()
    soak: str | None = None
    fps: float | None = None
    per_layer: bool = False
    trace: Path | None = None

    @property
    def camera_fps(self) -> float:
        return FPS if self.fps is None else self.fps

    def command(self, path: Path) -> str:
        """Return the command line that takes the profile of the bundle at `path` again."""
        options: dict[str, object] = {
            "--scenario": self.scenario, "--baseline": self.baseline,
            "--runs": self.runs, "--soak": self.soak, "--fps": self.fps,
            "--engine": None if self.engine == "auto" else self.engine, "--target": self.target,
        }  # fmt: skip
        words = [str(word) for option in options.items() if option[1] is not None for word in option]
        slo = [word for text in self.slo for word in ("--slo", text)]
        return shlex.join(["edgemae", "profile", str(path), *words, *slo]) + " --per-layer" * self.per_layer


def scenario_options(request: ProfileRequest, limits: Sequence[Slo]) -> ScenarioOptions:
    """Return how much to measure. Raises InputError for what cannot be measured or shown."""
    _check_scenario(request)
    scenario, runs, fps = request.scenario, request.runs, request.camera_fps
    if runs is not None and runs < runs_needed(0.5):
        raise too_few(runs)
    if runs is not None and runs < FEWEST_RUNS[scenario]:
        raise InputError(
            f"{runs} runs are too few for the intervals of scenario '{scenario}'",
            expected=f"at least {FEWEST_RUNS[scenario]} runs",
            fix="ask for more runs, or leave --runs out",
        )
    needed = runs_for(limits, scenario, fps, runs)
    if max(needed, runs or 0) > MOST_RUNS:
        raise InputError(
            f"{max(needed, runs or 0):,} runs were asked for, or are needed to show the limits",
            expected=f"at most {MOST_RUNS:,}", fix="ask for fewer runs, or for a limit that fewer runs can show",
        )  # fmt: skip
    if runs is not None:
        return ScenarioOptions(runs, 0.0, fps)
    return ScenarioOptions(
        max(MIN_RUNS[scenario], needed), parse_soak(request.soak) if request.soak else MIN_SECONDS, fps
    )


def _check_scenario(request: ProfileRequest) -> None:
    """Raise InputError for an unknown scenario, and for options that do not go with one another."""
    scenario, runs, soak, fps = request.scenario, request.runs, request.soak, request.camera_fps
    if scenario not in SCENARIOS:
        raise InputError(
            f"unknown scenario '{scenario}'.{nearest(scenario, list(SCENARIOS))}",
            expected=f"one of {', '.join(SCENARIOS)}",
            fix="correct --scenario",
        )
    if not 0 < fps <= FASTEST_FPS:
        raise InputError(
            f"a camera of {fps:g} frames a second was asked for",
            expected=f"more than 0 and at most {FASTEST_FPS:g}",
            fix="correct --fps",
        )
    if request.fps is not None and scenario != "camera":
        raise InputError(
            f"{fps:g} frames a second were asked for in scenario '{scenario}', which has no camera",
            expected="--fps with --scenario camera only",
            fix="add --scenario camera, or leave --fps out",
        )
    if runs is not None and soak is not None:
        raise InputError(
            f"both {runs} runs and a soak of {soak} were asked for",
            expected="one of them: a soak takes as many runs as fit",
            fix="leave --runs or --soak out",
        )
