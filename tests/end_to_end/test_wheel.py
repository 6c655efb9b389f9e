"""What ships: the wheel, its requirements, the pins, and a clean environment that uses all three."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgemae.device.preprocess import preprocess
from edgemae.device.selfcheck import golden_files, golden_name
from edgemae.spec.bundle import write_bundle
from edgemae.spec.graph import IoContract, PixelContract, TensorSpec
from edgemae.spec.manifest import Manifest, Tolerance, Variant
from edgemae.spec.target import find_target, list_targets
from edgemae.version import __version__

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
BASE = {"numpy", "msgspec", "typer", "rich", "tomli"}


def canonical(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def succeed(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that has to work and return its standard output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


# ---------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as `pip wheel` does, with the build tools of this environment: no network."""
    folder = tmp_path_factory.mktemp("dist")
    succeed(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_is_pure_and_has_the_version(wheel: Path) -> None:
    assert wheel.name == f"edgemae-{__version__}-py3-none-any.whl"


def test_wheel_holds_the_package_the_targets_and_nothing_else(contents: set[str]) -> None:
    files = [path for path in (ROOT / "edgemae").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    expected |= {f"edgemae/targets/{path.name}" for path in (ROOT / "targets").glob("*.toml")}
    found = {name for name in contents if ".dist-info/" not in name}
    assert found == expected


@pytest.mark.parametrize("name", ["edgemae/py.typed", "edgemae/targets/laptop-x86-vnni.toml"])
def test_wheel_holds_what_is_no_code(contents: set[str], name: str) -> None:
    assert name in contents


def test_wheel_holds_the_licence_and_says_which(contents: set[str], metadata: Message) -> None:
    assert any(name.endswith("/licenses/LICENSE") for name in contents)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_wheel_asks_for_the_oldest_python_that_ruff_and_mypy_check(metadata: Message) -> None:
    tools = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["tool"]
    assert metadata["Requires-Python"] == ">=3.10"
    assert tools["ruff"]["target-version"] == "py310"
    assert tools["mypy"]["python_version"] == "3.10"


def test_base_requirements_are_light(metadata: Message) -> None:
    """Torch and its friends come in through an extra only."""
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    base = {canonicalize_name(r.name) for r in requirements if "extra ==" not in str(r.marker)}
    assert base == BASE


def test_wheel_installs_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "edgemae = edgemae.cli:main" in archive.read(name).decode()


# ---------------------------------------------------------------- requirements and pins

# Asked for and imported by another library: the right-hand side says by which.
INDIRECT = {
    "tomli": "msgspec.toml, where Python has no tomllib",
    "pytest-cov": "pytest, in make test",
    "hatchling": "the build",
    "ruff": "make lint",
    "tensorrt-rtx": "the tensorrt engine",
    "mypy": "make lint",
}


def imported_by(folder: str, *, quoted: bool) -> set[str]:
    """Return the distributions that Python files import, by statement and, if `quoted`, by name (lazy engines)."""
    owners = importlib.metadata.packages_distributions()
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and quoted:
                names.add(node.value)
    return {canonicalize_name(owner) for name in names for owner in owners.get(name, [])} - {"edgemae"}


def without_details(names: set[str]) -> set[str]:
    """Fold NVIDIA's three wheels into the one that is asked for."""
    return {"tensorrt-rtx" if name.startswith("tensorrt-rtx") else name for name in names}


def test_requirements_are_what_is_imported() -> None:
    asked = canonical(PROJECT["dependencies"]) | canonical(chain(*(EXTRAS[name] for name in EXTRAS if name != "test")))
    found = without_details(imported_by("edgemae", quoted=True))
    assert asked - found - set(INDIRECT) == set(), "asked for, and never imported"
    blocked = {"openvino-telemetry"}  # comes with openvino, and is named only to keep it from being imported
    assert found - asked - blocked == set(), "imported, and never asked for"


def test_test_requirements_are_what_the_tests_import() -> None:
    asked = canonical(PROJECT["dependencies"]) | canonical(chain(*EXTRAS.values()))
    found = without_details(imported_by("tests", quoted=False))
    known = {"packaging", "pip", "setuptools", "pluggy"}  # come with pytest and with every environment
    assert found - asked - known == set(), "imported by a test, and never asked for"
    assert canonical(EXTRAS["test"]) - found - set(INDIRECT) == set(), "asked for, and no test imports it"


def pins() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_pins_are_exact_and_never_two_for_one_python(python: str) -> None:
    for name, rows in pins().items():
        valid = [r for r in rows if r.marker is None or r.marker.evaluate({"python_version": python})]
        assert len(valid) <= 1, name
        for pin in rows:
            assert re.fullmatch(r"==[0-9][0-9.]*", str(pin.specifier)), f"{pin}: no exact, public version"


def test_every_package_in_the_closure_is_pinned() -> None:
    """Walk from the extras through what is installed. Torch pins its own CUDA wheels, so those are left to it."""
    pinned = {
        name: next(r for r in rows if r.marker is None or r.marker.evaluate())
        for name, rows in pins().items()
        if any(r.marker is None or r.marker.evaluate() for r in rows)
    }
    todo = [*PROJECT["dependencies"], *chain(*EXTRAS.values())]
    seen: set[str] = set()
    while todo:
        requirement = Requirement(todo.pop())
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        if name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        assert name in pinned, f"{name} has no line in constraints.txt"
        installed = importlib.metadata.version(name).split("+")[0]
        assert pinned[name].specifier.contains(installed), f"{name} {installed} is installed, not {pinned[name]}"
        todo += importlib.metadata.requires(name) or []
    assert {"torch", "numpy", "onnx"} <= seen


# ---------------------------------------------------------------- a clean environment


def site_of(env: Path) -> Path:
    (site,) = (env / "lib").glob("python*/site-packages")
    return site


@pytest.fixture(scope="module")
def clean_env(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel with one engine and a camera library, pinned, into an environment with nothing else in it."""
    env = tmp_path_factory.mktemp("clean") / "env"
    venv.create(env, symlinks=True)
    install = ["install", "-q", "--no-compile", "--only-binary=:all:", "-c", str(ROOT / "constraints.txt")]
    command = [sys.executable, "-m", "pip", "--python", str(env), *install]
    done = subprocess.run(
        [*command, f"edgemae[onnxruntime,camera] @ {wheel.as_uri()}"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0 and re.search("NewConnectionError|NameResolutionError|ConnectTimeoutError", done.stderr):
        pytest.skip("the package registry cannot be reached")
    assert done.returncode == 0, done.stderr[-4000:]
    return env


@pytest.fixture(scope="module")
def bare_env(clean_env: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Link edgemae, numpy, msgspec, cv2 and one engine (with what that asks for) into a second environment."""
    env = tmp_path_factory.mktemp("bare") / "env"
    venv.create(env, symlinks=True)
    have = {canonicalize_name(d.name): d for d in importlib.metadata.distributions(path=[str(site_of(clean_env))])}
    keep = {"edgemae", "numpy", "msgspec", "opencv-python-headless"}
    keep |= {"tomli"} & set(have)  # msgspec's own, on Python 3.10
    todo = ["onnxruntime"]
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in keep:
            keep.add(name)
            needs = [Requirement(text) for text in have[name].requires or []]
            todo += [r.name for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
    for name in keep:
        tops = {file.parts[0] for file in have[name].files or [] if file.parts[0] != ".."}
        for top in tops:
            link = site_of(env) / top
            if not link.exists():
                link.symlink_to(site_of(clean_env) / top)
    return env


@pytest.mark.slow
def test_clean_install_lists_the_targets_of_the_repository(clean_env: Path, tmp_path: Path) -> None:
    code = "import edgemae, json; print(json.dumps([edgemae.__file__, edgemae.list_targets()]))"
    file, targets = json.loads(succeed(clean_env / "bin" / "python", "-c", code, cwd=tmp_path))
    assert file.startswith(str(clean_env))
    assert targets == list_targets() == sorted(path.stem for path in (ROOT / "targets").glob("*.toml"))


@pytest.mark.slow
def test_clean_install_has_the_pinned_versions_and_no_torch(clean_env: Path) -> None:
    have = {
        canonicalize_name(d.name): d.version for d in importlib.metadata.distributions(path=[str(site_of(clean_env))])
    }
    assert not {"torch", "onnx", "nncf", "openvino", "scipy", "pandas"} & set(have)
    for name, rows in pins().items():
        if name in have:
            pin = next(r for r in rows if r.marker is None or r.marker.evaluate())
            assert pin.specifier.contains(have[name]), f"{name} {have[name]}"


@pytest.mark.slow
def test_clean_install_runs_the_command_line(clean_env: Path, tmp_path: Path) -> None:
    command = clean_env / "bin" / "edgemae"
    assert "compile" in succeed(command, "--help", cwd=tmp_path)
    listing = succeed(command, "targets", cwd=tmp_path)
    for name in list_targets():
        assert name in listing


@pytest.mark.slow
def test_a_bundle_runs_with_numpy_msgspec_cv2_and_one_engine(bare_env: Path, tmp_path: Path) -> None:
    bundle, frame_bgr, expected = make_bundle(tmp_path)
    np.save(tmp_path / "frame.npy", frame_bgr)
    code = """
import importlib.util, json, sys
import numpy as np
absent = ["typer", "rich", "torch", "onnx", "openvino", "nncf", "scipy", "pandas", "pip", "setuptools"]
found = [name for name in absent if importlib.util.find_spec(name)]
import edgemae
with edgemae.load(sys.argv[1]) as model:
    result = model(np.load(sys.argv[2]))
print(json.dumps([found, model.variant.engine, result.label, result.logits.tolist()]))
"""
    python = bare_env / "bin" / "python"
    found, engine, label, logits = json.loads(
        succeed(
            python, "-c", code, bundle, tmp_path / "frame.npy", cwd=tmp_path
        )  # no -I: the cache folder is in the environment
    )
    assert found == [], "the environment is not bare"
    assert engine == "onnxruntime"
    assert label == "blue"
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def make_bundle(folder: Path) -> tuple[Path, np.ndarray[Any, Any], list[float]]:
    """Write a bundle that names the strongest colour; return it, a blue frame, and the frame's logits."""
    pixel = PixelContract(image_px=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    frame_bgr = np.full((20, 30, 3), (200, 60, 30), np.uint8)
    logits = preprocess(frame_bgr, pixel).mean(axis=(2, 3)) * 4.0
    variant = Variant(
        engine="onnxruntime",
        files=("graph/fp32.onnx",),
        precision="fp32",
        tolerance=Tolerance(cosine_min=0.999, max_abs=1e-3),
    )
    variant = msgspec.structs.replace(variant, golden=golden_name(variant.id))
    golden, files = golden_files([frame_bgr], pixel, {variant.id: logits})
    row = TensorSpec(name="logits", dtype="float32", shape=(1, 3))
    manifest = Manifest(
        name="colours",
        version=1,
        created="2026-01-01T00:00:00Z",
        status="passed",
        target=find_target("cpu-onnxruntime"),
        io=IoContract(
            inputs=(TensorSpec(name="pixels", dtype="float32", shape=(1, 3, 16, 16)),),
            outputs=(row, msgspec.structs.replace(row, name="embedding")),
        ),
        pixel=pixel,
        variants=(variant,),
        golden=golden,
        labels=("red", "green", "blue"),
    )
    path = write_bundle(folder / "colours.edgemae", manifest, {**files, "graph/fp32.onnx": colour_graph()})
    return path, frame_bgr, logits[0].tolist()


def colour_graph() -> bytes:
    """Return ONNX that averages each channel over the picture and multiplies it by 4."""
    from onnx import TensorProto, checker, helper, numpy_helper

    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pixels", "axes"], ["embedding"], keepdims=0),
            helper.make_node("Mul", ["embedding", "scale"], ["logits"]),
        ],
        "colours",
        [info("pixels", TensorProto.FLOAT, [1, 3, 16, 16])],
        [info("logits", TensorProto.FLOAT, [1, 3]), info("embedding", TensorProto.FLOAT, [1, 3])],
        [
            numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
            numpy_helper.from_array(np.array(4.0, np.float32), "scale"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    checker.check_model(model)
    return model.SerializeToString()


# ---------------------------------------------------------------- continuous integration

LOG = f"""\
E       AssertionError: assert b'{"x" * 300}' == b''
=========================== short test summary info ============================
FAILED tests/test_a.py::test_bytes[é-1] - AssertionError: assert b'{"é" * 3000}
  second line of the message
ERROR tests/test_b.py - ImportError: no module named x
SKIPPED [1] tests/test_c.py:3: no camera
=================== 1 failed, 7 passed, 1 error in 1.00s ====================
make: *** [Makefile:33: test] Error 1
"""


@pytest.mark.parametrize("status", [0, 2])
def test_ci_ends_with_the_failed_tests_and_the_counts(tmp_path: Path, status: int) -> None:
    log = LOG if status else "==== 7 passed in 1.00s ====\n"
    (tmp_path / "log").write_text(log)
    for name, does in {"make": f"cat {tmp_path}/log; exit {status}", "id": "echo 1000"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run([ROOT / ".ci/run"], capture_output=True, text=True, check=False, env={"PATH": path})
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.startswith(log)
    said = done.stdout[len(log) :].splitlines()
    if not status:
        assert said == []
        return
    assert said[0].startswith("FAILED tests/test_a.py::test_bytes[é-1] - AssertionError")
    assert len(said[0]) == 200
    assert said[1:] == ["ERROR tests/test_b.py - ImportError: no module named x", LOG.splitlines()[-2]]
