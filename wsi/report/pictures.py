"""Pictures as data URIs, small enough for a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from wsi.errors import ConfigError

_LADDER = ((1000, 86), (800, 82), (640, 78), (480, 72), (360, 66), (240, 60))
"""Longest edge in pixels and JPEG quality, tried until the pictures fit."""

_SMALL = ((320, 80), (320, 68), (320, 55), (256, 55), (200, 50), (128, 40))
_SMALL_BYTES = 36_000


def data_uris(pictures: Sequence[NDArray[np.uint8]], most_bytes: int) -> list[str | None]:
    """Return JPEG data URIs of pictures (h, w, 3), at the best quality that keeps to the bytes.

    All share one quality, so that they can be compared. Where even the least takes too many bytes,
    the last pictures are None.
    """
    uris: list[str] = []
    for edge, quality in _LADDER:
        uris = [_data_uri(picture, edge, quality) for picture in pictures]
        if sum(map(len, uris)) <= most_bytes:
            break
    kept = np.cumsum([len(uri) for uri in uris]) <= most_bytes
    return [uri if fits else None for uri, fits in zip(uris, kept, strict=True)]


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


def small_data_uri(path: Path) -> str | None:
    """Return a JPEG file at 320 px or less as a data URI under 36 kB; None where there is none.

    Busy pictures lose quality, then size, before they grow beyond the bound.
    """
    try:
        data = path.read_bytes()
        h, w = (int(extent) for extent in simplejpeg.decode_jpeg_header(data)[:2])
        edge = _SMALL[0][0]
        # Decoded at a fraction of its size at once, which is most of the work saved.
        least_w, least_h = (edge, 0) if w >= h else (0, edge)
        picture = simplejpeg.decode_jpeg(data, "RGB", min_width=least_w, min_height=least_h)
    except (OSError, ValueError):
        return None
    uri = None
    for edge, quality in _SMALL:
        uri = _data_uri(picture, edge, quality)
        if len(uri) <= _SMALL_BYTES:
            break
    return uri
