"""The recipe of a run: what new slides must go through, and whether bags went through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config import load_config
from pipelines.run_bags import RunBags
from pipelines.rundir import differences
from wsi.bags import BagInfo, BagStore
from wsi.encoders import CATALOG
from wsi.errors import BagMismatchError, ConfigError
from wsi.extract import Recipe
from wsi.files import sha256_json
from wsi.findings import few
from wsi.specs import Config

OPEN = ("slides", "limits", "store", "encoder", "tissue.method", "pixels.stain")
"""Settings that may be given with a run: those that are no part of its recipe, and where files of
it lie. What they change is found out before a slide is read."""

_SHOWN = 4


def recipe_words(words: Sequence[str]) -> list[str]:
    """Return the settings given, or raise ConfigError for those that the run decides."""
    for word in words:
        key = word.partition("=")[0].strip()
        if "=" not in word or not any(key == k or key.startswith(f"{k}.") for k in OPEN):
            raise ConfigError(
                f"{word}: new slides are made into bags as the run's were, so this is not to be "
                f"set — only {', '.join(OPEN)}.* are"
            )
    return list(words)


def config_of(run: RunBags, words: Sequence[str]) -> Config:
    """Return the settings that make bags of a run's recipe.

    Args:
        words: further settings, on top.

    Raises:
        ConfigError: the run's bags were imported, or a file of its recipe is not known by path.
    """
    recipe, encoder = run.recipe, run.encoder
    if "state" in encoder or "compute" not in encoder:
        raise ConfigError(
            f"the run was trained on bags that another tool made (encoder {encoder.get('name')}), "
            "so slides cannot be made into bags like them here — make them with that tool, "
            "`wsi bags import` them, and give --bags"
        )
    given = {word.partition("=")[0].strip() for word in words}
    tiling = {("stride" if k == "stride_um" else k): v for k, v in recipe["tiling"].items()}
    data: dict[str, Any] = {
        "encoder": _encoder(encoder, given),
        "compute": encoder["compute"],
        "precision": recipe["precision"],
        "tiling": tiling,
        "tissue": recipe["tissue"],
        "quality": recipe.get("quality", {}),
        "pixels": recipe.get("pixels", {}),
    }
    return load_config(words, base=data)


def _encoder(described: Mapping[str, Any], given: set[str]) -> dict[str, Any]:
    """Return the setting `encoder` that loads the encoder described."""
    name, weights = str(described["name"]), described.get("weights")
    if weights is None:  # a class of its own
        return {"name": name}
    if weights == "random":
        return {
            "name": name.removesuffix("-random"),
            "weights": "random",
            "seed": described["seed"],
        }
    pooling = {} if name in CATALOG else {"pooling": described["pooling"]}
    if weights == "pretrained" or "encoder.weights" in given:
        return {"name": name, **pooling}
    raise ConfigError(
        f"the run's encoder {name} was loaded from a file or folder named {weights} — say where it "
        "is with encoder.weights=PATH"
    )


def check_recipe(run: RunBags, recipe: Recipe) -> None:
    """Raise BagMismatchError unless bags of `recipe` are like those of the run."""
    if sha256_json(recipe.settings) != run.key:
        told = _told(run, recipe.settings, recipe.encoder)
        raise BagMismatchError(
            f"bags made here would be of another recipe than the run's: {told} — a prediction "
            "from them would mean nothing"
        )


def check_bags(run: RunBags, store: BagStore, infos: Sequence[BagInfo]) -> None:
    """Raise BagMismatchError unless all bags are of the run's recipe."""
    strange = [info for info in infos if info.recipe_key != run.key]
    if strange:
        made = strange[0].provenance
        told = _told(run, made.recipe, made.encoder)
        which = f"{len(strange)} of {len(infos)} ({few(info.slide_id for info in strange)})"
        raise BagMismatchError(
            f"bags in {store.root} are of another recipe than the run's, {which}: {told} — give "
            "bags made as the run's were, or --slides to make them"
        )


def _told(run: RunBags, recipe: Mapping[str, Any], encoder: Mapping[str, Any]) -> str:
    """Return in what a recipe differs from the run's, both sides named."""
    ours = dict(run.recipe) | {"encoder": _name(run.encoder)}
    found = differences(ours, dict(recipe) | {"encoder": _name(encoder)})
    shown = [f"{key} is {_plain(a)} in the run and {_plain(b)} here" for key, a, b in found]
    return "; ".join(shown[:_SHOWN]) + ("; ..." if len(shown) > _SHOWN else "")


def _name(encoder: Mapping[str, Any]) -> str:
    return f"{encoder.get('name', 'unknown')} ({str(encoder['fingerprint'])[:12]})"


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)
