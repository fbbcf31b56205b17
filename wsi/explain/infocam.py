"""Contrasts between classes: evidence for one, less evidence for what it could be instead.

Logits have no absolute zero: adding the same to all of them changes nothing that a model says.
Contrasts do not depend on it. Against the mean of the others they are infoCAM, against the least
likely class infoCAM+; the runner-up is what a clinician asks for.

Source: Qin & Kim 2019 (arXiv 1911.10688), who contrast class activation maps of image networks.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Against = Literal["others", "least", "runner-up"]
AGAINST: tuple[Against, ...] = ("others", "least", "runner-up")


def rival_weights(p: Float64, target: int, against: Against | int) -> Float64:
    """Return weights (C,) over the other classes, summing to 1: what `target` is held against.

    Args:
        p: probabilities (C,) of the bag; ties go to the class that comes first.
        against: the mean of the `others`, the `least` likely other class, the likeliest other
            class (`runner-up`), or the index of a class.

    Raises:
        ValueError: `against` is the target itself.
    """
    C = len(p)
    if against == "others":
        return np.where(np.arange(C) == target, 0.0, 1 / (C - 1))
    if isinstance(against, str):
        others = [c for c in range(C) if c != target]
        against = (min if against == "least" else max)(others, key=lambda c: float(p[c]))
    if against == target:
        raise ValueError("a class cannot be held against itself")
    return np.eye(C)[against]


def contrast(evidence: Float64, target: int, weights: Float64) -> Float64:
    """Return (N,): evidence (N, C) for `target`, less that for its rivals by weight (C,)."""
    return evidence[:, target] - evidence @ weights


def pmi_evidence(
    evidence: Float64, attention: Float64, log_prior: Float64, offset: Float64 | float = 0.0
) -> Float64:
    """Return m (N, C) = e_ic + a_i (offset_c - log pi_c): evidence with the prior taken out.

    Its contrasts of c and k sum over tiles to PMI(c) - PMI(k) of the bag, where
    PMI(c) = log p_c - log pi_c. A head of cross-entropy has learned the prior (offset 0); one of
    PC-softmax has not, since the rule adds it (offset log pi), and nothing is left to take out.

    Args:
        evidence: e (N, C), summing over tiles to the logits.
        attention: a (N,), the mean over heads, summing to 1.
        log_prior: log pi (C,), under which the rule's probabilities are meant.
        offset: what the rule adds to the logits before its softmax (C,).
    """
    return evidence + attention[:, None] * (offset - log_prior)


def tile_pmi(scores: Float64, log_prior: Float64) -> Float64:
    """Return (N, C): log softmax(scores) - log pi, if the slide were this tile alone.

    At most -log pi_c, and not additive.
    """
    top = scores - scores.max(axis=1, keepdims=True)
    return top - np.log(np.exp(top).sum(axis=1, keepdims=True)) - log_prior
