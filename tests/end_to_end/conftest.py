"""Bundles of one attention block."""

from tests.support.bundles import block_onnx, box, make_bundle

__all__ = ["block_onnx", "box", "make_bundle"]
