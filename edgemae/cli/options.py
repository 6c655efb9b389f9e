"""The flags of the command line, each spelled once, the records that gather what verbs share, and targets by name."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from edgemae.profiling.records import Profile
    from edgemae.spec.plan_schema import Plan
    from edgemae.spec.target import Target

STAY = (
    "--remote",
    "--remote-python",
    "--html",
    "--keep",
    "--json",
    "--verbose",
)  # of the options that another machine gets


def _print_version(wanted: bool) -> None:
    if wanted:
        from edgemae.version import __version__

        sys.stdout.write(f"edgemae {__version__}\n")
        raise typer.Exit


# Typer reads these at run time, so they are spelled for Python 3.10.
Version = Annotated[
    bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for stages, report and result; an earlier run goes on.")
]
Data = Annotated[
    str | None, typer.Option("--data", help="Images: one sub-folder a class, a flat folder, or tar shards.")
]
Unlabelled = Annotated[str | None, typer.Option("--unlabelled", help="More images, used without labels.")]
EvalData = Annotated[
    str | None, typer.Option("--eval-data", help="Images to measure accuracy on; default: a part of --data.")
]
CalibData = Annotated[
    str | None, typer.Option("--calib-data", help="Images to calibrate int8 with; default: from --data.")
]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="TOML plan; flags and --set go above it.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override one field, e.g. distill.epochs=50.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes that decode images.")]
Heads = Annotated[int | None, typer.Option("--teacher-heads", help="Attention heads, when the file cannot tell.")]
DecoderHeads = Annotated[
    int | None, typer.Option("--teacher-decoder-heads", help="Heads of its MAE decoder, when the file cannot tell.")
]
Elastic = Annotated[
    bool | None, typer.Option("--elastic", help="Train nested sub-networks along; see `edgemae extract`.")
]
Size = Annotated[int | None, typer.Option(help="One of the sizes that were trained.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Drop finished stages and start anew.")]
Resume = Annotated[bool, typer.Option("--resume", help="Insist on an earlier run in --output; none is an error.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]
EngineName = Annotated[str, typer.Option("--engine", help="auto, openvino, onnxruntime or tensorrt.")]
TargetName = Annotated[str | None, typer.Option("--target", help="Target name or TOML file; see `edgemae targets`.")]
TargetNames = Annotated[list[str] | None, typer.Option("--target", help="Target name or TOML; may be repeated.")]
Precisions = Annotated[
    list[str] | None, typer.Option("--precision", help="Only these of the target's: int8, fp16, fp32; repeatable.")
]
Schemes = Annotated[
    list[str] | None, typer.Option("--scheme", help="ort-static, ort-dynamic, openvino-static or tensorrt-qdq.")
]
Scenario = Annotated[str, typer.Option(help="single, offline (back to back) or camera (newest frame of a fixed rate).")]
Slo = Annotated[
    list[str] | None, typer.Option("--slo", help='Limit: "p99<33ms", "age_p99<100ms", "fps>25", "drop<1%", "cold<2s".')
]
Soak = Annotated[str | None, typer.Option(help="Run for so long, e.g. 10m; first against last minute.")]
Fps = Annotated[float | None, typer.Option(help="Rate of the camera in --scenario camera; default: 25.")]
Runs = Annotated[
    int | None, typer.Option(help="Steady runs; default: at least 100 (offline: 600) and 3 s, more for --slo.")
]
Measure = Annotated[bool, typer.Option("--profile/--no-profile", help="Also profile, and keep that in the bundle.")]
PerLayer = Annotated[bool, typer.Option("--per-layer", help="Also where an inference spends its time.")]
TraceFile = Annotated[Path | None, typer.Option(help="Write a timeline for chrome://tracing or ui.perfetto.dev.")]
HtmlFile = Annotated[Path | None, typer.Option("--html", help="Also write the profile as a page.")]
Keep = Annotated[bool, typer.Option("--keep", help="Put the profile and its page into the bundle, as finalize does.")]
BaselineName = Annotated[str | None, typer.Option(
    help="Bundle, pytorch:STUDENT or onnx:FILE, run interleaved; or a stored profile (.json) of this machine.",
)]  # fmt: skip
BundlePath = Annotated[Path, typer.Argument(help="A .edgemae bundle.", metavar="BUNDLE")]
TeacherPath = Annotated[Path, typer.Argument(help="MAE teacher, with or without a head.", metavar="TEACHER")]
StudentPath = Annotated[Path, typer.Argument(help="A student.safetensors.", metavar="STUDENT")]
Remote = Annotated[
    str | None, typer.Option(
        "--remote", metavar="USER@HOST[:PORT]",
        help="Do it on that machine, over ssh with your keys and ssh_config (EDGEMAE_SSH_CONFIG: another one).",
    )
]  # fmt: skip
RemotePython = Annotated[
    str | None, typer.Option("--remote-python", help="The Python there that has edgemae; default: python3.")
]


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


def unfold(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the fields of its first parameter, a record of flags, as flags of its own behind the others."""
    first, *others = inspect.signature(verb).parameters.values()
    hints = get_type_hints(verb, include_extras=True)
    record = hints.pop(first.name)
    shared = get_type_hints(record, include_extras=True)

    @functools.wraps(verb)
    def unfolded(**given: Any) -> None:
        verb(record(**{name: given.pop(name) for name in shared}), **given)

    def keyword(name: str, default: Any) -> inspect.Parameter:
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(name, kind, default=default, annotation=(hints | shared)[name])

    own = [keyword(p.name, p.default) for p in others]
    rest = [keyword(name, p.default) for name, p in inspect.signature(record).parameters.items()]
    unfolded.__signature__ = inspect.Signature([*own, *rest])  # type: ignore[attr-defined]
    unfolded.__annotations__ = hints | shared
    return unfolded


def given(context: typer.Context) -> list[tuple[str, str]]:
    """Return the options of a verb's command line as they may be passed on to another machine; a flag's value is ""."""
    found = []
    for option in context.command.params:
        name, spelled = str(option.name), option.opts[0]
        source, value = context.get_parameter_source(name), context.params.get(name)
        if source is None or source.name != "COMMANDLINE" or spelled in STAY or not spelled.startswith("--"):
            continue
        if value is False:
            spelled = option.secondary_opts[0]  # --no-...
        values = value if isinstance(value, (list, tuple)) else [value]
        found += [(spelled, "" if isinstance(one, bool) else str(one)) for one in values]
    return found


def find_targets(names: Sequence[str | None] | None = None, precisions: Sequence[str] | None = None) -> list[Target]:
    """Return targets by name or TOML file (none: this machine's), kept to some precisions. Raises TargetError."""
    from edgemae.spec.errors import TargetError
    from edgemae.spec.target import find_target

    found = [find_target(name or default_target()) for name in names or [None]]
    if twice := [t.name for i, t in enumerate(found) if t.name in [other.name for other in found[:i]]]:
        raise TargetError(
            f"two targets are named '{twice[0]}'",
            expected="a name of its own for each: it names the bundle",
            fix="leave one out, or correct `name` in its TOML file",
        )
    return [_kept_to(target, precisions) for target in found] if precisions else found


def _kept_to(target: Target, precisions: Sequence[str]) -> Target:
    import msgspec

    from edgemae.spec.errors import TargetError, nearest

    for wanted in precisions:
        if wanted not in target.precisions:
            raise TargetError(
                f"target '{target.name}' has no precision '{wanted}'.{nearest(wanted, list(target.precisions))}",
                expected=f"some of {', '.join(target.precisions)}",
                fix="correct --precision, or leave it out",
            )
    return msgspec.structs.replace(target, precisions=tuple(p for p in target.precisions if p in precisions))


def default_target() -> str:
    """Return the built-in target that is nearest to this machine."""
    import platform

    from edgemae.device.hardware.cpu_features import cpu_flags

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "raspberry-pi-5"
    return "laptop-x86-vnni" if any("vnni" in flag for flag in cpu_flags()) else "laptop-x86-avx2"
