"""What a bundle is profiled with: the frames that it proves itself with, as they would come from a camera."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgemae.device.preprocess import as_bgr, decode
from edgemae.spec.bundle import open_bundle
from edgemae.spec.errors import BundleError

if TYPE_CHECKING:
    from edgemae.device.model import Model


def golden_bytes(model: Model) -> list[bytes]:
    """Return the golden frames as they lie in the bundle, encoded. Raises BundleError when it carries none."""
    bundle = open_bundle(model.path)
    if bundle.sha256 != model.sha256 or not bundle.manifest.golden.frames:
        raise BundleError(
            f"'{model.path}' is not the bundle that was loaded, or carries no golden frames",
            expected="the same bundle, with at least one picture under golden/",
            fix="load it again",
        )
    return [bundle.read(name) for name in bundle.manifest.golden.frames]


def golden_frames(model: Model) -> list[NDArray[np.uint8]]:
    """Return the golden frames as BGR (H, W, 3) uint8. Raises BundleError when there are none."""
    return [as_decoded(model, data) for data in golden_bytes(model)]


def as_decoded(model: Model, data: bytes) -> NDArray[np.uint8]:
    """Return one encoded golden frame as BGR (H, W, 3) uint8. Raises BundleError when it is no picture."""
    frame = decode(data, model.pixel)
    if frame is None:
        raise BundleError(
            f"a golden frame of '{model.path}' is no picture", expected="a PNG", fix="compile the bundle again"
        )
    return as_bgr(frame, model.manifest.golden.color)
