"""What every reader of slides does, whatever the file format."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image
from scipy.interpolate import interp1d

from wsi.errors import MissingMppError, NeedsUpsamplingError, RegionError, SlideError
from wsi.slides import READERS, Slide
from wsi.slides.dress import write_slide
from wsi.slides.image_reader import ImageReader
from wsi.slides.openslide_reader import OpenSlideReader
from wsi.slides.tiff_reader import TiffReader

MPP = 0.5
W, H = 601, 433  # odd, so that no edge falls on a file tile's


def _noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def _send_a_read(slide: Slide, pipe) -> None:
    pipe.send(slide.read((100, 50), 0, (64, 32)))
    pipe.close()


class ReaderContract:
    """Inherit, set `kind` and `suffix`, and say how to write a lossless slide."""

    kind: type[Slide]
    suffix: str

    def write(self, path: Path, pixels: np.ndarray) -> None:
        raise NotImplementedError

    @pytest.fixture
    def pixels(self) -> np.ndarray:
        return _noise()

    @pytest.fixture
    def path(self, tmp_path: Path, pixels: np.ndarray) -> Path:
        path = tmp_path / f"some slide{self.suffix}"
        self.write(path, pixels)
        return path

    @pytest.fixture
    def slide(self, path: Path):
        with self.kind(path, "some slide", table_mpp=MPP) as slide:  # pyright: ignore[reportCallIssue]
            yield slide

    def test_it_says_what_was_written(self, slide, path) -> None:
        info = slide.info
        assert (info.slide_id, info.path) == ("some slide", path)
        assert info.size0 == (W, H)
        assert info.level_sizes == ((W, H),)
        assert info.downsamples == ((1.0, 1.0),)
        assert info.bounds0 == (0, 0, W, H)
        assert (info.mpp, info.mpp_source, info.mpp_state) == ((MPP, MPP), "table", "ok")
        assert info.background == (255, 255, 255)
        assert (slide.icc_profile, info.icc, info.icc_sha256) == (None, None, None)

    @pytest.mark.parametrize(
        ("xy", "size"), [((0, 0), (W, H)), ((255, 255), (2, 2)), ((W - 1, H - 1), (1, 1))]
    )
    def test_read_gives_the_pixels_written(self, slide, pixels, xy, size) -> None:
        (x, y), (w, h) = xy, size
        read = slide.read(xy, 0, size)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, pixels[y : y + h, x : x + w])

    def test_what_is_read_may_be_written_to(self, slide, pixels) -> None:
        for read in (slide.read, lambda xy, _, size: slide.read_at(xy, size, MPP)):
            for _ in range(2):
                tile = read((0, 0), 0, (64, 64))
                np.testing.assert_array_equal(tile, pixels[:64, :64])
                tile[:] = 0  # and the next read is not touched by it

    @pytest.mark.parametrize(
        ("xy", "size"),
        [((-10, -20), (W + 30, H + 40)), ((W - 5, 7), (9, 9)), ((3, -4), (5, 5)), ((W, 0), (4, 4))],
    )
    def test_beyond_the_edge_is_background(self, slide, pixels, xy, size) -> None:
        (x, y), (w, h) = xy, size
        wide = np.full((H + 200, W + 200, 3), 255, np.uint8)
        wide[100 : 100 + H, 100 : 100 + W] = pixels
        expected = wide[y + 100 : y + 100 + h, x + 100 : x + 100 + w]
        np.testing.assert_array_equal(slide.read(xy, 0, size), expected)
        np.testing.assert_array_equal(slide.read_at(xy, size, MPP), expected)

    def test_at_the_same_resolution_nothing_is_resampled(self, slide, pixels) -> None:
        tile = slide.read_at((101, 57), (224, 224), MPP)
        np.testing.assert_array_equal(tile, pixels[57 : 57 + 224, 101 : 101 + 224])

    def test_half_the_resolution_is_the_mean_of_four(self, slide, pixels) -> None:
        tile = slide.read_at((10, 20), (100, 60), 2 * MPP).astype(float)
        block = pixels[20 : 20 + 120, 10 : 10 + 200].reshape(60, 2, 100, 2, 3).mean((1, 3))
        assert np.abs(tile - block).max() <= 0.5 + 1e-6

    def test_tiles_are_those_of_read_at(self, slide, pixels) -> None:
        corners = [(0, 0), (50, 60), (W - 128, H - 128)]
        for (x, y), tile in zip(corners, slide.read_tiles(corners, 64, 2 * MPP), strict=True):
            block = pixels[y : y + 128, x : x + 128].reshape(64, 2, 64, 2, 3).mean((1, 3))
            assert tile is not None
            assert np.abs(tile - block).max() <= 0.5 + 1e-6

    def test_the_thumbnail_covers_the_whole_slide(self, slide, pixels) -> None:
        thumbnail = slide.thumbnail(1.0)
        np.testing.assert_array_equal(thumbnail.pixels, pixels)
        assert thumbnail.valid.all()
        small = slide.thumbnail(10.0)
        assert small.pixels.shape == (43, 60, 3)
        assert small.scale == pytest.approx((W / 60, H / 43))
        assert small.pixels.mean() == pytest.approx(pixels.mean(), abs=1)

    def test_a_thumbnail_in_blocks_is_seamless(self, slide, pixels, monkeypatch) -> None:
        asked = []
        regions = slide._regions

        def noted(level, boxes, step=1):
            asked.extend(box[2:] for box in boxes)
            return regions(level, boxes, step)

        monkeypatch.setattr(slide, "_regions", noted)
        monkeypatch.setattr("wsi.slides.base._BLOCK_PX", 10_000)
        thumbnail = slide.thumbnail(W / 100)  # 6.01 and 6.01388 pixels
        assert len(asked) > 20
        assert max(w * h for w, h in asked) < 2 * 10_000
        assert thumbnail.pixels.shape == (72, 100, 3)
        # Summed exactly over the pixels each one covers, by cumulative sums and interpolation.
        total = np.zeros((H + 1, W + 1, 3))
        total[1:, 1:] = pixels.astype(float).cumsum(0).cumsum(1)
        rows = np.arange(73) * thumbnail.scale[1]
        columns = np.arange(101) * thumbnail.scale[0]
        at_rows = interp1d(np.arange(H + 1), total, axis=0)(rows.clip(0, H))
        corners = interp1d(np.arange(W + 1), at_rows, axis=1)(columns.clip(0, W))
        area = thumbnail.scale[0] * thumbnail.scale[1]
        mean = np.diff(np.diff(corners, axis=0), axis=1) / area
        assert np.abs(thumbnail.pixels - mean).max() < 0.6

    @pytest.mark.parametrize(("level", "size"), [(1, (8, 8)), (-1, (8, 8)), (0, (0, 8))])
    def test_an_impossible_region_is_an_error(self, slide, level, size) -> None:
        with pytest.raises(RegionError, match=r"some slide.* — "):
            slide.read((0, 0), level, size)

    def test_more_than_the_slide_holds_is_an_error(self, slide) -> None:
        with pytest.raises(NeedsUpsamplingError, match=r"some slide.*max_upsampling=2"):
            slide.read_at((0, 0), (64, 64), MPP / 2)
        assert slide.read_at((0, 0), (64, 64), MPP / 2, max_upsampling=2).shape == (64, 64, 3)

    def test_without_a_resolution_reading_by_mpp_is_an_error(self, path) -> None:
        slide = self.kind(path, "x")  # pyright: ignore[reportCallIssue]
        assert (slide.info.mpp, slide.info.mpp_state) == (None, "no-mpp")
        with pytest.raises(MissingMppError, match=r"some slide.*mpp column") as caught:
            slide.read_at((0, 0), (8, 8), MPP)
        assert caught.value.reason == "no-mpp"
        assert slide.read((0, 0), 0, (8, 8)).shape == (8, 8, 3)

    @pytest.mark.parametrize("content", [b"", b"just text\n" * 50, b"II*\0\x08\0\0\0"])
    def test_a_file_that_is_no_slide_is_named(self, tmp_path, content) -> None:
        path = tmp_path / f"broken{self.suffix}"
        path.write_bytes(content)
        with pytest.raises(SlideError, match=r"broken\S* .* — "):
            self.kind(path, "broken")  # pyright: ignore[reportCallIssue]

    def test_reading_works_again_once_the_file_does(self, path, pixels) -> None:
        sound = path.read_bytes()
        slide = self.kind(path, "x", table_mpp=MPP)  # pyright: ignore[reportCallIssue]
        path.write_bytes(self.damaged(path))
        for _ in range(2):
            with pytest.raises(RegionError, match=r"some slide.* — ") as caught:
                slide.read((0, 0), 0, (W, H))
            assert caught.value.reason == "decode-error"
        path.write_bytes(sound)
        np.testing.assert_array_equal(slide.read((0, 0), 0, (W, H)), pixels)

    def damaged(self, path: Path) -> bytes:
        """Return the file with its middle zeroed; its beginning and end are sound."""
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 2000] = bytes(2000)
        return bytes(content)

    def test_a_closed_slide_opens_itself_again(self, slide, pixels) -> None:
        slide.read((0, 0), 0, (8, 8))
        slide.close()
        slide.close()
        np.testing.assert_array_equal(slide.read((0, 0), 0, (8, 8)), pixels[:8, :8])

    def test_a_pickled_slide_reads_the_same(self, slide, pixels) -> None:
        slide.read((0, 0), 0, (8, 8))
        packed = pickle.dumps(slide)
        assert len(packed) < 20_000  # the pixels stay behind
        copy = pickle.loads(packed)
        assert copy.info == slide.info
        np.testing.assert_array_equal(copy.read((0, 0), 0, (8, 8)), pixels[:8, :8])

    def test_a_forked_process_reads_the_same(self, slide, pixels) -> None:
        slide.read((0, 0), 0, (8, 8))
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        child = context.Process(target=_send_a_read, args=(slide, there))
        child.start()
        assert here.poll(20)
        np.testing.assert_array_equal(here.recv(), pixels[50:82, 100:164])
        child.join(20)
        assert child.exitcode == 0
        np.testing.assert_array_equal(slide.read((0, 0), 0, (8, 8)), pixels[:8, :8])

    def test_a_spawned_process_reads_the_same(self, slide, pixels) -> None:
        slide.read((0, 0), 0, (8, 8))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            read = pool.apply(slide.read, ((100, 50), 0, (64, 32)))
        np.testing.assert_array_equal(read, pixels[50:82, 100:164])

    def test_the_fingerprint_is_the_files(self, slide, path, tmp_path) -> None:
        (tmp_path / "copy").mkdir()
        same = tmp_path / "copy" / path.name
        same.write_bytes(path.read_bytes())
        assert self.kind(same, "y").info.fingerprint == slide.info.fingerprint  # pyright: ignore[reportCallIssue]
        self.write(same, _noise(1))
        assert self.kind(same, "y").info.fingerprint != slide.info.fingerprint  # pyright: ignore[reportCallIssue]


class TestOpenSlideReader(ReaderContract):
    kind = OpenSlideReader
    suffix = ".tif"

    def write(self, path: Path, pixels: np.ndarray) -> None:
        write_slide(path, [pixels], mpp=None, lossless=True)


class TestImageReader(ReaderContract):
    kind = ImageReader
    suffix = ".png"

    def write(self, path: Path, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(path)


class TestTiffReader(ReaderContract):
    """JPEG does not keep what was written; what OpenSlide makes of the file is what counts."""

    kind = TiffReader
    suffix = ".svs"

    @pytest.fixture
    def pixels(self, tmp_path: Path) -> np.ndarray:
        path = tmp_path / "what openslide sees.svs"
        self.write(path, _noise())
        with openslide.OpenSlide(path) as slide:
            return np.asarray(slide.read_region((0, 0), 0, (W, H)).convert("RGB"))

    def write(self, path: Path, pixels: np.ndarray) -> None:
        noise = _noise(int(pixels[0, 0, 0] == _noise(1)[0, 0, 0]))
        write_slide(path, [noise], mpp=None, dress="aperio", subsampling="444", shared_tables=True)

    def damaged(self, path: Path) -> bytes:
        """Return the file with a whole JPEG tile zeroed; parts of one may decode to nonsense."""
        content = bytearray(path.read_bytes())
        quarter = len(content) // 4
        content[quarter : 3 * quarter] = bytes(2 * quarter)
        return bytes(content)


def test_every_reader_is_under_contract() -> None:
    covered = {suite.kind for suite in ReaderContract.__subclasses__()}
    assert {READERS.load(name) for name in READERS.names()} == covered
