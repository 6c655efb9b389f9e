"""Bundles of one attention block, graphs, images and a TensorRT without a GPU."""

from tests.support.bundles import block_onnx, box, make_bundle
from tests.support.engine_inputs import graph
from tests.support.fake_tensorrt import gpu, jetson
from tests.support.gray_video import video
from tests.support.streams import folder

__all__ = ["block_onnx", "box", "folder", "gpu", "graph", "jetson", "make_bundle", "video"]
