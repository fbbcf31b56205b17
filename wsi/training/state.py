"""The state of an unfinished fit: from it the fit goes on, to the last bit as if never ended.

One file of tensors (safetensors, no pickle) whose header holds the rest as JSON: what the fit is
made from, its history, and where in the states of its parts each tensor belongs. A SHA-256 over
all of it tells a damaged file from a sound one.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wsi.files import publish

SCHEMA = "wsi-fit-state/1"
_KEY, _DIGEST = "wsi", "sha256"

Rows = list[dict[str, Any]]


class Part(Protocol):
    """What has a state: a module, an optimiser, an average of weights."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


Parts = Mapping[str, Part]


class RandomState:
    """Torch's global random state as a part: initial weights, dropout and masks draw from it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of the CPU's generator, and of the device's where it has one."""
        state = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._device)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Go on drawing where `state_dict` was taken."""
        torch.set_rng_state(state_dict["cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state_dict["cuda"], self._device)


def _unsaid(text: str) -> None:
    """Keep it to oneself."""


@dataclass
class FitState:
    """Where a fit keeps its state, epoch by epoch.

    Attributes:
        path: the file; `state.safetensors` in the folder of a fit.
        made_from: what the fit is made from beside what `fit` sees itself, such as a hash of the
            bags. A state of anything else is passed over.
        every_s: least time between two saves.
        share: of the time of a fit, at most, that goes into saving.
        say: told when a file is passed over, and why.
    """

    path: Path
    made_from: Mapping[str, str] = field(default_factory=dict)
    every_s: float = 3.0
    share: float = 0.02
    say: Callable[[str], None] = _unsaid
    _identity: dict[str, str] = field(default_factory=dict, init=False)
    _last: float = field(default_factory=time.monotonic, init=False)
    _cost: float = field(default=0.0, init=False)

    def restore(self, parts: Parts, made_from: Mapping[str, str]) -> Rows:
        """Bring `parts` to where the kept state was taken, and return its history.

        Without a usable state nothing changes and the history is empty.
        """
        self._identity = {**made_from, **self.made_from}
        self._last = time.monotonic()
        if not self.path.is_file():
            return []
        try:
            described, tensors = _read(self.path)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            return self._passed_over(f"is damaged ({_one_line(error)})")
        if described["schema"] != SCHEMA:
            return self._passed_over(f"is of schema {described['schema']!r}, not {SCHEMA!r}")
        if changed := _differing(described["made_from"], self._identity):
            return self._passed_over(f"is of another fit ({', '.join(changed)})")
        before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        try:
            _load(parts, described["parts"], tensors)
        except (RuntimeError, KeyError, TypeError, ValueError, IndexError) as error:
            for name, part in parts.items():
                part.load_state_dict(before[name])
            return self._passed_over(f"does not fit the model ({_one_line(error)})")
        return list(described["history"])

    def offer(self, parts: Parts, history: Sequence[Mapping[str, Any]]) -> None:
        """Keep the state after an epoch, unless the last one was kept a moment ago."""
        began = time.monotonic()
        if 0 <= began - self._last < max(self.every_s, self._cost / self.share):
            return
        self._write(parts, history)
        self._last = time.monotonic()
        self._cost = self._last - began

    def discard(self) -> None:
        """Remove the file: the fit is done."""
        self.path.unlink(missing_ok=True)

    def _write(self, parts: Parts, history: Sequence[Mapping[str, Any]]) -> None:
        tensors: dict[str, Tensor] = {}
        described = {
            "schema": SCHEMA,
            "made_from": self._identity,
            "history": list(history),
            "parts": {k: _taken_apart(v.state_dict(), k, tensors) for k, v in parts.items()},
        }
        text = json.dumps(described, allow_nan=False)
        header = {_KEY: text, _DIGEST: _digest(text, tensors)}
        with publish(self.path) as temporary:
            save_file(tensors, temporary, metadata=header)

    def _passed_over(self, why: str) -> Rows:
        self.say(f"{self.path} {why}: it is passed over, this fit begins anew")
        return []


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return description and tensors of a file; raise ValueError where they are not as written."""
    with safe_open(path, framework="pt") as handle:
        header = handle.metadata() or {}
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    if _digest(header[_KEY], tensors) != header[_DIGEST]:
        raise ValueError("its content is not what was written")
    return json.loads(header[_KEY]), tensors


def _load(parts: Parts, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    if set(parts) != set(described):
        raise ValueError(f"it has {', '.join(described)}, not {', '.join(parts)}")
    states = {name: _put_together(described[name], tensors) for name in parts}
    for name, part in parts.items():
        part.load_state_dict(states[name])


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# -- states as JSON and tensors --------------------------------------------------------------------
# What JSON has no word for is an object of one key: {"tensor": name}, {"float": "-inf"}, and
# dictionaries, whose keys may be numbers, and tuples: {"items": [...]}, {"tuple": [...]}.


def _taken_apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a state as JSON, its tensors being put into `tensors` under names that begin so."""

    def inner(key: Any, item: Any) -> Any:
        return _taken_apart(item, f"{name}/{key}", tensors)

    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[key, inner(key, item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [inner(k, item) for k, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the state that was taken apart."""
    if isinstance(value, list):
        return [_put_together(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "float":
        return float(inner)
    if kind == "tuple":
        return tuple(_put_together(item, tensors) for item in inner)
    return {key: _put_together(item, tensors) for key, item in inner}
