"""Bundles of one attention block, and a gallery of one of them."""

from tests.retrieval.samples import gallery, model, path
from tests.support.bundles import block_onnx, box, make_bundle

__all__ = ["block_onnx", "box", "gallery", "make_bundle", "model", "path"]
