from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from wsi.evaluation.intervals import bootstrap, draw_weights, merge_small_strata, quantile
from wsi.specs import EvaluateSpec

SPEC = EvaluateSpec(replicates=1000, seed=1)


def mean_of(values: np.ndarray):
    return lambda weights: values @ weights / weights.sum(axis=0)


def level_of(level: float, n: float, S: int) -> float:
    """The level whose normal quantile is Student's, widened for n patients in S strata."""
    wide = stats.t.ppf((1 + level) / 2, n - S) * np.sqrt(n / (n - S))
    return 2 * stats.norm.cdf(wide) - 1


def test_draws_keep_the_number_of_patients_of_every_stratum():
    strata = np.array([0] * 30 + [1] * 12 + [2] * 2)
    weights = draw_weights(strata, SPEC)
    assert weights.shape == (44, 1000)
    for stratum, size in enumerate((30, 12, 2)):
        assert (weights[strata == stratum].sum(axis=0) == size).all()
    # Each patient is drawn once on average, with the variance of a multinomial: 1 - 1/n.
    assert weights.mean(axis=1) == pytest.approx(np.ones(44), abs=0.15)
    assert weights[:30].var() == pytest.approx(1 - 1 / 30, abs=0.03)
    assert (draw_weights(strata, SPEC) == weights).all()


@pytest.mark.parametrize("sizes", [(60,), (50, 9), (40, 20, 3)])
def test_bca_bounds_are_those_of_scipy_on_the_same_replicates(sizes):
    rng = np.random.default_rng(7)
    values = rng.lognormal(size=sum(sizes))
    strata = np.repeat(np.arange(len(sizes)), sizes)
    weights = draw_weights(strata, SPEC)
    ours = bootstrap(mean_of(values), weights, strata, 0.9)
    replicates = np.array([np.repeat(values, w.astype(int)).mean() for w in weights.T])
    assert ours.value == pytest.approx(values.mean())
    assert np.sort(ours.replicates) == pytest.approx(np.sort(replicates))

    theirs = stats.bootstrap(
        [values[strata == k] for k in range(len(sizes))],
        lambda *parts: np.concatenate(parts).mean(),
        vectorized=False,
        n_resamples=0,
        bootstrap_result=SimpleNamespace(bootstrap_distribution=replicates),
        confidence_level=level_of(0.9, len(values), len(sizes)),
        method="BCa",
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_few_patients_expand_the_interval_by_students_quantile():
    one = np.zeros(10, int)
    assert quantile(0.95, one) == pytest.approx(stats.t.ppf(0.975, 9) * np.sqrt(10 / 9))
    two = np.arange(10) % 2
    assert quantile(0.95, two) == pytest.approx(stats.t.ppf(0.975, 8) * np.sqrt(10 / 8))
    many = np.zeros(10_000, int)
    assert quantile(0.95, many) == pytest.approx(stats.norm.ppf(0.975), rel=1e-3)
    values = np.random.default_rng(0).normal(size=39)
    strata = np.zeros(39, int)
    found = bootstrap(mean_of(values), draw_weights(strata, SPEC), strata, 0.95)
    plain = stats.bootstrap((values,), np.mean, method="BCa", rng=1).confidence_interval
    assert found.high - found.low > plain.high - plain.low


def test_drawing_within_strata_understates_the_variance_as_much_as_the_expansion_undoes():
    """Of equal strata the variance of a mean over drawn patients is that over new ones less S/n."""
    rng = np.random.default_rng(3)
    strata = np.repeat(np.arange(4), 5)
    drawn, new = [], []
    for k in range(300):
        values = rng.normal(size=20)
        weights = draw_weights(strata, EvaluateSpec(replicates=200, seed=k))
        drawn.append(mean_of(values)(weights).var())
        new.append(values.mean())
    expansion = quantile(0.95, strata) / stats.t.ppf(0.975, 16)
    assert np.mean(drawn) * expansion**2 == pytest.approx(1 / 20, rel=0.05)
    assert np.var(new) == pytest.approx(1 / 20, rel=0.25)


def test_a_patient_of_most_slides_leaves_fewer_patients_to_count_on():
    strata = np.zeros(31, int)
    sizes = np.array([14, 8, 7, 5, *[4] * 5, *[3] * 5, 2, *[1] * 16])
    n = 87**2 / (sizes**2).sum()
    expected = stats.t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1))
    assert quantile(0.95, strata, sizes) == pytest.approx(expected)
    assert (
        quantile(0.95, strata, sizes)
        > quantile(0.95, strata)
        == quantile(0.95, strata, 3 * strata + 2)
    )


def test_bounds_stay_in_order_where_one_patient_has_nearly_all_slides():
    values, strata = np.array([0.0, 0.1, 0.0, 0.2, 5.0]), np.zeros(5, int)
    sizes = np.array([1, 1, 1, 1, 50])
    found = bootstrap(mean_of(values), draw_weights(strata, SPEC), strata, 0.95, sizes)
    assert found.replicates.min() <= found.low < found.value < found.high
    assert found.high == found.replicates.max()


def test_two_patients_have_bounds_in_order_within_their_replicates():
    strata = np.zeros(2, int)
    weights = draw_weights(strata, SPEC)
    for values in ([0.1, 0.9], [0.0, 1e-3]):
        found = bootstrap(mean_of(np.array(values)), weights, strata, 0.95)
        assert min(values) <= found.low < found.value < found.high <= max(values)


def test_sites_of_one_patient_are_taken_together():
    sites = np.array(["a", "a", "b", "c", "d", "d", "d"])
    codes = merge_small_strata(sites)
    assert codes[2] == codes[3]
    assert len({codes[0], codes[2], codes[4]}) == 3
    alone = merge_small_strata(np.array(["a", "a", "a", "b", "b", "c"]))
    assert alone[5] == alone[3] != alone[0]
    assert len(set(merge_small_strata(np.array(["a", "b"])))) == 1
    assert len(set(merge_small_strata(np.array(["a"])))) == 1


def test_one_patient_has_no_interval():
    found = bootstrap(mean_of(np.array([0.3])), np.ones((1, 100)), np.zeros(1, int), 0.95)
    assert found.value == pytest.approx(0.3)
    assert np.isnan([found.low, found.high]).all()


def test_a_constant_statistic_has_an_interval_of_no_width():
    strata = np.zeros(50, int)
    found = bootstrap(mean_of(np.ones(50)), draw_weights(strata, SPEC), strata, 0.95)
    assert (found.low, found.high) == (1.0, 1.0)


def test_undefined_replicates_are_left_out_and_counted():
    strata = np.zeros(50, int)
    weights = draw_weights(strata, SPEC)
    values = np.arange(50.0)

    def partial(w):
        return np.where(w[0] > 0, mean_of(values)(w), np.nan)

    found = bootstrap(partial, weights, strata, 0.95)
    assert found.undefined == (weights[0] == 0).sum() > 0
    assert len(found.replicates) == 1000 - found.undefined
    assert found.low < found.value < found.high


def test_a_statistic_that_resampling_shifts_has_no_interval():
    strata = np.zeros(200, int)
    distinct = lambda w: (w > 0).sum(axis=0).astype(float)  # noqa: E731
    found = bootstrap(distinct, draw_weights(strata, SPEC), strata, 0.95)
    assert found.one_sided
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say_with_clustered_slides():
    """40 patients of 3 like slides: slides resampled one by one would cover far less."""
    rng = np.random.default_rng(0)
    strata = np.zeros(40, int)
    by_patient = by_slide = 0
    for k in range(400):
        ability = rng.beta(2, 1, size=40)  # mean 2/3
        right = rng.random((40, 3)) < ability[:, None] ** np.ones(3)
        right[:, 1:] = np.where(rng.random((40, 2)) < 0.8, right[:, :1], right[:, 1:])
        spec = EvaluateSpec(replicates=1000, seed=k)
        found = bootstrap(mean_of(right.mean(axis=1)), draw_weights(strata, spec), strata, 0.95)
        by_patient += found.low <= 2 / 3 <= found.high
        single = np.zeros(120, int)
        naive = bootstrap(mean_of(right.ravel() * 1.0), draw_weights(single, spec), single, 0.95)
        by_slide += naive.low <= 2 / 3 <= naive.high
    assert 0.92 <= by_patient / 400 <= 0.98
    assert by_slide / 400 < 0.88
