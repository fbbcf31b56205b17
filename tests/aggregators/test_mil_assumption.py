"""Does a tile ever speak against a class? By the MIL assumption none may speak against positive."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.mil_assumption import corners, figures, trained
from wsi.aggregators import AGGREGATORS
from wsi.data import pack

D = 6
MONOTONE = {"topk": {"k": 1}}
"""Aggregators, with settings, whose logits no further tile can lower."""


def lowered(name, settings, tries=40):
    """Return how far a further tile lowered any logit, at most, over random models and bags."""
    most = 0.0
    rng = np.random.default_rng(0)
    if "hidden" in AGGREGATORS.settings(name):
        settings = {**settings, "hidden": 16}
    for seed in range(tries // 10):
        torch.manual_seed(seed)
        model = AGGREGATORS.load(name)(D, 3, **settings).eval()
        x = [3 * rng.normal(size=(4, D)) for _ in range(10)]
        more = [np.concatenate([bag, 3 * rng.normal(size=(1, D))]) for bag in x]
        with torch.no_grad():
            before, after = (
                model(
                    pack([(bag, None, str(i), corners(len(bag))) for i, bag in enumerate(bags)])
                ).logits
                for bags in (x, more)
            )
        most = max(most, float((before - after).max()))
    return most


@pytest.mark.parametrize("name", MONOTONE)
def test_no_tile_can_lower_a_class_that_goes_by_its_best_tile(name):
    assert lowered(name, MONOTONE[name], tries=400) < 1e-5


@pytest.mark.parametrize("name", [n for n in AGGREGATORS.names() if n not in MONOTONE])
def test_in_all_others_a_tile_can_speak_against_a_class(name):
    assert lowered(name, {}) > 1e-3  # if this fails, the docs may say more of this one


@pytest.mark.slow
@pytest.mark.parametrize("name", AGGREGATORS.names())
def test_the_concept_is_learned_though_absence_would_do(name):
    found = figures(trained(name, seed=0, steps=250), seed=0)
    assert found["alike"] > 0.9
    assert found["bare"] > 0.8
    if name not in MONOTONE:  # none of these is proof against it, which the documentation says
        assert found["swapped"] < 0.95
