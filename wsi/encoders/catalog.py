"""One row per encoder, as data: what a model card says, checked where it could be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wsi.encoders.base import EncoderInfo

Pooling = Literal["default", "cls", "mean", "cls+mean", "layer3"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Row:
    """All that a loader needs to know of an encoder.

    Args:
        load: `builtin`, `timm:<model>` or `hf-hub:<org>/<model>`.
        kwargs: arguments of the constructor.
        tile_px, mpp: the tiles it was made for.
        resize: edge in pixels that tiles are resized to; None leaves them.
        crop: edge of the centre that is then used; None uses all.
        pooling: from tokens or maps to one vector; `default` is the model's own.
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

    def _normalisation(self) -> str:
        if self.load == "builtin":
            return "none"
        size = f"resize {self.resize} {self.interpolation}" if self.resize else "no resize"
        crop = f", crop {self.crop}" if self.crop else ""
        return f"{size}{crop}, mean {self.mean}, std {self.std}"


_ROWS = (
    Row(
        name="texture-v1",
        load="builtin",
        dim=98,
        tile_px=256,
        mpp=0.5,
        resize=None,
        crop=None,
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        pooling="default",
        licence="Apache-2.0",
        gated=False,
        note="baseline features, not a foundation model",
    ),
    Row(
        name="resnet50",
        load="timm:resnet50.tv_in1k",
        dim=1024,
        tile_px=256,
        mpp=0.5,
        resize=224,
        crop=None,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pooling="layer3",
        licence="BSD-3-Clause",
        gated=False,
        note="ImageNet weights, third stage, as in CLAM; sees 0.571 um per pixel",
    ),
)

CATALOG: dict[str, Row] = {row.name: row for row in _ROWS}
