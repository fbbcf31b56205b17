"""Which slides of a run tell most: wrong though sure, undecided, and a few that are right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Any, Literal

import numpy as np

from wsi.evaluation import Predictions

Kind = Literal["wrong", "uncertain", "right"]
KINDS: tuple[Kind, ...] = ("wrong", "uncertain", "right")
MOST: dict[Kind, int] = {"wrong": 6, "uncertain": 4, "right": 4}
"""How many of each; of wrong and right ones at least one per class, where there are any."""


@dataclass(frozen=True)
class TellingSlide:
    """One slide, over all seeds and folds that test it.

    Args:
        kind: why it is shown.
        fold: the first that tests it.
        y_pred: what most of its predictions decide.
        p: mean probability of that class, and `p_true` of the true one.
        entropy: of the mean probabilities, as a share of that of equal ones.
        wrong: how many of its predictions are wrong, `of` how many.
    """

    slide_id: str
    kind: Kind
    site: str
    fold: int
    y_true: str
    y_pred: str
    p: float
    p_true: float
    entropy: float
    wrong: int
    of: int


def telling(predictions: Predictions) -> list[TellingSlide]:
    """Return the slides worth a look, those of one kind together; each stands once.

    Wrong ones come by probability of the class they are taken for, the first of every true class
    before the second of any, so that a frequent class does not hide the others. Uncertain are
    those of largest entropy among the rest. Right ones are the surest of their class.
    """
    slides = _slides(predictions)
    wrong = [s for s in slides if s.y_pred != s.y_true]
    chosen = _by_turns(wrong, predictions.classes, MOST["wrong"])
    taken = {s.slide_id for s in chosen}
    rest = sorted((s for s in slides if s.slide_id not in taken), key=lambda s: -s.entropy)
    uncertain = rest[: MOST["uncertain"]]
    taken |= {s.slide_id for s in uncertain}
    right = [s for s in slides if s.y_pred == s.y_true and s.slide_id not in taken]
    surest = _by_turns(right, predictions.classes, MOST["right"], rounds=1)
    pairs = zip(KINDS, (chosen, uncertain, surest), strict=True)
    return [replace(slide, kind=kind) for kind, found in pairs for slide in found]


def _by_turns(
    slides: Iterable[TellingSlide], classes: Sequence[str], most: int, rounds: int | None = None
) -> list[TellingSlide]:
    """Return the surest of each true class, then the second of each, and so on."""
    queues = {name: [s for s in slides if s.y_true == name][:rounds] for name in classes}
    turns = chain.from_iterable(zip_longest(*queues.values()))
    found = [s for s in turns if s is not None]
    return found[: max(most, sum(bool(queue) for queue in queues.values()))]


def _slides(predictions: Predictions) -> list[TellingSlide]:
    """Return every labelled test slide, surest decision first."""
    table = predictions.table
    tested = table["split"].isin(["", "test"]) & (table["y_true"] != "")
    rows: dict[str, list[int]] = defaultdict(list)
    for index in np.flatnonzero(tested.to_numpy()):
        rows[str(table["slide_id"].iat[index])].append(int(index))
    p, decided = predictions.p, predictions.table["y_pred"].tolist()
    made = [
        _slide(slide_id, table.iloc[of[0]], p[of], [decided[k] for k in of], predictions.classes)
        for slide_id, of in rows.items()
    ]
    return sorted(made, key=lambda s: (-s.p, s.slide_id))


def _slide(
    slide_id: str, row: Any, p: np.ndarray, decided: Sequence[str], classes: Sequence[str]
) -> TellingSlide:
    mean = p.mean(axis=0)
    place = {name: k for k, name in enumerate(classes)}
    votes = Counter(decided)
    chosen = max(classes, key=lambda name: (votes[name], mean[place[name]]))
    known = mean[mean > 0]
    return TellingSlide(
        slide_id,
        "right",
        row["site"],
        int(row["fold"]),
        row["y_true"],
        chosen,
        float(mean[place[chosen]]),
        float(mean[place[row["y_true"]]]),
        float(-(known * np.log(known)).sum() / np.log(len(classes))),
        sum(name != row["y_true"] for name in decided),
        len(decided),
    )
