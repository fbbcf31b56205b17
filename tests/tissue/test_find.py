"""Tissue is found where it was drawn, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from wsi.errors import ConfigError, UnknownNameError
from wsi.slides import open_slide
from wsi.slides.dress import write_slide
from wsi.specs import Component, TissueSpec
from wsi.tissue import TissueMask, find_tissue

MPP = 2.0  # thumbnails at 8 um/px then shrink four times
SIZE = 1600, 1200  # 3.2 x 2.4 mm
SPEC = TissueSpec()


def find(tmp_path: Path, pixels: np.ndarray, spec: TissueSpec = SPEC, mpp: float | None = MPP):
    path = tmp_path / "slide.png"
    if pixels.shape[2] == 4:
        Image.fromarray(pixels).save(path)
    else:
        write_slide(path := tmp_path / "slide.tif", [pixels], mpp=None, lossless=True)
    with open_slide(path, mpp=mpp) as slide:
        return find_tissue(slide, spec)[0]


def full_size(mask: TissueMask, size: tuple[int, int] = SIZE) -> np.ndarray:
    picture = mask.mask.astype(np.uint8)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST)).astype(bool)


def drawn(size: tuple[int, int], radius: float, centre: tuple[float, float]) -> np.ndarray:
    y, x = np.mgrid[0 : size[1], 0 : size[0]] + 0.5
    return np.hypot(x - centre[0] * size[0], y - centre[1] * size[0]) < radius * size[0]


CENTRE = 0.5, 0.375


@pytest.mark.parametrize("radius", [0.05, 0.15, 0.3])
def test_a_disc_is_found_with_its_area_and_place(tmp_path: Path, picture, radius: float) -> None:
    mask = find(tmp_path, picture(SIZE, CENTRE, radius))
    truth, found = drawn(SIZE, radius, CENTRE), full_size(mask)
    assert found.sum() == pytest.approx(np.pi * (radius * SIZE[0]) ** 2, rel=0.05)
    assert (found & truth).sum() / (found | truth).sum() > (0.9 if radius < 0.1 else 0.95)
    assert (mask.method, mask.flags) == ("od_otsu", ())


def test_a_slide_full_of_tissue_is_tissue(tmp_path: Path, picture) -> None:
    mask = find(tmp_path, picture(SIZE, CENTRE, radius=2))
    assert mask.mask.mean() > 0.95


@pytest.mark.parametrize("grey", [255, 244, 215])
def test_bare_glass_is_an_honest_nothing(tmp_path: Path, grey: int) -> None:
    rng = np.random.default_rng(0)
    glass = np.clip(rng.normal(grey, 1.5, (SIZE[1], SIZE[0], 1)), 0, 255) + np.zeros(3)
    mask = find(tmp_path, glass.astype(np.uint8))
    assert not mask.mask.any()
    assert "empty" in mask.flags


def test_pale_tissue_is_found(tmp_path: Path) -> None:
    pixels = np.full((SIZE[1], SIZE[0], 3), 245, np.uint8)
    truth = drawn(SIZE, 0.2, CENTRE)
    pixels[truth] = (235, 215, 228)
    found = full_size(find(tmp_path, pixels))
    assert (found & truth).sum() / (found | truth).sum() > 0.95


@pytest.mark.parametrize("pen", [True, False])
def test_black_padding_is_no_tissue_and_moves_no_threshold(
    tmp_path: Path, picture, pen: bool
) -> None:
    spec = TissueSpec(method=Component(name="od_otsu", pen=pen))  # pyright: ignore[reportCallIssue]
    plain = picture(SIZE, (0.6, 0.375), 0.2)
    padded = plain.copy()
    padded[:, :320] = (9, 4, 7)  # black as JPEG leaves it, with a hue
    without, padding = find(tmp_path, plain, spec), find(tmp_path, padded, spec)
    columns = 320 // 4
    assert not padding.mask[:, :columns].any()
    np.testing.assert_array_equal(padding.mask[:, columns + 2 :], without.mask[:, columns + 2 :])


def test_what_was_not_scanned_is_no_tissue(tmp_path: Path, picture) -> None:
    rgba = np.dstack([picture(SIZE, CENTRE, 0.3), np.full(SIZE[::-1], 255, np.uint8)])
    rgba[:, :800, 3] = 0
    mask = find(tmp_path, rgba)
    assert not mask.mask[:, :200].any()
    assert mask.mask[:, 200:].any()


INKS = {
    "green": (40, 150, 70),
    "blue": (40, 60, 190),
    "cyan": (60, 160, 200),
    "red": (200, 20, 40),
    "black": (25, 25, 25),
}


@pytest.mark.parametrize("ink", INKS)
def test_pen_beside_tissue_is_left_out_and_told(tmp_path: Path, picture, ink: str) -> None:
    pixels = picture(SIZE, CENTRE, 0.15)
    stroke = np.zeros(SIZE[::-1], np.uint8)
    cv2.ellipse(stroke, (800, 600), (420, 380), 0, 30, 300, 1, 32)
    pixels[stroke > 0] = INKS[ink]
    mask = find(tmp_path, pixels)
    found = full_size(mask)
    assert found[stroke > 0].mean() < 0.02
    assert "pen" in mask.flags
    truth = drawn(SIZE, 0.15, CENTRE)
    assert (found & truth).sum() / (found | truth).sum() > 0.93


@pytest.mark.parametrize("ink", ["green", "blue"])
def test_pen_across_tissue_is_left_out(tmp_path: Path, picture, ink: str) -> None:
    pixels = picture(SIZE, CENTRE, 0.3)
    stroke = np.zeros(SIZE[::-1], np.uint8)
    cv2.line(stroke, (500, 600), (1100, 600), 1, 60)
    pixels[stroke > 0] = INKS[ink]
    mask = find(tmp_path, pixels)
    assert full_size(mask)[stroke > 0].mean() < 0.05
    assert "pen" in mask.flags


def test_pen_may_be_kept(tmp_path: Path, picture) -> None:
    pixels = picture(SIZE, CENTRE, 0.15)
    cv2.line(pixels, (200, 1100), (1400, 1100), INKS["green"], 32)
    kept = TissueSpec(method=Component(name="od_otsu", pen=False))  # pyright: ignore[reportCallIssue]
    mask = find(tmp_path, pixels, kept)
    assert mask.mask[1100 // 4, 800 // 4]
    assert mask.flags == ()
    assert mask.params == {"pen": False}


def test_stained_tissue_is_never_taken_for_pen(tmp_path: Path) -> None:
    pixels = np.full((SIZE[1], SIZE[0], 3), 245, np.uint8)
    stains = [(90, 60, 140), (70, 40, 120), (220, 120, 180), (200, 60, 130), (150, 80, 150)]
    for k, stain in enumerate(stains):
        pixels[200:1000, 200 + 240 * k : 440 + 240 * k] = stain
    mask = find(tmp_path, pixels)
    assert "pen" not in mask.flags
    assert mask.mask[60:240, 60:340].mean() > 0.99


def test_specks_are_dropped_and_biopsies_kept(tmp_path: Path) -> None:
    pixels = np.full((SIZE[1], SIZE[0], 3), 245, np.uint8)
    pixels[100:160, 100:160] = (190, 110, 165)  # 120 x 120 um = 0.014 mm2
    pixels[600:640, 400:700] = (190, 110, 165)  # 80 x 600 um = 0.048 mm2
    mask = find(tmp_path, pixels)
    assert not mask.mask[: 300 // 4].any()
    assert mask.mask[600 // 4 : 640 // 4, 400 // 4 : 700 // 4].mean() > 0.95
    smaller = TissueSpec(min_area_mm2=0.01)
    found = find(tmp_path, pixels, smaller).mask[100 // 4 : 160 // 4, 100 // 4 : 160 // 4]
    assert found.mean() > 0.95  # the median filter rounds corners


def test_small_holes_are_filled_and_large_ones_stay(tmp_path: Path) -> None:
    pixels = np.full((SIZE[1], SIZE[0], 3), 245, np.uint8)
    pixels[100:1100, 100:1500] = (190, 110, 165)
    pixels[300:380, 300:380] = 245  # 160 x 160 um = 0.026 mm2
    pixels[500:700, 700:900] = 245  # 400 x 400 um = 0.16 mm2
    mask = find(tmp_path, pixels).mask
    assert mask[300 // 4 : 380 // 4, 300 // 4 : 380 // 4].all()
    assert mask[520 // 4 : 680 // 4, 720 // 4 : 880 // 4].mean() < 0.05


def test_a_notch_at_the_edge_is_no_hole(tmp_path: Path) -> None:
    pixels = np.full((SIZE[1], SIZE[0], 3), (190, 110, 165), np.uint8)
    pixels[500:580, :80] = 245  # 0.026 mm2, filled if it lay within the tissue
    mask = find(tmp_path, pixels).mask
    assert mask[508 // 4 : 572 // 4, : 60 // 4].mean() < 0.1


def test_without_a_resolution_tissue_is_found_all_the_same(tmp_path: Path, picture) -> None:
    mask = find(tmp_path, picture(SIZE, CENTRE, 0.25), mpp=None)
    truth, found = drawn(SIZE, 0.25, CENTRE), full_size(mask)
    assert (found & truth).sum() / (found | truth).sum() > 0.95


def test_a_misspelt_method_or_parameter_is_refused(tmp_path: Path, picture) -> None:
    pixels = picture((200, 200))
    with pytest.raises(UnknownNameError, match="od_otsu"):
        find(tmp_path, pixels, TissueSpec(method=Component(name="od_ostu")))
    with pytest.raises(ConfigError, match="did you mean 'pen'"):
        find(tmp_path, pixels, TissueSpec(method=Component(name="od_otsu", pne=1)))  # pyright: ignore[reportCallIssue]
