"""What a bundle is profiled with: the frames that it proves itself with, as they would come from a camera."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgemae.device.preprocess import ImageBGR, as_bgr, decode
from edgemae.spec.bundle import Bundle, open_bundle
from edgemae.spec.errors import BundleError
from edgemae.spec.manifest import Manifest

if TYPE_CHECKING:
    from edgemae.device.model import Model


def bundle_of(model: Model) -> Bundle:
    """Return the bundle that a model was loaded from. Raises BundleError when another one lies there now."""
    bundle = open_bundle(model.path)
    if bundle.sha256 != model.sha256:
        raise BundleError(
            f"'{model.path}' is not the bundle that was loaded", expected="the same bundle", fix="load it again"
        )
    return bundle


def golden_bytes(bundle: Bundle) -> list[bytes]:
    """Return the golden frames as they lie in the bundle, encoded. Raises BundleError when it carries none."""
    names = bundle.manifest.golden.frames
    if not names:
        raise BundleError(
            f"'{bundle.path}' carries no golden frames",
            expected="at least one image under golden/",
            fix="compile the bundle again",
        )
    return [bundle.read(name) for name in names]


def golden_frames(bundle: Bundle) -> list[ImageBGR]:
    """Return the golden frames as BGR (H, W, 3) uint8. Raises BundleError when there are none."""
    return [as_decoded(bundle.manifest, data) for data in golden_bytes(bundle)]


def as_decoded(manifest: Manifest, data: bytes) -> ImageBGR:
    """Return one encoded golden frame as BGR (H, W, 3) uint8. Raises BundleError when it is no image."""
    frame = decode(data, manifest.pixel)
    if frame is None:
        raise BundleError(
            f"a golden frame of '{manifest.name}' is no image", expected="a PNG", fix="compile the bundle again"
        )
    return as_bgr(frame, manifest.golden.color)
