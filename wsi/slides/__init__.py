"""Slides: opening, resolution, reading at a resolution asked for in um per pixel."""

from __future__ import annotations

from wsi.slides.archive import Archive, SlideFile, find_slides, search_archive
from wsi.slides.base import Slide, SlideInfo, Thumbnail
from wsi.slides.open import READERS, open_slide
from wsi.slides.parts import FileStamp, stamp_of
from wsi.slides.resolution import Resolution, resolve_mpp

__all__ = [
    "READERS",
    "Archive",
    "FileStamp",
    "Resolution",
    "Slide",
    "SlideFile",
    "SlideInfo",
    "Thumbnail",
    "find_slides",
    "open_slide",
    "resolve_mpp",
    "search_archive",
    "stamp_of",
]
