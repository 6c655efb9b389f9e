"""The flags of the verbs that load a bundle: on which engine, with how many threads, and what if it is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from edgemae.cli.options import EngineName, TargetName

Threads = Annotated[int | None, typer.Option("--threads", help="Of the engine; default: the target's.")]
Cores = Annotated[
    str | None, typer.Option("--cores", help="Keep the engine to these cores, e.g. 2,3; as many threads.")
]
Fallback = Annotated[
    str,
    typer.Option("--fallback", help="Where an engine fails: never (an error), warn, or auto, to take the next."),
]


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
