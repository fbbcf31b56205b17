"""Slides: opening, resolution, reading at a resolution asked for in um per pixel."""

from __future__ import annotations

from wsi.slides.archive import SlideFile, find_slides
from wsi.slides.base import Slide, SlideInfo, Thumbnail
from wsi.slides.open import READERS, open_slide
from wsi.slides.resolution import Resolution, resolve_mpp

__all__ = [
    "READERS",
    "Resolution",
    "Slide",
    "SlideFile",
    "SlideInfo",
    "Thumbnail",
    "find_slides",
    "open_slide",
    "resolve_mpp",
]
