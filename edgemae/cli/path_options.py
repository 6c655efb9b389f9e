"""The paths of a command line, of every verb: which are read, which are written, and that they are apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import typer.core

from edgemae.spec.errors import InputError
from edgemae.spec.user_paths import expand_home, require_apart

READS = (
    "source", "bundle", "model", "path", "folder", "teacher", "student", "finetuned", "start", "data", "eval_data",
    "unlabelled", "calib_data", "plan", "target", "baseline", "gallery", "image", "reference", "held_out",
)  # fmt: skip
WRITES = ("output", "html", "trace", "save")
# What a verb that works in an output folder writes at the top of it, beside the stages.
RESULTS = {
    "compile": ("report.json", "report.md", "report.html"), "pretrain": ("teacher.safetensors",),
    "finetune": ("teacher.safetensors",), "distill": ("student.safetensors",), "prune": ("student.safetensors",),
    "demo": ("report.json", "report.md", "report.html"), "quantize": (),
}  # fmt: skip


class Verb(typer.core.TyperCommand):
    """A verb whose paths are put into their final form and checked before it does anything."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        for name in (*READS, *WRITES):
            if name in ctx.params:
                ctx.params[name] = _expanded(ctx.params[name])
        check_paths(str(self.name), ctx.params)
        return super().invoke(ctx)


class App(typer.Typer):
    """A Typer whose commands are all `Verb`."""

    def command(self, *names: Any, **options: Any) -> Any:
        return super().command(*names, cls=Verb, **options)


def check_paths(verb: str, given: dict[str, Any]) -> None:
    """Raise InputError where a verb would write over what it reads. `given` are its parameters by name."""
    inputs = [path for name in READS for path in _values(given.get(name))]
    outputs = [Path(path) for name in WRITES for path in _values(given.get(name))]
    if verb in RESULTS:
        (folder,) = outputs
        outputs += [folder / name for name in ("plan.toml", *RESULTS[verb])]
        if given.get("overwrite"):
            _require_kept(inputs, folder / "stages")
    require_apart(outputs, inputs)


def _require_kept(inputs: list[str | Path], stages: Path) -> None:
    """Raise InputError for an input that --overwrite would delete before it is read."""
    for path in inputs:
        if Path(path).resolve().is_relative_to(stages.resolve()):
            raise InputError(
                f"'{path}' is read here, and --overwrite would delete it with the other stages",
                expected="another --output, or no --overwrite",
                fix="copy the file to another place first",
            )


def _values(value: Any) -> Iterator[str | Path]:
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, str | Path):
            yield one


def _expanded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_expanded(one) for one in value)
    return type(value)(expand_home(str(value))) if isinstance(value, str | Path) else value
