"""The run folder: what a training run leaves behind, and how a rerun recognises it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pipelines.config
from wsi.claims import Claims, Holder
from wsi.errors import ConfigError, TrainingError
from wsi.files import TEMPORARY_PREFIX, publish_json
from wsi.specs import Config

_FIRST = "environment.json"
_RECORDS = frozenset({_FIRST, "inputs.json", "config.yaml"})
_CLAIMS = "claims"
_LIBRARIES = ("wsi", "torch", "timm", "numpy", "scikit-learn", "h5py", "zarr", "openslide-python")


@dataclass(frozen=True)
class RunDir:
    """Paths of a run folder."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def inputs(self) -> Path:
        return self.root / "inputs.json"

    @property
    def splits(self) -> Path:
        return self.root / "splits.csv"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions.csv"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def floors(self) -> Path:
        return self.root / "floors"

    @property
    def model_card(self) -> Path:
        return self.root / "model-card.md"

    def cell(self, fold: int, seed: int) -> Path:
        """Return the folder of one fold and seed."""
        return self.root / f"fold{fold}-seed{seed}"

    def cells(self) -> list[Path]:
        """Return the folders of all folds and seeds that have begun."""
        return sorted(self.root.glob("fold*-seed*"))

    def begin(self, config: Config, inputs: dict[str, Any], *, go_on: bool = False) -> bool:
        """Record settings and inputs; return whether an earlier run is being continued.

        Args:
            go_on: only ever continue a run.

        Raises:
            ConfigError: the folder holds a run with other settings or inputs, or none to continue.
        """
        if self.config.is_file() and self.inputs.is_file():
            held = pipelines.config.read_config(self.config)
            self._refuse_another_run(held, config, inputs)
            if held.evaluate != config.evaluate:
                pipelines.config.write_config(config, self.config)
            return True
        if go_on:
            raise ConfigError(
                f"{self.root} holds no run to go on with — check --out, or leave out --resume to "
                "begin one"
            )
        if holds_other_things(self.root, {"run.log", "run.jsonl"}):
            raise ConfigError(f"{self.root} is neither empty nor a run — give another --out")
        self.root.mkdir(parents=True, exist_ok=True)
        publish_json(self.environment, environment())
        publish_json(self.inputs, inputs)
        pipelines.config.write_config(config, self.config)
        return False

    @contextmanager
    def claimed(self, ttl_s: float) -> Iterator[None]:
        """Keep other processes from the same run meanwhile.

        Args:
            ttl_s: after how many seconds a claim of another machine that has ended is void.

        Raises:
            TrainingError: another process makes this run.
        """
        folder = self.root / _CLAIMS
        with Claims(folder, ttl_s=ttl_s) as claims:
            claim = claims.take("run")
            if claim is None:
                raise TrainingError(_taken(self.root, claims.holder("run"), ttl_s))
            yield
        with contextlib.suppress(OSError):
            folder.rmdir()

    def read_inputs(self) -> dict[str, Any]:
        """Return what the run was made from.

        Raises:
            ConfigError: the folder is no run.
        """
        try:
            return json.loads(self.inputs.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ConfigError(
                f"{self.root} is not a run folder — give one written by `wsi train`"
            ) from None

    def read_metrics(self) -> dict[str, Any]:
        """Return the run's scores."""
        return json.loads(self.metrics.read_text(encoding="utf-8"))

    def _refuse_another_run(self, held: Config, config: Config, inputs: dict[str, Any]) -> None:
        # Evaluation decides no fit: what is predicted already is scored by the new settings.
        old, new = (each.model_dump(mode="json", exclude={"evaluate"}) for each in (held, config))
        changed = changes(old, new)
        before = self.read_inputs()
        changed += [key for key in inputs if before.get(key) != inputs[key]]
        if changed:
            raise ConfigError(
                f"{self.root} holds a run with other settings or inputs "
                f"({', '.join(changed[:5])}) — give another --out"
            )


def _taken(root: Path, holder: Holder | None, ttl_s: float) -> str:
    who = f" (process {holder.pid} on {holder.host})" if holder and holder.pid else ""
    return (
        f"another `wsi train`{who} makes {root} — wait for it, or give another --out; if it was "
        f"ended on another machine, its claim is void after {ttl_s:g} s"
    )


def changes(old: Any, new: Any) -> list[str]:
    """Return what differs between two settings, in words; a new order is called one."""
    return [f"{key} {a} -> {b}{_reordered(a, b)}" for key, a, b in differences(old, new)]


def _reordered(old: Any, new: Any) -> str:
    if not (isinstance(old, list) and isinstance(new, list)):
        return ""
    return ", the same in another order" if sorted(map(str, old)) == sorted(map(str, new)) else ""


def holds_other_things(root: Path, logs: AbstractSet[str]) -> bool:
    """Return whether a folder holds more than a command has left that was killed as it began.

    Args:
        logs: names of what the command may have written before its records.
    """
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
    # Settings alone may be somebody's own; ours come after what the first record says.
    ours = logs | _RECORDS if _FIRST in names else logs
    return any(name not in ours and not name.startswith(TEMPORARY_PREFIX) for name in names)


def environment() -> dict[str, Any]:
    """Return what a reader needs to know of the machine and its libraries; no names or paths."""
    versions = {name: _version(name) for name in _LIBRARIES}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "libraries": versions,
        "cuda": _cuda(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cuda() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return f"{torch.version.cuda}, {torch.cuda.get_device_name(0)}"


def differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return dotted key, old and new value of all that differs between two settings."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in {**old, **new}:
            found += differences(old.get(key), new.get(key), f"{prefix}{key}.")
        return found
    return [] if old == new else [(prefix.rstrip("."), old, new)]
