"""From a setting to an encoder."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from wsi.encoders.base import Encoder, EncoderInfo
from wsi.encoders.catalog import CATALOG, Pooling, Row
from wsi.errors import ConfigError, EncoderError, UnknownNameError
from wsi.registry import Registry, suggest
from wsi.specs import Component

if TYPE_CHECKING:
    from wsi.encoders.timm_encoder import Weights

ENCODERS = Registry(
    "encoder", {"texture-v1": "wsi.encoders.texture:TextureEncoder"}, "wsi.encoders"
)
"""Encoders that are a class of their own: called with a device and their settings."""

_PREFIXES = ("timm:", "hf-hub:")


def load_encoder(component: Component, device: str = "cpu") -> Encoder:
    """Return the encoder that `component` names, ready to embed.

    Names: those of the catalog, `timm:<model>`, `hf-hub:<org>/<model>`. Parameters: `weights`
    (`pretrained`, `random`, or the path of a file), `seed` with random weights, and `pooling` for
    models without a row in the catalog.

    Raises:
        UnknownNameError: there is no such encoder; the nearest name is suggested.
        ConfigError: a parameter is unknown or contradicts another.
        EncoderError: the weights are not available or do not fit.
    """
    name, params = component.name, component.params
    if name in ENCODERS.names():
        return ENCODERS.load(name)(device, **ENCODERS.check(name, params))
    _check_parameters(component)
    from wsi.encoders.timm_encoder import TimmEncoder

    return TimmEncoder(_row(component), _weights(params), device)


def encoder_info(component: Component) -> EncoderInfo:
    """Return what is known of the encoder that `component` names, without loading weights.

    A row of the catalog is answered at once; for other models timm builds the architecture.

    Raises:
        UnknownNameError, ConfigError: as for `load_encoder`.
        EncoderError: timm cannot build it.
    """
    name = component.name
    if name in ENCODERS.names():
        settings = ENCODERS.check(name, component.params)
        return CATALOG[name].info if name in CATALOG else ENCODERS.load(name)(**settings).info
    _check_parameters(component)
    return _row(component).info


def _row(component: Component) -> Row:
    name = component.name
    if name in CATALOG:
        return CATALOG[name]
    from wsi.encoders.timm_encoder import row_of_model

    if name.startswith("timm:"):
        _check_timm_name(name.removeprefix("timm:"))
    return row_of_model(name, name, component.params.get("pooling", "default"))


def _check_timm_name(model: str) -> None:
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


def _check_parameters(component: Component) -> None:
    name, params = component.name, component.params
    if name not in CATALOG and not name.startswith(_PREFIXES):
        known = dict.fromkeys([*CATALOG, *ENCODERS.names()])
        raise UnknownNameError(
            f"unknown encoder '{name}'{suggest(name, known)} — known: {', '.join(known)}, "
            "timm:<model>, hf-hub:<org>/<model>"
        )
    allowed = ("weights", "seed") if name in CATALOG else ("weights", "seed", "pooling")
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


def _weights(params: dict[str, Any]) -> Weights:
    from wsi.encoders.timm_encoder import Weights

    kind, seed = params.get("weights", "pretrained"), params.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"encoder seed={seed!r} — give a whole number of at least 0")
    if kind in ("pretrained", "random"):
        return Weights(kind, seed)
    path = Path(str(kind))
    if not path.is_file():
        raise EncoderError(
            f"encoder weights {kind}: no such file — give pretrained, random or a file"
        )
    return Weights("file", path=path)
