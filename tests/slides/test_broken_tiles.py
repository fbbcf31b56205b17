"""Slides with tiles that cannot be decoded, and with tiles that were never scanned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from wsi.bags import create_store
from wsi.encoders import load_encoder
from wsi.errors import RegionError
from wsi.extract import embed, locate, make_recipe
from wsi.slides import open_slide
from wsi.slides.dress import write_slide
from wsi.specs import Component, Config
from wsi.tissue import find_tissue

TILE = 256  # edge of the file's tiles
MPP = 0.5


@pytest.fixture
def pixels(picture) -> np.ndarray:
    return picture(size=(4 * TILE, 4 * TILE), radius=0.6)  # tissue nearly everywhere


def scramble_tile(path: Path, index: int) -> None:
    """Destroy one JPEG tile of level 0, markers and all."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    content = bytearray(path.read_bytes())
    content[offset : offset + count] = np.random.default_rng(0).bytes(count)
    path.write_bytes(content)


def empty_tile(path: Path, *indices: int) -> None:
    """Say that tiles of level 0 have no bytes, as scanners do where they did not scan."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = tiff.pages.first
        counts, offsets = list(page.databytecounts), list(page.dataoffsets)
        for k in indices:
            counts[k] = offsets[k] = 0
        page.tags["TileByteCounts"].overwrite(counts)
        page.tags["TileOffsets"].overwrite(offsets)


def corners(edge: int) -> list[tuple[int, int]]:
    return [(x, y) for y in range(0, 4 * TILE, edge) for x in range(0, 4 * TILE, edge)]


@pytest.mark.parametrize("dress", ["generic", "aperio", "philips"])
def test_one_corrupt_tile_costs_one_tile(tmp_path: Path, pixels, dress) -> None:
    path = tmp_path / "scrambled.tif"
    write_slide(path, [pixels], mpp=MPP, dress=dress, magnification=20)
    whole = open_slide(path, mpp=MPP).read((0, 0), 0, (4 * TILE, 4 * TILE))
    scramble_tile(path, 5)
    good, bad = {}, {}
    with open_slide(path, mpp=MPP) as slide:
        for x, y in corners(TILE):
            try:
                good[x, y] = slide.read((x, y), 0, (TILE, TILE))
            except RegionError as error:
                bad[x, y] = str(error)
    assert set(bad) == {(TILE, TILE)}
    assert "scrambled.tif" in bad[TILE, TILE]
    for (x, y), tile in good.items():
        np.testing.assert_array_equal(tile, whole[y : y + TILE, x : x + TILE])


def test_a_corrupt_tile_is_an_error_among_tiles(tmp_path: Path, pixels) -> None:
    path = tmp_path / "scrambled.tif"
    write_slide(path, [pixels], mpp=MPP)
    scramble_tile(path, 5)
    with open_slide(path) as slide:
        tiles = list(slide.read_tiles(corners(TILE), TILE, MPP))
    assert len(tiles) == 16
    assert [k for k, tile in enumerate(tiles) if isinstance(tile, RegionError)] == [5]


@pytest.fixture
def holed(tmp_path: Path, pixels) -> Path:
    path = tmp_path / "holed.tif"
    write_slide(path, [pixels], mpp=MPP, lossless=True)
    empty_tile(path, 5, 15)
    return path


def test_a_tile_that_was_not_scanned_is_background_not_black(holed: Path, pixels) -> None:
    expected = pixels.copy()
    expected[TILE : 2 * TILE, TILE : 2 * TILE] = 255
    expected[3 * TILE :, 3 * TILE :] = 255
    with open_slide(holed) as slide:
        read = slide.read((0, 0), 0, (4 * TILE, 4 * TILE))
        np.testing.assert_array_equal(read, expected)
        # Nothing dark bleeds in when a tile is averaged down over the border either.
        small = slide.read_at((0, 0), (4 * TILE // 8, 4 * TILE // 8), 8 * MPP)
    n = 4 * TILE // 8
    mean = expected.reshape(n, 8, n, 8, 3).mean((1, 3))
    assert np.abs(small - mean).max() <= 0.5 + 1e-6


def test_a_tile_that_was_not_scanned_is_no_tile(holed: Path) -> None:
    with open_slide(holed) as slide:
        tiles = list(slide.read_tiles(corners(TILE), TILE, MPP))
        assert [k for k, tile in enumerate(tiles) if tile is None] == [5, 15]
        # A tile of which a part was scanned is one.
        (half,) = slide.read_tiles([(TILE // 2, TILE)], TILE, MPP)
    assert half is not None
    assert (half[:, TILE // 2 :] == 255).all()
    assert half[:, : TILE // 2].mean() < 240


def test_the_thumbnail_knows_what_was_not_scanned(holed: Path) -> None:
    with open_slide(holed) as slide:
        thumbnail = slide.thumbnail(16)
    expected = np.ones((64, 64), bool)
    expected[16:32, 16:32] = expected[48:, 48:] = False
    np.testing.assert_array_equal(thumbnail.valid, expected)
    assert (thumbnail.pixels[~expected] == 255).all()


def _recipe(min_tissue: float):
    config = Config.model_validate(
        {"tiling": {"mpp": MPP, "tile_px": TILE, "min_tissue": min_tissue}}
    )
    encoder = load_encoder(Component(name="texture-v1"))
    return encoder, make_recipe(config, encoder)


@pytest.mark.parametrize("batch", [4, 64])
def test_extraction_counts_what_was_not_scanned_as_missing(
    holed: Path, tmp_path: Path, batch: int
) -> None:
    encoder, recipe = _recipe(min_tissue=0)
    store = create_store(tmp_path / "bags", "h5")
    with open_slide(holed) as slide:
        located = locate(slide, recipe.tissue, recipe.tiling)
        info = embed(slide, located, encoder, recipe, store, batch=batch)
    assert info.counts == {"considered": 16, "planned": 16, "missing": 2}
    assert info.n == 14
    kept = {tuple(xy) for xy in store.read("holed").xy0.tolist()}
    assert kept == set(corners(TILE)) - {(TILE, TILE), (3 * TILE, 3 * TILE)}


def test_a_slide_of_nothing_but_missing_tiles_is_empty(tmp_path: Path, pixels) -> None:
    path = tmp_path / "void.tif"
    write_slide(path, [pixels], mpp=MPP, lossless=True)
    empty_tile(path, *range(16))
    encoder, recipe = _recipe(min_tissue=0)
    store = create_store(tmp_path / "bags", "h5")
    with open_slide(path) as slide:
        located = locate(slide, recipe.tissue, recipe.tiling)
        info = embed(slide, located, encoder, recipe, store)
    assert not located.tissue.mask.any()
    assert (info.status, info.n) == ("empty", 0)
    assert info.counts["missing"] == 16


def test_a_corrupt_tile_leaves_no_bag(tmp_path: Path, pixels) -> None:
    path = tmp_path / "scrambled.tif"
    write_slide(path, [pixels, pixels[::4, ::4]], mpp=MPP)
    scramble_tile(path, 5)
    encoder, recipe = _recipe(min_tissue=0)
    store = create_store(tmp_path / "bags", "h5")
    with open_slide(path) as slide:
        located = locate(slide, recipe.tissue, recipe.tiling)
        with pytest.raises(RegionError):
            embed(slide, located, encoder, recipe, store)
    assert store.infos() == []
    assert store.stray() == []


def test_a_thumbnail_shows_all_but_what_cannot_be_decoded(tmp_path: Path, pixels) -> None:
    path = tmp_path / "scrambled.tif"
    write_slide(path, [pixels], mpp=MPP)
    with open_slide(path) as slide:
        whole = slide.thumbnail(16)
    assert whole.unreadable is None
    scramble_tile(path, 5)
    with open_slide(path) as slide:
        thumbnail = slide.thumbnail(16)
    expected = np.zeros((64, 64), bool)
    expected[16:32, 16:32] = True  # file tile 5 is row 1, column 1, of 16 thumbnail pixels
    np.testing.assert_array_equal(thumbnail.unreadable, expected)
    np.testing.assert_array_equal(thumbnail.valid, ~expected)
    np.testing.assert_array_equal(thumbnail.pixels[~expected], whole.pixels[~expected])


def test_what_cannot_be_decoded_counts_as_tissue_and_is_flagged(tmp_path: Path, pixels) -> None:
    path = tmp_path / "scrambled.tif"
    write_slide(path, [pixels], mpp=MPP)
    scramble_tile(path, 0)  # a corner, where there is glass
    with open_slide(path) as slide:
        mask, _ = find_tissue(slide, Config().tissue)
    assert "unreadable" in mask.flags
    assert mask.fraction(np.array([[0, 0]]), (TILE, TILE)) == pytest.approx(1)


def test_a_slide_of_which_nothing_can_be_decoded_is_an_error(tmp_path: Path, pixels) -> None:
    path = tmp_path / "scrambled.tif"
    write_slide(path, [pixels[:TILE, :TILE]], mpp=MPP)
    slide = open_slide(path)
    scramble_tile(path, 0)
    with pytest.raises(RegionError, match=r"scrambled\.tif"):
        slide.thumbnail(16)
