"""The flags of `run`: which frames, and where their results are shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemae.cli.option_groups import LoadFlags

if TYPE_CHECKING:
    from edgemae.viewer.run import ViewerOptions

# Typer reads these at run time, so they are spelled for Python 3.10.
Policy = Annotated[str | None, typer.Option(help="latest, every or staleness:200ms; default by source.")]
Limit = Annotated[int, typer.Option(help="Stop after this many results; 0: never.")]
MaxAge = Annotated[float | None, typer.Option("--max-age-ms", help="Withhold and count results of older frames.")]
Show = Annotated[bool, typer.Option("--show", help="Open a window with the image; needs an OpenCV with windows.")]
Save = Annotated[Path | None, typer.Option("--save", help="Write a video with the answer in it: .mp4, .mkv or .avi.")]
WebUi = Annotated[bool, typer.Option("--webui", help="Serve a page with the live image, to this machine alone.")]
Port = Annotated[int, typer.Option("--port", help="Port of --webui; 0: any that is free.")]


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
