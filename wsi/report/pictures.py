"""Pictures as data URIs, small enough together for one page."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.errors import ConfigError

BUDGET_BYTES = 3_600_000
"""Of all pictures of a page, encoded; leaves the page below 5 MB."""

_LADDER = ((700, 88), (600, 82), (480, 76), (360, 70), (240, 64), (120, 55))
"""Longest edge in pixels and JPEG quality, tried until the pictures fit."""

_log = logging.getLogger(__name__)


def data_uris(pictures: Sequence[NDArray[np.uint8]]) -> list[str]:
    """Return JPEG data URIs of pictures (h, w, 3), at the best quality that keeps to the budget.

    All share one quality, so that they can be compared.
    """
    uris: list[str] = []
    for edge, quality in _LADDER:
        uris = [_data_uri(picture, edge, quality) for picture in pictures]
        if sum(map(len, uris)) <= BUDGET_BYTES:
            return uris
    _log.warning("%d pictures make a page of more than 5 MB — show fewer", len(pictures))
    return uris


def _data_uri(picture: NDArray[np.uint8], edge: int, quality: int) -> str:
    h, w = picture.shape[:2]
    if max(h, w) > edge:
        size = max(1, round(w * edge / max(h, w))), max(1, round(h * edge / max(h, w)))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ConfigError(f"a picture of {w} x {h} px cannot be written as JPEG — give another")
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
