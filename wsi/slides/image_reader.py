"""Plain images as slides of one level, so that every tool works on a PNG too."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from wsi.errors import RegionError, SlideOpenError
from wsi.files import sampled_fingerprint, sha256_bytes
from wsi.slides.base import Region, Slide, SlideInfo
from wsi.slides.parts import is_other_dicom
from wsi.slides.profile import profile_name
from wsi.slides.resolution import resolve_mpp

_MAX_PIXELS = 300_000_000  # a plain image is decoded whole: 1.2 GB as RGBA
_UM_PER_INCH = 25_400


class ImageReader(Slide):
    """A PNG, JPEG or plain TIFF, decoded whole on the first read."""

    def __init__(
        self,
        path: Path,
        slide_id: str,
        *,
        table_mpp: float | None = None,
        use_magnification: bool = False,
        assume_mpp: float | None = None,
    ) -> None:
        self._path = path
        self._pixels: NDArray[np.uint8] | None = None
        with self._opened() as image:
            self._refuse_other_than_pictures(image)
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            w, h = image.size[::-1] if turned else image.size
            properties = _dpi_properties(image)
            self._profile: bytes | None = image.info.get("icc_profile")
        resolution = resolve_mpp(
            properties,
            table_mpp=table_mpp,
            use_magnification=use_magnification,
            assume_mpp=assume_mpp,
        )
        self.info = SlideInfo(
            slide_id=slide_id,
            path=path,
            vendor="image",
            size0=(w, h),
            mpp=resolution.mpp,
            mpp_source=resolution.source,
            mpp_state=resolution.state,
            level_sizes=((w, h),),
            downsamples=((1.0, 1.0),),
            bounds0=(0, 0, w, h),
            background=(255, 255, 255),
            fingerprint=sampled_fingerprint(path),
            notes=resolution.notes,
            reader="image",
            icc=profile_name(self._profile),
            icc_sha256=sha256_bytes(self._profile) if self._profile is not None else None,
        )

    @property
    def icc_profile(self) -> bytes | None:
        return self._profile

    def close(self) -> None:
        self._pixels = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_pixels": None}

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Image.Image]:
        """Open the image; whatever its format finds wrong becomes one error."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PIL warns of what it then raises
                with Image.open(self._path) as image:
                    yield image
        except (UnidentifiedImageError, Image.DecompressionBombError) as error:
            what = "is damaged, or neither a slide nor an image that can be read — copy it again,"
            if is_other_dicom(self._path):
                what = "is a DICOM file, but no whole-slide image —"
            raise SlideOpenError(
                f"{self._path.name} {what} convert it, or take it off the list",
                "unsupported-format",
            ) from error
        except (OSError, ValueError, SyntaxError, TypeError) as error:
            raise SlideOpenError(
                f"{self._path.name} cannot be read ({str(error).strip()}) — "
                "copy it again from its source"
            ) from error

    def _refuse_other_than_pictures(self, image: Image.Image) -> None:
        name = self._path.name
        if getattr(image, "n_frames", 1) > 1:
            raise SlideOpenError(
                f"{name} holds {image.n_frames} images (a stack or channels), not one picture — "  # pyright: ignore[reportAttributeAccessIssue]
                "convert it to a pyramidal TIFF",
                "unsupported-format",
            )
        if image.mode in ("I", "F", "I;16", "I;16B"):
            raise SlideOpenError(
                f"{name} has pixels of mode {image.mode}, not 8-bit colour — convert it to RGB",
                "unsupported-format",
            )
        if image.width * image.height > _MAX_PIXELS:
            raise SlideOpenError(
                f"{name} is a flat image of {image.width}x{image.height} pixels, too large to "
                "decode whole — convert it to a tiled pyramidal TIFF",
                "implausible-dimensions",
            )

    def _decoded(self) -> NDArray[np.uint8]:
        if self._pixels is None:
            try:
                with self._opened() as image:
                    self._pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))
            except SlideOpenError as error:
                raise RegionError(str(error)) from error
        return self._pixels

    def _region(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> Region:
        (x, y), (w, h) = xy, size
        rgba = self._decoded()[y : y + h, x : x + w]
        return Region(np.ascontiguousarray(rgba[..., :3]), rgba[..., 3], (x, y))


def _dpi_properties(image: Image.Image) -> dict[str, str]:
    """Return OpenSlide-style properties of an image's dots per inch, for the same judgement."""
    dpi = image.info.get("dpi")
    properties = {"openslide.vendor": "image"}
    if dpi and all(float(value) > 0 for value in dpi):
        x, y = (_UM_PER_INCH / float(value) for value in dpi)
        properties |= {"openslide.mpp-x": str(x), "openslide.mpp-y": str(y)}
        properties["tiff.ResolutionUnit"] = "inch"
    return properties
