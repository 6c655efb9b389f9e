"""Records of the options that verbs share; `typer_records.unfold` makes options of a verb of their fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgemae.cli.options import (
    BaselineName,
    Cores,
    Data,
    DecoderHeads,
    EngineName,
    EvalData,
    Fallback,
    Fps,
    Heads,
    HtmlFile,
    Json,
    Keep,
    Limit,
    MaxAge,
    Overwrite,
    PerLayer,
    PlanFile,
    Policy,
    Port,
    Remote,
    RemotePython,
    Resume,
    Runs,
    Save,
    Scenario,
    Seed,
    Set,
    Show,
    Slo,
    Soak,
    TargetName,
    Threads,
    TraceFile,
    Verbose,
    WebUi,
    Workers,
)
from edgemae.cli.typer_records import given

if TYPE_CHECKING:
    from edgemae.profiling.records import Profile
    from edgemae.spec.plan_schema import Plan
    from edgemae.viewer.run import ViewerOptions


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags of every verb that works in an output folder."""

    set_: Set = None
    seed: Seed = None
    overwrite: Overwrite = False
    resume: Resume = False
    json: Json = False
    verbose: Verbose = False

    def at(self, output: Path) -> dict[str, Any]:
        """Return where to work and what to do with an earlier run there, as keyword arguments."""
        return {"output": output, "overwrite": self.overwrite, "resume": self.resume}


@dataclass(frozen=True, kw_only=True)
class PlanFlags(RunFlags):
    """Flags of every verb that works to a plan."""

    data: Data = None
    eval_data: EvalData = None
    plan: PlanFile = None
    workers: Workers = None

    def resolve(self, **more: Any) -> Plan:
        """Return the plan: file, then flags, then --set. `more` are flags of one verb, data__calib for data.calib."""
        from edgemae.spec.plan_loading import load_plan

        flags = {"data.train": self.data, "data.eval": self.eval_data, "seed": self.seed, "workers": self.workers}
        flags |= {key.replace("__", "."): value for key, value in more.items()}
        return load_plan(self.plan, tuple(self.set_ or ()), flags, _count)


@dataclass(frozen=True, kw_only=True)
class TeacherFlags(PlanFlags):
    """Flags of the verbs that read a teacher."""

    teacher_heads: Heads = None
    teacher_decoder_heads: DecoderHeads = None

    def resolve(self, **more: Any) -> Plan:
        heads = {"teacher_heads": self.teacher_heads, "teacher_decoder_heads": self.teacher_decoder_heads}
        return super().resolve(**heads, **more)


@dataclass(frozen=True, kw_only=True)
class ProfileFlags:
    """Flags of `profile`: what to measure, how long, and beside which baseline."""

    scenario: Scenario = "single"
    slo: Slo = None
    soak: Soak = None
    fps: Fps = None
    runs: Runs = None
    baseline: BaselineName = None
    per_layer: PerLayer = False
    trace: TraceFile = None
    html: HtmlFile = None
    keep: Keep = False
    remote: Remote = None
    remote_python: RemotePython = None
    engine: EngineName = "auto"
    target: TargetName = None

    def wanted(self) -> dict[str, Any]:
        """Return what `edgemae.profile` takes, as keyword arguments; the page is made of its result."""
        return {
            "baseline": self.baseline, "runs": self.runs, "scenario": self.scenario, "slo": tuple(self.slo or ()),
            "soak": self.soak, "fps": self.fps, "engine": self.engine, "target": self.target,
            "per_layer": self.per_layer, "trace": self.trace,
        }  # fmt: skip

    def check(self) -> None:
        """Raise StorageError before anything is measured when the page could not be written."""
        from edgemae.profiling.records import writable

        if self.html is not None:
            writable(self.html)

    def elsewhere(self, bundle: Path, context: typer.Context) -> Profile | None:
        """Return the profile that another machine took of a bundle with the options given here; None without --remote.

        Raises InputError for --remote-python alone, and for a timeline, which would stay there.
        """
        from edgemae.spec.errors import InputError

        if self.remote is None and self.remote_python is None:
            return None
        if self.remote is None or self.trace is not None:
            raise InputError(
                "--remote-python says which Python another machine uses, and no machine is named"
                if self.remote is None
                else "--trace writes a file where the runs are, and --remote brings back the record alone",
                expected="--remote user@host, with --remote-python or without, and no --trace",
                fix="correct the options, or profile with --trace on that machine",
            )
        from edgemae.deploy.remote_profile import profile_remotely
        from edgemae.profiling.records import read_profile

        return read_profile(profile_remotely(bundle, self.remote, given(context), self.remote_python or "python3"))


def _count(place: str) -> int:
    from edgemae.data.image_count import count_images
    from edgemae.train.distributed import ProcessGroup

    return ProcessGroup().from_first(lambda: count_images(place))


@dataclass(frozen=True, kw_only=True)
class LoadFlags:
    """What `edgemae.load` takes beside the bundle."""

    engine: EngineName = "auto"
    target: TargetName = None
    threads: Threads = None
    cores: Cores = None
    fallback: Fallback = "warn"

    def loading(self) -> dict[str, Any]:
        """Return it as keyword arguments. Raises InputError for cores that are no numbers."""
        cores = None if self.cores is None else _numbers(self.cores)
        return {"engine": self.engine, "target": self.target, "threads": self.threads, "cores": cores,
                "fallback": self.fallback}  # fmt: skip


def _numbers(listed: str) -> list[int]:
    from edgemae.spec.errors import InputError

    try:
        return [int(part) for part in listed.split(",")]
    except ValueError as error:
        raise InputError(
            f"--cores is '{listed}'", expected="numbers with commas between them, such as 2,3", fix="correct --cores"
        ) from error


@dataclass(frozen=True, kw_only=True)
class WatchFlags(LoadFlags):
    """Flags of `run`."""

    policy: Policy = None
    limit: Limit = 0
    max_age_ms: MaxAge = None
    show: Show = False
    save: Save = None
    webui: WebUi = False
    port: Port = 8765

    def wanted(self, json: bool) -> ViewerOptions:
        """Return what to run on and how to show it."""
        from edgemae.viewer.run import ViewerOptions

        return ViewerOptions(
            policy=self.policy, limit=self.limit, max_age_ms=self.max_age_ms, loading=self.loading(), json=json,
            window=self.show, save=self.save, port=self.port if self.webui else None,
        )  # fmt: skip
