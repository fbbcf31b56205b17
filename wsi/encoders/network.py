"""What all networks share: the row's transform and pooling, weights, precision, fingerprint."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torchvision.transforms.v2.functional as transforms
from torch import Tensor, nn

from wsi.encoders.base import Encoder
from wsi.encoders.compute import Precision, as_input, casting, prepare, settle_precision
from wsi.encoders.hub import Source
from wsi.encoders.row import Row
from wsi.encoders.weights import Files, Weights
from wsi.errors import EncoderError
from wsi.files import sha256_json


class Network(Encoder):
    """A network by a row of data; a subclass builds it and pools its output.

    Args:
        row: what to build and how to feed it.
        weights: where the weights come from.
        device: where to compute.
        compute: in which type: `auto`, `fp32`, `bf16` or `fp16`.

    Raises:
        EncoderError: weights are unavailable or of another architecture, or the pooling does not
            suit the model.
        ConfigError: the device cannot compute in the type asked for.
    """

    def __init__(
        self, row: Row, weights: Weights, device: str = "cpu", compute: str = "auto"
    ) -> None:
        self.info = row.info.untrained() if weights.kind == "random" else row.info
        self.default_batch = row.batch
        self._row = row
        self._weights = weights
        self._device = torch.device(device)
        self._precision: Precision = settle_precision(compute, self._device)
        self._files = weights.files(row, self._source())
        model, self._weights_sha256 = self._load(self._files)
        self.fingerprint = sha256_json(self._identity())
        model = model.eval().requires_grad_(False)
        self._model = prepare(model, self._device, self._precision)
        self._mean = torch.tensor(row.mean, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(row.std, device=self._device).view(3, 1, 1)

    def transform(self, tiles: Tensor) -> Tensor:
        """Return what the model sees (B, 3, s, s) of `tiles` (B, h, h, 3) uint8.

        The same as timm's own evaluation transform, for a whole batch: resized with antialiasing
        as uint8, centre crop, mean and standard deviation.
        """
        images = tiles.permute(0, 3, 1, 2)
        if self._row.resize and self._row.resize != images.shape[-1]:
            mode = transforms.InterpolationMode(self._row.interpolation)
            images = transforms.resize(images, [self._row.resize] * 2, mode, antialias=True)
        if self._row.crop:
            if images.shape[-1] < self._row.crop:
                raise EncoderError(
                    f"encoder {self.info.name}: {images.shape[-1]}-px tiles are smaller than its "
                    f"{self._row.crop}-px input — use tiling.tile_px={self.info.tile_px}"
                )
            images = transforms.center_crop(images, [self._row.crop] * 2)
        return (images.float() / 255 - self._mean) / self._std

    @abstractmethod
    def _source(self) -> Source | None:
        """Return where the files are on the hub; None where nothing is known there."""

    @abstractmethod
    def _load(self, files: Files) -> tuple[nn.Module, str]:
        """Return the model on the CPU in fp32, and the hash of its weights."""

    @abstractmethod
    def _pooled(self, images: Tensor) -> Tensor:
        """Return one vector per image (B, D)."""

    def _embed(self, tiles: Tensor) -> Tensor:
        images = as_input(self.transform(tiles.to(self._device)), self._precision)
        with casting(self._device, self._precision):
            return self._pooled(images)

    def _identity(self) -> dict[str, Any]:
        row = self._row
        identity = {
            "name": row.name,
            "weights": self._weights_sha256,
            "transform": [row.resize, row.crop, row.interpolation, row.mean, row.std],
            "pooling": row.pooling,
            "dim": row.dim,
        }
        return identity if self._precision == "fp32" else identity | {"compute": self._precision}

    def _input(self, tile_px: int) -> tuple[int, int]:
        return self._row.input(tile_px)

    def _details(self) -> dict[str, Any]:
        # Random features are told apart in the very name of their folder.
        name = {"name": f"{self.info.name}-random"} if self._weights.kind == "random" else {}
        return {
            "pooling": self._row.pooling,
            "weights_sha256": self._weights_sha256,
            "compute": self._precision,
            "file_sha256": self._files.sha256,
            **self._weights.to_json(),
            **name,
        }
