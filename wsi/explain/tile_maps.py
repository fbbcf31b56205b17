"""The maps of one slide for one class: a value per tile, and what it means in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wsi.errors import ConfigError, ExplainError
from wsi.explain.infocam import AGAINST, contrast, rival_weights
from wsi.explain.model_evidence import Evidence
from wsi.registry import suggest

Float64 = NDArray[np.float64]
Pair = tuple[float, float]
MapName = Literal["contrast", "evidence", "pmi", "leave-one-out"]
MAPS: tuple[MapName, ...] = get_args(MapName)

_ADDITIVE = ("contrast", "evidence")


@dataclass(frozen=True)
class Question:
    """What is asked of a slide: which class, and instead of what.

    Attributes:
        target: a class, or None for the predicted one.
        against: `others`, `least`, `runner-up`, or a class.
    """

    target: str | None = None
    against: str = "others"

    def check(self, classes: Sequence[str]) -> None:
        """Raise ConfigError unless the question can be asked of `classes`."""
        if self.target is not None and self.target not in classes:
            raise ConfigError(
                f"--target {self.target} is no class of the run{suggest(self.target, classes)} — "
                f"it has {', '.join(classes)}"
            )
        known = [*AGAINST, *classes]
        if self.against not in known:
            raise ConfigError(
                f"--against {self.against}: no such class{suggest(self.against, known)} — "
                f"use one of {', '.join(known)}"
            )
        if self.target is not None and self.target == self.against:
            raise ConfigError(f"--against {self.against} is the target itself — name another class")


@dataclass(frozen=True, eq=False)
class TileMaps:
    """What was found of each of the N tiles of a slide, for one class.

    Attributes:
        xy0: (N, 2) top-left corners in level-0 px; `size0` the tile size (w, h).
        target: the class explained; `rival` what it was held against, in words.
        attention: (N,), summing to 1.
        evidence: (N,) nats; sums to the target's logit where exact.
        contrast: (N,) nats, the target's evidence less its rivals', the prior taken out.
        pmi: (N,) nats for the tile alone, or None.
        leave_one_out: (N,) nats by which the contrast falls without the tile; NaN for one tile
            and for aggregators that would have to be run once per tile.
        exact: of evidence and contrast; the other two always are.
    """

    slide_id: str
    xy0: NDArray[np.integer]
    size0: Pair
    target: str
    rival: str
    attention: Float64
    evidence: Float64
    contrast: Float64
    pmi: Float64 | None
    leave_one_out: Float64
    exact: bool

    def values(self, name: MapName) -> Float64:
        """Return the values (N,) of a map.

        Raises:
            ExplainError: the model has no such map of this slide.
        """
        if name == "pmi":
            if self.pmi is None:
                raise ExplainError(
                    f"{self.slide_id}: the probabilities of this objective are no estimate of a "
                    "posterior, so tiles have no PMI — ask for another --map"
                )
            return self.pmi
        if name == "leave-one-out":
            if np.isnan(self.leave_one_out).all():
                why = "this aggregator would have to be run anew without each tile"
                if len(self.xy0) == 1:
                    why = "of a bag of one tile nothing is left to compare with"
                raise ExplainError(f"{self.slide_id}: {why} — ask for another --map")
            return np.nan_to_num(self.leave_one_out)
        return self.contrast if name == "contrast" else self.evidence

    def is_exact(self, name: MapName) -> bool:
        """Return whether a map is exact; otherwise it is integrated gradients."""
        return self.exact or name not in _ADDITIVE

    def title(self, name: MapName) -> str:
        """Return what a map shows, in words."""
        return {
            "contrast": f"evidence for {self.target} against {self.rival}",
            "evidence": f"evidence for {self.target}",
            "pmi": f"PMI of each tile alone with {self.target}",
            "leave-one-out": f"loss of {self.target} against {self.rival} without the tile",
        }[name]


def tile_maps(
    slide_id: str,
    evidence: Evidence,
    xy0: NDArray[np.integer],
    size0: Pair,
    classes: Sequence[str],
    question: Question,
) -> TileMaps:
    """Return the maps that answer `question` about one slide.

    Where the predicted class is asked for and it is the very class it shall be held against, it
    is held against the runner-up.
    """
    p = evidence.probabilities
    target = int(p.argmax()) if question.target is None else list(classes).index(question.target)
    against = question.against
    if against == classes[target]:
        against = "runner-up"
    asked = list(classes).index(against) if against not in AGAINST else against
    weights = rival_weights(p, target, asked)  # pyright: ignore[reportArgumentType]
    return TileMaps(
        slide_id=slide_id,
        xy0=xy0,
        size0=size0,
        target=classes[target],
        rival="the others" if against == "others" else classes[int(weights.argmax())],
        attention=evidence.attention,
        evidence=evidence.evidence[:, target],
        contrast=contrast(evidence.pmi_evidence, target, weights),
        pmi=None if evidence.pmi is None else evidence.pmi[:, target],
        leave_one_out=contrast(evidence.drop, target, weights),
        exact=evidence.exact,
    )


def class_margins(evidence: Evidence) -> Float64:
    """Return (N, C): how much more each tile speaks for a class than for any other, in nats.

    Against the mean of the others a tile of one class would also stand out for the class that it
    speaks against least.
    """
    m = evidence.pmi_evidence
    best = [np.delete(m, c, axis=1).max(axis=1) for c in range(m.shape[1])]
    return m - np.stack(best, axis=1)
