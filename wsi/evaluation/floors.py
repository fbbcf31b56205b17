"""Floors: what the test slides look like to models that hardly look at them.

Each is fitted on the training slides of a fold and predicts its test slides, as the model that it
stands beside. A model that is not above them has not shown that it sees more than they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsi.bags import BagMeans
from wsi.evaluation.logistic import Rows, logistic_probabilities
from wsi.splits import Fold

Array = np.ndarray

PSEUDO_SLIDES = 1.0
"""Slides of the training frequencies that every site counts beside its own."""


@dataclass(frozen=True, eq=False)
class FloorData:
    """What floors know of slides: no label is among it.

    Attributes:
        means: tile counts and mean features, by slide id.
        sites: by slide id, empty where unknown.
    """

    means: BagMeans
    sites: Mapping[str, str]

    def rows_of(self, slide_ids: Sequence[str]) -> Array:
        """Return the rows (m,) of slides in `means`."""
        index = {slide_id: k for k, slide_id in enumerate(self.means.ids)}
        return np.array([index[slide_id] for slide_id in slide_ids], dtype=np.int64)


def floor_probabilities(
    name: str, data: FloorData, fold: Fold, labels: Mapping[str, int], C: int
) -> Array:
    """Return the probabilities (m, C) that a floor gives the test slides of a fold, in their order.

    Args:
        name: one of `FLOORS`.
        labels: class index of every training and validation slide; those of others are not used.
    """
    return FLOORS[name](data, fold, labels, C)


def _codes(slide_ids: Sequence[str], labels: Mapping[str, int]) -> Array:
    return np.array([labels[slide_id] for slide_id in slide_ids], dtype=np.int64)


def _frequencies(fold: Fold, labels: Mapping[str, int], C: int) -> Array:
    return np.bincount(_codes(fold.train, labels), minlength=C) / len(fold.train)


def _majority(data: FloorData, fold: Fold, labels: Mapping[str, int], C: int) -> Array:
    """The training frequencies for every slide."""
    return np.tile(_frequencies(fold, labels, C), (len(fold.test), 1))


def _site(data: FloorData, fold: Fold, labels: Mapping[str, int], C: int) -> Array:
    """The training frequencies at the slide's site, with one slide of those of all sites added.

    So a site of few slides is not taken for certain, and one without any has those of all sites.
    """
    overall = _frequencies(fold, labels, C)
    counts: dict[str, Array] = {}
    for slide_id in fold.train:
        here = counts.setdefault(data.sites[slide_id], np.zeros(C))
        here[labels[slide_id]] += 1
    counts.pop("", None)  # an unknown site is none
    p = []
    for slide_id in fold.test:
        here = counts.get(data.sites[slide_id], np.zeros(C))
        p.append((here + PSEUDO_SLIDES * overall) / (here.sum() + PSEUDO_SLIDES))
    return np.stack(p)


def _tile_count(data: FloorData, fold: Fold, labels: Mapping[str, int], C: int) -> Array:
    """Logistic regression on the logarithm of the tile count and its square.

    With the square a class may lie at both ends, as small biopsies and large resections do.
    """
    log = np.log(data.means.tiles)
    train = log[data.rows_of(fold.train)]
    z = (log - train.mean()) / (train.std() or 1.0)
    return _regression(np.stack([z, z**2], axis=1), data, fold, labels, C)


def _mean_features(data: FloorData, fold: Fold, labels: Mapping[str, int], C: int) -> Array:
    """Logistic regression on the mean of the features of all tiles."""
    return _regression(data.means.features, data, fold, labels, C)


def _regression(x: Array, data: FloorData, fold: Fold, labels: Mapping[str, int], C: int) -> Array:
    train, val = (Rows(x[data.rows_of(ids)], _codes(ids, labels)) for ids in (fold.train, fold.val))
    return logistic_probabilities(train, val, x[data.rows_of(fold.test)], C)


Floor = Callable[[FloorData, Fold, Mapping[str, int], int], Array]

FLOORS: Mapping[str, Floor] = {
    "majority": _majority,
    "tile-count": _tile_count,
    "site": _site,
    "mean-features": _mean_features,
}
"""By name, in the order they are told; all are posteriors at the training frequencies."""


def unseen_sites(data: FloorData, fold: Fold) -> set[str]:
    """Return the sites of the test slides of a fold that no training slide is of."""
    known = {data.sites[slide_id] for slide_id in fold.train}
    return {data.sites[slide_id] for slide_id in fold.test} - known - {""}
