"""What networks see of a tile, against PIL and numpy, for every row of the catalogue."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wsi.encoders import CATALOG, Row
from wsi.encoders.hub import Source
from wsi.encoders.network import Network
from wsi.encoders.weights import Files, Weights
from wsi.errors import EncoderError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))

# As on the cards: tile, resize to, crop to, filter, mean and standard deviation.
PUBLISHED = {
    "resnet50": (256, 224, None, "bilinear", IMAGENET),
    "uni": (256, 224, None, "bilinear", IMAGENET),
    "uni2-h": (256, 224, None, "bilinear", IMAGENET),
    "virchow": (224, 224, None, "bicubic", IMAGENET),
    "virchow2": (224, 224, None, "bicubic", IMAGENET),
    "gigapath": (256, 256, 224, "bicubic", IMAGENET),
    "h-optimus-0": (224, 224, None, "bicubic", OPTIMUS),
    "h-optimus-1": (224, 224, None, "bicubic", OPTIMUS),
    "h0-mini": (224, 224, None, "bicubic", OPTIMUS),
    "phikon": (224, 224, None, "bilinear", IMAGENET),
    "phikon-v2": (224, 224, None, "bicubic", IMAGENET),
    "kaiko-s16": (224, 224, None, "bilinear", HALF),
    "kaiko-s8": (224, 224, None, "bilinear", HALF),
    "kaiko-b16": (224, 224, None, "bilinear", HALF),
    "kaiko-b8": (224, 224, None, "bilinear", HALF),
    "kaiko-l14": (224, 224, None, "bilinear", HALF),
    "lunit-s8": (224, 224, None, "bicubic", LUNIT),
    "lunit-s16": (224, 224, None, "bicubic", LUNIT),
    "gpfm": (224, 224, None, "bicubic", IMAGENET),
    "midnight-12k": (224, 224, None, "bilinear", HALF),
    "openmidnight-1.1": (224, 224, None, "bicubic", IMAGENET),
}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Bare(Network):
    """A row's transform without its network."""

    def _source(self) -> Source | None:
        return None

    def _load(self, files: Files) -> tuple[nn.Module, str]:
        return nn.Identity(), ""

    def _pooled(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def tile(px: int) -> np.ndarray:
    """Return a tile (px, px, 3) uint8 with a ramp, a fine chequer and sharp discs."""
    y, x = np.mgrid[:px, :px]
    discs = 90.0 * (((x % 37 - 18) ** 2 + (y % 41 - 20) ** 2) < 60)
    chequer = 20.0 * ((x // 3 + y // 2) % 2)
    ramp = 60 + 120 * x / px
    channels = [ramp + chequer - 0.2 * discs, 200 - 90 * y / px - discs, 150 + chequer - discs]
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


def by_pil(image: np.ndarray, name: str) -> np.ndarray:
    """Return what a network sees (3, s, s) of a tile, by PIL and numpy alone."""
    _, resize, crop, interpolation, (mean, std) = PUBLISHED[name]
    seen = image
    if resize != image.shape[0]:
        resized = Image.fromarray(image).resize((resize, resize), FILTERS[interpolation])
        seen = np.asarray(resized)
    if crop:
        start = round((seen.shape[0] - crop) / 2)
        seen = seen[start : start + crop, start : start + crop]
    return ((seen / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)


def seen_by(row: Row, image: np.ndarray) -> np.ndarray:
    network = Bare(row, Weights("random"), compute="fp32")
    return network.transform(torch.from_numpy(image)[None])[0].numpy()


def test_every_network_has_its_published_transform_written_down() -> None:
    assert set(PUBLISHED) == set(CATALOG) - {"texture-v1"}
    assert {name: CATALOG[name].tile_px for name in PUBLISHED} == {
        name: tile_px for name, (tile_px, *_) in PUBLISHED.items()
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_tiles_of_its_own_size_are_seen_as_the_card_says(name: str) -> None:
    image = tile(PUBLISHED[name][0])
    expected, found = by_pil(image, name), seen_by(CATALOG[name], image)
    assert found.shape == expected.shape
    # To a grey level where pixels are resampled, which torchvision and PIL round differently;
    # to the last digit of fp32 elsewhere.
    resampled = PUBLISHED[name][0] != PUBLISHED[name][1]
    std = np.array(PUBLISHED[name][4][1])[:, None, None]
    assert np.abs((found - expected) * std * 255).max() <= (1.01 if resampled else 1e-3)


@pytest.mark.parametrize("px", [256, 448, 512, 200])
@pytest.mark.parametrize("name", ["uni", "virchow", "kaiko-b16", "h-optimus-0"])
def test_tiles_of_another_size_are_resized_with_the_rows_filter(name: str, px: int) -> None:
    image = tile(px)
    std = np.array(PUBLISHED[name][4][1])[:, None, None]
    difference = np.abs((seen_by(CATALOG[name], image) - by_pil(image, name)) * std * 255)
    assert difference.max() <= 2.01
    assert difference.mean() < 0.3


def test_the_filters_are_told_apart_by_this_tile() -> None:
    image = Image.fromarray(tile(256))
    one, other = (np.asarray(image.resize((224, 224), f)).astype(int) for f in FILTERS.values())
    assert np.abs(one - other).max() > 5


def test_a_crop_is_never_made_up_from_nothing() -> None:
    assert CATALOG["gigapath"].resize == 256  # small tiles are enlarged first, so never too small
    assert seen_by(CATALOG["gigapath"], tile(128)).shape == (3, 224, 224)


def test_features_are_checked_against_the_rows_width() -> None:
    network = Bare(CATALOG["uni"], Weights("random"), compute="fp32")
    with pytest.raises(EncoderError, match="correct the row"):
        network.embed(torch.from_numpy(tile(256))[None])
