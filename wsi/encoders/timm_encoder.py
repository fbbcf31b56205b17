"""Any model that timm can build, as an encoder."""

from __future__ import annotations

import hashlib
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torchvision.transforms.v2.functional as transforms
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from wsi.encoders.base import Encoder
from wsi.encoders.catalog import IMAGENET_MEAN, IMAGENET_STD, Pooling, Row
from wsi.encoders.weights import WEIGHT_FILES, hub_file, read_weights
from wsi.errors import EncoderError
from wsi.files import sha256_json

DEFAULT_MPP = 0.5
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Weights:
    """Where an encoder's weights come from: `pretrained`, `random` with a seed, or a file."""

    kind: str = "pretrained"
    seed: int = 0
    path: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what provenance says; a file by its name alone, as folders may be private."""
        if self.kind == "random":
            return {"weights": "random", "seed": self.seed}
        return {"weights": self.path.name if self.path else "pretrained"}


class TimmEncoder(Encoder):
    """A timm model without its classifier, with the row's transform and pooling.

    Args:
        row: what to build and how to feed it.
        weights: where the weights come from.
        device: where to compute.

    Raises:
        EncoderError: weights are unavailable or of another architecture, or the pooling does not
            suit the model.
    """

    def __init__(self, row: Row, weights: Weights, device: str = "cpu") -> None:
        self.info = row.info
        self._row = row
        self._weights = weights
        self._device = torch.device(device)
        model = build(row, weights.seed)
        if weights.kind != "random":
            _load_strictly(model, row, weights.path)
        self._model = model.eval().requires_grad_(False)
        self._weights_sha256 = weights_hash(self._model)
        self.fingerprint = sha256_json(
            {
                "name": row.name,
                "weights": self._weights_sha256,
                "transform": [row.resize, row.crop, row.interpolation, row.mean, row.std],
                "pooling": row.pooling,
                "dim": row.dim,
            }
        )
        self._model.to(self._device)
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

    def _embed(self, tiles: Tensor) -> Tensor:
        return pooled(self._model, self.transform(tiles.to(self._device)), self._row)

    def _input(self, tile_px: int) -> tuple[int, int]:
        resized = self._row.resize or tile_px
        return resized, self._row.crop or resized

    def _details(self) -> dict[str, Any]:
        source = self._weights.to_json()
        return {"pooling": self._row.pooling, "weights_sha256": self._weights_sha256, **source}


def build(row: Row, seed: int = 0) -> nn.Module:
    """Return the architecture of `row` without classifier, its weights drawn from `seed`.

    Raises:
        EncoderError: timm cannot build it.
    """
    name = row.load.removeprefix("timm:")
    if row.load.startswith("hf-hub:"):
        # From the folder of its configuration: nothing is asked of the network a second time.
        repo = row.load.removeprefix("hf-hub:")
        name = f"local-dir:{hub_file(repo, ('config.json',), row.name).parent}"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(name, pretrained=False, num_classes=0, **row.kwargs)
    except (RuntimeError, TypeError, ValueError, OSError, KeyError) as error:
        raise EncoderError(
            f"encoder {row.name}: timm cannot build {row.load} ({error}) — check the name with "
            "timm.list_models()"
        ) from error


def row_of_model(name: str, load: str, pooling: Pooling = "default") -> Row:
    """Return a row for a model that has none, from timm's own configuration of it.

    The model's input size is taken as the tile size and 0.5 um per pixel as the resolution, since
    such models state none; the row says so. Weights are neither loaded nor allocated.
    """
    draft = Row(
        name=name,
        load=load,
        dim=0,
        tile_px=1,
        mpp=DEFAULT_MPP,
        resize=None,
        crop=None,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pooling=pooling,
        licence="unknown",
        gated=False,
        note=f"states no resolution, {DEFAULT_MPP} um per pixel assumed",
    )
    with torch.device("meta"):
        model = build(draft)
    config = resolve_model_data_config(model)
    size = _square_size(name, config["input_size"])
    cfg = cast("dict[str, Any]", model.pretrained_cfg)
    # The same rounding as timm's own evaluation transform.
    resize = math.floor(size / config["crop_pct"])
    with torch.device("meta"):
        dim = pooled(model.eval(), torch.zeros(1, 3, size, size), draft).shape[1]
    return replace(
        draft,
        dim=dim,
        tile_px=size,
        resize=resize,
        crop=size,
        interpolation=_interpolation(name, config["interpolation"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        licence=cfg.get("license") or "unknown",
    )


def pooled(model: nn.Module, images: Tensor, row: Row) -> Tensor:
    """Return one vector per image, (B, D), by the row's pooling.

    Raises:
        EncoderError: the model has no class token, no tokens or no third stage.
    """
    timm_model: Any = model
    if row.pooling == "default":
        return timm_model(images)
    if row.pooling == "layer3":
        return _third_stage(timm_model, images, row).mean(dim=(2, 3))
    tokens = timm_model.forward_features(images)
    prefix = getattr(model, "num_prefix_tokens", None)
    if tokens.ndim != 3 or prefix is None or (prefix == 0 and row.pooling != "mean"):
        raise EncoderError(
            f"encoder {row.name}: pooling '{row.pooling}' needs a model with "
            f"{'tokens' if row.pooling == 'mean' else 'a class token'} — use pooling=default"
        )
    # Models that average tokens by default keep their last normalisation for afterwards.
    finish = getattr(model, "fc_norm", None) or nn.Identity()
    parts = {"cls": lambda: tokens[:, 0], "mean": lambda: tokens[:, prefix:].mean(dim=1)}
    return torch.cat([finish(parts[part]()) for part in row.pooling.split("+")], dim=1)


def _third_stage(model: Any, images: Tensor, row: Row) -> Tensor:
    stages = [stage["module"] for stage in getattr(model, "feature_info", ())]
    if "layer3" not in stages:
        raise EncoderError(
            f"encoder {row.name}: the model has no 'layer3' to pool — use pooling=default"
        )
    return model.forward_intermediates(
        images, indices=[stages.index("layer3")], intermediates_only=True, stop_early=True
    )[0]


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of all tensors of `model` with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_strictly(model: nn.Module, row: Row, path: Path | None) -> None:
    """Fill every tensor of `model`, or raise; timm itself would leave missing ones random."""
    path = path or hub_file(_repo(model, row), WEIGHT_FILES, row.name)
    weights = read_weights(path, row.name)
    # Older checkpoints are renamed or resized by the model's own module.
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        weights = convert(weights, model)
    classifiers = cast("Any", model).pretrained_cfg.get("classifier") or ()
    for head in (classifiers,) if isinstance(classifiers, str) else classifiers:
        weights = {k: v for k, v in weights.items() if k not in (f"{head}.weight", f"{head}.bias")}
    own = model.state_dict()
    problems = [
        ("missing", sorted(own.keys() - weights.keys())),
        ("unexpected", sorted(weights.keys() - own.keys())),
        ("of another shape", [k for k in own if k in weights and own[k].shape != weights[k].shape]),
    ]
    if any(names for _, names in problems):
        listed = "; ".join(f"{_listed(names)} {what}" for what, names in problems if names)
        raise EncoderError(
            f"encoder {row.name}: {path.name} does not fit the model ({listed}) — give the "
            "weights of this very architecture"
        )
    model.load_state_dict(weights, strict=True)


def _repo(model: nn.Module, row: Row) -> str:
    if row.load.startswith("hf-hub:"):
        return row.load.removeprefix("hf-hub:")
    repo = cast("Any", model).pretrained_cfg.get("hf_hub_id")
    if not repo:
        raise EncoderError(
            f"encoder {row.name}: timm knows no pretrained weights for {row.load} — give "
            "weights=<file>, or weights=random if that is what you want"
        )
    return repo


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _square_size(name: str, input_size: tuple[int, int, int]) -> int:
    channels, height, width = input_size
    if channels != 3 or height != width:
        raise EncoderError(f"encoder {name}: takes {input_size} images — choose a square RGB model")
    return height


def _interpolation(name: str, word: str) -> Any:
    if word not in ("bilinear", "bicubic"):
        raise EncoderError(
            f"encoder {name}: resizes by {word} — only bilinear and bicubic work on batches"
        )
    return word
