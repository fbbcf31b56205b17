"""What is left of a slide to look at, and read back: overlay, outline, tiles and facts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from pipelines.overlay import draw_tissue, read_overlay, show_left_out, write_located
from wsi.extract import Located, Tiling, locate
from wsi.geojson import read_geojson
from wsi.slides import SlideInfo, open_slide
from wsi.specs import TissueSpec
from wsi.tissue import OwnTissue

TILING = Tiling(mpp=1.0, tile_px=128, stride_um=None, min_tissue=0.05, max_upsampling=1.05)
SPEC = TissueSpec()
MM2 = np.pi * (0.35 * 1024 * 0.5e-3) ** 2  # of the disc, as it was drawn


@dataclass(frozen=True)
class Found:
    path: Path
    info: SlideInfo
    located: Located


@pytest.fixture(scope="module")
def found(slide_folder: Path) -> Found:
    path = slide_folder / "a.svs"
    with open_slide(path, "site/a") as slide:
        return Found(path, slide.info, locate(slide, SPEC, TILING))


@pytest.fixture
def out(found: Found, tmp_path: Path) -> Path:
    with open_slide(found.path, "site/a") as slide:
        write_located(tmp_path, slide, SPEC, found.located, TILING)
    return tmp_path


def near(picture: np.ndarray, bgr: tuple[int, int, int]) -> np.ndarray:
    return np.abs(picture.astype(int) - bgr).max(axis=2) < 60


def overlay(out: Path) -> np.ndarray:
    picture = cv2.imread(str(out / "thumbnails" / "site%2Fa.jpg"))
    assert picture is not None
    return picture


def test_the_outline_is_a_circle_around_the_disc(out: Path) -> None:
    picture = overlay(out)
    assert picture.shape == (1000, 1000, 3)
    y, x = np.nonzero(near(picture, (178, 114, 0)))
    radii = np.hypot(x + 0.5 - 500, y + 0.5 - 500)
    # Drawn with radius 0.35 of the width; the mask's pixels are 8 um, 16 here.
    assert np.quantile(radii, [0.05, 0.95]) == pytest.approx([350] * 2, abs=18)


def test_files_hold_what_was_located(found: Found, out: Path) -> None:
    located = found.located
    with h5py.File(out / "tiles" / "site%2Fa.h5") as file:
        coords = file["coords"]
        np.testing.assert_array_equal(coords[:], located.grid.xy0)  # pyright: ignore[reportIndexIssue]
        attributes = dict(coords.attrs)
    assert attributes["slide_id"] == "site/a"
    assert (attributes["tile_px"], attributes["mpp"]) == (128, 1.0)
    assert attributes["size0"] == pytest.approx((256, 256))
    assert (attributes["tissue_method"], attributes["tissue_flags"]) == ("od_otsu", "")
    assert attributes["tissue_mm2"] == pytest.approx(MM2, rel=0.06)
    assert attributes["thumbnail_scale"] == pytest.approx((16, 16), rel=0.01)
    assert attributes["slide_mpp_source"] == "openslide"
    shapes = read_geojson(out / "tissue" / "site%2Fa.geojson")
    area = located.tissue.mask.sum() * np.prod(located.tissue.scale)
    assert sum(s.geometry.area for s in shapes) == pytest.approx(area)
    assert {s.name for s in shapes} == {"Tissue"}
    # Red and blue are not exchanged on the way to the file: tissue is pink.
    picture = overlay(out)
    assert picture[500, 500, 2] > picture[500, 500, 1]


def test_the_facts_are_read_back_without_the_slide(found: Found, out: Path) -> None:
    facts = read_overlay(out, "site/a")
    assert facts is not None
    assert facts.fingerprint == found.info.fingerprint
    assert (facts.method, facts.flags) == ("od_otsu", ())
    assert (facts.overrides, facts.edits) == ((), "")
    assert facts.tissue_mm2 == pytest.approx(MM2, rel=0.06)
    assert facts.tissue_share == pytest.approx(np.pi * 0.35**2, rel=0.06)
    assert (facts.tiles, facts.considered) == (len(found.located.grid), 16)
    assert facts.settings == SPEC.model_dump(mode="json")
    assert (facts.upsampling, facts.left_out) == (1.0, 0)
    assert facts.mpp == found.info.mpp
    assert facts.tiling == {
        "mpp": 1.0,
        "tile_px": 128,
        "stride_um": None,
        "min_tissue": 0.05,
        "max_upsampling": 1.05,
    }


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"flags": 3}', "\udcff"])
def test_facts_that_are_damaged_are_as_if_absent(out: Path, content: str) -> None:
    path = out / "thumbnails" / "site%2Fa.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert read_overlay(out, "site/a") is None
    assert read_overlay(out, "other") is None
    assert read_overlay(out, "../a") is None


def test_facts_of_a_later_version_are_read_as_far_as_known(out: Path) -> None:
    path = out / "thumbnails" / "site%2Fa.json"
    known = read_overlay(out, "site/a")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"news": 1}))
    assert read_overlay(out, "site/a") == known


def test_tissue_alone_has_picture_and_outline_but_no_tiles(found: Found, tmp_path: Path) -> None:
    with open_slide(found.path, "site/a") as slide:
        assert draw_tissue(tmp_path, slide, SPEC, OwnTissue())
    assert {p.name for p in tmp_path.iterdir()} == {"thumbnails", "tissue"}
    facts = read_overlay(tmp_path, "site/a")
    assert facts is not None
    assert (facts.tiles, facts.considered) == (None, None)
    # Nothing is dimmed, as no tile was laid: glass stays as bright as it was.
    assert overlay(tmp_path)[20:40, 20:40].mean() > 240


def test_tiles_that_were_not_embedded_are_crossed_out_and_counted(found: Found, out: Path) -> None:
    before, grid = overlay(out), found.located.grid
    gone = len(grid) // 2  # in the middle of the disc
    with open_slide(found.path, "site/a") as slide:
        show_left_out(out, slide, SPEC, found.located, TILING, np.delete(grid.xy0, gone, axis=0))
    facts = read_overlay(out, "site/a")
    assert facts is not None
    assert (facts.left_out, facts.tiles) == (1, len(grid))
    changed = np.abs(overlay(out).astype(int) - before).max(axis=2) > 25
    y, x = np.nonzero(changed)
    left, top = grid.xy0[gone] / 1024 * 1000
    assert changed.sum() > 0.5 * 250**2
    assert (x.min(), x.max()) == pytest.approx((left, left + 250), abs=6)
    assert (y.min(), y.max()) == pytest.approx((top, top + 250), abs=6)


def test_a_slide_without_tissue_has_a_picture_too(slide_folder: Path, tmp_path: Path) -> None:
    with open_slide(slide_folder / "glass.tif") as slide:
        located = locate(slide, SPEC, TILING)
        write_located(tmp_path, slide, SPEC, located, TILING)
    assert len(located.grid) == 0
    assert (tmp_path / "thumbnails" / "glass.jpg").stat().st_size > 500
    assert read_geojson(tmp_path / "tissue" / "glass.geojson") == []
    facts = read_overlay(tmp_path, "glass")
    assert facts is not None
    assert (facts.flags, facts.tiles, facts.tissue_mm2) == (("empty",), 0, 0.0)
