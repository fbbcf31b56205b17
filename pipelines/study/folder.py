"""The folder of a study: what lies where, and what may change from one invocation to the next."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipelines.config
from pipelines.rundir import changes, environment, holds_other_things
from wsi.errors import ConfigError
from wsi.files import publish_json
from wsi.specs import Config

_OPEN = ("arms", "rates", "rate_seeds", "least_seeds", "selection", "rivals", "controls")
_ALSO_OPEN = ("metrics", "truth", "keep_models")
_PLACES = ("bags", "cohort_table")  # what lies there is known by its hashes
_LOGS = frozenset({"study.log", "study.jsonl", "study.yaml", "claims", "cells"})


@dataclass(frozen=True)
class StudyDir:
    """Paths of a study folder."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def inputs(self) -> Path:
        return self.root / "inputs.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def splits(self, selection: str) -> Path:
        """Return the table of splits of one way of validating."""
        return self.root / f"splits-{selection}.csv"

    def predictions(self, selection: str, arm: str) -> Path:
        """Return the table of test predictions of an arm, as `wsi compare` takes it."""
        return self.root / "predictions" / selection / f"{arm}.csv"

    def begin(self, config: Config, inputs: dict[str, Any]) -> None:
        """Record settings and inputs.

        Arms, rates and seeds may be added to a study, and its figures made anew; what a fit of
        before was made from may not change.

        Raises:
            ConfigError: the folder holds a study of other settings or inputs, or something else.
        """
        if self.config.is_file() and self.inputs.is_file():
            self._refuse_another(config, inputs)
        elif holds_other_things(self.root, _LOGS):
            raise ConfigError(f"{self.root} is neither empty nor a study — give another --out")
        self.root.mkdir(parents=True, exist_ok=True)
        publish_json(self.root / "environment.json", environment())
        pipelines.config.write_config(config, self.config)
        publish_json(self.inputs, self._recorded() | inputs)

    def _recorded(self) -> dict[str, Any]:
        try:
            return json.loads(self.inputs.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    def _refuse_another(self, config: Config, inputs: dict[str, Any]) -> None:
        before = pipelines.config.read_config(self.config)
        changed = changes(_fixed(before), _fixed(config))
        arms = {arm.label: arm for arm in before.study.arms}
        changed += [
            f"arm {arm.label}"
            for arm in config.study.arms
            if arm.label in arms and arms[arm.label] != arm
        ]
        recorded = self._recorded()
        known = [key for key in inputs if key in recorded and key not in _PLACES]
        changed += [key for key in known if recorded[key] != inputs[key]]
        if changed:
            raise ConfigError(
                f"{self.root} holds a study with other settings or inputs "
                f"({', '.join(changed[:5])}) — give another --out"
            )


def _fixed(config: Config) -> dict[str, Any]:
    """Return the settings that every fit of a study shares."""
    data = config.model_dump(mode="json")
    for name in (*_OPEN, *_ALSO_OPEN):
        data["study"].pop(name)
    for name in ("seeds", "lr"):
        data["fit"].pop(name)
    data.pop("evaluate")
    return data
