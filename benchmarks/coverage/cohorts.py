"""Cohorts drawn from a process whose true figures are known: patients of sites, with slides.

A patient has a leaning towards classes, so that its slides tend to one label, and a shift of its
scores, so that its slides are right or wrong together. Sites differ in how well the classes are
told apart; how many patients come from which site is fixed, as the intervals take it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.metrics import f1_score, roc_auc_score

from wsi.evaluation import Predictions

Array = np.ndarray

BRACS_TEST = (14, 8, 7, 5, 4, 4, 4, 4, 4, 3, 3, 3, 3, 3, 2) + (1,) * 16
"""Slides of each of the 31 patients of BRACS's official test part, 87 in all.

Source: the sheet `WSI_Information` of BRACS.xlsx (Brancati et al. 2022), set `Testing`.
"""

_BRACS_7 = (7, 16, 9, 11, 12, 12, 20)  # its test slides of N, PB, UDH, FEA, ADH, DCIS, IC
_BRACS_3 = (32, 23, 32)  # the same as BT, AT, MT
_SHARES = (0.4, 0.3, 0.2, 0.1)  # of patients, by site
_SKILL = (1.3, 1.1, 1.1, 0.8)  # relative to the design's, by site
_SLIDES = (1, 1, 2, 3, 4)  # of a patient, equally likely
_LEANING = 2.0  # concentration of a patient's classes: correlation 1 / 3 between its slides
_SHIFT = 0.7  # standard deviation of a patient's shift of each score; that of a slide is 1


@dataclass(frozen=True)
class Design:
    """A kind of cohort.

    Args:
        prior: how often each class is, C numbers.
        skill: how far the score of the true class is raised, in standard deviations of a slide.
        slides: of each patient; drawn anew for every cohort where there are none.
        folds: in how many parts the patients are tested.
    """

    name: str
    patients: int
    prior: tuple[float, ...] = (0.5, 0.3, 0.2)
    skill: float = 1.5
    slides: tuple[int, ...] = ()
    folds: int = 1
    sites: int = len(_SHARES)

    @property
    def shares(self) -> Array:
        """Return the prior (C,), summing to 1."""
        return np.asarray(self.prior) / sum(self.prior)

    def sites_of(self, patients: int) -> Array:
        """Return the site of each patient (P,), in the design's shares."""
        if self.sites == 1:
            return np.zeros(patients, int)
        return np.searchsorted(np.cumsum(_SHARES), (np.arange(patients) + 0.5) / patients)


DESIGNS = (
    Design("20 patients", 20),
    Design("40 patients", 40),
    Design("100 patients", 100),
    Design("200 patients", 200),
    Design("100 patients in 5 folds", 100, folds=5),
    Design("BRACS test, 3 classes", 31, _BRACS_3, slides=BRACS_TEST, sites=1),
    Design("BRACS test, 7 classes", 31, _BRACS_7, slides=BRACS_TEST, sites=1),
)


@dataclass(frozen=True)
class Drawn:
    """Slides of a cohort: patient, site and class (n,), and scores (models, n, C)."""

    patient: Array
    site: Array
    y: Array
    scores: Array


def drawn(design: Design, rng: np.random.Generator, patients: int = 0, models: int = 1) -> Drawn:
    """Return a cohort as it is drawn.

    Args:
        patients: how many, when not the design's.
        models: equally good ones; of each score half the variance of slide and patient is shared.
    """
    P, C = patients or design.patients, len(design.prior)
    counts = rng.permutation(design.slides) if design.slides and not patients else None
    counts = rng.choice(design.slides or _SLIDES, P) if counts is None else counts
    patient = np.repeat(np.arange(P), counts)
    site = design.sites_of(P)[patient]
    leaning = rng.dirichlet(design.shares * _LEANING, P)[patient]
    y = (leaning.cumsum(axis=1) < rng.random((len(patient), 1))).sum(axis=1).clip(max=C - 1)
    skill = design.skill * (np.asarray(_SKILL)[site] if design.sites > 1 else 1)
    raised = np.zeros((len(y), C))
    raised[np.arange(len(y)), y] = skill

    def noise(*more: int) -> Array:
        return _SHIFT * rng.normal(size=(*more, P, C))[..., patient, :] + rng.normal(
            size=(*more, len(y), C)
        )

    scores = noise(1) if models == 1 else (noise(1) + noise(models)) / np.sqrt(2)
    return Drawn(patient, site, y, raised + scores)


def predictions(design: Design, rng: np.random.Generator, models: int = 1) -> list[Predictions]:
    """Return the predictions of equally good models on one cohort."""
    cohort = drawn(design, rng, models=models)
    names = tuple(f"c{k}" for k in range(len(design.prior)))
    rows = pd.DataFrame(
        {
            "slide_id": [f"s{k:05}" for k in range(len(cohort.y))],
            "patient_id": [f"p{k:04}" for k in cohort.patient],
            "site": [f"site {k}" if design.sites > 1 else "" for k in cohort.site],
            "fold": rng.permutation(design.patients)[cohort.patient] % design.folds,
            "y_true": [names[k] for k in cohort.y],
        }
    )
    made = []
    for scores in cohort.scores:
        p = pd.DataFrame(softmax(scores, axis=1), columns=[f"p_{name}" for name in names])
        made.append(Predictions(names, pd.concat([rows, p], axis=1)))
    return made


def truth(design: Design, patients: int = 400_000) -> dict[str, float]:
    """Return macro-F1 and AUC of all slides there could be, by scikit-learn.

    Shares of classes, sites and numbers of slides are the design's, so this is what the figures of
    ever larger cohorts come to.
    """
    whole = drawn(design, np.random.default_rng(2026), patients)
    y, p = whole.y, softmax(whole.scores[0], axis=1)
    areas = [roc_auc_score(y == c, p[:, c]) for c in range(p.shape[1])]
    f1 = f1_score(y, p.argmax(axis=1), average="macro")
    return {"macro_f1": float(f1), "auc": float(np.mean(areas))}


def streams(design: Design, cohorts: range) -> Iterator[np.random.Generator]:
    """Yield the generator of each cohort, the same whatever is drawn beside it."""
    for k in cohorts:
        yield np.random.default_rng([k, design.patients, len(design.prior), design.folds])
