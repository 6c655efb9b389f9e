"""What this machine has and what is missing for what. It works where everything is missing: then it is asked."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from edgemae.device.cache import cache_folder
from edgemae.device.engines import ENGINES
from edgemae.device.isa import machine_facts

# What compiling needs: module -> distribution. Two engines are among them because int8 is made and checked with them.
BUILD = {
    "torch": "torch", "torch_pruning": "torch-pruning", "onnx": "onnx", "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime", "openvino": "openvino", "nncf": "nncf", "safetensors": "safetensors",
    "jinja2": "jinja2", "matplotlib": "matplotlib", "sklearn": "scikit-learn",
}  # fmt: skip
VIDEO = ("FFMPEG:", "GStreamer:", "v4l/v4l2:")


def diagnose() -> dict[str, Any]:
    """Return machine, engines, OpenCV, build libraries, the cache, and a hint for each thing that is missing."""
    engines = {
        name: {"version": engine.version(), "install": engine.needs, **engine.facts()}
        for name, engine in ENGINES.items()
    }
    build = {module: _version(module, name) for module, name in BUILD.items()}
    opencv, video = _opencv()
    hints = [
        f"engine {name} is not installed: {found['install']}" for name, found in engines.items() if not found["version"]
    ]
    if opencv is None:
        hints.append("no OpenCV: no bundle can be loaded; pip install 'edgemae[camera]', on Jetson the system's own")
    elif "NO" in video.get("GStreamer", "NO"):
        hints.append("this OpenCV has no GStreamer: Jetson CSI cameras cannot be opened; use the system's OpenCV there")
    if absent := [module for module, found in build.items() if found is None]:
        hints.append(f"only running works, not compiling: no {', '.join(absent)}; pip install 'edgemae[build]'")
    return {
        "machine": _machine(opencv is not None), "engines": engines, "opencv": opencv, "video": video, "build": build,
        "cache": str(cache_folder()), "hints": hints,
    }  # fmt: skip


def _machine(has_opencv: bool) -> dict[str, Any]:
    if not has_opencv:  # the full fingerprint lives beside the profiler, which needs it
        return dict(machine_facts())
    from edgemae.device.latency import fingerprint

    return fingerprint()


def _opencv() -> tuple[str | None, dict[str, str]]:
    try:
        import cv2
    except ImportError:  # also one whose libGL is missing
        return None, {}
    lines = [line.strip() for line in cv2.getBuildInformation().splitlines()]
    video = {key.rstrip(":"): line.removeprefix(key).strip() for line in lines for key in VIDEO if line.startswith(key)}
    return cv2.__version__, video


def _version(module: str, distribution: str) -> str | None:
    """Return the version of an installed library without importing it; "unknown" for one without metadata."""
    try:
        if find_spec(module) is None:
            return None
    except ValueError:  # a None in sys.modules: it was switched off
        return None
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
