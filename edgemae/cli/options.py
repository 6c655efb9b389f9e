"""The options of the command line, each spelled once. Typer reads them at run time, so in the form of Python 3.10."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def _print_version(wanted: bool) -> None:
    if wanted:
        from edgemae.version import __version__

        sys.stdout.write(f"edgemae {__version__}\n")
        raise typer.Exit


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

# Of the verbs that load a bundle.
Threads = Annotated[int | None, typer.Option("--threads", help="Of the engine; default: the target's.")]
Cores = Annotated[
    str | None, typer.Option("--cores", help="Keep the engine to these cores, e.g. 2,3; as many threads.")
]
Fallback = Annotated[
    str,
    typer.Option("--fallback", help="Where an engine fails: never (an error), warn, or auto, to take the next."),
]

# Of `run`.
Policy = Annotated[str | None, typer.Option(help="latest, every or staleness:200ms; default by source.")]
Limit = Annotated[int, typer.Option(help="Stop after this many results; 0: never.")]
MaxAge = Annotated[float | None, typer.Option("--max-age-ms", help="Withhold and count results of older frames.")]
Show = Annotated[bool, typer.Option("--show", help="Open a window with the image; needs an OpenCV with windows.")]
Save = Annotated[Path | None, typer.Option("--save", help="Write a video with the answer in it: .mp4, .mkv or .avi.")]
WebUi = Annotated[bool, typer.Option("--webui", help="Serve a page with the live image, to this machine alone.")]
Port = Annotated[int, typer.Option("--port", help="Port of --webui; 0: any that is free.")]
