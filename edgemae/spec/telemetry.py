"""Keep the libraries below edgemae from reporting to their makers: set before any of them is imported.

ONNX Runtime 1.31's wheel writes a device id below the home folder and asks for its vendor's collector within seconds
of a session, unless this variable is set before the import (its own `disable_telemetry_events()` does not stop it).
OpenVINO and NNCF send through a package of theirs, for which they have an empty stand-in; huggingface_hub, which
transformers imports, through its hub. Child processes inherit the variables. A value that you set yourself stays.
"""

from __future__ import annotations

import os
import sys

VARIABLES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
PACKAGE = "openvino_telemetry"


def disable_telemetry() -> None:
    """Switch telemetry off for this process and its children."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    # A None makes OpenVINO and NNCF take their own stand-in for the package.
    sys.modules.setdefault(PACKAGE, None)  # type: ignore[arg-type]


def telemetry_left_on() -> list[str]:
    """Return what would report all the same: variables that you set, packages that you imported first."""
    on = [f"{name}={os.environ.get(name, '')}" for name, value in VARIABLES.items() if os.environ.get(name) != value]
    return on + ([f"{PACKAGE}, imported before edgemae"] if sys.modules.get(PACKAGE) is not None else [])
