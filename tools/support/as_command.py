"""A benchmark as a command: edgemae's own errors are said in their three parts, with their exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from edgemae.spec.errors import EdgemaeError


def as_command(main: Callable[[], int]) -> None:
    """Run a tool and exit with its code."""
    try:
        sys.exit(main())
    except EdgemaeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
