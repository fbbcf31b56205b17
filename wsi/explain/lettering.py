"""Text on pictures, in any script that DejaVu Sans has."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi.explain.frame import INK

RGB = NDArray[np.uint8]


@cache
def _font(px: int, bold: bool) -> ImageFont.FreeTypeFont:
    # matplotlib is a dependency and carries the font; importing it would cost more than this.
    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    path = files("matplotlib") / "mpl-data" / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), px)


def text_width(text: str, px: int, *, bold: bool = False) -> int:
    """Return the width in pixels of a line of text `px` high."""
    return round(_font(px, bold).getlength(text))


def fitted(text: str, width: int, px: int, *, bold: bool = False) -> str:
    """Return the text, its middle left out where it is wider than `width` pixels."""
    if text_width(text, px, bold=bold) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shorter = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
        if text_width(shorter, px, bold=bold) <= width:
            return shorter
    return "…"


def write(
    picture: RGB,
    text: str,
    xy: tuple[int, int],
    px: int,
    *,
    bold: bool = False,
    anchor: str = "la",
    ink: tuple[int, int, int] = INK,
) -> None:
    """Draw a line of text into the picture; `xy` is where its anchor lies, as Pillow names it."""
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text(xy, text, fill=ink, font=_font(px, bold), anchor=anchor)
    picture[:] = np.asarray(image)
