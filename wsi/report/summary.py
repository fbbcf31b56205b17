"""What a report is made of: plain values, checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi.errors import ConfigError
from wsi.evaluation import Predictions

METRICS_SCHEMA = "wsi-metrics/1"

Epochs = Sequence[Mapping[str, Any]]
"""Rows of one training, in order, as in `FitResult.history`: epoch, train_loss, alarms ..."""


@dataclass(frozen=True, eq=False)
class Example:
    """One slide shown as a picture.

    Args:
        picture: uint8 (h, w, 3).
        caption: what the picture shows.

    Raises:
        ConfigError: the picture is no uint8 (h, w, 3).
    """

    slide_id: str
    picture: NDArray[np.uint8]
    caption: str

    def __post_init__(self) -> None:
        picture = self.picture
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ConfigError(
                f"picture of {self.slide_id} is {picture.dtype} {picture.shape} — "
                "give uint8 (h, w, 3)"
            )


class PartRow(NamedTuple):
    """The size of one part of one fold: slides, patients, and slides of each class and site.

    Both are None where they are not known of all slides.
    """

    fold: int
    part: str
    n_slides: int
    n_patients: int
    counts: Mapping[str, int] | None
    sites: Mapping[str, int] | None = None


@dataclass(frozen=True, eq=False)
class RunSummary:
    """One run: its figures, the rows they come from, and how it was made.

    Args:
        name: shown in headings; distinct among the runs of a report.
        metrics: of `wsi.evaluation.evaluate`.
        predictions: the labelled rows that `metrics` were made of.
        histories: epochs of each training, by its name: `fold0-seed0`.
        facts: what was run, in words: cohort, encoder, objective, versions ...
        parts: sizes of the parts of each fold.
        warnings: sentences a reader has to know.
        examples: pictures of slides, shown for those that `wsi.report.telling` names.
        without_picture: why there is none, by the id of a slide.
        chosen: epoch whose weights were kept, by the name of the training.
        monitor: what the histories' `monitor` is: `auc`.
        tags: aggregator, objective and encoder, by their short names.
        ids: of all slides and patients, none of which a model card may name.

    Raises:
        ConfigError: the metrics are of another schema, or of other classes than the predictions.
    """

    name: str
    metrics: Mapping[str, Any]
    predictions: Predictions
    histories: Mapping[str, Epochs] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    parts: Sequence[PartRow] = ()
    warnings: Sequence[str] = ()
    examples: Sequence[Example] = ()
    without_picture: Mapping[str, str] = field(default_factory=dict)
    chosen: Mapping[str, int] = field(default_factory=dict)
    monitor: str = "monitor"
    tags: Sequence[str] = ()
    ids: Set[str] = frozenset()

    def __post_init__(self) -> None:
        schema = self.metrics.get("schema")
        if schema != METRICS_SCHEMA:
            raise ConfigError(
                f"{self.name}: metrics have schema {schema}, not {METRICS_SCHEMA} — evaluate again"
            )
        if list(self.metrics["classes"]) != list(self.predictions.classes):
            raise ConfigError(
                f"{self.name}: metrics are of the classes {', '.join(self.metrics['classes'])}, "
                f"predictions of {', '.join(self.predictions.classes)} — evaluate again"
            )
