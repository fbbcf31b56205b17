"""Macenko's normalisation against known mixtures, the formula, and torchstain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi.errors import ConfigError, StainFitError
from wsi.stain import stained
from wsi.stain.macenko import Macenko, Stains

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.20, 0.95, 0.24])

# By torchstain 1.4.1 (numpy), MacenkoNormalizer().fit on the pixels named, in float64.
BY_TORCHSTAIN = {
    "mixture": (
        ((0.65290, 0.69959, 0.29035), (0.19910, 0.95023, 0.23962)),
        (1.18377, 1.19675),
    ),
    "torchstain_source.png": (
        ((0.66702, 0.72535, 0.17017), (0.35669, 0.91689, 0.17911)),
        (1.27956, 1.19783),
    ),
    "torchstain_target.png": (
        ((0.72164, 0.66204, 0.20235), (0.34971, 0.91014, 0.22213)),
        (1.77946, 0.74331),
    ),
}


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def degrees(one: object, other: object) -> float:
    cosine = unit(np.asarray(one, float)) @ unit(np.asarray(other, float))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def levels(amounts: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return 8-bit pixels (N, 3) of amounts (N, 2) of two stains."""
    return np.clip(np.rint(240 * np.exp(-amounts @ vectors) - 1), 0, 255).astype(np.uint8)


def mixture(n: int = 20_000, first: np.ndarray = HAEMATOXYLIN, second: np.ndarray = EOSIN):
    """Return pixels of both stains in any proportion, and the amounts (N, 2)."""
    rng = np.random.default_rng(7)
    share, amount = rng.uniform(0, 1, n), rng.uniform(0.4, 1.3, n)
    share[: n // 20], share[-n // 20 :] = 0, 1
    amounts = np.stack([share * amount, (1 - share) * amount], axis=1)
    return levels(amounts, np.stack([unit(first), unit(second)])), amounts


def picture(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "regions" / name).convert("RGB"))


# -- estimates ---------------------------------------------------------------------------------


def test_known_stains_are_found() -> None:
    pixels, amounts = mixture()
    found = Macenko(beta=0.05).estimate(pixels)
    assert degrees(found.vectors[0], HAEMATOXYLIN) < 1
    assert degrees(found.vectors[1], EOSIN) < 1
    np.testing.assert_allclose(found.strengths, np.percentile(amounts, 99, axis=0), rtol=0.03)


def test_haematoxylin_comes_first_whatever_prevails() -> None:
    for n in (2_000, 18_000):
        pixels, _ = mixture()
        found = Macenko(beta=0.05).estimate(np.concatenate([pixels[:1000], pixels[-n:]]))
        assert found.vectors[0][0] > found.vectors[1][0]
        assert degrees(found.vectors[0], HAEMATOXYLIN) < 2


def test_estimates_are_those_of_torchstain_on_a_mixture() -> None:
    vectors, strengths = BY_TORCHSTAIN["mixture"]
    found = Macenko().estimate(mixture()[0])
    np.testing.assert_allclose(found.vectors, vectors, atol=2e-5)
    np.testing.assert_allclose(found.strengths, strengths, atol=2e-5)


@pytest.mark.parametrize("name", ["torchstain_source.png", "torchstain_target.png"])
def test_estimates_are_those_of_torchstain_on_its_own_pictures(shared_data: Path, name) -> None:
    vectors, strengths = BY_TORCHSTAIN[name]
    found = Macenko().estimate(stained(picture(shared_data, name).reshape(-1, 3)))
    np.testing.assert_allclose(found.vectors, vectors, atol=2e-5)
    np.testing.assert_allclose(found.strengths, strengths, atol=2e-5)


def test_the_built_in_reference_is_torchstains_target_picture() -> None:
    vectors, strengths = BY_TORCHSTAIN["torchstain_target.png"]
    np.testing.assert_allclose(Macenko.REFERENCE.vectors, vectors, atol=1e-4)
    np.testing.assert_allclose(Macenko.REFERENCE.strengths, strengths, atol=1e-4)


@pytest.mark.parametrize("name", ["torchstain_source.png", "torchstain_target.png"])
def test_stained_pixels_become_those_of_torchstain(shared_data: Path, name) -> None:
    theirs = pytest.importorskip("torchstain").normalizers.MacenkoNormalizer(backend="numpy")
    theirs.HERef = np.transpose(Macenko.REFERENCE.vectors)
    theirs.maxCRef = np.asarray(Macenko.REFERENCE.strengths)
    pixels = stained(picture(shared_data, name).reshape(-1, 3))[:, None]
    expected, _, _ = theirs.normalize(pixels, stains=False)
    method = Macenko()
    unmixing = method.normaliser(method.estimate(pixels[:, 0]), method.REFERENCE)
    ours = unmixing.apply(pixels[None])[0]
    # They leave the 1 added before the logarithm in, and cut to whole numbers.
    assert np.abs(ours.astype(int) - expected).max() <= 1


# -- what becomes of tiles ---------------------------------------------------------------------

SOURCE = Stains(tuple(map(tuple, [unit(HAEMATOXYLIN), unit(EOSIN)])), (1.0, 0.8))  # pyright: ignore[reportArgumentType]
TARGET = Stains(((0.72, 0.66, 0.20), (0.35, 0.91, 0.22)), (1.5, 0.6))


def test_a_mixture_becomes_the_same_mixture_of_the_targets_stains() -> None:
    pixels, amounts = mixture()
    expected = 240 * np.exp(-(amounts * [1.5 / 1.0, 0.6 / 0.8]) @ np.asarray(TARGET.vectors)) - 1
    result = Macenko().normaliser(SOURCE, TARGET).apply(pixels[None, None])[0, 0]
    sound = (pixels > 20).all(axis=1)  # darker levels are too coarse to tell amounts from
    assert np.abs(result[sound] - expected.clip(0, 255)[sound]).max() < 4
    assert np.abs(result[sound] - expected.clip(0, 255)[sound]).mean() < 0.6


def test_tiles_that_look_like_the_target_stay() -> None:
    pixels, _ = mixture()
    result = Macenko().normaliser(SOURCE, SOURCE).apply(pixels[None, None])[0, 0]
    assert np.abs(result.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("level", range(239, 256))
def test_glass_stays_glass(level: int) -> None:
    glass = np.full((2, 8, 8, 3), level, np.uint8)
    np.testing.assert_array_equal(Macenko().normaliser(SOURCE, TARGET).apply(glass), glass)


@pytest.mark.parametrize("level", [*range(0, 227, 6), *range(227, 240)])
def test_tiles_of_one_colour_follow_the_formula_and_fade_out_to_glass(level: int) -> None:
    tile = np.full((1, 4, 4, 3), level, np.uint8)
    density = np.full(3, -np.log((level + 1) / 240))
    amounts, *_ = np.linalg.lstsq(np.transpose(SOURCE.vectors), density, rcond=None)
    changed = 240 * np.exp(-(amounts * [1.5 / 1.0, 0.6 / 0.8]) @ np.asarray(TARGET.vectors)) - 1
    weight = min(density[0] / 0.05, 1)
    expected = (weight * changed + (1 - weight) * level).clip(0, 255)
    result = Macenko().normaliser(SOURCE, TARGET).apply(tile)
    assert result.dtype == np.uint8
    np.testing.assert_allclose(result[0], np.tile(expected, (4, 4, 1)), atol=0.51)


def test_any_number_of_tiles_at_once_gives_the_same() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)
    unmixing = Macenko().normaliser(SOURCE, TARGET)
    whole = unmixing.apply(tiles)
    assert whole.shape == tiles.shape
    for k in range(5):
        np.testing.assert_array_equal(unmixing.apply(tiles[k : k + 1])[0], whole[k])
    assert unmixing.apply(tiles[:0]).shape == (0, 16, 24, 3)


# -- slides that cannot be fitted --------------------------------------------------------------


def test_too_few_pixels_are_refused_with_their_number() -> None:
    with pytest.raises(StainFitError, match="only 999 stained pixels where 1000 are needed"):
        Macenko(beta=0.05).estimate(mixture(999)[0])
    with pytest.raises(StainFitError, match="only 0 stained"):
        Macenko().estimate(np.full((50_000, 3), 243, np.uint8))


@pytest.mark.parametrize("colour", [(120, 60, 110), (0, 0, 0), (150, 150, 150)])
def test_one_colour_is_refused(colour) -> None:
    with pytest.raises(StainFitError, match="does not show two stains"):
        Macenko().estimate(np.full((5000, 3), colour, np.uint8))


def test_one_stain_in_all_strengths_is_refused() -> None:
    amount = np.linspace(0.6, 1.5, 5000)[:, None] * [1, 0]
    with pytest.raises(StainFitError):
        Macenko().estimate(levels(amount, np.stack([unit(HAEMATOXYLIN), unit(EOSIN)])))


@pytest.mark.parametrize(
    "settings", [{"alpha": 0.0}, {"alpha": 50.0}, {"beta": 0.0}, {"beta": 2.0}]
)
def test_settings_out_of_range_are_refused(settings) -> None:
    with pytest.raises(ConfigError, match=r"alpha=.* beta="):
        Macenko(**settings)
