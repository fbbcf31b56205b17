"""From a setting to an encoder."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from wsi.encoders.base import Encoder, EncoderInfo
from wsi.encoders.catalog import CATALOG
from wsi.encoders.row import HUB, TIMM, TRANSFORMERS, Pooling, Row
from wsi.errors import ConfigError, EncoderError, UnknownNameError
from wsi.registry import Registry, suggest
from wsi.specs import Component

if TYPE_CHECKING:
    from wsi.encoders.weights import Weights

ENCODERS = Registry(
    "encoder", {"texture-v1": "wsi.encoders.texture:TextureEncoder"}, "wsi.encoders"
)
"""Encoders that are a class of their own: called with a device and their settings.

A class whose second parameter is named `compute` is also told what to compute in.
"""

_PREFIXES = (TIMM, HUB)
_SETTINGS = ("weights", "seed", "sha256")


def load_encoder(component: Component, device: str = "cpu", compute: str = "auto") -> Encoder:
    """Return the encoder that `component` names, ready to embed.

    Names: those of the catalogue, `timm:<model>`, `hf-hub:<org>/<model>`, and those of other
    packages. Parameters: `weights` (`pretrained`, `random`, or the path of a file or folder),
    `sha256` of the file, `seed` with random weights, and `pooling` for models without a row in the
    catalogue.

    Args:
        compute: what networks compute in: `auto` (the fastest type native to the device), `fp32`,
            `bf16` or `fp16`.

    Raises:
        UnknownNameError: there is no such encoder; the nearest name is suggested.
        ConfigError: a parameter is unknown or contradicts another.
        EncoderError: the weights are not available or do not fit.
    """
    name, params = component.name, component.params
    if is_class(name):
        own = ENCODERS.load(name)
        told = (device, compute) if "compute" in inspect.signature(own).parameters else (device,)
        return own(*told, **ENCODERS.check(name, params))
    check_component(component)
    row = row_of(component)
    check_installed(row)
    if row.load.startswith(TRANSFORMERS):
        from wsi.encoders.transformers_encoder import TransformersEncoder

        return TransformersEncoder(row, weights_of(params), device, compute)
    from wsi.encoders.timm_encoder import TimmEncoder

    return TimmEncoder(row, weights_of(params), device, compute)


def encoder_info(component: Component) -> EncoderInfo:
    """Return what is known of the encoder that `component` names, without loading weights.

    A row of the catalogue is answered at once; for other models timm builds the architecture.

    Raises:
        UnknownNameError, ConfigError: as for `load_encoder`.
        EncoderError: timm cannot build it.
    """
    name = component.name
    if is_class(name):
        settings = ENCODERS.check(name, component.params)
        return CATALOG[name].info if name in CATALOG else ENCODERS.load(name)(**settings).info
    check_component(component)
    info = row_of(component).info
    return info.untrained() if component.params.get("weights") == "random" else info


def is_class(name: str) -> bool:
    """Return whether `name` is an encoder with a class of its own, ours or another package's.

    A name of the catalogue means its row, whatever another package calls the same.
    """
    if name in CATALOG:
        return CATALOG[name].load == "builtin"
    return name in ENCODERS.names()


def check_installed(row: Row) -> None:
    """Refuse a row whose loader needs a package that is not installed.

    Raises:
        EncoderError: says how to install it.
    """
    if row.load.startswith(TRANSFORMERS) and importlib.util.find_spec("transformers") is None:
        raise EncoderError(
            f"encoder {row.name} needs the package transformers, which is not installed — "
            "pip install transformers"
        )


def check_encoder_name(name: str) -> None:
    """Refuse a name that no encoder has; nothing is imported to find out.

    Raises:
        UnknownNameError: there is no such encoder; the nearest name is suggested.
    """
    known = dict.fromkeys([*CATALOG, *ENCODERS.names()])
    if name not in known and not name.startswith(_PREFIXES):
        raise UnknownNameError(
            f"unknown encoder '{name}'{suggest(name, known)} — known: {', '.join(known)}, "
            "timm:<model>, hf-hub:<org>/<model>"
        )


def row_of(component: Component) -> Row:
    """Return the row of the catalogue, or one drawn up from what timm says of the model.

    Raises:
        UnknownNameError: timm has no such model; the nearest are named.
        EncoderError: timm cannot build it.
    """
    name = component.name
    if name in CATALOG:
        return CATALOG[name]
    from wsi.encoders.timm_encoder import row_of_model

    if name.startswith(TIMM):
        check_timm_name(name.removeprefix(TIMM))
    return row_of_model(name, name, component.params.get("pooling", "default"))


def weights_of(params: dict[str, Any]) -> Weights:
    """Return where the weights come from that parameters name.

    Raises:
        ConfigError: a parameter is of another type.
        EncoderError: there is no such file or folder.
    """
    from wsi.encoders.weights import Weights

    kind, seed = params.get("weights", "pretrained"), params.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"encoder seed={seed!r} — give a whole number of at least 0")
    sha256 = _sha256(params.get("sha256"))
    if kind in ("pretrained", "random"):
        return Weights(kind, seed, sha256=sha256)
    return Weights("file", path=weights_path(kind), sha256=sha256)


def weights_path(given: Any) -> Path:
    """Return the path that the parameter `weights` gives.

    Raises:
        EncoderError: there is no such file or folder.
    """
    path = Path(str(given))
    if not path.exists():
        raise EncoderError(
            f"encoder weights {given}: no such file — give pretrained, random, a file or a folder"
        )
    return path


def _sha256(value: Any) -> str | None:
    if value is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", str(value)):
        raise ConfigError(f"encoder sha256={value} — give 64 hexadecimal digits")
    return None if value is None else str(value)


def check_component(component: Component) -> None:
    """Refuse names and parameters that no encoder has.

    Raises:
        UnknownNameError: there is no such encoder; the nearest name is suggested.
        ConfigError: a parameter is unknown or contradicts another.
    """
    if is_class(component.name):
        ENCODERS.check(component.name, component.params)
        return
    name, params = component.name, component.params
    check_encoder_name(name)
    allowed = _SETTINGS if name in CATALOG else (*_SETTINGS, "pooling")
    unknown = [key for key in params if key not in allowed]
    if unknown:
        raise ConfigError(
            f"encoder '{name}' has no setting '{unknown[0]}'{suggest(unknown[0], allowed)} — "
            f"it has: {', '.join(allowed)}"
        )
    pooling = params.get("pooling", "default")
    if pooling not in get_args(Pooling):
        raise ConfigError(f"pooling={pooling!r} — choose from {', '.join(get_args(Pooling))}")
    if "seed" in params and params.get("weights") != "random":
        raise ConfigError("encoder seed=... goes with weights=random")
    if "sha256" in params and params.get("weights") == "random":
        raise ConfigError("encoder sha256=... does not go with weights=random")


def check_timm_name(model: str) -> None:
    """Refuse a model that timm does not have.

    Raises:
        UnknownNameError: names those that are near.
    """
    import timm

    architecture = model.partition(".")[0]
    known = timm.list_models()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        raise UnknownNameError(
            f"timm has no model '{model}' — "
            + (f"near are {', '.join(near)}" if near else "see timm.list_models()")
        )
    tags = timm.list_pretrained(f"{architecture}.*")
    if "." in model and model not in tags:
        raise UnknownNameError(f"timm has no model '{model}' — known are {', '.join(tags)}")
