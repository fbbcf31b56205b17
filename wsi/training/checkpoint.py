"""Checkpoints: weights as safetensors, the rest as JSON in the file's own header. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wsi.errors import TrainingError, WsiError
from wsi.files import publish
from wsi.training.model import Model, ModelCard, from_card

SCHEMA = "wsi-checkpoint/2"
_FIRST = "wsi-checkpoint/1"  # before objectives had a choice of decision rules
_RULES = tuple(f"objective.{part}" for part in ("settled", "class_mean.", "probe."))
_KEY = "wsi"


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint's weights come from.

    Attributes:
        recipe: key of the bags the model was trained on (encoder, mpp, tile size).
        epoch: the epoch chosen.
        monitor: name of the validation figure that chose it.
        value: that figure, or None without validation.
    """

    recipe: str
    epoch: int
    monitor: str
    value: float | None


def save(path: Path, model: Model, origin: Origin, more: Mapping[str, Any] | None = None) -> None:
    """Write `model` to `path` in one step: a reader sees the whole file or none.

    Args:
        more: what else is described, by name; `load` passes it over.
    """
    own = {"schema": SCHEMA, "model": asdict(model.card), "origin": asdict(origin)}
    header = {_KEY: json.dumps({**(more or {}), **own}, allow_nan=False)}
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with publish(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def described(path: Path) -> dict[str, Any]:
    """Return what a checkpoint that `load` takes says of itself."""
    with safe_open(path, framework="pt") as handle:
        return json.loads(handle.metadata()[_KEY])


def load(path: Path) -> tuple[Model, Origin]:
    """Return the model of a checkpoint, on the CPU and ready to predict, and where it comes from.

    Raises:
        TrainingError: the file is absent, damaged, of another tool or of a newer schema.
        UnknownNameError: its aggregator or objective is not installed.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            header = handle.metadata() or {}
            state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        told = json.loads(header[_KEY])
        schema = told["schema"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _unusable(path, f"not a readable checkpoint ({error})") from error
    if schema not in (SCHEMA, _FIRST):
        raise _unusable(path, f"of schema {schema!r}, not {SCHEMA!r}")
    try:
        model = from_card(_card(told["model"]))
        if schema == _FIRST:
            state = _with_rules(path, state, model)
        model.load_state_dict(state)
        origin = Origin(**told["origin"])
    except WsiError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise _unusable(path, f"at odds with its own description ({error})") from error
    return model.eval(), origin


def _with_rules(path: Path, state: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Return a state of the first schema as today's: the objective's own rule decides."""
    today = model.state_dict()
    if {name for name in today if not name.startswith(_RULES)} - set(state) or set(state) - set(
        today
    ):
        raise TrainingError(
            f"{path} was written by an earlier version of wsi, whose objective "
            f"'{model.card.objective}' kept other figures — train it again with `wsi train`"
        )
    return today | state


def _card(told: dict[str, Any]) -> ModelCard:
    lists: dict[str, Any] = {name: tuple(told[name]) for name in ("classes", "class_counts")}
    return ModelCard(**(told | lists))


def _unusable(path: Path, reason: str) -> TrainingError:
    one_line = " ".join(reason.split())
    return TrainingError(f"{path} is {one_line} — give a model.safetensors that `wsi train` wrote")
