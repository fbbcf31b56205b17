"""Scores of tiles of which blur, ink and folds are known."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage

from wsi.quality import FoldRule, blur, fold, fold_rule, pen, tile_scores
from wsi.slides import open_slide

PX = 256
MPP = 0.5
SIGMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
PINK = np.array([190.0, 110.0, 165.0])


def uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def noise(contrast: float, sigma: float, seed: int = 0) -> np.ndarray:
    """White noise around grey, blurred by scipy where no border is near, of a given contrast."""
    field = np.random.default_rng(seed).normal(size=(PX + 64, PX + 64))
    field = ndimage.gaussian_filter(field, sigma) if sigma else field
    field *= contrast / field.std()
    return uint8(np.repeat(128 + field[32:-32, 32:-32, None], 3, axis=2))


def mottled(seed: int = 0, size: tuple[int, int] = (PX, PX), contrast: float = 1.0) -> np.ndarray:
    """Pink tissue (h, w, 3) with structure of many sizes."""
    rng = np.random.default_rng(seed)
    field = sum(ndimage.gaussian_filter(rng.normal(size=size), s) * s for s in (0.7, 2, 5))
    return uint8(PINK + contrast * field[..., None] * np.array([30, 50, 25]))  # pyright: ignore[reportIndexIssue]


def blurred(tile: np.ndarray, sigma: float) -> np.ndarray:
    return uint8(ndimage.gaussian_filter(tile.astype(float), (sigma, sigma, 0)))


# -- blur --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("contrast", [40.0, 20.0])
def test_noise_blurred_by_a_known_sigma_scores_what_the_formula_says(contrast, sigma) -> None:
    expected = sigma**2 / (sigma**2 + 4)
    assert blur(noise(contrast, sigma)) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_texture_blurred_more_scores_more(seed: int) -> None:
    scores = [blur(blurred(mottled(seed), sigma)) for sigma in (*SIGMAS, 6.0)]
    assert scores == sorted(scores)
    assert min(np.diff(scores[1:])) > 0.005
    assert all(0 <= score <= 1 for score in scores)


@pytest.mark.parametrize("change", [lambda t: t * 0.5, lambda t: t * 0.4 + 120])
def test_contrast_and_brightness_do_not_change_the_score(change) -> None:
    for sigma in (0.0, 2.0):
        tile = blurred(mottled(), sigma)
        assert blur(uint8(change(tile.astype(float)))) == pytest.approx(blur(tile), abs=0.05)


def test_a_tile_with_nothing_in_it_scores_one() -> None:
    assert blur(np.full((PX, PX, 3), 240, np.uint8)) == 1.0


def crete(tile: np.ndarray) -> float:
    """Blur by Crete et al. 2007: how little differences of neighbours shrink in a blurred copy."""
    grey, worst = tile.astype(float).mean(axis=2), 0.0
    for axis in (0, 1):
        before = np.abs(np.diff(grey, axis=axis))
        after = np.abs(np.diff(ndimage.uniform_filter1d(grey, 9, axis), axis=axis))
        worst = max(worst, 1 - np.maximum(0, before - after).sum() / before.sum())
    return worst


def test_tiles_are_ranked_as_by_another_measure_of_blur() -> None:
    tiles = [blurred(mottled(seed), sigma) for seed in range(3) for sigma in SIGMAS]
    ours = np.argsort(np.argsort([blur(tile) for tile in tiles]))
    theirs = np.argsort(np.argsort([crete(tile) for tile in tiles]))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.95  # ranks: Spearman's


# -- pen ---------------------------------------------------------------------------------------

INKS = {"green": (20, 120, 80), "blue": (30, 70, 190), "black": (25, 25, 30), "red": (200, 20, 30)}


def disc(radius: float) -> np.ndarray:
    y, x = np.mgrid[0:PX, 0:PX] + 0.5
    return np.hypot(x - PX / 2, y - PX / 2) < radius


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize("radius", [40, 80, 120])
def test_a_painted_disc_scores_its_area(ink: str, radius: int) -> None:
    tile = mottled()
    tile[disc(radius)] = INKS[ink]
    assert pen(tile, MPP) == pytest.approx(disc(radius).mean(), abs=0.03)


@pytest.mark.parametrize("mpp", [0.25, 1.0, 8.0])
def test_ink_is_seen_at_any_resolution(mpp: float) -> None:
    tile = mottled()
    tile[disc(100)] = INKS["green"]
    assert pen(tile, mpp) == pytest.approx(disc(100).mean(), abs=0.06)


def test_nuclei_are_no_ink() -> None:
    tile = mottled()
    centres = np.random.default_rng(0).integers(10, PX - 10, (60, 2))
    for x, y in centres.tolist():
        cv2.circle(tile, (x, y), 5, (62, 40, 120), -1)
    assert pen(tile, MPP) < 0.01


# -- folds -------------------------------------------------------------------------------------


def folded(share: float) -> tuple[np.ndarray, np.ndarray]:
    """A piece of tissue 16 tiles large, and where it lies double: twice the optical density."""
    tissue = mottled(size=(4 * PX, 4 * PX), contrast=0.5).astype(float)
    band = np.zeros(tissue.shape[:2], bool)
    band[:, 600 : 600 + round(share * 4 * PX)] = True
    tissue[band] = 255 * (tissue[band] / 255) ** 2
    return uint8(tissue), band


def low_power(picture: np.ndarray, step: int = 16) -> np.ndarray:
    n = len(picture) // step
    return uint8(picture.reshape(n, step, n, step, 3).mean((1, 3)))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_a_band_of_double_density_scores_its_area(share: float) -> None:
    picture, band = folded(share)
    small = low_power(picture)  # 8 um per pixel
    rule = fold_rule(small, np.ones(small.shape[:2], bool), 8.0)
    for top in range(0, 4 * PX, PX):
        for left in range(0, 4 * PX, PX):
            place = slice(top, top + PX), slice(left, left + PX)
            assert fold(picture[place], MPP, rule) == pytest.approx(band[place].mean(), abs=0.07)


def test_nuclei_are_no_folds() -> None:
    picture, _ = folded(0)
    for x in range(20, 4 * PX, 40):
        for y in range(20, 4 * PX, 40):
            cv2.circle(picture, (x, y), 6, (70, 15, 80), -1)  # 6 um wide
    small = low_power(picture)
    rule = fold_rule(small, np.ones(small.shape[:2], bool), 8.0)
    assert fold(np.full((PX, PX, 3), (70, 15, 80), np.uint8), MPP, rule) == 1
    assert fold(picture[:PX, :PX], MPP, rule) < 0.02


def test_the_rule_is_the_same_from_a_finer_picture() -> None:
    picture, _ = folded(0.1)
    tissue = np.ones(picture.shape[:2], bool)
    small = low_power(picture)
    coarse = fold_rule(small, tissue[::16, ::16], 8.0)
    fine = fold_rule(picture, tissue, MPP)
    assert fine.um == coarse.um == 8.0
    assert fine.threshold == pytest.approx(coarse.threshold, abs=0.01)


def test_only_tissue_makes_the_rule() -> None:
    picture, band = folded(0.1)
    small = low_power(picture)
    tissue = np.ones(small.shape[:2], bool)
    alone = fold_rule(small, tissue, 8.0)
    tissue[:, 48:] = False
    beside = small.copy()
    beside[:, 48:] = 245
    assert band[:, : 48 * 16].any()
    assert fold_rule(beside, tissue, 8.0).threshold == pytest.approx(alone.threshold, abs=0.02)


def test_without_tissue_nothing_is_folded() -> None:
    glass = np.full((16, 16, 3), 240, np.uint8)
    rule = fold_rule(glass, np.zeros((16, 16), bool), 8.0)
    dark = uint8(np.full((PX, PX, 3), 1.0) * (80, 10, 60))
    assert fold(dark, MPP, rule) == 0


# -- together ----------------------------------------------------------------------------------

RULE = FoldRule(0.0, 8.0)


def test_scores_of_a_batch_are_those_of_its_tiles() -> None:
    tiles = np.stack([mottled(0), blurred(mottled(1), 3), np.full((PX, PX, 3), 255, np.uint8)])
    tiles[0][disc(50)] = INKS["blue"]
    together = tile_scores(tiles, MPP, RULE)
    assert list(together) == ["blur", "pen", "fold"]
    for row, tile in enumerate(tiles):
        for name, value in (
            ("blur", blur(tile)),
            ("pen", pen(tile, MPP)),
            ("fold", fold(tile, MPP, RULE)),
        ):
            assert together[name].dtype == np.float16
            assert together[name][row] == np.float16(value)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 1)])
@pytest.mark.parametrize("edge", [1, 16, 100])
def test_any_tile_has_scores_between_nought_and_one(colour, edge: int) -> None:
    tile = np.full((edge, edge, 3), colour, np.uint8)
    for values in tile_scores(tile[None], 0.25, RULE).values():
        assert 0 <= float(values[0]) <= 1


def test_no_tiles_have_no_scores() -> None:
    empty = tile_scores(np.empty((0, PX, PX, 3), np.uint8), MPP, RULE)
    assert {name: values.shape for name, values in empty.items()} == {
        "blur": (0,),
        "pen": (0,),
        "fold": (0,),
    }


def test_scoring_is_cheap() -> None:
    tiles = np.stack([mottled(seed) for seed in range(8)])
    tile_scores(tiles, MPP, RULE)
    before = time.process_time()
    for _ in range(4):
        tile_scores(tiles, MPP, RULE)
    per_tile = (time.process_time() - before) / (4 * len(tiles))
    assert per_tile < 0.01  # ten times what it takes, for slow machines


def test_a_real_slide_blurred_by_two_pixels_is_told_from_itself(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        corners = [(x, y) for y in range(0, 2600, 512) for x in range(300, 1700, 512)]
        tiles = [t for t in slide.read_tiles(corners, PX, MPP) if isinstance(t, np.ndarray)]
    tissue = [tile for tile in tiles if tile.std() > 15]
    assert len(tissue) > 8
    sharp = [blur(tile) for tile in tissue]
    soft = [blur(blurred(tile, 2)) for tile in tissue]
    assert max(sharp) < 0.5 < min(soft)
