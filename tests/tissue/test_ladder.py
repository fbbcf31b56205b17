"""What becomes of slides on which the method finds nothing, of blur, and of slides too large."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from wsi.slides import open_slide
from wsi.slides.dress import write_slide
from wsi.specs import Component, TissueSpec
from wsi.tissue import find, find_tissue
from wsi.tissue.focus import is_blurred
from wsi.tissue.ink import ink_strokes

SIZE = 1600, 1200  # at 2 um/px
MPP = 2.0


def mask_of(tmp_path: Path, pixels: np.ndarray, spec: TissueSpec | None = None):
    path = tmp_path / "slide.tif"
    write_slide(path, [pixels], mpp=MPP, lossless=True)
    with open_slide(path) as slide:
        return find_tissue(slide, spec or TissueSpec())[0]


def glass(level: int = 244) -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = rng.normal(level, 1.5, (SIZE[1], SIZE[0], 1)) + np.zeros(3)
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)


def texture(seed: int, size: tuple[int, int] = (240, 320)) -> np.ndarray:
    """Return tissue with structure at all scales, as thumbnails have it."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.normal(size=size), (0, 0), s) * s for s in (0.5, 2, 6)]
    field = sum(layer / layer.std() for layer in layers)
    pink = np.array([190, 120, 165]) + field[..., None] * np.array([12, 20, 12])
    return np.clip(pink, 0, 255).astype(np.uint8)


def tissue_at_full_size() -> np.ndarray:
    return cv2.resize(texture(0, (250, 350)), (1400, 1000), interpolation=cv2.INTER_NEAREST)


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    truth = np.zeros((SIZE[1] // 4, SIZE[0] // 4), bool)
    truth[top // 4 : bottom // 4, left // 4 : right // 4] = True
    return truth


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def test_pale_tissue_beside_a_dark_speck_is_found_by_lower_thresholds(tmp_path: Path) -> None:
    pixels = glass()
    pixels[300:900, 400:1200] = (234, 226, 231)  # too pale for the usual floors
    pixels[100:108, 100:108] = (90, 20, 60)  # passes, and is too small to be tissue
    found = mask_of(tmp_path, pixels)
    assert found.flags == ("relaxed",)
    assert overlap(found.mask, box(400, 300, 1200, 900)) > 0.95


def test_a_scan_without_colour_is_parted_by_density(tmp_path: Path) -> None:
    pixels = glass()
    rng = np.random.default_rng(1)
    grey = cv2.GaussianBlur(rng.normal(size=(600, 800)), (0, 0), 3) * 200 + 140
    pixels[300:900, 400:1200] = np.clip(grey, 60, 170)[..., None].astype(np.uint8)
    found = mask_of(tmp_path, pixels)
    assert found.flags == ("relaxed",)
    assert overlap(found.mask, box(400, 300, 1200, 900)) > 0.95


def test_a_slide_full_of_what_no_threshold_parts_is_taken_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    grey = cv2.GaussianBlur(rng.normal(size=(SIZE[1], SIZE[0])), (0, 0), 12) * 180 + 170
    grey[:, :320] = 5  # not scanned: black padding stays out
    pixels = np.repeat(np.clip(grey, 5, 184)[..., None], 3, axis=2).astype(np.uint8)
    spec = TissueSpec(method=Component(name="saturation"))
    found = mask_of(tmp_path, pixels, spec)
    assert found.flags == ("whole-bounds",)
    assert found.mask[:, 81:].all()
    assert not found.mask[:, :79].any()


@pytest.mark.parametrize("level", [250, 215, 170, 120])
def test_plain_glass_is_empty_however_bright_the_lamp(tmp_path: Path, level: int) -> None:
    for name in ("od_otsu", "grey_otsu", "saturation"):
        found = mask_of(tmp_path, glass(level), TissueSpec(method=Component(name=name)))
        assert found.flags == ("empty",)
        assert not found.mask.any()


def test_dust_on_glass_is_empty_too(tmp_path: Path) -> None:
    pixels = glass()
    for x in range(100, 1500, 200):
        cv2.circle(pixels, (x, 600), 12, (80, 60, 70), -1)
    assert mask_of(tmp_path, pixels).flags == ("empty",)


def test_an_isolated_fragment_of_the_smallest_area_survives(tmp_path: Path) -> None:
    pixels = glass()
    pixels[400:476, 400:476] = (190, 110, 165)  # 152 x 152 um = 0.023 mm2
    pixels[700:760, 700:760] = (190, 110, 165)  # 120 x 120 um = 0.014 mm2
    found = mask_of(tmp_path, pixels)
    assert overlap(found.mask, box(400, 400, 476, 476)) > 0.9


def test_a_lone_fragment_is_found_beside_black_pen(tmp_path: Path) -> None:
    pixels = glass()
    pixels[400:476, 400:476] = (190, 110, 165)
    cv2.line(pixels, (100, 1000), (1500, 1000), (28, 24, 25), 60)
    found = mask_of(tmp_path, pixels)
    assert found.flags == ("pen",)
    assert overlap(found.mask, box(400, 400, 476, 476)) > 0.9


def test_a_needle_biopsy_survives_whole(tmp_path: Path) -> None:
    pixels = glass()
    truth = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    path = np.array([(100 + t, 600 + 80 * np.sin(t / 150)) for t in range(0, 1400, 4)], np.int32)
    cv2.polylines(truth, [path], False, 1, 40)  # 80 um wide, 2.8 mm long
    pixels[truth > 0] = (200, 130, 175)
    small = cv2.resize(truth * 255, (400, 300), interpolation=cv2.INTER_AREA) > 127
    assert overlap(mask_of(tmp_path, pixels).mask, small) > 0.9


def test_thin_black_pen_is_followed_from_its_dark_ends(tmp_path: Path) -> None:
    pixels = glass()
    pixels[100:1100, 100:1500] = tissue_at_full_size()
    ring = np.zeros(SIZE[::-1], np.uint8)
    cv2.circle(ring, (800, 600), 150, 1, 40)
    pixels[ring > 0] = (100, 66, 92)  # ink through which the tissue is seen
    cv2.circle(pixels, (950, 600), 26, (35, 15, 28), -1)  # where the pen was set down
    cv2.circle(pixels, (300, 300), 26, (35, 15, 28), -1)  # so small that as a hole it is filled
    found = mask_of(tmp_path, pixels)
    assert "pen" in found.flags
    assert not found.mask[71:79, 71:79].any()
    shown = cv2.resize(ring * 255, (400, 300), interpolation=cv2.INTER_AREA) == 255
    assert found.mask[shown].mean() < 0.02  # no closing and no filled hole brings it back
    assert found.mask[150, 200]  # the tissue that is ringed


def test_dark_tissue_without_full_ink_is_no_pen(tmp_path: Path) -> None:
    pixels = glass()
    pixels[100:1100, 100:1500] = tissue_at_full_size()
    cv2.circle(pixels, (800, 600), 150, (100, 66, 92), 40)
    found = mask_of(tmp_path, pixels)
    assert found.flags == ()
    assert found.mask[25:275, 25:375].mean() > 0.97


def test_thin_red_ink_counts_only_near_full_ink() -> None:
    pixels = np.full((200, 400, 3), 240, np.uint8)
    pixels[50:60, 20:60] = (200, 20, 40)
    pixels[50:60, 60:380] = (220, 120, 140)  # the colour of thin red ink and of red cells
    ink = ink_strokes(pixels)
    assert ink[50:60, 20:100].all()
    assert not ink[:, 130:].any()
    without = np.where((pixels == (200, 20, 40)).all(axis=2)[..., None], np.uint8(240), pixels)
    assert not ink_strokes(without).any()


@pytest.mark.parametrize("seed", range(3))
def test_blur_of_a_thumbnail_pixel_is_told_and_sharp_tissue_is_not(seed: int) -> None:
    sharp, tissue = texture(seed), np.ones((240, 320), bool)
    assert not is_blurred(sharp, tissue)
    for sigma in (1.5, 2.5, 4.0):
        assert is_blurred(cv2.GaussianBlur(sharp, (0, 0), sigma), tissue)
    pale = (230 + (sharp.astype(float) - 150) / 5).clip(0, 255).astype(np.uint8)
    assert not is_blurred(pale, tissue)  # a weak stain is not out of focus
    assert not is_blurred(np.full((240, 320, 3), 180, np.uint8), tissue)
    assert not is_blurred(sharp, np.zeros((240, 320), bool))


def test_a_large_picture_is_judged_by_samples_of_it() -> None:
    sharp = np.tile(texture(0), (7, 5, 1))
    tissue = np.ones(sharp.shape[:2], bool)
    assert sharp.shape[0] * sharp.shape[1] > 2_000_000
    assert not is_blurred(sharp, tissue)
    assert is_blurred(cv2.GaussianBlur(sharp, (0, 0), 2), tissue)


def test_a_blurred_slide_is_flagged(tmp_path: Path) -> None:
    pixels = cv2.resize(texture(1), SIZE, interpolation=cv2.INTER_NEAREST)
    pixels = cv2.GaussianBlur(pixels, (0, 0), 10)  # 20 um
    assert mask_of(tmp_path, pixels).flags == ("blur",)


def test_a_slide_too_large_for_memory_is_seen_coarser_and_says_so(
    tmp_path: Path, picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "_MAX_PX", 20_000)
    pixels = picture(SIZE, (0.5, 0.375), 0.2)
    found = mask_of(tmp_path, pixels)
    assert found.flags == ("coarse",)
    assert found.mask.size == pytest.approx(20_000, rel=0.02)
    area = found.mask.sum() * found.scale[0] * found.scale[1]
    assert area == pytest.approx(np.pi * (0.2 * SIZE[0]) ** 2, rel=0.05)
