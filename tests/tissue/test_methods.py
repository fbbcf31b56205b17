"""Every threshold method on pictures of known content, and Otsu against trying all thresholds."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from wsi.tissue import METHODS
from wsi.tissue.threshold import _density, _otsu, _percentiles, od_otsu

THRESHOLDS = ["od_otsu", "grey_otsu", "saturation"]
SIZE = 240, 320
EVERYWHERE = np.ones(SIZE, bool)


def two_colours(tissue: tuple[int, int, int], glass: tuple[int, int, int] = (244, 243, 241)):
    rng = np.random.default_rng(1)
    truth = np.zeros(SIZE, bool)
    truth[60:180, 80:240] = True
    pixels = np.where(truth[..., None], tissue, glass) + rng.normal(0, 3, (*SIZE, 1))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), truth


def run(name: str, pixels: np.ndarray, valid: np.ndarray = EVERYWHERE, **settings: object):
    return METHODS.load(name)(pixels, valid, **METHODS.check(name, settings))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("name", THRESHOLDS)
@pytest.mark.parametrize("stain", [(190, 110, 165), (120, 70, 150), (225, 190, 212)])
def test_stained_tissue_is_parted_from_glass(name: str, stain: tuple[int, int, int]) -> None:
    pixels, truth = two_colours(stain)
    assert overlap(run(name, pixels).mask, truth) > 0.97


@pytest.mark.parametrize("name", THRESHOLDS)
def test_what_holds_no_data_is_never_tissue(name: str) -> None:
    pixels, _ = two_colours((190, 110, 165))
    valid = EVERYWHERE.copy()
    valid[:, :160] = False
    assert not run(name, pixels, valid).mask[:, :160].any()
    assert not run(name, pixels, np.zeros(SIZE, bool)).mask.any()


@pytest.mark.parametrize("name", THRESHOLDS)
@pytest.mark.parametrize("level", [250, 230, 205])
def test_the_noise_of_bare_glass_is_not_parted(name: str, level: int) -> None:
    noise = np.random.default_rng(2).normal(level, 1.5, (*SIZE, 1)) + np.array([1, 0, -1])
    glass = np.clip(np.rint(noise), 0, 255).astype(np.uint8)
    assert not run(name, glass).mask.any()


def test_grey_tissue_needs_no_colour_by_grey() -> None:
    pixels, truth = two_colours((150, 150, 150))
    assert overlap(run("grey_otsu", pixels).mask, truth) > 0.97
    assert not run("saturation", pixels).mask.any()
    found = run("od_otsu", pixels)
    assert not found.mask.any()
    assert overlap(found.relaxed, truth) > 0.97


def test_the_saturation_threshold_is_the_one_given() -> None:
    pixels, truth = two_colours((200, 170, 185), (244, 244, 244))  # saturation 255 * 30 / 200 = 38
    assert overlap(run("saturation", pixels, threshold=30).mask, truth) > 0.97
    assert not run("saturation", pixels, threshold=48).mask.any()


@pytest.mark.parametrize("name", THRESHOLDS)
@pytest.mark.parametrize("ink", [(40, 150, 70), (40, 60, 190), (200, 20, 40), (25, 25, 25)])
def test_every_method_leaves_pen_out_and_may_keep_it(name: str, ink: tuple[int, int, int]) -> None:
    pixels, truth = two_colours((190, 110, 165))
    pixels[200:216, 20:300] = ink
    without = run(name, pixels)
    assert not without.mask[200:216, 20:300].any()
    assert overlap(without.mask, truth) > 0.97
    assert without.ink[202:214, 22:298].all()
    kept = run(name, pixels, pen=False)
    assert not kept.ink.any()
    if max(ink) - min(ink) > 50:
        assert kept.mask[202:214, 22:298].all()


@pytest.mark.parametrize("seed", range(6))
def test_otsu_parts_where_the_classes_vary_least(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high, share = rng.uniform(20, 110), rng.uniform(130, 230), rng.uniform(0.1, 0.9)
    values = np.where(
        rng.random(9000) < share, rng.normal(low, 9, 9000), rng.normal(high, 14, 9000)
    )
    values = np.clip(values, 0, 255).astype(np.uint8).reshape(90, 100)
    where = rng.random((90, 100)) < 0.7
    seen = values[where].astype(float)

    def within(level: int) -> float:
        parts = seen[seen <= level], seen[seen > level]
        return sum(part.size * part.var() for part in parts if part.size)

    best = within(min(range(255), key=within))
    chosen = _otsu(values, where, 0, 255)
    assert within(int(chosen)) == pytest.approx(best)
    by_opencv, _ = cv2.threshold(values[where], 0, 255, cv2.THRESH_OTSU)
    assert within(int(by_opencv)) == pytest.approx(best)


def test_otsu_stays_between_its_limits() -> None:
    values = np.repeat(np.array([[10, 200]], np.uint8), 50, axis=0)
    where = np.ones(values.shape, bool)
    assert _otsu(values, where, 0, 5) == 5
    assert _otsu(values, where, 210, 220) == 210
    assert _otsu(values[:, :1], where[:, :1], 30, 40) == 30


def test_percentiles_are_those_of_counting() -> None:
    values = np.random.default_rng(0).integers(0, 256, (70, 90)).astype(np.uint8)
    where = np.random.default_rng(1).random((70, 90)) < 0.5
    for share in (1, 50, 95, 99):
        expected = np.percentile(values[where], share, method="inverted_cdf")
        assert _percentiles(values, where, share) == [expected]


def test_density_is_the_mean_negative_logarithm_of_what_passes() -> None:
    pixels, _ = two_colours((190, 110, 165))
    white = np.percentile(pixels.reshape(-1, 3), 95, axis=0, method="inverted_cdf")
    passed = np.clip((pixels.astype(float) + 1) / (white + 1), None, 1)
    expected = -np.log10(passed).mean(axis=2)
    np.testing.assert_allclose(_density(pixels, EVERYWHERE) * 1.5 / 255, expected, atol=0.004)


def test_pale_colour_is_offered_only_when_asked_for() -> None:
    pixels, truth = two_colours((234, 227, 231), (244, 244, 244))
    found = od_otsu(pixels, EVERYWHERE)
    assert not found.mask.any()
    assert found.relaxed is not None
    assert overlap(found.relaxed, truth) > 0.9
