"""Which reader opens a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openslide

from wsi.errors import SlideOpenError
from wsi.registry import Registry
from wsi.slides.base import Slide
from wsi.slides.tiff_index import UnfitError
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
    half_dct: bool = False,
    threads: int = 1,
) -> Slide:
    """Return the open slide.

    Tiled JPEG TIFFs are decoded directly, other formats that OpenSlide knows by OpenSlide, and
    what is left as a plain image; `info.reader` and `info.reader_note` say which and why.

    Args:
        slide_id: name of the slide; the file's stem when not given.
        mpp: um per level-0 pixel from the user's slide table; it outranks the metadata.
        spec: what to do about a missing resolution, and which reader to use.
        half_dct: decode JPEG tiles at half size where twice as coarse pixels are asked for:
            faster, not bit-exact; only where tiles are decoded directly.
        threads: that decode JPEG tiles side by side.

    Raises:
        SlideOpenError: no such file, it may not be read, no reader knows the format, or it is
            damaged.
    """
    path = Path(path)
    spec = spec or SlidesSpec()
    if not path.is_file():
        raise SlideOpenError(f"{path}: no such file — check the path", "missing-file")
    if path.stat().st_size == 0:
        raise SlideOpenError(f"{path.name} is empty — copy it again from its source")
    _check_readable(path)
    options: dict[str, Any] = {
        "table_mpp": mpp,
        "use_magnification": spec.use_magnification,
        "assume_mpp": spec.assume_mpp,
    }
    slide_id = slide_id or path.stem
    if not openslide.OpenSlide.detect_format(path):
        return READERS.load("image")(path, slide_id, **options)
    note = "slides.reader=openslide"
    if spec.reader == "auto":
        try:
            fast = {"half_dct": half_dct, "threads": threads}
            return READERS.load("tiff")(path, slide_id, **options, **fast)
        except UnfitError as error:
            note = str(error)
    return READERS.load("openslide")(path, slide_id, **options, note=note)


def _check_readable(path: Path) -> None:
    """Raise SlideOpenError where the file is closed to us; readers would call it damaged."""
    try:
        path.open("rb").close()
    except PermissionError as error:
        raise SlideOpenError(
            f"{path.name} cannot be read ({error.strerror}) — check its permissions", "io-error"
        ) from error
