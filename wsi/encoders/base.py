"""What an encoder is: uint8 tiles in, float32 features out, and a fingerprint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from wsi.errors import EncoderError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EncoderInfo:
    """What is known of an encoder without loading it.

    Args:
        name: as written in a configuration.
        dim: width D of its features.
        tile_px: edge of the tiles it was made for, before its own resizing.
        mpp: um per tile pixel it was made for.
        normalisation: the transform in words.
        licence: of the weights.
        gated: whether the weights are handed out on request only.
        source: where the weights come from.
        note: what a user should know.
        warning: what must not go unnoticed; programs print it.
    """

    name: str
    dim: int
    tile_px: int
    mpp: float
    normalisation: str
    licence: str
    gated: bool
    source: str
    note: str = ""
    warning: str = ""

    def untrained(self) -> EncoderInfo:
        """Return the same of a network with random weights, with a warning."""
        warning = (
            f"encoder {self.name} has random weights, never trained: its features mean nothing"
        )
        return replace(self, warning=warning)


class Encoder(ABC):
    """Turns tiles into features, one row per tile, whatever else is in the batch.

    A subclass sets `info` and `fingerprint` and fills in `_embed` and `_input`. Several threads may
    call `embed` at the same time, so `_embed` changes nothing of the encoder.

    Attributes:
        default_batch: tiles at a time that suit it on a CPU; a GPU takes more.
    """

    info: EncoderInfo
    fingerprint: str
    default_batch: int = 64
    min_tile_px: ClassVar[int] = 1

    def embed(self, tiles: Tensor) -> Tensor:
        """Return features (B, D) float32 of `tiles` (B, h, h, 3) uint8 RGB, without gradient.

        Tiles of another size than `info.tile_px` are taken; `describe` then says so.

        Raises:
            EncoderError: the tiles are of another shape or type, or too small.
        """
        import torch

        shape = tuple(tiles.shape)
        square = len(shape) == 4 and shape[3] == 3 and shape[1] == shape[2]
        if not square or tiles.dtype != torch.uint8 or shape[1] < self.min_tile_px:
            raise EncoderError(
                f"encoder {self.info.name}: tiles are {shape} {tiles.dtype} — give (B, h, h, 3) "
                f"uint8 with h of at least {self.min_tile_px}"
            )
        if not len(tiles):
            return torch.empty(0, self.info.dim)
        with torch.inference_mode():
            features = self._embed(tiles).float()
        if features.shape != (len(tiles), self.info.dim):
            raise EncoderError(
                f"encoder {self.info.name}: gave {tuple(features.shape)} where its row says "
                f"({len(tiles)}, {self.info.dim}) — correct the row"
            )
        return features

    def describe(self, tile_px: int | None = None, mpp: float | None = None) -> dict[str, Any]:
        """Return the JSON that goes into a bag's provenance.

        Args:
            tile_px: edge of the tiles given to it; its own when not given.
            mpp: um per pixel of these tiles; its own when not given.
        """
        tile_px, mpp = tile_px or self.info.tile_px, mpp or self.info.mpp
        resized_px, input_px = self._input(tile_px)
        effective_mpp = mpp * tile_px / resized_px
        return {
            "name": self.info.name,
            "fingerprint": self.fingerprint,
            "dim": self.info.dim,
            "tile_px": tile_px,
            "mpp": mpp,
            "input_px": input_px,
            "effective_mpp": round(effective_mpp, 6),
            "fov_um": round(effective_mpp * input_px, 4),
            "as_published": (tile_px, mpp) == (self.info.tile_px, self.info.mpp),
            "licence": self.info.licence,
            "source": self.info.source,
            "note": self.info.note,
            "compute": "fp32",
            **self._details(),
        }

    @abstractmethod
    def _embed(self, tiles: Tensor) -> Tensor:
        """Return features (B, D) of checked tiles, on any device."""

    @abstractmethod
    def _input(self, tile_px: int) -> tuple[int, int]:
        """Return the edges of a tile of `tile_px` after resizing, and of the part then used."""

    def _details(self) -> dict[str, Any]:
        """Return more JSON for `describe`; none by default."""
        return {}
