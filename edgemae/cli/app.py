"""The one Typer app that every verb registers with."""

from __future__ import annotations

from edgemae.cli.exit_codes import (
    Verbs,
)
from edgemae.cli.options import (
    Version,
)
from edgemae.cli.path_options import App

app = App(
    name="edgemae", cls=Verbs, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # --max_drop is read as --max-drop: both spellings are in people's fingers.
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": lambda t: t.replace("_", "-")},
)  # fmt: skip


@app.callback()
def root(version: Version = False) -> None:
    """Distill a masked autoencoder into a small model that is proved right and fast on one named device."""
