"""What all tests share: one thread, fixed seeds, a cache of their own, a tiny model and tiny pictures."""

from __future__ import annotations

import functools
import importlib
import os
import random
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.support.byte_differences import explain

if TYPE_CHECKING:
    from edgemae.model.vit import ViT
    from tests.support.sshd import Server
    from tests.support.tiny_job import Job, Ran

# Before numpy, torch or OpenCV come in: they read these once. Sums stay in one order and two cores stay usable.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
    os.environ[_name] = "1"
# No test needs a network, a screen or colours.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", MPLBACKEND="Agg", NO_COLOR="1", COLUMNS="120")

# The same examples on every run, and no deadline: a busy machine is not a bug.
settings.register_profile("edgemae", derandomize=True, deadline=None, database=None)
settings.load_profile("edgemae")


# Coverage is asked of spec and device, and their own tests reach 97 % of them. Tracing makes a test of torch or of its
# exporter take 1.8 times as long.
TRACED = {"spec", "device", "profiling", "retrieval", "doctor"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Stop the tracing of pytest-cov, where it is on, around the fixtures and the call of every other test."""
    controller = getattr(item.config.pluginmanager.getplugin("_cov"), "cov_controller", None)
    if controller is None or item.path.relative_to(Path(__file__).parent).parts[0] in TRACED:
        return (yield)
    controller.pause()
    try:
        return (yield)
    finally:
        controller.resume()


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Say how long byte strings differ in one line, so that the log of a failed run can be read."""
    return explain(op, left, right)


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what engines compile away from the user's cache."""
    path = tmp_path_factory.mktemp("edgemae-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEMAE_CACHE_DIR", str(path))
        yield path


@pytest.fixture(scope="session")
def _sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from tests.support.sshd import serve, stop

    server = serve(tmp_path_factory.mktemp("sshd"))
    yield server
    stop(server)


@pytest.fixture
def server(_sshd: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Return a real ssh server that knows us and has nothing in its cache; ssh here knows it as `device`."""
    from edgemae.deploy import ssh

    shutil.rmtree(_sshd.cache, ignore_errors=True)
    monkeypatch.setenv("EDGEMAE_SSH_CONFIG", str(_sshd.config))
    monkeypatch.setattr(ssh, "FIRST_WAIT_S", 0.05)
    return _sshd


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Seed what is loaded, and undo what an earlier test did to torch's threads."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.manual_seed(0)
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        _keep_operators()


def _keep_operators() -> None:
    """Let torch's exporter translate its 500 operators once, and not at every export: a third of an export's time."""
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    registry = getattr(exporter, "ONNXRegistry", None)
    if registry is not None and not hasattr(registry.from_torchlib, "cache_info"):
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))


@pytest.fixture
def bench_tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return an importer of scripts in tools/ by name, which find their other halves beside them."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "tools"))
    return importlib.import_module


@pytest.fixture
def tiny_vit() -> Callable[..., ViT]:
    """Return a maker of ViTs with 32 px, patch 8, width 32, depth 2, 2 heads and 3 classes; any size can be changed."""
    import torch

    from edgemae.model.vit import ViT, ViTShape

    def make(seed: int = 0, **changes: Any) -> ViT:
        sizes: dict[str, Any] = {"image_px": 32, "patch_px": 8, "width": 32, "depth": 2, "heads": 2, "classes": 3}
        torch.manual_seed(seed)
        return ViT(ViTShape.uniform(**(sizes | changes))).eval()

    return make


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of image folders: one sub-folder a class, or flat without classes; coloured noise in each."""
    import cv2
    import numpy as np

    def make(
        name: str = "images",
        *,
        classes: tuple[str, ...] = ("circle", "square"),
        per_class: int = 4,
        image_hw: tuple[int, int] = (36, 48),
        suffix: str = ".png",
        seed: int = 0,
    ) -> Path:
        rng = np.random.default_rng(seed)
        root = tmp_path / name
        for k, folder in enumerate(classes or ("",)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for i in range(per_class):
                frame_bgr = rng.integers(0, 96, (*image_hw, 3), dtype=np.uint8)
                frame_bgr[..., k % 3] += 128  # classes differ in colour: they can be learnt in a few steps
                assert cv2.imwrite(str(root / folder / f"{i:03d}{suffix}"), frame_bgr)
        return root

    return make


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Write the pictures, the plan and the target of a tiny job."""
    from tests.support.tiny_job import write_job

    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="session")
def weave(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pictures of a cloth (`normal`) and a bundle that gives tokens of them (`weave.edgemae`)."""
    import torch

    from edgemae.model.vit import ViT, ViTShape
    from tests.support.tiny_job import write_bundle_of, write_weave

    root = tmp_path_factory.mktemp("weave")
    write_weave(root / "normal", 80, seed=1)
    torch.manual_seed(0)  # weights that were never trained see scratches too: the patch embedding keeps most of a patch
    vit = ViT(ViTShape.uniform(image_px=64, patch_px=8, width=32, depth=2, heads=2)).eval()
    write_bundle_of(root / "weave.edgemae", vit, root / "normal")
    return root


@pytest.fixture(scope="session")
def compiled(job: Job) -> Ran:
    """Go the whole way once, from nothing to a bundle with int8 on two engines; about 12 s."""
    from tests.support.tiny_job import edgemae

    ran = edgemae("compile", *job.work, "--target", job.target, "--output", job.output, "--json", draw=True)
    assert ran.code == 0, ran.err
    return ran
