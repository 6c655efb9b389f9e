"""What --baseline names, and what it cannot name."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemae.profiling.compare.baseline import baseline_of
from edgemae.spec.errors import InputError


@pytest.mark.parametrize(("text", "kind"), [("{}", "bundle"), ("onnx:{}", "onnx"), ("pytorch:{}", "pytorch")])
def test_what_against_names(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "model.file"
    path.touch()
    found = baseline_of(text.format(path), tmp_path / "b.edgemae", "openvino", "laptop")
    assert (found.kind, found.path, found.target) == (kind, str(path), "laptop")
    assert found.engine == ("openvino" if kind == "bundle" else "auto")
    worker = "edgemae.pipeline.torch_worker" if kind == "pytorch" else "edgemae.profiling.compare.ab_worker"
    assert found.module == worker


@pytest.mark.parametrize(
    ("text", "message"),
    [("tflite:x", "unknown prefix 'tflite:'"), ("onnx:nothing.onnx", "'nothing.onnx', which does not")],
)
def test_what_against_cannot_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        baseline_of(text, tmp_path, "auto", "")
