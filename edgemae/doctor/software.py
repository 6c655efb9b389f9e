"""Engines, OpenCV with its video back-ends, and the libraries that compiling takes."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgemae.device.engines import ENGINES, Engine
from edgemae.device.hardware.fingerprint import LIBRARIES
from edgemae.device.session import library
from edgemae.doctor.board import is_jetson
from edgemae.doctor.finding import Finding
from edgemae.spec.errors import EngineMissingError
from edgemae.spec.telemetry import telemetry_left_on

# What compiling needs: module -> distribution. Two engines are among them because int8 is made and checked with them.
BUILD = {
    "torch": "torch", "torch_pruning": "torch-pruning", "onnx": "onnx", "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime", "openvino": "openvino", "nncf": "nncf", "safetensors": "safetensors",
    "jinja2": "jinja2", "matplotlib": "matplotlib", "sklearn": "scikit-learn",
}  # fmt: skip
BACKENDS = {"FFMPEG:": "FFMPEG", "GStreamer:": "GStreamer", "v4l/v4l2:": "V4L2"}  # line of OpenCV's own report -> name
CAMERA_EXTRA = "pip install 'edgemae[camera]'"
SYSTEM_OPENCV = "use the system's OpenCV (apt install python3-opencv, a venv with --system-site-packages, no wheel)"
# Part of what the import says -> what to do about it.
BROKEN = {
    "libGL": "pip uninstall opencv-python; pip install opencv-python-headless, which needs no screen",
    "libgthread": "pip uninstall opencv-python; pip install opencv-python-headless, which needs no screen",
    "multiarray": "this OpenCV was built for NumPy 1: pip install 'numpy<2'",
    "_ARRAY_API": "this OpenCV was built for NumPy 1: pip install 'numpy<2'",
}


# ---------------------------------------------------------------- engines


def examine_engines(root: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Return the facts of every engine and a finding each; where none can run, a red one that says which to install."""
    facts: dict[str, dict[str, str | None]] = {
        name: {"version": engine.version(), "install": engine.needs, **engine.facts()}
        for name, engine in ENGINES.items()
    }
    findings = [_engine(ENGINES[name], found) for name, found in facts.items()]
    if not any(finding.state == "green" for finding in findings):
        findings.append(Finding("engines", "any", "red", "none can run here: no bundle can be loaded", _advice(root)))
    return facts, findings


def examine_telemetry() -> Finding:
    """Return whether a library below edgemae would report to its maker."""
    if left := telemetry_left_on():
        return Finding("engines", "telemetry", "yellow", f"left on: {', '.join(left)}",
                       "unset it, and import edgemae first")  # fmt: skip
    return Finding("engines", "telemetry", "green", "off in ONNX Runtime, OpenVINO, NNCF and Hugging Face's hub")


def _engine(engine: Engine, facts: Mapping[str, str | None]) -> Finding:
    if facts["version"] is None:
        why = _why_absent(engine)
        if "cannot be imported" in why:
            return Finding("engines", engine.name, "yellow", why, f"{engine.needs} once more, into a fresh environment")
        return Finding("engines", engine.name, "grey", "not installed", engine.needs)
    found = str(facts["version"]).partition("-")[0]  # OpenVINO adds its commit and its branch
    if facts.get("gpu") == "none":
        return Finding("engines", engine.name, "grey", f"{found}, but no NVIDIA GPU or driver answers",
                       "install the driver; in a container: --gpus all, or --runtime nvidia on Jetson")  # fmt: skip
    return Finding("engines", engine.name, "green", ", ".join([found, *filter(None, [facts.get("gpu")])]))


def _why_absent(engine: Engine) -> str:
    modules = import_module(f"edgemae.device.engines.{engine.name}").MODULES
    try:
        library(engine.name, modules, engine.needs)
    except EngineMissingError as error:
        return error.what
    return ""


def _advice(root: Path) -> str:
    if is_jetson(root):
        return (
            "apt install nvidia-jetpack, and a venv with --system-site-packages; or pip install 'edgemae[onnxruntime]'"
        )
    if platform.machine().lower() in ("x86_64", "amd64"):
        return "pip install 'edgemae[openvino]'"
    return "pip install 'edgemae[onnxruntime]'"


# ---------------------------------------------------------------- OpenCV


def opencv() -> tuple[str | None, dict[str, bool], str]:
    """Return the version of OpenCV (None: cannot be imported), which back-ends it was built with, and why it fails."""
    try:
        import cv2
    except ModuleNotFoundError as error:
        return None, {}, "not installed" if error.name == "cv2" else f"cannot be imported: {error}"
    except (ImportError, OSError, AttributeError) as error:  # a shared library is missing, or another NumPy is there
        return None, {}, f"cannot be imported: {error}"
    lines = [line.strip() for line in cv2.getBuildInformation().splitlines()]
    built = {name: line.removeprefix(key).strip().startswith("YES")
             for line in lines for key, name in BACKENDS.items() if line.startswith(key)}  # fmt: skip
    return cv2.__version__, built, ""


def examine_opencv(root: Path) -> list[Finding]:
    """Return whether images can be read at all, and which kinds of video."""
    found, built, why = opencv()
    if found is None:
        fix = next((fix for part, fix in BROKEN.items() if part in why), CAMERA_EXTRA)
        if is_jetson(root) and fix == CAMERA_EXTRA:
            fix = SYSTEM_OPENCV
        return [Finding("images", "OpenCV", "red", f"{why}: no bundle can be loaded", fix)]
    owners = [name for name in LIBRARIES["cv2"] if _version("cv2", name) not in (None, "unknown")]
    if len(owners) > 1:
        first = Finding("images", "OpenCV", "yellow", f"{found}, but {' and '.join(owners)} overwrite each other",
                        f"pip uninstall {' '.join(owners)}; {CAMERA_EXTRA}")  # fmt: skip
    else:
        first = Finding("images", "OpenCV", "green", f"{found}, from {owners[0] if owners else 'the system'}")
    return [first, _video(root, built)]


def _video(root: Path, built: Mapping[str, bool]) -> Finding:
    found = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in built.items())
    if is_jetson(root) and not built.get("GStreamer"):
        return Finding("images", "video", "yellow", f"{found}: no CSI camera can be opened", SYSTEM_OPENCV)
    if not built.get("FFMPEG") and not built.get("GStreamer"):
        return Finding("images", "video", "yellow", f"{found}: neither videos nor streams can be read", CAMERA_EXTRA)
    return Finding("images", "video", "green", found)


# ---------------------------------------------------------------- compiling


def examine_build() -> tuple[dict[str, str | None], Finding]:
    """Return the versions of the libraries of the workstation, and whether this is one."""
    found = {module: _version(module, name) for module, name in BUILD.items()}
    absent = [module for module, there in found.items() if there is None]
    fix = "pip install 'edgemae[build]'"
    if found["torch"] is None:
        return found, Finding(
            "compiling", "libraries", "grey", "not here: this machine runs bundles, it makes none", fix
        )
    if absent:
        return found, Finding("compiling", "libraries", "yellow", f"not compiling: no {', '.join(absent)}", fix)
    return found, Finding("compiling", "libraries", "green", f"all {len(found)}, torch {found['torch']}")


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
