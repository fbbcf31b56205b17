"""JPEG tiles as scanners write them into a TIFF: complete, or abbreviated beside shared tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray

Photometric = Literal["ycbcr", "rgb"]
Subsampling = Literal["420", "422", "444"]

SAMPLING: dict[str, tuple[int, int]] = {"420": (2, 2), "422": (2, 1), "444": (1, 1)}
"""Luma samples per chroma sample (across, down), as TIFF's YCbCrSubSampling has them."""

_SOI, _EOI, _SOS = b"\xff\xd8", b"\xff\xd9", 0xDA
_TABLES = (0xDB, 0xC4)  # quantisation and Huffman tables


@dataclass(frozen=True)
class JpegCoding:
    """How the pixels of a tile become JPEG.

    Attributes:
        photometric: colour space of the stream; RGB is stored as it is.
        subsampling: chroma resolution; RGB has no chroma and is never subsampled.
        shared_tables: leave the tables, the same in all tiles, to the file's JPEGTables tag.
    """

    quality: int = 85
    photometric: Photometric = "ycbcr"
    subsampling: Subsampling = "420"
    shared_tables: bool = False

    def encode(self, tile: NDArray[np.uint8]) -> bytes:
        """Return the stream of one RGB tile, uint8 (h, w, 3)."""
        stream = self._complete(tile)
        return abbreviated(stream)[1] if self.shared_tables else stream

    def tables(self) -> bytes | None:
        """Return the tables-only stream for the file's JPEGTables tag; None when not shared."""
        if not self.shared_tables:
            return None
        return abbreviated(self._complete(np.zeros((16, 16, 3), np.uint8)))[0]

    def _complete(self, tile: NDArray[np.uint8]) -> bytes:
        rgb = self.photometric == "rgb"
        stream = imagecodecs.jpeg8_encode(
            np.ascontiguousarray(tile),
            level=self.quality,
            colorspace="RGB",
            outcolorspace="RGB" if rgb else "YCBCR",
            subsampling=None if rgb else SAMPLING[self.subsampling],
        )
        return bytes(stream)


def abbreviated(stream: bytes) -> tuple[bytes, bytes]:
    """Return (tables-only stream, stream without tables) of a complete baseline JPEG stream.

    Source: ITU-T T.81, annex B.4 and B.5.
    """
    tables, image, at = [_SOI], [_SOI], len(_SOI)
    while stream[at + 1] != _SOS:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        (tables if stream[at + 1] in _TABLES else image).append(stream[at:end])
        at = end
    return b"".join([*tables, _EOI]), b"".join([*image, stream[at:]])
