"""Settings of NCMI: what holds when one is not given, and what the published code is bound to."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from wsi.errors import ConfigError
from wsi.objectives.centre import CentreKind
from wsi.objectives.centroids import CentroidKind
from wsi.objectives.prototypes import PrototypeKind
from wsi.objectives.terms import Form

SimplexMap = Literal["nsf", "softmax"]


@dataclass(frozen=True, kw_only=True)
class NCMISettings:
    """Every setting of the loss; see `wsi.objectives.ncmi`. None: not given, or not needed."""

    form: Form | None = None
    centroids: CentroidKind | None = None
    centroid_lr: float | None = None
    centroid_momentum: float | None = None
    prototypes: PrototypeKind | None = None
    prototype_scale: float | None = None
    simplex: SimplexMap | None = None
    temperature: float | None = None
    center: CentreKind | None = None
    center_momentum: float | None = None
    balanced: bool | None = None
    m: int | None = None
    eps: float | None = None

    def given(self) -> dict[str, Any]:
        """Return the settings that are not None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def resolved(self, n_classes: int, embedding_dim: int, *, official: bool) -> dict[str, Any]:
        """Return every setting with a value; eps may stay None.

        Raises:
            ConfigError: a value is impossible, does nothing, or is not the published code's.
        """
        given = self.given()
        if official:
            _refuse_conflicts(given, embedding_dim)
            chosen = {**_OFFICIAL, "m": embedding_dim, **given}
        else:
            chosen = {**_OURS, "m": max(32, 4 * n_classes), **given}
        _refuse_impossible(chosen, official)
        _refuse_idle(given, chosen)
        chosen.setdefault("prototype_scale", 1 / chosen["temperature"])
        return {"centroid_momentum": 0.0, "center_momentum": 0.999, "eps": None, **chosen}


_OURS: dict[str, Any] = {
    "form": "sample",
    "centroids": "fixed",
    "prototypes": "etf",
    "simplex": "nsf",
    "temperature": 0.5,
    "center": "none",
    "balanced": True,
}
_OFFICIAL: dict[str, Any] = {
    "form": "sample",
    "centroids": "fixed",
    "prototypes": "axis",
    "prototype_scale": 10.0,
    "simplex": "nsf",
    "temperature": 0.2,
    "center": "ema",
    "balanced": False,
    "eps": 0.0,
}
WHEN_NOT_GIVEN = {
    **{name: str(value).lower() for name, value in _OURS.items()},
    "centroid_lr": "needed with centroids=learned",
    "centroid_momentum": "0",
    "prototype_scale": "1 / temperature",
    "center_momentum": "0.999",
    "m": "max(32, 4 C)",
    "eps": "1e-4 of the mean prototype KL",
}
"""What each setting is without `official`, in words."""

_IDLE = {  # settings that do something only with one value of another
    "centroid_lr": ("centroids", "learned"),
    "centroid_momentum": ("centroids", "learned"),
    "center_momentum": ("center", "ema"),
}


def _refuse_conflicts(given: dict[str, Any], embedding_dim: int) -> None:
    bound = {**_OFFICIAL, "m": embedding_dim}
    wrong = [f"{k}={given[k]}" for k in bound if k in given and given[k] != bound[k]]
    if wrong:
        held = ", ".join(f"{k}={v}" for k, v in bound.items() if k in given)
        raise ConfigError(
            f"ncmi: official=true does as the published code does, which {', '.join(wrong)} "
            f"contradicts — leave them out (there: {held}), or take official=false"
        )


def _refuse_impossible(chosen: dict[str, Any], official: bool) -> None:
    for name in ("temperature", "prototype_scale", "centroid_lr", "m"):
        if name in chosen and not chosen[name] > 0:
            raise ConfigError(f"ncmi: {name}={chosen[name]} must be above 0")
    if chosen.get("eps") is not None and chosen["eps"] < 0:
        raise ConfigError(f"ncmi: eps={chosen['eps']} must not be below 0")
    for name in ("centroid_momentum", "center_momentum"):
        constant = official and chosen.get(name) == 1  # the first batch's mean, copied, for good
        if not (0 <= chosen.get(name, 0.0) < 1 or constant):
            raise ConfigError(f"ncmi: {name}={chosen[name]} must be at least 0 and below 1")
    if chosen["centroids"] == "learned" and "centroid_lr" not in chosen:
        raise ConfigError(
            "ncmi: centroids=learned needs centroid_lr, the rate of the centroids' own descent — "
            "only tiny ones help, try 1e-3"
        )


def _refuse_idle(given: dict[str, Any], chosen: dict[str, Any]) -> None:
    for name, (other, value) in _IDLE.items():
        if name in given and chosen[other] != value:
            raise ConfigError(
                f"ncmi: {name} does nothing with {other}={chosen[other]} — "
                f"set {other}={value} or leave it out"
            )
