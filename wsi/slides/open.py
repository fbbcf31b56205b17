"""Which reader opens a file."""

from __future__ import annotations

from pathlib import Path

import openslide

from wsi.errors import SlideOpenError
from wsi.registry import Registry
from wsi.slides.base import Slide
from wsi.specs import SlidesSpec

READERS = Registry(
    "reader",
    {
        "tiff": "wsi.slides.tiff_reader:TiffReader",
        "openslide": "wsi.slides.openslide_reader:OpenSlideReader",
        "image": "wsi.slides.image_reader:ImageReader",
    },
    group="wsi.readers",
)


def open_slide(
    path: str | Path,
    slide_id: str | None = None,
    *,
    mpp: float | None = None,
    spec: SlidesSpec | None = None,
) -> Slide:
    """Return the open slide, by OpenSlide where it knows the format and as a plain image else.

    Args:
        slide_id: name of the slide; the file's stem when not given.
        mpp: um per level-0 pixel from the user's slide table; it outranks the metadata.
        spec: what to do about a missing resolution.

    Raises:
        SlideOpenError: no such file, no reader knows the format, or the file is damaged.
    """
    path = Path(path)
    spec = spec or SlidesSpec()
    if not path.is_file():
        raise SlideOpenError(f"{path.name}: no such file — check the path", "missing-file")
    if path.stat().st_size == 0:
        raise SlideOpenError(f"{path.name} is empty — copy it again from its source")
    reader = READERS.load("openslide" if openslide.OpenSlide.detect_format(path) else "image")
    return reader(
        path,
        slide_id or path.stem,
        table_mpp=mpp,
        use_magnification=spec.use_magnification,
        assume_mpp=spec.assume_mpp,
    )
