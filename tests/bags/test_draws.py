"""The chance of seeing rare tiles, against SciPy and against draws as training makes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from wsi.bags.draws import chance_of_seeing
from wsi.data import from_arrays, training_steps


@given(tiles=st.integers(1, 20_000), positive=st.integers(0, 10), drawn=st.integers(1, 3000))
def test_the_chance_is_that_of_the_hypergeometric_law(tiles, positive, drawn):
    positive, taken = min(positive, tiles), min(drawn, tiles)
    expected = hypergeom(tiles, positive, taken).sf(0)
    assert chance_of_seeing(positive, tiles, drawn) == pytest.approx(expected, abs=1e-9)


def test_draws_of_training_see_rare_tiles_as_often_as_said():
    tiles, epochs = np.arange(40, dtype=np.float32)[:, None], 1500
    data, seen = from_arrays({"a": tiles}, [0]), 0
    for epoch in range(epochs):
        ((batch,),) = training_steps(
            data, bags_per_step=1, max_tiles=8, most_tiles=99, seed=0, epoch=epoch
        )
        seen += bool((batch.x < 3).any())
    expected = chance_of_seeing(3, 40, 8)
    assert abs(seen / epochs - expected) < 4 * np.sqrt(expected * (1 - expected) / epochs)
