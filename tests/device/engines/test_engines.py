"""Engines: one contract for all; errors that say what is missing; a GPU engine built without a GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgemae.device import engines
from edgemae.device.engines import ENGINES, Engine, Session, find_engine, onnxruntime, open_session, openvino
from edgemae.spec.errors import EngineRuntimeError, InputError
from edgemae.spec.target import ENGINE_NAMES, Target
from tests.support.engine_inputs import ON_CPU, PIXELS

# ------------------------------------------------------------------------------------------------ the contract


def test_there_is_one_file_and_one_line_for_each_engine() -> None:
    files = {path.stem for path in Path(engines.__file__).parent.glob("[!_]*.py")}
    assert set(ENGINES) == files == set(ENGINE_NAMES)
    for name, engine in ENGINES.items():
        assert isinstance(engine, Engine)
        assert engine.name == name
        assert "edgemae[" in engine.needs


def test_engines_agree_on_the_same_graph(graph: dict[str, bytes], box: Target) -> None:
    outputs = {}
    for name in ON_CPU:
        with open_session(name, graph, box) as session:
            assert isinstance(session, Session)
            outputs[name] = session(PIXELS)
    for key, shape in (("logits", (1, 5)), ("embedding", (1, 16))):
        first, second = (outputs[name][key] for name in ON_CPU)
        assert first.shape == second.shape == shape
        assert first.dtype == second.dtype == np.float32
        np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("name", ON_CPU)
def test_outputs_stay_valid_after_the_next_call(name: str, graph: dict[str, bytes], box: Target) -> None:
    with open_session(name, graph, box) as session:
        first = session(PIXELS)["logits"]
        kept = first.copy()
        assert not np.array_equal(session(PIXELS * 2)["logits"], kept)
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(session(PIXELS[:, :, ::1])["logits"], kept)


@pytest.mark.parametrize("name", [name for name in ON_CPU if ENGINES[name].cached])
def test_a_kept_blob_that_cannot_be_loaded_is_made_again(
    name: str, graph: dict[str, bytes], box: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Its digest is right: it was written that way."""
    monkeypatch.setenv("EDGEMAE_CACHE_DIR", str(tmp_path))
    with open_session(name, graph, box) as session:
        expected = session(PIXELS)["logits"]
    (blob,) = tmp_path.rglob("*.blob")
    whole = blob.read_bytes()
    blob.write_bytes(whole[:100])
    digest = hashlib.sha256(whole[:100]).hexdigest()
    blob.with_suffix(".sha256").write_text(f"{digest}  {blob.name}\n")
    for warnings in (1, 0):
        caplog.clear()
        with open_session(name, graph, box) as session:
            np.testing.assert_array_equal(session(PIXELS)["logits"], expected)
        assert caplog.text.count("cannot be loaded, compiling again") == warnings


@pytest.mark.parametrize("name", ON_CPU)
def test_a_batch_is_only_read_and_may_lie_anywhere(name: str, graph: dict[str, bytes], box: Target) -> None:
    """No engine copies it first: it may be read-only, unaligned, and used for something else after the call."""
    fixed, scratch = PIXELS.copy(), PIXELS.copy()
    fixed.flags.writeable = False
    crooked = np.empty(PIXELS.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(PIXELS.shape)
    crooked[:] = PIXELS
    with open_session(name, graph, box) as session:
        expected = session(scratch)["logits"]
        np.testing.assert_array_equal(scratch, PIXELS)
        kept, scratch[:] = expected.copy(), 0.0
        for batch in (fixed, crooked, np.asfortranarray(PIXELS)):
            np.testing.assert_array_equal(session(batch)["logits"], kept)
        np.testing.assert_array_equal(expected, kept)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_batch_of_another_size_needs_a_dynamic_graph(
    name: str, graph: dict[str, bytes], block_onnx: Callable[..., bytes], box: Target
) -> None:
    both = np.concatenate([PIXELS, PIXELS])
    with open_session(name, {"any.onnx": block_onnx(batch="batch")}, box) as session:
        assert session(both)["logits"].shape == (2, 5)
    with open_session(name, graph, box) as session, pytest.raises(EngineRuntimeError, match=name):
        session(both)


def test_threads_are_those_of_the_target(graph: dict[str, bytes], box: Target) -> None:
    """Ask both libraries: threads are set, never "all", and one frame at a time runs on all of them."""
    import onnxruntime as runtime

    three = onnxruntime._options(runtime, msgspec.structs.replace(box, threads=3))
    assert (three.intra_op_num_threads, three.inter_op_num_threads) == (3, 1)
    assert three.get_session_config_entry("session.intra_op.allow_spinning") == "0"

    core = openvino.shared_core()
    network = core.compile_model(core.read_model(graph["graph/fp32.onnx"]), "CPU", openvino._options(box))
    assert network.get_property("INFERENCE_NUM_THREADS") == box.threads == 1
    assert network.get_property("NUM_STREAMS") == 1


# ------------------------------------------------------------------------------------------------ missing engines


def test_versions_are_those_of_the_libraries() -> None:
    import onnxruntime

    assert ENGINES["onnxruntime"].version() == onnxruntime.__version__
    assert (ENGINES["openvino"].version() or "").startswith("20")


def test_an_unknown_engine_gets_the_nearest_name() -> None:
    with pytest.raises(InputError, match="'openvino'"):
        find_engine("openvivo")
