"""Threads and cores: set where an engine is made, kept at every call, given back, and refused when not there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgemae.device.engines import open_session
from edgemae.device.hardware import cpu_affinity as room
from edgemae.device.hardware.cpu_affinity import checked_cores, on_cores, usable_cores
from edgemae.device.model import load
from edgemae.spec.errors import InputError
from edgemae.spec.target import Target

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps no thread to a core")
CORES = usable_cores()
LAST = CORES[-1:]
FRAME = np.full((40, 50, 3), 90, np.uint8)
PIXELS = np.random.default_rng(3).standard_normal((1, 3, 32, 32)).astype(np.float32)


def threads_of_this_process() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_thread_of_an_engine_stays_on_its_cores(
    engine: str, block_onnx: Callable[..., bytes], box: Target
) -> None:
    """Two threads, so that the engine starts some of its own; they are told from others by when they appear."""
    before, ours = threads_of_this_process(), os.sched_getaffinity(0)
    two = msgspec.structs.replace(box, threads=2)
    with open_session(engine, {"x.onnx": block_onnx()}, two, LAST) as session:
        for _ in range(3):
            session(PIXELS)
        started = threads_of_this_process() - before
        assert started or engine == "openvino"  # which starts none where it sees one core
        assert {tuple(os.sched_getaffinity(thread)) for thread in started} <= {LAST}
        assert os.sched_getaffinity(0) == ours, "the caller has its own cores back"


def test_the_caller_computes_on_them_too_and_gets_its_own_back(block_onnx: Callable[..., bytes], box: Target) -> None:
    with open_session("onnxruntime", {"x.onnx": block_onnx()}, box, LAST) as session:
        run, seen = session._run, []
        assert run is not None
        session._run = lambda pixels: (seen.append(os.sched_getaffinity(0)), run(pixels))[1]
        ours = os.sched_getaffinity(0)
        session(PIXELS)
        session._run = lambda pixels: 1 / 0  # type: ignore[assignment,return-value]
        with pytest.raises(Exception, match="division by zero"):
            session(PIXELS)
        assert (seen, os.sched_getaffinity(0)) == ([set(LAST)], ours)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_app_that_pins_its_own_thread_stays_pinned(
    engine: str, block_onnx: Callable[..., bytes], box: Target
) -> None:
    """OpenVINO's own pinning gave the thread all cores back at the first inference."""
    ours = os.sched_getaffinity(0)
    with open_session(engine, {"x.onnx": block_onnx()}, box) as session:
        try:
            os.sched_setaffinity(0, LAST)
            session(PIXELS)
            assert os.sched_getaffinity(0) == set(LAST)
        finally:
            os.sched_setaffinity(0, ours)


def test_only_the_calling_thread_is_moved() -> None:
    ours = os.sched_getaffinity(0)
    there, go = threading.Event(), threading.Event()

    def stay() -> None:
        with on_cores(LAST):
            there.set()
            go.wait(10)

    other = threading.Thread(target=stay)
    other.start()
    try:
        assert there.wait(10)
        assert os.sched_getaffinity(0) == ours
        assert other.native_id is not None
        assert os.sched_getaffinity(other.native_id) == set(LAST)
    finally:
        go.set()
        other.join()


def test_a_model_says_where_it_runs(make_bundle: Callable[..., Path], box: Target) -> None:
    path = make_bundle(target=msgspec.structs.replace(box, threads=4))
    with load(path) as free, load(path, cores=LAST) as kept, load(path, threads=3) as three:
        assert (free.info["threads"], free.info["cores"]) == (4, [])
        assert (kept.info["threads"], kept.info["cores"]) == (1, list(LAST))
        assert (three.info["threads"], three.info["cores"]) == (3, [])
        want, have = free(FRAME).logits, kept(FRAME).logits
        assert want is not None
        np.testing.assert_allclose(have, want, atol=1e-5)


@pytest.mark.parametrize("cores", [[], [0, 0], [-1], [4096], [CORES[0], 4096]])
def test_cores_that_are_not_there_are_named(cores: Collection[int], make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="core") as error:
        load(make_bundle(), cores=cores)
    assert str(CORES[0]) in error.value.expected


@pytest.mark.parametrize(("threads", "cores"), [(0, None), (-2, None), (2, LAST)])
def test_threads_that_make_no_sense_are_named(
    threads: int, cores: Collection[int] | None, make_bundle: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match=f"{threads} threads were asked for"):
        load(make_bundle(), threads=threads, cores=cores)


def test_a_system_without_affinity_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(room.os, "sched_setaffinity")
    monkeypatch.delattr(room.os, "sched_getaffinity")
    assert usable_cores()[0] == 0
    assert checked_cores(None) == ()
    with pytest.raises(InputError, match="cannot keep a thread to a core"):
        checked_cores([0])
    with on_cores(()):
        pass
