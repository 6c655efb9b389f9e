"""Sessions: closed ones, engines that are missing or cannot be imported, and every engine's errors as our own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgemae.device.engines import ENGINES, open_session
from edgemae.spec.errors import EngineMissingError, EngineRuntimeError
from edgemae.spec.target import ENGINE_NAMES, Target
from tests.support.engine_inputs import ON_CPU, PIXELS


@pytest.mark.parametrize("name", ON_CPU)
def test_a_closed_session_says_so_and_closes_once_more(name: str, graph: dict[str, bytes], box: Target) -> None:
    session = open_session(name, graph, box)
    session.close()
    session.close()
    with pytest.raises(EngineRuntimeError, match=name):
        session(PIXELS)


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("data", [b"", b"junk" * 100, b"\x08\x0a" * 3], ids=["empty", "text", "no graph"])
def test_a_graph_that_is_none_is_an_engine_error(name: str, data: bytes, box: Target) -> None:
    with pytest.raises(EngineRuntimeError):
        open_session(name, {"x.onnx": data}, box)


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_a_variant_with_the_wrong_files_is_named(name: str, box: Target) -> None:
    for files in ({}, {"a.bin": b""}, {"a.onnx": b"", "b.onnx": b""}):
        with pytest.raises(EngineRuntimeError, match=rf"one \.(onnx|xml) file|{name}"):
            ENGINES[name].compile(files, box)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_damaged_blob_is_an_engine_error(name: str, box: Target) -> None:
    with pytest.raises(EngineRuntimeError, match=name):
        ENGINES[name].load(b"not a blob" * 20, box)


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_a_missing_engine_names_its_extra(
    name: str, graph: dict[str, bytes], box: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    assert ENGINES[name].version() is None
    for work in (lambda: open_session(name, graph, box), lambda: ENGINES[name].load(b"", box)):
        with pytest.raises(EngineMissingError, match=f"'{name}'") as error:
            work()
        assert f"edgemae[{name}]" in error.value.fix


@pytest.mark.parametrize("content", ["raise ImportError('libengine.so.3: not found')", "import not_there_at_all"])
def test_a_broken_engine_is_told_from_a_missing_one(
    content: str, tmp_path: Path, box: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text(content)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineMissingError, match=r"libengine\.so\.3: not found|not_there_at_all"):
        ENGINES["onnxruntime"].compile({}, box)
    assert ENGINES["onnxruntime"].version() is None
