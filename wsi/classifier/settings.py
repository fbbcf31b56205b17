"""Parameters of the classifier to the settings of the loop, all problems told at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError
from sklearn.utils import check_random_state

from wsi.errors import ConfigError
from wsi.registry import suggest
from wsi.specs import Config, FitSpec, ValidationSpec

LOOP = tuple(name for name in FitSpec.model_fields if name != "seeds")
"""Settings `fit.*` that are parameters of the classifier, too; its seed is `random_state`."""

_ELSEWHERE = {
    "batch_size": "bags_per_step",
    "loss": "objective",
    "model": "aggregator",
    "max_epochs": "epochs",
    "learning_rate": "lr",
    "seed": "random_state",
}


def refuse_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError where one of `names` is no parameter, with the nearest that is."""
    known = list(known)
    for name in names:
        part, nested, inner = name.partition("__")
        if part in known and not nested:
            continue
        if part in ("aggregator", "objective") and nested:
            near = f" — write {part}_params={{'{inner}': ...}}"
        elif name in _ELSEWHERE:
            near = f" — ours is {_ELSEWHERE[name]}"
        else:
            near = suggest(name, known)
        raise ConfigError(f"MILClassifier has no parameter '{name}'{near}")


def config_of(params: Mapping[str, Any]) -> Config:
    """Return the settings that parameters of a classifier stand for.

    Raises:
        ConfigError: values of the wrong type or out of range; all are listed.
    """
    data = {
        "aggregator": _component("aggregator", params),
        "objective": _component("objective", params),
        "fit": {name: params[name] for name in LOOP},
    }
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_listed(error)) from None


def validation_of(share: Any) -> ValidationSpec | None:
    """Return how a validation part is drawn, None for none.

    Raises:
        ConfigError: the share is not between 0 and 1.
    """
    if share is None:
        return None
    try:
        return ValidationSpec(fraction=share)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ConfigError(f"validation={share!r}: {reason}; or None for no validation") from None


def seed_of(random_state: Any) -> int:
    """Return a whole number as it is, and one drawn where there is a generator or None."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _component(kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
    name, own = params[kind], params[f"{kind}_params"]
    if not isinstance(name, str):
        raise ConfigError(
            f"{kind}={name!r} — give its name as text, and its settings as {kind}_params"
        )
    if own is not None and not isinstance(own, Mapping):
        raise ConfigError(f"{kind}_params={own!r} — give a dictionary of settings")
    return {**(own or {}), "name": name}


def _listed(error: ValidationError) -> str:
    told = []
    for problem in error.errors():
        where = [part for part in problem["loc"] if part != "fit"]
        told.append(f"{'.'.join(map(str, where))}={problem['input']!r}: {problem['msg']}")
    return "; ".join(told)
