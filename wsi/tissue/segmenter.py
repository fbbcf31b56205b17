"""Tissue by a segmentation network: any of torchvision's or segmentation-models-pytorch's.

Weights come from a local safetensors file, which holds tensors and no code.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from wsi.errors import ConfigError, UnknownNameError
from wsi.registry import suggest
from wsi.tissue.find import Found

if TYPE_CHECKING:
    from torch import Tensor, nn

_STRIDE = 32  # of the usual encoders; tiles start at its multiples, so that all see one phase
_SMP = "smp/"
_INSTALL = "pip install 'wsi[segmentation]' or pip install segmentation-models-pytorch"

Channels = tuple[float, float, float]


def _known_network(name: str) -> str:
    """Return `name`, or raise UnknownNameError with the nearest network's name."""
    short = name.removeprefix(_SMP)
    known = _smp_networks() if name.startswith(_SMP) else _torchvision_networks()
    if short not in known:
        prefix = _SMP if name.startswith(_SMP) else ""
        raise UnknownNameError(
            f"unknown network 'torch:{name}'{suggest(short, known)} — known: "
            + ", ".join(f"torch:{prefix}{network}" for network in known)
            + ("" if prefix else f", and torch:{_SMP}<network>")
        )
    return name


def _safetensors(path: Path) -> Path:
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name} is no .safetensors file — save the weights as one")
    if not path.is_file():
        raise ValueError(f"{path.name}: no such file — give the path of the network's weights")
    return path


Network = Annotated[str, AfterValidator(_known_network)]
Weights = Annotated[Path, AfterValidator(_safetensors)]
Multiple = Annotated[int, Field(ge=_STRIDE, le=8192, multiple_of=_STRIDE)]
Margin = Annotated[int, Field(ge=0, le=4096, multiple_of=_STRIDE)]


def torch_network(
    pixels: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    network: Network,
    *,
    weights: Weights,
    classes: Annotated[int, Field(ge=1)] = 2,
    tissue: Annotated[int, Field(ge=0)] = 1,
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5,
    encoder: str = "resnet34",
    mean: Channels = (0.485, 0.456, 0.406),
    std: Channels = (0.229, 0.224, 0.225),
    tile_px: Multiple = 512,
    margin_px: Margin = 128,
) -> Found:
    """Return pixels to which a segmentation network gives a tissue probability above a threshold.

    The thumbnail is made at `tissue.mpp`: give the resolution that the network was trained at.
    It is run tile by tile, each with a margin that is thrown away, mirrored at the picture's
    edge; a network that sees no farther than the margin gives the same for any tile size. One
    with global pooling (deeplabv3, pspnet) sees the whole tile, so its tile size is a setting.

    Args:
        pixels: uint8 (h, w, 3) thumbnail.
        valid: bool (h, w), where the slide holds data.
        network: `deeplabv3_resnet50`, or any other of torchvision.models.segmentation; or
            `smp/Unet`, or any other of segmentation-models-pytorch, which is installed apart.
        weights: safetensors file with the network's state dictionary.
        classes: channels of the network's output; with 1, its sigmoid is the probability of
            tissue, with more, the softmax.
        tissue: which channel is tissue, of several.
        threshold: probability above which a pixel is tissue.
        encoder: of a network of segmentation-models-pytorch.
        mean: of the channels, in [0, 1], that the network was trained with.
        std: of the channels, likewise.
        tile_px: edge of the tiles the network is run on; a multiple of 32.
        margin_px: context around a tile that is thrown away; a multiple of 32.

    Raises:
        ConfigError: the weights are not those of this network.
    """
    if classes > 1 and tissue >= classes:
        raise ConfigError(f"tissue={tissue} with classes={classes} — channels count from 0")
    model = _loaded(network, encoder, classes, weights, weights.stat().st_mtime_ns)
    mask = np.zeros(valid.shape, bool)
    h, w = valid.shape
    for top in range(0, h, tile_px):
        for left in range(0, w, tile_px):
            rows, columns = slice(top, top + tile_px), slice(left, left + tile_px)
            if not valid[rows, columns].any():
                continue
            window = _window(pixels, (left, top), tile_px, margin_px)
            probability = _probability(model, window, tissue, mean, std)
            inner = probability[margin_px:, margin_px:][: min(tile_px, h - top), : w - left]
            mask[rows, columns] = inner[:, :tile_px] > threshold
    return Found(mask & valid)


def _window(
    pixels: NDArray[np.uint8], corner: tuple[int, int], tile_px: int, margin_px: int
) -> NDArray[np.uint8]:
    """Return a tile with its margin; beyond the picture it is mirrored."""
    place = []
    for start, size in zip(corner, pixels.shape[1::-1], strict=True):
        index = np.arange(start - margin_px, start + tile_px + margin_px)
        # Mirrored without repeating the edge pixel; a period is there and back.
        period = max(1, 2 * size - 2)
        index = np.abs(index) % period
        place.append(np.minimum(index, period - index) if size > 1 else np.zeros_like(index))
    return pixels[np.ix_(place[1], place[0])]


def _probability(
    model: nn.Module, window: NDArray[np.uint8], tissue: int, mean: Channels, std: Channels
) -> NDArray[np.float32]:
    """Return the probability (h, w) of tissue, by a network in evaluation mode."""
    import torch

    with torch.inference_mode():
        scaled = torch.from_numpy(window).permute(2, 0, 1)[None].float() / 255
        offset, spread = (torch.tensor(value)[None, :, None, None] for value in (mean, std))
        output = model((scaled - offset) / spread)
        logits: Tensor = output["out"] if isinstance(output, dict) else output
        if logits.shape[1] == 1:
            return torch.sigmoid(logits)[0, 0].numpy()
        return torch.softmax(logits, dim=1)[0, tissue].numpy()


@lru_cache(maxsize=1)
def _loaded(network: str, encoder: str, classes: int, weights: Path, changed: int) -> nn.Module:
    """Return the network with its weights, once per process; `changed` is the file's time."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{weights.name} is damaged or no safetensors file ({error}) — copy it again"
        ) from None
    model = _built(network, encoder, classes, state)
    _check_fits(model, state, f"torch:{network}", weights.name)
    model.load_state_dict(state)
    return model.eval()


def _built(network: str, encoder: str, classes: int, state: dict[str, Tensor]) -> nn.Module:
    if network.startswith(_SMP):
        smp = _smp()
        known = smp.encoders.get_encoder_names()
        if encoder not in known and not encoder.startswith("tu-"):
            raise ConfigError(
                f"unknown encoder '{encoder}' of torch:{network}{suggest(encoder, known)}"
            )
        kind = getattr(smp, network.removeprefix(_SMP))
        return kind(encoder_name=encoder, encoder_weights=None, in_channels=3, classes=classes)
    from torchvision.models import get_model

    # Trained with an auxiliary head, a network carries its weights too.
    auxiliary = any(key.startswith("aux_classifier.") for key in state)
    more = {"aux_loss": True} if auxiliary else {}
    return get_model(network, weights=None, weights_backbone=None, num_classes=classes, **more)


def _check_fits(model: nn.Module, state: dict[str, Tensor], name: str, file: str) -> None:
    """Raise ConfigError, naming the first keys, unless `state` is what `model` holds."""
    own = model.state_dict()
    problems = []
    for what, keys in (
        ("misses", [key for key in own if key not in state]),
        ("has unknown", [key for key in state if key not in own]),
    ):
        if keys:
            problems.append(f"{what} {', '.join(keys[:3])}" + _more(len(keys) - 3))
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    if wrong:
        shapes = (f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in wrong[:2])
        problems.append(f"has {', '.join(shapes)}" + _more(len(wrong) - 2))
    if problems:
        raise ConfigError(
            f"{file} does not fit {name}: it {'; it '.join(problems)} — "
            "give the network, encoder and classes that it was trained as"
        )


def _more(n: int) -> str:
    return f" and {n} more" if n > 0 else ""


def _torchvision_networks() -> list[str]:
    from torchvision.models import list_models, segmentation

    return list_models(module=segmentation)


def _smp_networks() -> list[str]:
    return [kind.__name__ for kind in _smp().MODEL_ARCHITECTURES_MAPPING.values()]


def _smp() -> ModuleType:
    try:
        return import_module("segmentation_models_pytorch")
    except ImportError:
        raise ConfigError(
            f"torch:{_SMP}<network> needs segmentation-models-pytorch — {_INSTALL}"
        ) from None
