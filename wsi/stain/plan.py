"""From the setting `pixels.stain` to a method, its settings and what it aims at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import ConfigError, SlideError, StainFitError
from wsi.files import sha256_file
from wsi.registry import Registry
from wsi.slides import open_slide
from wsi.slides.profile import ToSrgb
from wsi.specs import Component
from wsi.stain.base import Appearance, Normaliser, StainMethod, stained

STAINS = Registry(
    "stain normalisation",
    {"macenko": "wsi.stain.macenko:Macenko", "reinhard": "wsi.stain.reinhard:Reinhard"},
    group="wsi.stains",
)

_TARGET_MAX_PX = 50_000_000
_TARGET_SAMPLE = 400_000


@dataclass(frozen=True)
class StainPlan:
    """A stain normalisation, ready to be fitted to slides.

    Attributes:
        settings: name and all settings as JSON, a target picture by its SHA-256.
        method: estimates appearances.
        target: the appearance to give.
    """

    settings: dict[str, Any]
    method: StainMethod[Any]
    target: Appearance

    def fit(self, pixels: NDArray[np.uint8]) -> tuple[Normaliser, dict[str, Any]]:
        """Return the normaliser of a slide and what was found, from tissue pixels (N, 3).

        Raises:
            StainFitError: too few of them are stained, or they do not differ as two stains do.
        """
        seen = stained(pixels)
        source = self.method.estimate(seen)
        found = {"name": self.settings["name"], "pixels": len(seen), **asdict(source)}  # pyright: ignore[reportArgumentType]
        return self.method.normaliser(source, self.target), found


def plan_stain(component: Component, *, srgb: bool = False) -> StainPlan:
    """Return the stain normalisation that `component` names.

    Args:
        srgb: whether slides are converted to sRGB; a target picture then is, too.

    Raises:
        UnknownNameError: there is none of that name.
        ConfigError: a setting is wrong, or the target picture cannot be used.
    """
    name = component.name
    method: StainMethod[Any] = STAINS.load(name)(**STAINS.check(name, component.params))
    settings = {"name": name, **asdict(method)}
    if method.target is None:
        return StainPlan(settings, method, method.REFERENCE)
    path = Path(method.target)
    target = _target(method, path, srgb)
    return StainPlan(settings | {"target": sha256_file(path)}, method, target)


def _target(method: StainMethod[Any], path: Path, srgb: bool) -> Appearance:
    try:
        return method.estimate(stained(_pixels(path, srgb)))
    except StainFitError as error:
        raise ConfigError(
            f"pixels.stain.target={path.name}: {error} — give a picture of well stained tissue"
        ) from error
    except SlideError as error:
        raise ConfigError(f"pixels.stain.target: {error}") from error


def _pixels(path: Path, srgb: bool) -> NDArray[np.uint8]:
    """Return pixels (N, 3) of a picture, evenly thinned out."""
    with open_slide(path) as slide:
        w, h = slide.info.size0
        if w * h > _TARGET_MAX_PX:
            raise ConfigError(
                f"pixels.stain.target={path.name} is {w}x{h} px — give a region of a slide, "
                f"of {_TARGET_MAX_PX // 1_000_000} megapixels at most"
            )
        pixels = slide.read((0, 0), 0, (w, h))
        if srgb:
            pixels = ToSrgb(slide.icc_profile).apply(pixels)
    return pixels.reshape(-1, 3)[:: max(1, w * h // _TARGET_SAMPLE)]
