"""The `edgemae` command: one verb a stage or a question. Results on stdout, progress and logs on stderr.

Exit codes: 0 ok, 1 our bug, 2 usage or input, 3 accuracy gate, 4 latency or size gate, 5 environment (or figures of
`profile` that are INVALID), 130 interrupted, 143 asked to end (SIGTERM, `run`).
Heavy libraries are imported inside the verbs: the device has no torch, and `edgemae targets` needs none.
"""

from __future__ import annotations

import sys

from edgemae.cli import build_commands, bundle_commands, gallery_commands  # the verbs, in the order of the help page
from edgemae.cli.app import app
from edgemae.cli.exit_codes import (
    run_app,
)

__all__ = ["app", "build_commands", "bundle_commands", "gallery_commands", "main"]


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run_app(app))
