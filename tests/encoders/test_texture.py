"""The built-in encoder, against numpy, and on textures made to test it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wsi.encoders.filters import blur, gabor_bank, gabor_energy, moments, peak_strength
from wsi.encoders.texture import _GROUPS, FEATURE_NAMES, TextureEncoder
from wsi.errors import EncoderError

# Optical densities of a pure haematoxylin and a pure eosin, as published, made unit vectors.
HAEMATOXYLIN = np.array([0.650, 0.704, 0.286]) / np.linalg.norm([0.650, 0.704, 0.286])
EOSIN = np.array([0.072, 0.990, 0.105]) / np.linalg.norm([0.072, 0.990, 0.105])


@pytest.fixture(scope="module")
def encoder() -> TextureEncoder:
    return TextureEncoder()


def raw(encoder: TextureEncoder, tiles: np.ndarray) -> dict[str, np.ndarray]:
    """Return the features in their own units, by group."""
    features = encoder.embed(torch.from_numpy(tiles)).numpy().astype(np.float64)
    groups, start = {}, 0
    for name, (width, centre, scale) in _GROUPS.items():
        groups[name] = features[:, start : start + width] * scale + centre
        start += width
    return groups


def stained(haematoxylin: np.ndarray, eosin: np.ndarray | float = 0.15) -> np.ndarray:
    """Return RGB tiles (..., 3) uint8 of the given stain densities (...)."""
    eosin = np.broadcast_to(eosin, haematoxylin.shape)
    density = haematoxylin[..., None] * HAEMATOXYLIN + eosin[..., None] * EOSIN
    return np.clip(np.round(256 * 10.0**-density - 1), 0, 255).astype(np.uint8)


def discs(rng: np.random.Generator, count: int, radius: float, px: int = 128) -> np.ndarray:
    """Return densities (px, px) of `count` dark discs on a pale ground."""
    y, x = np.mgrid[:px, :px]
    image = np.full((px, px), 0.05)
    for cx, cy in rng.uniform(0, px, (count, 2)):
        image[(x - cx) ** 2 + (y - cy) ** 2 <= radius**2] = 0.6
    return image


def same_sum(rng: np.random.Generator, tile: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return `tile` (h, w, 3) with scattered pixels changed so that it sums to `total`."""
    pixels = tile.reshape(-1, 3).astype(int)
    for channel in range(3):
        missing = round(float(total[channel])) - pixels[:, channel].sum()
        every, rest = divmod(abs(missing), len(pixels))
        change = np.full(len(pixels), every)
        change[rng.permutation(len(pixels))[:rest]] += 1
        pixels[:, channel] += np.sign(missing) * change
    assert pixels.min() >= 0
    assert pixels.max() <= 255
    return pixels.reshape(tile.shape).astype(np.uint8)


def test_names_and_width_agree(encoder):
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == encoder.info.dim


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 120, 180)])
def test_a_constant_tile_has_its_own_colour_and_no_texture(encoder, colour):
    groups = raw(encoder, np.full((1, 64, 64, 3), colour, np.uint8))
    expected = np.array(colour) / 255
    np.testing.assert_allclose(groups["rgb_mean"][0], expected, atol=1e-5)
    np.testing.assert_allclose(groups["rgb_quantiles"][0], expected.repeat(3), atol=1e-5)
    density = -np.log10((np.array(colour) + 1) / 256)
    basis = np.stack([HAEMATOXYLIN, EOSIN, np.cross(HAEMATOXYLIN, EOSIN)])
    basis[2] /= np.linalg.norm(basis[2])
    amounts = np.linalg.solve(basis.T, density)
    np.testing.assert_allclose(groups["stain_mean"][0], amounts, atol=1e-4)
    for name in groups:
        if name.startswith(("gabor", "nuclei", "detail", "autocorr", "patch")) or "std" in name:
            np.testing.assert_allclose(groups[name], 0, atol=1e-4, err_msg=name)


def test_stain_moments_are_those_of_the_densities_put_in(encoder):
    rng = np.random.default_rng(0)
    # Constant over 2x2 pixels, so that halving the image changes nothing.
    haematoxylin = rng.gamma(2.0, 0.1, (1, 32, 32)).repeat(2, axis=1).repeat(2, axis=2)
    eosin = rng.uniform(0.1, 0.4, (1, 32, 32)).repeat(2, axis=1).repeat(2, axis=2)
    groups = raw(encoder, stained(haematoxylin, eosin))
    for k, amounts in enumerate((haematoxylin, eosin)):
        assert groups["stain_mean"][0, k] == pytest.approx(amounts.mean(), abs=0.01)
        assert groups["stain_std"][0, k] == pytest.approx(amounts.std(), rel=0.05)
    skewness = stats.skew(haematoxylin.ravel())
    assert groups["stain_skewness"][0, 0] == pytest.approx(skewness, rel=0.15)
    assert groups["stain_mean"][0, 2] == pytest.approx(0, abs=0.01)
    together = np.corrcoef(haematoxylin.ravel(), eosin.ravel())[0, 1]
    assert groups["stain_correlation"][0, 0] == pytest.approx(together, abs=0.06)


def test_moments_agree_with_scipy():
    values = np.random.default_rng(0).gamma(2.0, 1.0, (2, 3, 500))
    mean, std, skewness = (m.numpy() for m in moments(torch.from_numpy(values)))
    np.testing.assert_allclose(mean, values.mean(-1))
    np.testing.assert_allclose(std, values.std(-1))
    np.testing.assert_allclose(skewness, stats.skew(values, axis=-1), rtol=1e-3)


@pytest.mark.parametrize("sigma", [1.5, 2.998])
def test_blur_agrees_with_scipy(sigma):
    image = np.random.default_rng(0).normal(size=(1, 1, 40, 50))
    expected = ndimage.gaussian_filter(
        image[0, 0], sigma, mode="nearest", radius=int(np.ceil(3 * sigma))
    )
    found = blur(torch.from_numpy(image), sigma)[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("orientation", range(4))
def test_gabor_energy_peaks_at_the_orientation_and_period_of_stripes(orientation):
    y, x = np.mgrid[:64, :64]
    angle = orientation * np.pi / 4
    along = x * np.cos(angle) + y * np.sin(angle)
    energies = {}
    for period in (2.5, 4.0, 8.0, 16.0):
        stripes = torch.from_numpy(np.sin(2 * np.pi * along / period))[None, None].float()
        energies[period] = gabor_energy(stripes, gabor_bank())[0, 0].numpy()
    assert energies[4.0].argmax() == orientation
    assert energies[4.0][orientation] == pytest.approx(1, abs=0.1)
    assert np.delete(energies[4.0], orientation).max() < 0.4
    for period in (2.5, 8.0, 16.0):
        assert energies[period][orientation] < 0.5 * energies[4.0][orientation]


def test_sorted_energies_show_stripes_but_not_their_direction(encoder):
    y, x = np.mgrid[:128, :128]
    tiles = stained(
        np.stack(
            [
                0.3 + 0.2 * np.sin(2 * np.pi * (x * np.cos(a) + y * np.sin(a)) / 8)
                for a in (0, np.pi / 2)
            ]
        )
    )
    fine = raw(encoder, tiles)["gabor_fine"]  # 8 px are 4 px after halving: in tune
    np.testing.assert_allclose(fine[0], fine[1], rtol=1e-3, atol=1e-6)
    haematoxylin = fine[0, :4]
    assert haematoxylin[0] == pytest.approx(0.2, rel=0.2)
    assert haematoxylin[0] > 3 * haematoxylin[1]


def test_a_quarter_turn_or_a_mirror_changes_nothing(encoder):
    rng = np.random.default_rng(0)
    tile = stained(discs(rng, 40, 8, 256) + rng.uniform(0, 0.1, (256, 256)))[None]
    expected = encoder.embed(torch.from_numpy(tile)).numpy()
    for changed in (np.rot90(tile, 1, (1, 2)), tile[:, ::-1], tile.transpose(0, 2, 1, 3)):
        found = encoder.embed(torch.from_numpy(np.ascontiguousarray(changed))).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_peaks_are_counted_and_measured():
    image = np.zeros((1, 1, 60, 60), np.float32)
    image[0, 0, 10::20, 10::20] = 0.5  # nine peaks
    density, strength = peak_strength(torch.from_numpy(image), floor=0.1)
    assert float(density[0]) == pytest.approx(9 / 3600 * 1000)
    assert float(strength[0]) == pytest.approx(9 * 0.5 / (9 + 1))


def test_nuclear_density_rises_with_the_number_of_nuclei(encoder):
    rng = np.random.default_rng(0)
    counts = (5, 15, 30, 60)
    tiles = stained(np.stack([discs(rng, n, 8, 256) for n in counts]))
    density = raw(encoder, tiles)["nuclei_density"][:, 1]
    assert (np.diff(density) > 0).all()


def test_the_strongest_scale_follows_nuclear_size(encoder):
    rng = np.random.default_rng(0)
    # Radii in px at 0.5 um: discs of 5, 8 and 13 um across.
    tiles = stained(np.stack([discs(rng, 12, radius, 256) for radius in (5, 8, 13)]))
    assert raw(encoder, tiles)["nuclei_strength"].argmax(axis=1).tolist() == [0, 1, 2]


def test_textures_of_equal_mean_colour_are_told_apart(encoder):
    rng = np.random.default_rng(0)
    small = [discs(rng, 64, 4) for _ in range(30)]
    large = [discs(rng, 16, 8) for _ in range(30)]
    # The same share of every tile is dark, so that mean colour says nothing.
    images = [0.05 + 0.12 * (i - 0.05) / (i - 0.05).mean() for i in small + large]
    tiles = stained(np.stack(images))
    tiles = np.stack([same_sum(rng, tile, tiles.sum((1, 2)).mean(0)) for tile in tiles])
    labels = np.repeat([0, 1], 30)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    colour = tiles.reshape(60, -1, 3).mean(1)
    assert np.ptp(colour, axis=0).max() < 1e-3
    features = encoder.embed(torch.from_numpy(tiles)).numpy()
    assert cross_val_score(classifier, features, labels, cv=5).mean() > 0.95


@pytest.mark.parametrize("px", [32, 33, 47, 100, 224])
def test_any_tile_of_32_px_or_more_is_taken(encoder, px):
    tiles = np.random.default_rng(0).integers(0, 256, (2, px, px, 3), np.uint8)
    assert bool(torch.isfinite(encoder.embed(torch.from_numpy(tiles))).all())


def test_smaller_tiles_are_refused(encoder):
    with pytest.raises(EncoderError, match="at least 32"):
        encoder.embed(torch.zeros(1, 31, 31, 3, dtype=torch.uint8))
