"""edgemae: compile a masked autoencoder into a small model that is proved right and fast on one named device.

This is the one public door of the device side. Names are imported when they are first used: `import edgemae` loads
neither OpenCV nor an engine, and nothing behind these names ever loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgemae.spec.telemetry import disable_telemetry
from edgemae.version import __version__

if TYPE_CHECKING:
    from edgemae.device.camera.camera import Camera
    from edgemae.device.model import Model, Result, load
    from edgemae.profiling.profiler import profile
    from edgemae.retrieval.anomaly import Anomaly, AnomalyDetector
    from edgemae.retrieval.gallery import Gallery, Match
    from edgemae.retrieval.heatmap import overlay
    from edgemae.spec.bundle import Bundle, open_bundle
    from edgemae.spec.errors import EdgemaeError
    from edgemae.spec.target import Target, find_target, list_targets

__all__ = [
    "Anomaly",
    "AnomalyDetector",
    "Bundle",
    "Camera",
    "EdgemaeError",
    "Gallery",
    "Match",
    "Model",
    "Result",
    "Target",
    "__version__",
    "find_target",
    "list_targets",
    "load",
    "open_bundle",
    "overlay",
    "profile",
]
disable_telemetry()  # before any engine is imported
_ROOMS = {
    "Anomaly": "edgemae.retrieval.anomaly",
    "AnomalyDetector": "edgemae.retrieval.anomaly",
    "Bundle": "edgemae.spec.bundle",
    "Camera": "edgemae.device.camera.camera",
    "EdgemaeError": "edgemae.spec.errors",
    "Gallery": "edgemae.retrieval.gallery",
    "Match": "edgemae.retrieval.gallery",
    "Model": "edgemae.device.model",
    "Result": "edgemae.device.model",
    "Target": "edgemae.spec.target",
    "find_target": "edgemae.spec.target",
    "list_targets": "edgemae.spec.target",
    "load": "edgemae.device.model",
    "open_bundle": "edgemae.spec.bundle",
    "overlay": "edgemae.retrieval.heatmap",
    "profile": "edgemae.profiling.profiler",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'edgemae' has no attribute '{name}'")
    try:
        value = getattr(import_module(_ROOMS[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        from edgemae.spec.errors import MachineError

        raise MachineError(
            "OpenCV is not installed: no module 'cv2'",
            expected="any OpenCV that Python can import",
            fix="pip install 'edgemae[camera]'; on Jetson and Raspberry Pi OS: apt install python3-opencv",
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
