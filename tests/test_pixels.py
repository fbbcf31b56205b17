"""The steps between slide and encoder: fitted on tissue alone, the same for every tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ImageCms

from wsi.errors import StainFitError
from wsi.pixels import PixelPlan, fit_pixels, plan_pixels
from wsi.slides import Slide, open_slide
from wsi.slides.dress import write_slide
from wsi.specs import PixelsSpec, TissueSpec
from wsi.tiling import TileGrid, make_grid
from wsi.tissue import TissueMask, find_tissue

STAINS = ((0.65, 0.70, 0.29), (0.20, 0.95, 0.24))


def located(slide: Slide) -> tuple[TissueMask, TileGrid]:
    mask, _ = find_tissue(slide, TissueSpec(mpp=4.0))
    settings = {"stride_um": None, "min_tissue": 0.05, "max_upsampling": 1.05}
    return mask, make_grid(slide.info, mask.fraction, tile_px=64, mpp=1.0, **settings)


def plan(**pixels: object) -> PixelPlan:
    return plan_pixels(PixelsSpec.model_validate(pixels))


@pytest.fixture(scope="module")
def path(
    tmp_path_factory: pytest.TempPathFactory, stained_picture: Callable[..., np.ndarray]
) -> Path:
    path = tmp_path_factory.mktemp("slide") / "two stains.tif"
    write_slide(path, [stained_picture(stains=STAINS)], mpp=0.5, lossless=True)
    return path


@pytest.fixture
def slide(path: Path) -> Iterator[Slide]:
    with open_slide(path) as slide:
        yield slide


def test_without_settings_nothing_happens(slide: Slide) -> None:
    steps = fit_pixels(slide, *located(slide), plan())
    tiles = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(steps.apply(tiles), tiles)
    assert (plan().settings, steps.record, plan().changes_colour) == ({}, {}, False)


def test_settings_are_those_that_are_not_the_defaults() -> None:
    assert plan(half_dct=True).settings == {"half_dct": True}
    assert not plan(half_dct=True).changes_colour
    stain = {"name": "macenko", "target": None, "alpha": 1.0, "beta": 0.15}
    assert plan(srgb=True, stain="macenko").settings == {"srgb": True, "stain": stain}


def test_stains_are_found_as_they_were_drawn(slide: Slide) -> None:
    steps = fit_pixels(slide, *located(slide), plan(stain={"name": "macenko", "beta": 0.03}))
    found = steps.record["stain"]
    for vector, drawn in zip(found["vectors"], STAINS, strict=True):
        cosine = np.dot(vector, drawn) / np.linalg.norm(drawn)
        assert np.degrees(np.arccos(cosine)) < 3
    assert (found["name"], found["tiles"]) == ("macenko", min(48, len(located(slide)[1])))
    assert 1000 <= found["pixels"] <= 48 * 4096


def test_what_is_not_tissue_changes_no_fit(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, grid = located(slide)
    chosen = plan(stain="reinhard")
    expected = fit_pixels(slide, mask, grid, chosen).record
    read = slide.read_tiles

    def inked(xy0, tile_px, mpp):
        """Paint what the mask leaves out, as ink would."""
        for corner, tile in zip(xy0, read(xy0, tile_px, mpp), strict=True):
            x, y = (
                ((corner[k] + (np.arange(tile_px) + 0.5) * grid.size0[k] / tile_px) / mask.scale[k])
                for k in (0, 1)
            )
            outside = ~mask.mask[np.ix_(y.astype(int), x.astype(int))]
            yield np.where(outside[..., None], np.uint8([20, 120, 40]), tile)

    monkeypatch.setattr(slide, "read_tiles", inked)
    assert fit_pixels(slide, mask, grid, chosen).record == expected


def test_the_sample_is_bounded_and_always_the_same(
    slide: Slide, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi.pixels._SAMPLE_TILES", 5)
    monkeypatch.setattr("wsi.pixels._PIXELS_PER_TILE", 400)
    chosen, parts = plan(stain="macenko"), located(slide)
    first = fit_pixels(slide, *parts, chosen).record["stain"]
    assert (first["tiles"], first["pixels"]) == (5, pytest.approx(2000, abs=400))
    copy = tmp_path / "elsewhere.tif"
    copy.write_bytes(path.read_bytes())
    with open_slide(copy) as other:
        assert fit_pixels(other, *parts, chosen).record["stain"] == first


def test_every_tile_is_changed_alike(slide: Slide) -> None:
    mask, grid = located(slide)
    steps = fit_pixels(slide, mask, grid, plan(stain="macenko"))
    tiles = np.stack(list(slide.read_tiles(grid.xy0[:9].tolist(), 64, 1.0)))  # pyright: ignore[reportArgumentType, reportCallIssue]
    whole = steps.apply(tiles)
    assert np.abs(whole.astype(int) - tiles).max() > 10
    for k in range(len(tiles)):
        np.testing.assert_array_equal(steps.apply(tiles[k : k + 1])[0], whole[k])


def test_tiles_that_cannot_be_read_are_passed_over(
    slide: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi.errors import RegionError

    mask, grid = located(slide)
    read = slide.read_tiles

    def damaged(xy0, tile_px, mpp):
        for k, tile in enumerate(read(xy0, tile_px, mpp)):
            yield RegionError("damaged") if k == 1 else None if k == 2 else tile

    monkeypatch.setattr(slide, "read_tiles", damaged)
    found = fit_pixels(slide, mask, grid, plan(stain="macenko")).record["stain"]
    assert found["tiles"] == min(48, len(grid)) - 2


def test_a_slide_of_one_colour_is_refused_by_name(
    tmp_path: Path, stained_picture: Callable[..., np.ndarray]
) -> None:
    pixels = stained_picture(stains=STAINS)
    pixels[pixels.max(axis=2) < 240] = (150, 80, 140)
    write_slide(tmp_path / "flat.tif", [pixels], mpp=0.5, lossless=True)
    with open_slide(tmp_path / "flat.tif") as slide:
        parts = located(slide)
        with pytest.raises(StainFitError, match=r"flat\.tif: .*tiles looked at.* — ") as caught:
            fit_pixels(slide, *parts, plan(stain="macenko"))
    assert caught.value.reason == "stain-fit-failed"


def test_without_tiles_nothing_is_fitted(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, _ = located(slide)
    settings = {"stride_um": None, "min_tissue": 1.0, "max_upsampling": 1.05}
    none = make_grid(
        slide.info,
        lambda xy0, size0: np.zeros(len(xy0), np.float32),
        tile_px=64,
        mpp=1.0,
        **settings,
    )
    monkeypatch.setattr(slide, "read_tiles", None)
    steps = fit_pixels(slide, mask, none, plan(stain="macenko", srgb=True))
    assert steps.record == {"colour": "no-profile"}


def test_stains_are_fitted_to_what_is_in_srgb(
    slide: Slide, tmp_path: Path, stained_picture: Callable[..., np.ndarray]
) -> None:
    sound = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = bytearray(sound)  # red and blue colorants change places
    red, blue = swapped.index(b"rXYZ"), swapped.index(b"bXYZ")
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    path = tmp_path / "swapped.tif"
    pixels = np.ascontiguousarray(stained_picture(stains=STAINS)[..., ::-1])
    settings = {"photometric": "rgb", "resolution": (20_000, 20_000), "resolutionunit": 3}
    tifffile.imwrite(path, pixels, tile=(256, 256), iccprofile=bytes(swapped), **settings)
    parts, chosen = located(slide), plan(stain="reinhard", srgb=True)
    plain = fit_pixels(slide, *parts, chosen).record
    with open_slide(path) as other:
        steps = fit_pixels(other, *parts, chosen)
        tile = other.read((512, 512), 0, (64, 64))[None]
    assert (plain["colour"], steps.record["colour"]) == ("no-profile", "converted")
    # Another file, so another draw of pixels; of the same colours.
    np.testing.assert_allclose(steps.record["stain"]["mean"], plain["stain"]["mean"], atol=1.0)
    np.testing.assert_array_equal(steps.normalise(steps.to_srgb(tile)), steps.apply(tile))
