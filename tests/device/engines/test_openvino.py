"""OpenVINO: its own format, and what it leaves behind: nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgemae.device import engines
from edgemae.device.engines import open_session, openvino
from edgemae.spec.errors import EngineRuntimeError
from edgemae.spec.target import Target
from tests.support.engine_inputs import PIXELS


def test_openvino_reads_its_own_format(tmp_path: Path, graph: dict[str, bytes], box: Target) -> None:
    from openvino import save_model

    model = openvino.shared_core().read_model(graph["graph/fp32.onnx"])
    save_model(model, tmp_path / "net.xml", compress_to_fp16=False)
    pair = {f"openvino/{name}": (tmp_path / name).read_bytes() for name in ("net.xml", "net.bin")}
    with open_session("openvino", pair, box) as ours, open_session("openvino", graph, box) as reference:
        np.testing.assert_allclose(ours(PIXELS)["logits"], reference(PIXELS)["logits"], atol=1e-6)
    cut = pair | {"openvino/net.bin": pair["openvino/net.bin"][:100]}
    with pytest.raises(EngineRuntimeError, match="openvino"):
        open_session("openvino", cut, box)


def test_openvino_writes_and_sends_nothing_below_the_home_folder(tmp_path: Path) -> None:
    script = "from edgemae.device.engines import ENGINES; print(ENGINES['openvino'].version())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() != "None"
    assert list(tmp_path.iterdir()) == []


SIGNALLED = """
import signal, sys
from pathlib import Path
import numpy as np
from edgemae.device.engines import open_session
from edgemae.spec.target import find_target

graph = {"fp32.onnx": Path(sys.argv[1]).read_bytes()}
sessions = [open_session("openvino", graph, find_target("intel-openvino")) for _ in range(3)]
for session in sessions:  # in the order in which they came, not the other way round
    session.close()
del session, sessions
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_after_sessions_is_survived(block_onnx: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(block_onnx())
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, tmp_path / "graph.onnx"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(engines.__file__).parents[3])},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
