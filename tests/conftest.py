"""What several suites draw on: small pictures of tissue, small slides, the reference data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Before numpy, cv2 and torch are loaded, which look once: several test processes that each take
# every core wait for one another, busily, and spend three times the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pytest

from wsi.slides.dress import pyramid, write_slide

Picture = Callable[..., np.ndarray]


def draw_disc(
    size: tuple[int, int] = (1024, 1024),
    centre: tuple[float, float] = (0.5, 0.5),
    radius: float = 0.35,
    seed: int = 0,
) -> np.ndarray:
    """Return RGB (h, w, 3): a disc of mottled pink tissue on white glass.

    Centre and radius are shares of the width, so that the area is known: pi * (radius * w)**2.
    """
    w, h = size
    rng = np.random.default_rng(seed)
    mottle = cv2.GaussianBlur(rng.standard_normal((h, w), dtype=np.float32), (0, 0), 3)
    mottle /= mottle.std()
    y, x = np.mgrid[0:h, 0:w] + 0.5
    inside = np.hypot(x - centre[0] * w, y - centre[1] * w) < radius * w
    tissue = np.array([190, 110, 165]) + mottle[..., None] * np.array([12, 20, 10])
    picture = np.where(inside[..., None], tissue, 245)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def picture() -> Picture:
    return draw_disc


def draw_stained(
    size: tuple[int, int] = (1024, 1024),
    stains: tuple[tuple[float, ...], tuple[float, ...]] = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)),
    seed: int = 0,
) -> np.ndarray:
    """Return RGB (h, w, 3): a disc of tissue of two stains on white glass.

    Each pixel's optical density, from grey level 240, is a mixture of the two stains; some of the
    disc has the one alone, some the other.
    """
    w, h = size
    rng = np.random.default_rng(seed)
    share = cv2.GaussianBlur(rng.standard_normal((h, w), dtype=np.float32), (0, 0), 4)
    share = np.clip(0.5 + share / share.std() / 2, 0, 1)
    vectors = np.asarray(stains) / np.linalg.norm(stains, axis=1, keepdims=True)
    amount = rng.uniform(0.4, 1.2, (h, w))
    density = amount[..., None] * (
        share[..., None] * vectors[0] + (1 - share[..., None]) * vectors[1]
    )
    y, x = np.mgrid[0:h, 0:w] + 0.5
    inside = np.hypot(x - w / 2, y - h / 2) < 0.4 * min(w, h)
    light = np.where(inside[..., None], 240 * np.exp(-density) - 1, 245)
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def stained_picture() -> Picture:
    return draw_stained


@pytest.fixture(scope="session")
def slide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small slides in several dresses, one of them bare glass; never written to.

    All lie at 0.5 um/px: `a` aperio, `site/b` philips, `site/c` generic; `glass` has no tissue.
    """
    folder = tmp_path_factory.mktemp("slides")
    (folder / "site").mkdir()
    for seed, (name, dress) in enumerate(
        [("a.svs", "aperio"), ("site/b.tif", "philips"), ("site/c.tif", "generic")]
    ):
        levels = pyramid(draw_disc(seed=seed), 2)
        write_slide(folder / name, levels, mpp=0.5, dress=dress, magnification=20)  # pyright: ignore[reportArgumentType]
    glass = np.full((512, 512, 3), 244, np.uint8)
    write_slide(folder / "glass.tif", [glass], mpp=0.5)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference slides, which is not part of the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the reference slides are not beside this checkout")
    return folder
