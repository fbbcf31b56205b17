"""The folder of a sweep: what lies where, and what may change from one invocation to the next."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipelines.config
from pipelines.rundir import RunDir, changes, environment, holds_other_things
from wsi.errors import ConfigError
from wsi.files import publish_json
from wsi.specs import Config

_PLACES = ("bags", "cohort_table")  # what lies there is known by its hashes
_LOGS = frozenset({"sweep.log", "sweep.jsonl", "claims"})


@dataclass(frozen=True)
class SweepDir:
    """Paths of a sweep folder."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def inputs(self) -> Path:
        return self.root / "inputs.json"

    @property
    def splits(self) -> Path:
        return self.root / "splits.csv"

    @property
    def claims(self) -> Path:
        return self.root / "claims"

    @property
    def table(self) -> Path:
        return self.root / "trials.csv"

    @property
    def best(self) -> Path:
        return self.root / "best.yaml"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def figure(self) -> Path:
        return self.root / "sweep.svg"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def run(self, name: str) -> RunDir:
        """Return the run folder of a trial."""
        return RunDir(self.root / name)

    def begin(self, config: Config, inputs: dict[str, Any]) -> None:
        """Record settings and inputs; the number of trials may change from time to time.

        Raises:
            ConfigError: the folder holds a sweep of other settings or inputs, or something else.
        """
        if self.config.is_file() and self.inputs.is_file():
            self._refuse_another(config, inputs)
        elif holds_other_things(self.root, _LOGS):
            raise ConfigError(f"{self.root} is neither empty nor a sweep — give another --out")
        self.root.mkdir(parents=True, exist_ok=True)
        publish_json(self.root / "environment.json", environment())
        publish_json(self.inputs, inputs)
        pipelines.config.write_config(config, self.config)

    def _refuse_another(self, config: Config, inputs: dict[str, Any]) -> None:
        before = pipelines.config.read_config(self.config)
        changed = changes(_fixed(before), _fixed(config))
        recorded = json.loads(self.inputs.read_text(encoding="utf-8"))
        known = [key for key in inputs if key not in _PLACES]
        changed += [key for key in known if recorded.get(key) != inputs[key]]
        if changed:
            raise ConfigError(
                f"{self.root} holds a sweep with other settings or inputs "
                f"({', '.join(changed[:5])}) — give another --out"
            )


def _fixed(config: Config) -> dict[str, Any]:
    """Return the settings that all trials of a sweep share, and by which they are drawn."""
    data = config.model_dump(mode="json")
    data["sweep"].pop("trials")
    data.pop("evaluate")
    return data
