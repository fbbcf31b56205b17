"""Thumbnails built in blocks: the same picture as averaging the whole, in bounded pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi.slides import Slide, SlideInfo, base, open_slide
from wsi.slides.base import Region
from wsi.slides.dress import write_slide


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


@pytest.mark.parametrize("block_px", [4_000_000, 50_000, 900])
@pytest.mark.parametrize("downsample", [4, 5.3, 16])
def test_blocks_make_the_picture_that_one_resize_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_px: int, downsample: float
) -> None:
    monkeypatch.setattr(base, "_BLOCK_PX", block_px)
    pixels = noise((640, 480))
    write_slide(tmp_path / "flat.tif", [pixels], mpp=0.5, lossless=True)
    with open_slide(tmp_path / "flat.tif") as slide:
        thumbnail = slide.thumbnail(downsample)
    size = round(640 / downsample), round(480 / downsample)
    # Pillow's box filter is the mean of areas for whole factors, and near it for others.
    expected = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX), float)
    assert thumbnail.pixels.shape == expected.shape
    assert thumbnail.scale == (640 / size[0], 480 / size[1])
    assert thumbnail.valid.all()
    if downsample == int(downsample):
        assert np.abs(thumbnail.pixels - expected).max() <= 1
    else:
        assert np.abs(thumbnail.pixels - expected).mean() < 6
        assert np.corrcoef(thumbnail.pixels.ravel(), expected.ravel())[0, 1] > 0.9


class Painted(Slide):
    """A slide of any size that notes how much of it is asked for at once."""

    def __init__(self, edge: int, downsamples: tuple[int, ...]) -> None:
        sizes = tuple((edge // d, edge // d) for d in downsamples)
        self.most_px = 0
        self.info = SlideInfo(
            slide_id="painted",
            path=Path("painted"),
            vendor="painted",
            size0=(edge, edge),
            mpp=(0.25, 0.25),
            mpp_source="painted",
            mpp_state="ok",
            level_sizes=sizes,
            downsamples=tuple((edge / w, edge / h) for w, h in sizes),
            bounds0=(0, 0, edge, edge),
            background=(255, 255, 255),
            fingerprint="painted",
        )

    @property
    def icc_profile(self) -> bytes | None:
        return None

    def close(self) -> None:
        """Nothing is open."""

    def _region(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> Region:
        self.most_px = max(self.most_px, size[0] * size[1])
        row = np.arange(xy[0], xy[0] + size[0]) * 256 // self.info.level_sizes[level][0]
        pixels = np.broadcast_to(row[None, :, None].astype(np.uint8), (size[1], size[0], 3))
        return Region(pixels, None, (float(xy[0]), float(xy[1])))


@pytest.mark.parametrize(
    ("edge", "downsamples", "downsample"),
    [(14_000, (1,), 32), (60_000, (1, 16), 80), (200_000, (1, 32), 100), (200_000, (1, 30), 90.7)],
)
def test_no_more_of_a_level_is_held_than_a_few_million_pixels(
    edge: int, downsamples: tuple[int, ...], downsample: float
) -> None:
    slide = Painted(edge, downsamples)
    thumbnail = slide.thumbnail(downsample)
    assert slide.most_px < 4_300_000  # and a margin of a pixel around a block
    ramp = np.linspace(0, 256, thumbnail.pixels.shape[1], endpoint=False)
    assert np.abs(thumbnail.pixels[0, :, 0] - ramp).max() <= 2
