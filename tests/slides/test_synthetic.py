"""Synthetic slides: known lesions that colour does not give away."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wsi.geojson import read_geojson
from wsi.slides import open_slide
from wsi.slides.synthetic import (
    CLASSES,
    DRAWN_MPP,
    SITES,
    Drawing,
    Tissue,
    draw,
    position_level,
    write_synthetic,
)

SMALL = Tissue(size_um=(512, 384))
SLIDES = 27
TILE = 64  # drawn pixels: 32 um


def dilated(mask: np.ndarray, iterations: int) -> np.ndarray:
    return np.asarray(ndimage.binary_dilation(mask, iterations=iterations), bool)


def eroded(mask: np.ndarray, iterations: int) -> np.ndarray:
    return np.asarray(ndimage.binary_erosion(mask, iterations=iterations), bool)


def lesion_mask(drawing: Drawing) -> np.ndarray:
    mask = np.zeros(drawing.tissue.shape, np.uint8)
    for outline in drawing.lesions:
        ring = np.rint(np.array(outline.exterior.coords) - 0.5).astype(np.int32)
        cv2.fillPoly(mask, [ring], 1)
    return mask.astype(bool)


@pytest.fixture(scope="module")
def drawings() -> list[tuple[str, Drawing]]:
    labels = [CLASSES[k % 3] for k in range(SLIDES)]
    return [
        (label, draw(label, SITES[k // 3 % 3], seed=k, tissue=SMALL))
        for k, label in enumerate(labels)
    ]


def test_the_same_seed_draws_the_same_slide() -> None:
    one, same = (draw("large-cell", SITES[0], 5, SMALL) for _ in range(2))
    np.testing.assert_array_equal(one.pixels, same.pixels)
    assert one.lesions == same.lesions
    other = draw("large-cell", SITES[0], 6, SMALL)
    assert (one.pixels != other.pixels).mean() > 0.1


def test_lesions_are_small_and_inside_the_tissue(drawings) -> None:
    for label, drawing in drawings:
        lesion = lesion_mask(drawing)
        if label == "normal":
            assert not drawing.lesions
            continue
        assert 0.05 < lesion.sum() / drawing.tissue.sum() <= 0.12
        assert drawing.tissue[lesion].mean() > 0.999
        assert all(outline.is_valid for outline in drawing.lesions)


def test_tissue_has_a_free_margin_and_glass_is_white(drawings) -> None:
    for _, drawing in drawings:
        edge = np.ones_like(drawing.tissue)
        edge[8:-8, 8:-8] = False
        assert not drawing.tissue[edge].any()
        away = ~dilated(drawing.tissue, iterations=20)
        assert drawing.pixels[away].mean() > 225


def nuclear_size(pixels: np.ndarray) -> float:
    """Return how far inside a nucleus its pixels lie on average: half a radius or so."""
    red = cv2.GaussianBlur(pixels[..., 0], (0, 0), 1)
    _, nuclei = cv2.threshold(red, 0, 255, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)
    depth = cv2.distanceTransform(nuclei, cv2.DIST_L2, 5)
    peaks = (depth == ndimage.maximum_filter(depth, 9)) & (depth > 1)
    return float(depth[peaks].mean()) if peaks.any() else 0.0


@pytest.fixture(scope="module")
def tiles(drawings) -> dict[str, np.ndarray]:
    """As many tiles in lesions as beside them, of each slide: colour, nuclear size, truth."""
    rng = np.random.default_rng(0)
    colour, size, truth, slide = [], [], [], []
    for k, (label, drawing) in enumerate(drawings):
        if label == "normal":
            continue
        lesion = lesion_mask(drawing)
        share = cv2.boxFilter(lesion.astype(np.float32), -1, (TILE, TILE))
        present = cv2.boxFilter(drawing.tissue.astype(np.float32), -1, (TILE, TILE))
        overall = drawing.pixels[drawing.tissue].mean(0)
        for wanted in (True, False):
            fit = (share > 0.95) if wanted else (share < 0.01) & (present > 0.99)
            fit[: TILE // 2] = fit[-TILE // 2 :] = False
            fit[:, : TILE // 2] = fit[:, -TILE // 2 :] = False
            rows, columns = np.nonzero(fit)
            for i in rng.choice(len(rows), min(8, len(rows)), replace=False) if len(rows) else ():
                y, x = rows[i] - TILE // 2, columns[i] - TILE // 2
                tile = drawing.pixels[y : y + TILE, x : x + TILE]
                colour.append(tile.reshape(-1, 3).mean(0) - overall)
                size.append(nuclear_size(tile))
                truth.append(wanted)
                slide.append(k)
    return {
        "colour": np.array(colour),
        "size": np.array(size),
        "truth": np.array(truth),
        "slide": np.array(slide),
    }


def classifier():
    return make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))


def test_the_class_cannot_be_told_by_the_mean_colour_of_a_slide(drawings) -> None:
    colour = [drawing.pixels[drawing.tissue].mean(0) for _, drawing in drawings]
    scores = [
        cross_val_score(
            classifier(),
            colour,
            [label for label, _ in drawings],
            cv=StratifiedKFold(4, shuffle=True, random_state=seed),
            scoring="balanced_accuracy",
        ).mean()
        for seed in range(3)
    ]
    print("slides by mean colour:", np.mean(scores))
    assert np.mean(scores) < 1 / 3 + 0.2


def test_lesions_cannot_be_told_by_the_mean_colour_of_a_tile(tiles) -> None:
    auc = cross_val_score(
        classifier(),
        tiles["colour"],
        tiles["truth"],
        groups=tiles["slide"],
        cv=GroupKFold(4),
        scoring="roc_auc",
    ).mean()
    print("tiles by mean colour: AUC", auc, "of", len(tiles["truth"]))
    assert 0.3 < auc < 0.66


@pytest.mark.parametrize("label", CLASSES[1:])
def test_lesions_can_be_told_by_the_size_of_nuclei(drawings, tiles, label: str) -> None:
    own = np.array([drawings[k][0] == label for k in tiles["slide"]])
    auc = roc_auc_score(tiles["truth"][own], tiles["size"][own])
    print(f"{label} tiles by nuclear size: AUC", auc)
    radius = SMALL.radius_um
    assert (auc if radius[label] > radius["normal"] else 1 - auc) > 0.75


def test_a_slide_lies_on_disk_with_its_lesion_outlined(tmp_path: Path) -> None:
    site = SITES[1]
    drawing = write_synthetic(tmp_path / "s.tif", "large-cell", site, 3, SMALL)
    (shape,) = read_geojson(tmp_path / "s.geojson")
    assert shape.name == "large-cell"
    with open_slide(tmp_path / "s.tif") as slide:
        assert slide.info.mpp == pytest.approx((site.mpp, site.mpp), rel=1e-3)
        drawn = [round(edge / site.mpp) for edge in SMALL.size_um]
        assert all(0 <= a - b < 16 for a, b in zip(slide.info.size0, drawn, strict=True))
        assert all(edge % 16 == 0 for edge in slide.info.size0)
        read = slide.read_at((0, 0), drawing.pixels.shape[1::-1], DRAWN_MPP)
    error = np.square(read.astype(float) - drawing.pixels).mean()
    assert 10 * np.log10(255**2 / error) > 25
    factor = DRAWN_MPP / site.mpp
    assert shape.geometry.area == pytest.approx(
        sum(p.area for p in drawing.lesions) * factor**2, rel=0.01
    )


def test_nuclei_differ_within_the_outline_and_only_there() -> None:
    """Nuclei are wider inside the outline, while they cover about as much."""
    same = Tissue(size_um=SMALL.size_um, radius_spread=0)
    lesion = lesion_mask(drawing := draw("large-cell", SITES[2], 1, same))
    inside = eroded(lesion, iterations=12)
    outside = drawing.tissue & ~dilated(lesion, iterations=12)
    grey = cv2.GaussianBlur(drawing.pixels[..., 0], (0, 0), 1)
    level, _ = cv2.threshold(grey[drawing.tissue], 0, 255, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)
    picture = ((grey < level) & drawing.tissue).astype(np.uint8)
    depth = cv2.distanceTransform(picture, cv2.DIST_L2, 5)
    assert depth[inside & (picture > 0)].mean() > 1.25 * depth[outside & (picture > 0)].mean()
    assert (picture[inside] > 0).mean() == pytest.approx((picture[outside] > 0).mean(), abs=0.06)


def test_sites_differ_in_stain_and_resolution() -> None:
    assert len({site.mpp for site in SITES}) == len({site.dress for site in SITES}) == 3
    colours = [
        np.mean(
            [d.pixels[d.tissue].mean(0) for d in (draw("normal", s, k, SMALL) for k in range(2))], 0
        )
        for s in SITES
    ]
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
    assert max(gaps) > 10


def test_position_levels_encode_level_zero_positions() -> None:
    whole = position_level((256, 256), (4.0, 4.0))[..., 0].astype(float)
    fine = position_level((1024, 1024), (1.0, 1.0))[..., 0].astype(float)
    blocks = fine.reshape(256, 4, 256, 4).mean((1, 3))
    assert np.abs(whole - blocks).max() < 1.5
