"""Any model that timm can build, as an encoder."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.layers.mlp import SwiGLUPacked
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wsi.encoders.hub import CONFIG, Source
from wsi.encoders.network import Network
from wsi.encoders.pooling import pool_tokens
from wsi.encoders.row import HUB, IMAGENET_MEAN, IMAGENET_STD, TIMM, Pooling, Row
from wsi.encoders.weights import Files, misfit, read_weights, weights_hash
from wsi.errors import EncoderError

DEFAULT_MPP = 0.5
_LAYERS = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}
_ROUNDING = 1e-3  # between means and deviations as cards and configurations write them


class TimmEncoder(Network):
    """A timm model without its classifier, with the row's transform and pooling."""

    def _source(self) -> Source | None:
        return source_of(self._row)

    def _load(self, files: Files) -> tuple[nn.Module, str]:
        row = self._row
        if files.config is not None:
            _check_config(files.config, row)
        model = build(row, self._weights.seed, files.config)
        if files.weights is not None:
            _load_strictly(model, row, files.weights)
        digest = weights_hash(model.state_dict())
        if self._precision != "fp32" and isinstance(model, ResNet):
            fold_norms(model.eval())
        return model, digest

    def _pooled(self, images: Tensor) -> Tensor:
        return pooled(self._model, images, self._row)


def build(row: Row, seed: int = 0, config: Path | None = None) -> nn.Module:
    """Return the architecture of `row` without classifier, its weights drawn from `seed`.

    Args:
        config: the hub's configuration of the model, in place of `row.architecture`.

    Raises:
        EncoderError: timm cannot build it.
    """
    if config is not None:
        # From the folder of its configuration: nothing is asked of the network a second time.
        name = f"local-dir:{config.parent}"
    else:
        name = row.architecture or row.load.removeprefix(TIMM)
    kwargs = {k: _LAYERS.get(v, v) if isinstance(v, str) else v for k, v in row.kwargs.items()}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
    except (RuntimeError, TypeError, ValueError, OSError, KeyError) as error:
        raise EncoderError(
            f"encoder {row.name}: timm cannot build {row.load} ({error}) — check the name with "
            "timm.list_models()"
        ) from error


def fold_norms(model: nn.Module) -> None:
    """Fold each batch normalisation of a ResNet in evaluation mode into the convolution before it.

    A quarter faster on a CPU, where a pass over the maps costs as much as arithmetic. Not in fp32,
    whose features stay what they were to the last digit.
    """
    before: tuple[str, nn.Module] = ("", model)
    for name, child in list(model.named_children()):
        if type(child) is nn.BatchNorm2d and isinstance(before[1], nn.Conv2d):
            setattr(model, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(model, name, nn.Identity())
        else:
            fold_norms(child)
        before = (name, child)


def source_of(row: Row) -> Source | None:
    """Return where the files of `row` are on the hub; None where timm knows no weights for it."""
    repo = row.repo
    if row.load.startswith(TIMM) and not row.architecture:
        repo = hub_id(row.load.removeprefix(TIMM))
    return Source.of(row, repo) if repo else None


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
    source = source_of(draft) if load.startswith(HUB) else None
    with torch.device("meta"):
        model = build(draft, config=source.config() if source else None)
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
        return _third_stage(timm_model, images, row).float().mean(dim=(2, 3))
    tokens = timm_model.forward_features(images)
    prefix = getattr(model, "num_prefix_tokens", None)
    # Models that average tokens by default keep their last normalisation for afterwards.
    finish = getattr(model, "fc_norm", None)
    return pool_tokens(tokens, prefix, row.pooling, row.name, finish)


def _third_stage(model: Any, images: Tensor, row: Row) -> Tensor:
    stages = [stage["module"] for stage in getattr(model, "feature_info", ())]
    if "layer3" not in stages:
        raise EncoderError(
            f"encoder {row.name}: the model has no 'layer3' to pool — use pooling=default"
        )
    return model.forward_intermediates(
        images, indices=[stages.index("layer3")], intermediates_only=True, stop_early=True
    )[0]


def _load_strictly(model: nn.Module, row: Row, path: Path) -> None:
    """Fill every tensor of `model`, or raise; timm itself would leave missing ones random."""
    weights = read_weights(path, row.name)
    grid = weights.get("pos_embed")
    # Older checkpoints are renamed or resized by the model's own module.
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        weights = convert(weights, model)
    classifiers = cast("Any", model).pretrained_cfg.get("classifier") or ()
    for head in (classifiers,) if isinstance(classifiers, str) else classifiers:
        weights = {k: v for k, v in weights.items() if k not in (f"{head}.weight", f"{head}.bias")}
    own = model.state_dict()
    shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if grid is not None and "pos_embed" in own and own["pos_embed"].shape != grid.shape:
        shapes.append("pos_embed")  # it would be resampled without a word
    problems = [
        ("missing", sorted(own.keys() - weights.keys())),
        ("unexpected", sorted(weights.keys() - own.keys())),
        ("of another shape", shapes),
    ]
    if any(names for _, names in problems):
        raise misfit(row.name, path, problems)
    model.load_state_dict(weights, strict=True)


def hub_id(model: str) -> str | None:
    """Return the repository of the weights that timm knows for a model of its own, if any."""
    known = timm.get_pretrained_cfg(model)
    if known is None or not known.hf_hub_id:
        return None
    own = known.hf_hub_id.endswith("/")  # of an organisation that names models as timm does
    return f"{known.hf_hub_id}{known.architecture}.{known.tag}" if own else known.hf_hub_id


def _check_config(path: Path, row: Row) -> None:
    """Refuse a configuration that contradicts the row in what both should have off the card.

    Raises:
        EncoderError: it is of no timm model, or has another mean or standard deviation.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        named = "architecture" in config
        stated = config.get("pretrained_cfg") or config
    except (ValueError, AttributeError, TypeError) as error:
        raise EncoderError(
            f"encoder {row.name}: {CONFIG} is not JSON ({error}) — fetch it again"
        ) from error
    if not named:
        raise EncoderError(
            f"encoder {row.name}: {CONFIG} names no architecture of timm — give the file of "
            "weights alone"
        )
    if not row.card_over_config:
        _compare(stated, row)


def _compare(stated: Mapping[str, Any], row: Row) -> None:
    for name, own in (("mean", row.mean), ("std", row.std)):
        theirs = stated.get(name)
        if theirs and max(abs(a - b) for a, b in zip(own, theirs, strict=True)) > _ROUNDING:
            raise EncoderError(
                f"encoder {row.name}: {CONFIG} says {name} {tuple(theirs)}, the catalogue {own} — "
                "one of them is wrong; please report it"
            )


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
