"""Marker ink by hue: what haematoxylin and eosin cannot look like."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def ink_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which pixels (h, w) of uint8 RGB (h, w, 3) have the colour of marker ink.

    OpenCV's hue runs 0-180: green 35-90, cyan and blue 90-118; haematoxylin lies above 120 and
    eosin above 145. Red ink is told from eosin by having almost no blue and green, black ink by
    having no colour. Meant for a low power, a few um per pixel, where nuclei are averaged away.
    """
    hsv = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV), np.uint8)
    hue, saturation = hsv[..., 0], hsv[..., 1]
    red, green, blue = (pixels[..., k] for k in range(3))
    foreign = (hue >= 35) & (hue <= 118) & (saturation > 60)
    crimson = (red > 130) & (green < 60) & (blue < 80)
    black = (pixels.max(axis=2) < 60) & (saturation < 90)
    return foreign | crimson | black
