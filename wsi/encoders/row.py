"""What one row of the catalogue says of an encoder; no weights, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wsi.encoders.base import EncoderInfo

Pooling = Literal["default", "cls", "mean", "cls+mean", "layer3"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

TIMM, HUB, TRANSFORMERS = "timm:", "hf-hub:", "transformers:"
"""How `Row.load` begins: a model of timm's own, one on the hub for timm, or for transformers."""


@dataclass(frozen=True)
class Row:
    """All that a loader needs to know of an encoder.

    Args:
        load: `builtin`, `timm:<model>`, `hf-hub:<org>/<model>` or `transformers:<org>/<model>`.
        architecture: timm's name of the architecture, or the class of transformers. Built where no
            `config.json` lies beside the weights.
        kwargs: arguments of the constructor, or of the configuration for transformers.
        tile_px, mpp: the tiles it was made for.
        resize: edge in pixels that tiles are resized to; None leaves them.
        crop: edge of the centre that is then used; None uses all.
        pooling: from tokens or maps to one vector; `default` is the model's own.
        file: name of the weights on the hub where it is not one of the usual.
        revision: the commit on the hub that the row was written for; None where it is not known.
        sha256: of the file of weights; None where it is not known.
        card_over_config: its authors do not use the mean and std of the hub's `config.json`.
        batch: tiles at a time that suit it on a CPU.
    """

    name: str
    load: str
    dim: int
    tile_px: int
    mpp: float
    resize: int | None
    crop: int | None
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: Pooling
    licence: str
    gated: bool
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    architecture: str = ""
    file: str = ""
    revision: str | None = None
    sha256: str | None = None
    card_over_config: bool = False
    batch: int = 64

    @property
    def info(self) -> EncoderInfo:
        """Return what users are told of this row."""
        return EncoderInfo(
            name=self.name,
            dim=self.dim,
            tile_px=self.tile_px,
            mpp=self.mpp,
            normalisation=self._normalisation(),
            licence=self.licence,
            gated=self.gated,
            source=self.load,
            note=self.note,
        )

    @property
    def repo(self) -> str | None:
        """Return the repository on the hub, `<org>/<model>`; None where timm must be asked."""
        for prefix in (HUB, TRANSFORMERS):
            if self.load.startswith(prefix):
                return self.load.removeprefix(prefix)
        # timm keeps its own models with a tag under their full names.
        return f"timm/{self.load.removeprefix(TIMM)}" if "." in self.load else None

    @property
    def pin(self) -> str:
        """Return what holds the weights to those that the row was written for, in a word."""
        if self.load == "builtin":
            return "built in"
        return "sha256" if self.sha256 else "revision" if self.revision else "unpinned"

    def input(self, tile_px: int) -> tuple[int, int]:
        """Return the edges of a tile of `tile_px` after resizing, and of the part then used."""
        resized = self.resize or tile_px
        return resized, self.crop or resized

    @property
    def effective_mpp(self) -> float:
        """Return um per pixel that the model sees of the tiles it was made for."""
        return self.mpp * self.tile_px / self.input(self.tile_px)[0]

    def _normalisation(self) -> str:
        if self.load == "builtin":
            return "none"
        size = f"resize {self.resize} {self.interpolation}" if self.resize else "no resize"
        crop = f", crop {self.crop}" if self.crop else ""
        return f"{size}{crop}, mean {self.mean}, std {self.std}"
