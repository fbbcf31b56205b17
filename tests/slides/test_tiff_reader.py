"""The fast TIFF reader: OpenSlide's own pixels, or OpenSlide."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from wsi.errors import RegionError, SlideOpenError
from wsi.slides import open_slide, tiff_tiles
from wsi.slides.dress import pyramid, write_slide
from wsi.slides.openslide_reader import OpenSlideReader
from wsi.slides.tiff_reader import TiffReader
from wsi.specs import SlidesSpec

MPP = 0.25
SIZE0 = (1100, 900)  # of no file tile's edge a multiple

SUBSAMPLINGS = ("420", "422", "444")
DRESSES = ("aperio", "generic", "philips", "trestle")
# dress, file tile, subsampling, photometric, shared tables, BigTIFF
VARIANTS = [
    *itertools.product(DRESSES, (256,), ("420",), ("ycbcr",), (True,), (False,)),
    *itertools.product(
        ("aperio",), (240, 512), ("420", "422", "444"), ("ycbcr",), (True,), (True,)
    ),
    *itertools.product(("generic",), (240, 256), ("422",), ("ycbcr",), (False,), (False, True)),
    *itertools.product(("aperio", "philips"), (256,), ("444",), ("rgb",), (False, True), (False,)),
]


@pytest.fixture(scope="module")
def levels() -> list[np.ndarray]:
    """Return a pyramid with sharp edges in every colour, so that no wrong conversion hides."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (SIZE0[1] // 20, SIZE0[0] // 20, 3), dtype=np.uint8)
    level0 = np.kron(blocks, np.ones((20, 20, 1), np.uint8))
    return pyramid(level0, 3)


def _openslides_pixels(path: Path, level: int) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        image = slide.read_region((0, 0), level, slide.level_dimensions[level])
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(("dress", "tile", "subsampling", "photometric", "tables", "big"), VARIANTS)
def test_every_pixel_of_every_level_is_openslides(
    tmp_path, levels, dress, tile, subsampling, photometric, tables, big
) -> None:
    path = tmp_path / "a.tif"
    write_slide(
        path,
        levels,
        mpp=MPP,
        dress=dress,
        tile=tile,
        subsampling=None if photometric == "rgb" else subsampling,
        photometric=photometric,
        shared_tables=tables,
        bigtiff=big,
    )
    with open_slide(path, mpp=MPP) as slide:
        for level, size in enumerate(slide.info.level_sizes):
            pixels = slide.read((0, 0), level, size)
            np.testing.assert_array_equal(pixels, _openslides_pixels(path, level))
        assert (slide.info.reader, slide.info.reader_note) == ("tiff", "")


@pytest.mark.parametrize("offset0", [(0, 0), (333.4, 216.8)])
def test_a_leica_scan_has_openslides_pixels_wherever_it_lies(tmp_path, levels, offset0) -> None:
    path = tmp_path / "a.scn"
    write_slide(path, levels, mpp=MPP, dress="leica", offset0=offset0, shared_tables=True)
    with open_slide(path) as slide, openslide.OpenSlide(path) as reference:
        x, y, w, h = slide.info.bounds0
        assert (w, h) == SIZE0
        pixels = slide.read((x, y), 0, (w, h))
        wanted = reference.read_region((x, y), 0, (w, h)).convert("RGB")
        np.testing.assert_array_equal(pixels, np.asarray(wanted))
        assert slide.info.reader == "tiff"
        # Around the scan the glass is empty.
        (outside,) = slide.read_tiles([(x + w + 40, y + 10)], 64, MPP)
        assert outside is None
        (half,) = slide.read_tiles([(x + w - 32, y + 10)], 64, MPP)
        assert isinstance(half, np.ndarray)
        assert (half[:, 33:] == 255).all()
        np.testing.assert_array_equal(half[:, :31], pixels[10:74, w - 32 : w - 1])


def _corners(rng: np.random.Generator, tile: int, n: int) -> list[tuple[int, int]]:
    x, y = rng.integers(0, SIZE0[0] - tile, n), rng.integers(0, SIZE0[1] - tile, n)
    return sorted(zip(x.tolist(), y.tolist(), strict=True), key=lambda corner: corner[::-1])


@pytest.mark.parametrize("threads", [1, 3])
def test_tiles_in_any_order_are_openslides(tmp_path, levels, monkeypatch, threads) -> None:
    path = tmp_path / "a.svs"
    write_slide(path, levels, mpp=MPP, dress="aperio", tile=240, shared_tables=True)
    # Groups of a few tiles and hardly anything kept: what is dropped is decoded again.
    monkeypatch.setattr(tiff_tiles, "_GROUP_BYTES", 3 * 240 * 240 * 3)
    monkeypatch.setattr(tiff_tiles, "_KEPT_BYTES", 2 * 240 * 240 * 3)
    corners = _corners(np.random.default_rng(1), 100, 60)
    whole = _openslides_pixels(path, 0)
    for order in (corners, corners[::-1], corners[::7] + corners):
        with open_slide(path, threads=threads) as slide:
            for (x, y), tile in zip(order, slide.read_tiles(order, 100, MPP), strict=True):
                np.testing.assert_array_equal(tile, whole[y : y + 100, x : x + 100])


def test_a_file_tile_is_decoded_once(tmp_path, levels, monkeypatch) -> None:
    path = tmp_path / "a.svs"
    write_slide(path, levels[:1], mpp=MPP, dress="aperio", tile=240)
    decoded = []
    decode = tiff_tiles._decode_jpeg
    with open_slide(path) as slide:
        slide.read((0, 0), 0, (1, 1))  # trust is settled
        monkeypatch.setattr(
            tiff_tiles, "_decode_jpeg", lambda *a: (decoded.append(hash(a[0])), decode(*a))[1]
        )
        corners = [(x, y) for y in range(7, 700, 64) for x in range(5, 900, 64)]
        for tile in slide.read_tiles(corners, 64, MPP):
            assert isinstance(tile, np.ndarray)
    assert len(decoded) == len(set(decoded)) == 4 * 3  # of the 5 x 4 file tiles, those touched


def test_memory_holds_a_few_groups_only(tmp_path, levels, monkeypatch) -> None:
    path = tmp_path / "a.svs"
    write_slide(path, levels[:1], mpp=MPP, dress="aperio", tile=64)
    monkeypatch.setattr(tiff_tiles, "_GROUP_BYTES", 4 * 64 * 64 * 3)
    monkeypatch.setattr(tiff_tiles, "_KEPT_BYTES", 0)
    most = 0
    forget = tiff_tiles.FileTiles._forget

    def counted(self, kept, *others) -> None:
        nonlocal most
        most = max(most, len(kept))
        forget(self, kept, *others)

    monkeypatch.setattr(tiff_tiles.FileTiles, "_forget", counted)
    corners = [(x, y) for y in range(0, 800, 64) for x in range(0, 1000, 64)]
    with open_slide(path) as slide:
        assert sum(1 for _ in slide.read_tiles(corners, 64, MPP)) == len(corners)
    assert 4 <= most <= 8


@pytest.mark.parametrize("dress", ["generic", "philips", "trestle"])
def test_tiles_that_were_not_scanned_are_no_tiles(tmp_path, levels, dress) -> None:
    path = tmp_path / "a.tif"
    write_slide(path, levels, mpp=MPP, dress=dress, missing=[(0, 1), (0, 6), (1, 2)])
    with open_slide(path, mpp=MPP) as slide:
        corners = [(0, 0), (256, 0), (256, 256), (300, 300), (200, 10)]
        tiles = list(slide.read_tiles(corners, 128, MPP))
        assert [tile is None for tile in tiles] == [False, True, True, True, False]
        half = tiles[-1]
        assert isinstance(half, np.ndarray)
        assert (half[:, 56:] == 255).all()
        np.testing.assert_array_equal(
            half[:, :56], _openslides_pixels_or_white(path)[10:138, 200:256]
        )
        assert slide.info.reader == "tiff"


def _openslides_pixels_or_white(path: Path) -> np.ndarray:
    """Return level 0 tile by tile; OpenSlide has an error where some dresses lack a tile."""
    pixels = np.full((SIZE0[1], SIZE0[0], 3), 255, np.uint8)
    with openslide.OpenSlide(path) as slide:
        pixels[:256, :256] = np.asarray(slide.read_region((0, 0), 0, (256, 256)).convert("RGB"))
    return pixels


def test_an_aperio_slide_that_lacks_tiles_is_left_to_openslide(tmp_path, levels) -> None:
    path = tmp_path / "a.svs"
    write_slide(path, levels, mpp=MPP, dress="aperio", missing=[(0, 1)])
    with open_slide(path) as slide:
        assert slide.info.reader == "openslide"
        assert "lacks tiles" in slide.info.reader_note


def test_a_corrupt_tile_is_an_error_and_costs_itself_alone(tmp_path, levels) -> None:
    path = tmp_path / "a.svs"
    write_slide(path, levels[:1], mpp=MPP, dress="aperio")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages.first.dataoffsets[6], tiff.pages.first.databytecounts[6]
    with path.open("r+b") as file:
        file.seek(offset + count // 2)
        file.write(b"\xff\xd9")  # the stream ends in the middle: OpenSlide shows grey, silently
    corners = [(x, y) for y in (0, 256, 512) for x in (0, 256, 512)]
    with open_slide(path) as slide:
        tiles = list(slide.read_tiles(corners, 256, MPP))
    bad = [corner for corner, tile in zip(corners, tiles) if isinstance(tile, RegionError)]
    assert bad == [(256, 256)]
    (error,) = (tile for tile in tiles if isinstance(tile, RegionError))
    assert "a.svs: file tile at row 1, column 1" in str(error)


def test_a_file_cut_off_is_an_error_where_it_ends(tmp_path, levels) -> None:
    path = tmp_path / "a.svs"
    write_slide(path, levels[:1], mpp=MPP, dress="aperio")
    slide = open_slide(path)
    with tifffile.TiffFile(path) as tiff:
        end = tiff.pages.first.dataoffsets[10]
    path.write_bytes(path.read_bytes()[:end])
    tiles = list(slide.read_tiles([(0, 0), (512, 512)], 256, MPP))
    assert isinstance(tiles[0], np.ndarray)
    assert isinstance(tiles[1], RegionError)


def test_a_decoder_that_gives_other_pixels_is_not_trusted(tmp_path, levels, monkeypatch) -> None:
    path = tmp_path / "a.svs"
    write_slide(path, levels, mpp=MPP, dress="aperio")
    decode = tiff_tiles._decode_jpeg
    monkeypatch.setattr(tiff_tiles, "_decode_jpeg", lambda *a: decode(*a) ^ np.uint8(1))
    with open_slide(path) as slide:
        tiles = list(slide.read_tiles([(0, 0), (300, 200)], 256, MPP))
        np.testing.assert_array_equal(tiles[0], _openslides_pixels(path, 0)[:256, :256])
        assert slide.info.reader == "openslide"
        assert "level 0 decodes to other pixels" in slide.info.reader_note


def test_other_formats_are_left_to_openslide_and_say_why(tmp_path, levels) -> None:
    path = tmp_path / "a.tif"
    write_slide(path, levels, mpp=MPP, lossless=True)
    with open_slide(path) as slide:
        assert slide.info.reader == "openslide"
        assert "DEFLATE" in slide.info.reader_note
    write_slide(path, levels, mpp=MPP)
    with open_slide(path, spec=SlidesSpec(reader="openslide")) as slide:
        assert isinstance(slide, OpenSlideReader)
        assert slide.info.reader_note == "slides.reader=openslide"


def test_half_size_decoding_keeps_place_and_nearly_the_pixels(tmp_path) -> None:
    rng = np.random.default_rng(2)
    smooth = np.kron(rng.integers(60, 200, (45, 55, 3)), np.ones((20, 20, 1)))
    noisy = np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)
    level0 = np.asarray(cv2.GaussianBlur(noisy, (0, 0), 1.5))
    path = tmp_path / "a.svs"
    write_slide(path, [level0], mpp=MPP, dress="aperio", tile=240, quality=90)
    exact, fast = open_slide(path), open_slide(path, half_dct=True)
    corners = [(0, 0), (131, 77), (401, 333)]
    for mpp in (2 * MPP, 2.6 * MPP):
        pairs = zip(exact.read_tiles(corners, 100, mpp), fast.read_tiles(corners, 100, mpp))
        for one, other in pairs:
            assert isinstance(one, np.ndarray)
            assert isinstance(other, np.ndarray)
            difference = other.astype(float) - one
            assert 0 < np.abs(difference).mean() < 1.5
            assert abs(difference.mean()) < 0.3
            for shift in (-1, 1):  # a pixel aside the pictures differ much more
                moved = np.abs(np.roll(other, shift, axis=1).astype(float) - one).mean()
                assert moved > 2 * np.abs(difference).mean()
    # At the level's own resolution nothing is halved.
    np.testing.assert_array_equal(
        next(exact.read_tiles([(7, 5)], 64, MPP)), next(fast.read_tiles([(7, 5)], 64, MPP))
    )


def _write_ome(path: Path, levels: list[np.ndarray], **options) -> None:
    with tifffile.TiffWriter(path, ome=True) as tiff:
        shared = {"photometric": "rgb", "tile": (256, 256), **options}
        tiff.write(
            levels[0],
            subifds=len(levels) - 1,
            metadata={"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP},
            **shared,
        )
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, **shared)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "jpeg"])
def test_an_ome_pyramid_has_all_its_levels(tmp_path, levels, compression) -> None:
    path = tmp_path / "a.ome.tif"
    options = {"compressionargs": {"outcolorspace": "ycbcr"}} if compression == "jpeg" else {}
    _write_ome(path, levels, compression=compression, **options)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_count == 1  # the reason for all this
    with open_slide(path) as slide:
        assert slide.info.level_sizes == tuple((a.shape[1], a.shape[0]) for a in levels)
        assert slide.info.mpp == (MPP, MPP)
        assert slide.info.notes == ()
        for k, (w, h) in enumerate(slide.info.level_sizes):
            pixels = slide.read((0, 0), k, (w, h))
            with tifffile.TiffFile(path) as tiff:
                wanted = tiff.series[0].levels[k].asarray()
            off = np.abs(pixels.astype(int) - wanted).max()
            assert off == 0 if compression != "jpeg" else off <= 2  # two JPEG libraries


def test_an_ome_pyramid_that_cannot_be_read_is_refused(tmp_path, levels) -> None:
    path = tmp_path / "a.ome.tif"
    _write_ome(path, levels, compression="zlib", extratags=[(274, "H", 1, 3, True)])
    with pytest.raises(SlideOpenError, match=r"a\.ome\.tif.*3 levels.*turned.* — ") as caught:
        open_slide(path)
    assert caught.value.reason == "unsupported-format"


def test_the_reader_is_known_before_a_pixel_is_read(tmp_path, levels, monkeypatch) -> None:
    path = tmp_path / "a.svs"
    write_slide(path, levels, mpp=MPP, dress="aperio")
    monkeypatch.setattr(tiff_tiles, "_decode_jpeg", lambda *a: pytest.fail("decoded"))
    assert isinstance(open_slide(path), TiffReader)
    assert open_slide(path).info.reader == "tiff"
