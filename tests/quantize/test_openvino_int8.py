"""NNCF in a process of its own: what it must not import, print or leave behind. Its graphs: test_schemes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from edgemae.quantize.calibrate import Calibration
from edgemae.spec.graph import Graph


def test_import_is_light_and_nothing_reaches_stdout_or_home(
    graph: Graph, calibration: Calibration, tmp_path: Path
) -> None:
    """In a fresh process: no torch, onnx or engine at import; NNCF prints nothing and writes no telemetry id."""
    (tmp_path / "g.onnx").write_bytes(graph.onnx)
    np.save(tmp_path / "c.npy", calibration.images)
    code = """
import sys
import numpy as np
import edgemae.quantize.calibrate
assert not {"torch", "onnxruntime", "openvino", "nncf"} & set(sys.modules), sorted(sys.modules)
import edgemae.quantize.schemes as schemes
assert not {"torch", "onnxruntime", "openvino", "nncf"} & set(sys.modules)
from edgemae.quantize.openvino_int8 import quantize_ir
quantize_ir(open("g.onnx", "rb").read(), np.load("c.npy"), -1.0)
"""
    env = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "intel").exists()
