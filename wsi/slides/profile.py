"""The colour profile embedded in a slide, and the way from it to sRGB."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

State = Literal["converted", "no-profile", "damaged-profile", "not-an-rgb-profile"]

# Glass stays white and colours inside sRGB stay what was measured; nothing is compressed to fit.
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC


def profile_name(data: bytes | None) -> str | None:
    """Return what an ICC profile calls itself, `unreadable` if damaged; None for no profile."""
    if data is None:
        return None
    try:
        return ImageCms.getProfileDescription(_opened(data)).strip() or "unnamed"
    except (ImageCms.PyCMSError, OSError):
        return "unreadable"


@dataclass(frozen=True)
class ToSrgb:
    """Converts pixels of one slide to sRGB by its profile; without a usable one, leaves them.

    Conversion is littleCMS's, by relative colorimetric intent without black point compensation.

    Attributes:
        profile: the ICC profile, or None.
    """

    profile: bytes | None

    @functools.cached_property
    def state(self) -> State:
        """Return `converted`, or why the pixels are left as they are."""
        return _transform(self.profile)[0] if self.profile is not None else "no-profile"

    def apply(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return uint8 (..., h, w, 3) in sRGB, or `tiles` itself where the state says so."""
        if self.profile is None:
            return tiles
        _, transform = _transform(self.profile)
        if transform is None or not tiles.size:
            return tiles
        stacked = tiles.reshape(-1, *tiles.shape[-2:])
        image = ImageCms.applyTransform(Image.fromarray(stacked), transform)
        return np.array(image).reshape(tiles.shape)  # a copy: Pillow's own may not be written to


@functools.lru_cache(maxsize=4)  # built once per process: slides of one scanner share a profile
def _transform(data: bytes) -> tuple[State, ImageCms.ImageCmsTransform | None]:
    try:
        profile = _opened(data)
        # Pillow's annotations take this attribute for the file the profile came from.
        if profile.profile.xcolor_space.strip() != "RGB":  # pyright: ignore[reportAttributeAccessIssue]
            return "not-an-rgb-profile", None
        srgb = ImageCms.createProfile("sRGB")
        return "converted", ImageCms.buildTransform(profile, srgb, "RGB", "RGB", _INTENT)
    except (ImageCms.PyCMSError, OSError):
        return "damaged-profile", None


def _opened(data: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(data))
