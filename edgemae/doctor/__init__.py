"""What this machine has and what is missing for what. It works where everything is missing: then it is asked.

`root` is the folder that stands for `/`, for tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.doctor.cameras import devices, examine_cameras
from edgemae.doctor.finding import Finding, combined_state
from edgemae.doctor.machine import examine_machine
from edgemae.doctor.software import examine_build, examine_engines, examine_opencv, examine_telemetry, opencv
from edgemae.doctor.source import examine_source
from edgemae.doctor.storage import examine_cache

__all__ = ["Finding", "combined_state", "diagnose"]


def diagnose(source: str | None = None, root: Path = Path("/")) -> dict[str, Any]:
    """Return `state` (the worst), `findings`, and the facts behind them: machine, engines, OpenCV, cameras, cache.

    With a `source`, it is opened for a moment and comes first.
    """
    first = [] if source is None else [examine_source(source, root)]
    engines, of_engines = examine_engines(root)
    cache, of_cache = examine_cache()
    build, of_build = examine_build()
    cameras = devices(root)
    version, video, _ = opencv()
    findings = [
        *first, *examine_machine(root), *of_engines, examine_telemetry(), *examine_opencv(root),
        *examine_cameras(root, cameras), *of_cache,
        of_build,
    ]  # fmt: skip
    return {
        "state": combined_state(findings), "findings": findings, "machine": fingerprint(), "engines": engines,
        "opencv": version, "video": video, "cameras": cameras, "cache": cache, "build": build,
    }  # fmt: skip
