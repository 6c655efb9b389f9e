"""What a device needs: no build library, and memory for one small model. Each case is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgemae
from edgemae.device.engines import open_session
from edgemae.device.hardware.heap import trim_heap
from edgemae.device.preprocess import preprocess
from edgemae.device.selfcheck import golden_files, golden_name
from edgemae.spec.bundle import write_bundle
from edgemae.spec.graph import IoContract, PixelContract, TensorSpec
from edgemae.spec.manifest import Manifest, Tolerance, Variant
from edgemae.spec.target import Target

NEVER = ("torch", "onnx", "pandas", "scipy", "nncf", "safetensors", "sklearn", "matplotlib", "PIL")
PIXEL = PixelContract(image_px=224)
MIB = {"onnxruntime": 190, "openvino": 190}  # resident while running: 132 and 168 (159 from the cache) were seen
PEAK_MIB = {"onnxruntime": 225, "openvino": 260}  # while loading: 193 and 220 (194 from the cache) were seen

DEVICE = """
import json, sys
import edgemae
import numpy as np
with edgemae.load(sys.argv[1], engine=sys.argv[2]) as model:
    for _ in range(3):
        model(np.full((720, 1280, 3), 90, np.uint8))
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "loaded": sorted({name.partition(".")[0] for name in sys.modules}),
    "mib": int(status["VmRSS"].split()[0]) / 1024,
    "peak_mib": int(status["VmHWM"].split()[0]) / 1024,  # ru_maxrss counts the parent of a fork too
}))
"""


def tiny_onnx() -> bytes:
    """Return a network with the weights (5.6 million), the tokens and the widths of a ViT-Tiny/16 at 224 px."""
    rng, node = np.random.default_rng(0), helper.make_node
    nodes = [node("Conv", ["pixels", "patch"], ["grid"], kernel_shape=[16, 16], strides=[16, 16]),
             node("Reshape", ["grid", "flat"], ["columns"]),
             node("Transpose", ["columns"], ["x0"], perm=[0, 2, 1])]  # fmt: skip
    weights = [numpy_helper.from_array((rng.standard_normal((192, 3, 16, 16)) * 0.02).astype(np.float32), "patch"),
               numpy_helper.from_array(np.array([0, 192, -1]), "flat"),
               numpy_helper.from_array(np.array([1]), "axis")]  # fmt: skip
    for i in range(24):  # a half block each: wide, non-linear, narrow, added
        wide = 768 if i % 2 else 384
        for name, shape in ((f"up{i}", (192, wide)), (f"down{i}", (wide, 192))):
            weights.append(numpy_helper.from_array((rng.standard_normal(shape) * 0.05).astype(np.float32), name))
        nodes += [node("MatMul", [f"x{i}", f"up{i}"], [f"h{i}"]), node("Gelu", [f"h{i}"], [f"g{i}"]),
                  node("MatMul", [f"g{i}", f"down{i}"], [f"d{i}"]),
                  node("Add", [f"x{i}", f"d{i}"], [f"x{i + 1}"])]  # fmt: skip
    nodes.append(node("ReduceMean", ["x24", "axis"], ["embedding"], keepdims=0))
    ports = [[helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, 224, 224])],
             [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 192])]]  # fmt: skip
    graph = helper.make_graph(nodes, "tiny", *ports, weights)
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()
    assert len(data) > 20 << 20
    return data


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, box: Target) -> Path:
    graph, frame = tiny_onnx(), np.full((60, 80, 3), 90, np.uint8)
    with open_session("onnxruntime", {"fp32.onnx": graph}, box) as session:
        rows = session(preprocess(frame, PIXEL))["embedding"]
    variants = tuple(
        Variant(engine=name, files=("graph/fp32.onnx",), precision="fp32", golden=golden_name(f"{name}-fp32"),
             tolerance=Tolerance(cosine_min=0.999, max_abs=1.0))
        for name in MIB
    )  # fmt: skip
    golden, files = golden_files([frame], PIXEL, {variant.id: rows for variant in variants})
    io = IoContract(inputs=(TensorSpec(name="pixels", dtype="float32", shape=(1, 3, 224, 224)),),
                    outputs=(TensorSpec(name="embedding", dtype="float32", shape=(1, 192)),))  # fmt: skip
    manifest = Manifest(name="tiny", version=1, created="2025-01-01T00:00:00Z", status="passed", target=box, io=io,
                        pixel=PIXEL, variants=variants, golden=golden)  # fmt: skip
    bundle = tmp_path_factory.mktemp("footprint") / "tiny.edgemae"
    return write_bundle(bundle, manifest, files | {"graph/fp32.onnx": graph})


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("engine", MIB)
def test_a_vit_tiny_fits_and_no_build_library_is_imported(engine: str, path: Path, tmp_path: Path) -> None:
    where = os.environ | {"PYTHONPATH": str(Path(edgemae.__file__).parents[1]), "EDGEMAE_CACHE_DIR": str(tmp_path)}
    for _ in ("built", "from the cache"):
        command = [sys.executable, "-c", DEVICE, str(path), engine]
        done = subprocess.run(command, capture_output=True, text=True, env=where, check=False)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        assert not set(NEVER) & set(seen["loaded"])
        assert seen["mib"] <= MIB[engine]
        assert seen["peak_mib"] <= PEAK_MIB[engine]


def test_trimming_is_harmless_where_there_is_nothing_to_trim(monkeypatch: pytest.MonkeyPatch) -> None:
    trim_heap()
    monkeypatch.setattr(sys, "platform", "win32")
    trim_heap()
