"""Information measures against the reference vectors, brute force over pairs, and Bayes' rule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, rel_entr, softmax
from scipy.stats import norm
from sklearn.metrics import log_loss, mutual_info_score

from wsi.errors import ConfigError, PredictionsError
from wsi.evaluation.information import (
    NCMIMetric,
    bound,
    ce_pmi,
    entropy,
    log_likelihoods,
    mutual_information,
    ncmi,
    pc_pmi,
    pmi,
    retarget,
)

_FILE = Path(__file__).parents[1] / "objectives" / "vectors" / "ncmi_vectors.json"
VECTORS = json.loads(_FILE.read_text())["vectors"]


def cases(op):
    chosen = [v for v in VECTORS if v["op"] == op]
    return pytest.mark.parametrize("case", chosen, ids=[v["name"] for v in chosen])


def nsf(z):
    s = expit(np.asarray(z, dtype=np.float64))
    return s / s.sum(axis=-1, keepdims=True)


def points(n, m, seed=0, spread=2.0):
    return softmax(spread * np.random.default_rng(seed).normal(size=(n, m)), axis=1)


def close(actual, expected, scale, rtol=1e-9):
    """Tolerance relative to the largest element of the output, as the vectors ask."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * scale)


@cases("dataset_ncmi")
def test_ncmi_of_a_data_set_is_that_of_the_vectors(case):
    given_in, C = case["in"], case["in"]["C"]
    for key, expected in case["out"].items():
        form = key.removesuffix("_bal")  # KL_QP, H or KL
        weighting = "balanced" if key.endswith("_bal") else "empirical"
        found = ncmi(nsf(given_in["z"]), np.array(given_in["y"]), C, form, weighting)
        scale = max(expected["gamma"], expected["cmi"])
        close(found.cmi, expected["cmi"], scale)
        close(found.separation, expected["gamma"], scale)
        close(found.ncmi, expected["ncmi"], max(1.0, expected["ncmi"]))
        per_class = [value or 0.0 for value in found.per_class]
        close(per_class, expected["cmi_per_class"], scale)
        assert [v is None for v in found.per_class] == [n == 0 for n in found.counts]


def brute_force(p, y, form, balanced):
    """All ordered pairs of points, each weighted by its class weight over its class size."""
    present = sorted(set(y.tolist()))
    size = {c: int((y == c).sum()) for c in present}
    of_class = {c: 1 / len(present) if balanced else size[c] / len(y) for c in present}
    s = {c: p[y == c].mean(axis=0) for c in present}
    w = [of_class[c] / size[c] for c in y]
    cmi = sum(w[i] * rel_entr(p[i], s[c]).sum() for i, c in enumerate(y))
    gamma = 0.0
    for i, a in enumerate(y):
        for j, b in enumerate(y):
            if a != b:
                pair = {
                    "KL_QP": rel_entr(s[a], p[j]).sum(),
                    "KL": rel_entr(p[i], p[j]).sum(),
                    "H": -(p[i] * np.log(p[j])).sum(),
                }[form]
                gamma += w[i] * w[j] * pair
    return cmi, gamma


@pytest.mark.parametrize("form", ["KL_QP", "KL", "H"])
@pytest.mark.parametrize("balanced", [False, True])
def test_ncmi_is_the_brute_force_over_all_pairs(form, balanced):
    p, y = points(30, 6), np.random.default_rng(1).choice(5, 30, p=[0.5, 0.2, 0.2, 0.1, 0])
    found = ncmi(p, y, 5, form, "balanced" if balanced else "empirical")
    cmi, gamma = brute_force(p, y, form, balanced)
    assert found.cmi == pytest.approx(cmi, rel=1e-12)
    assert found.separation == pytest.approx(gamma, rel=1e-12)
    assert found.ncmi == pytest.approx(cmi / gamma, rel=1e-12)
    assert found.counts == tuple(np.bincount(y, minlength=5))


def test_the_class_mean_is_the_nearest_centroid():
    """I is the least mean divergence from any centroid; the excess is the centroid's own."""
    p, y = points(40, 4, 3), np.arange(40) % 3
    found = ncmi(p, y, 3)
    q = points(3, 4, 9)
    given_q = np.mean([rel_entr(p[i], q[c]).sum() for i, c in enumerate(y)])
    s = np.stack([p[y == c].mean(axis=0) for c in range(3)])
    shares = np.bincount(y) / 40
    assert given_q - found.cmi == pytest.approx(shares @ rel_entr(s, q).sum(axis=1), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_any_order_and_any_division_give_the_same_figures(seed, n, cuts):
    rng = np.random.default_rng(seed)
    p, y = points(n, 5, seed, 4.0), rng.integers(0, 4, n)
    y[:2] = [0, 1]
    whole = ncmi(p, y, 4)
    order = rng.permutation(n)
    merged = NCMIMetric(4, 5)
    for part in np.split(order, sorted(min(c, n) for c in cuts))[::-1]:
        one = NCMIMetric(4, 5)
        one.update(p[part], y[part])
        merged.merge(one)
    found = merged.compute()
    assert found.counts == whole.counts
    assert found.cmi == pytest.approx(whole.cmi, rel=1e-9, abs=1e-13)
    assert found.separation == pytest.approx(whole.separation, rel=1e-9)
    assert found.ncmi == pytest.approx(whole.ncmi, rel=1e-9, abs=1e-13)


def test_memory_does_not_grow_with_the_points():
    metric = NCMIMetric(3, 4)
    held = [sum(v.nbytes for v in vars(metric).values())]
    for seed in range(3):
        metric.update(points(500, 4, seed), np.arange(500) % 3)
        held.append(sum(v.nbytes for v in vars(metric).values()))
    assert set(held) == {8 * (3 + 3 * 4 * 2 + 3)}


def test_small_divergences_keep_their_digits():
    """Points as near to uniform as NSF makes them in many dimensions."""
    m = 512
    d = np.random.default_rng(0).normal(size=(8, m)) * 1e-3
    p = softmax(d, axis=1)
    y = np.arange(8) % 2
    s = np.stack([p[y == c].mean(axis=0) for c in (0, 1)])
    expected = np.mean([_kl(p[i], s[c]) for i, c in enumerate(y)])
    assert ncmi(p, y, 2).cmi == pytest.approx(expected, rel=1e-7)


def _kl(p, q):
    """KL by terms that are never negative, so that nothing cancels."""
    ratio = p / q - 1
    return float((q * ((1 + ratio) * np.log1p(ratio) - ratio)).sum())


def test_zero_probabilities_give_a_reason_and_never_nan():
    p = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.2, 0.8], [0.1, 0.1, 0.8]])
    found = ncmi(p, np.array([0, 0, 1, 1]), 2)
    s = np.stack([p[:2].mean(axis=0), p[2:].mean(axis=0)])
    expected = np.mean([rel_entr(p[i], s[i // 2]).sum() for i in range(4)])
    assert found.cmi == pytest.approx(expected)
    assert (found.separation, found.ncmi) == (None, None)
    assert "exactly 0" in found.reason


def test_a_zero_that_no_other_class_uses_costs_nothing():
    p = np.array([[0.6, 0.4, 0.0], [0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [0.1, 0.9, 0.0]])
    y = np.array([0, 0, 1, 1])
    found, without = ncmi(p, y, 2), ncmi(p[:, :2], y, 2)
    assert found.separation == pytest.approx(without.separation)
    assert found.ncmi == pytest.approx(without.ncmi)


def test_logarithms_keep_what_underflows():
    logits = np.array([[900.0, 0, 0], [800, 0, 10], [0, 900, 0], [0, 700, 0]])
    metric = NCMIMetric(2, 3)
    metric.update_log(log_softmax(logits, axis=1), np.array([0, 0, 1, 1]))
    found = metric.compute()
    assert found.separation == pytest.approx(0.5 * np.mean([900, 800, 900, 700]), rel=1e-9)


@pytest.mark.parametrize(
    ("p", "y", "reason"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "no slides"),
        (points(4, 3), np.zeros(4, int), "only one class"),
        (np.full((4, 3), 1 / 3), np.array([0, 1, 2, 0]), "not separated"),
        (np.tile([0.2, 0.3, 0.5], (7, 1)), np.array([0, 1, 2, 0, 1, 1, 1]), "not separated"),
    ],
)
def test_undefined_ratios_are_none_with_a_reason(p, y, reason):
    found = ncmi(p, y, 3)
    assert found.ncmi is None
    assert reason in found.reason


def test_what_is_no_point_of_the_simplex_is_refused():
    metric = NCMIMetric(3, 3)
    for p in ([[1.0, 2.0, -2.0]], [[0.5, 0.2, 0.2]], [[np.nan, 0.5, 0.5]]):
        with pytest.raises(PredictionsError, match="sum to 1"):
            metric.update(np.array(p), np.array([0]))
    with pytest.raises(PredictionsError, match="without a label"):
        metric.update(points(2, 3), np.array([0, -1]))
    with pytest.raises(PredictionsError, match="one class per slide"):
        metric.update(points(2, 4), np.array([0, 1]))
    with pytest.raises(PredictionsError, match="cannot merge"):
        metric.merge(NCMIMetric(3, 4))


@cases("pc")
def test_pmi_and_information_are_those_of_the_vectors(case):
    logits, y = np.array(case["in"]["logits"]), np.array(case["in"]["y"])
    prior, out = case["in"]["prior"], case["out"]
    of_pc, of_ce = pc_pmi(logits, prior), ce_pmi(logits, prior)
    close(of_pc, out["pc_log_ratio"], np.abs(out["pc_log_ratio"]).max())
    close(of_ce, out["pmi_ce"], np.abs(out["pmi_ce"]).max())
    close(mutual_information(of_pc, y).value, out["mi_pc"], abs(out["mi_pc"]))
    close(mutual_information(of_ce, y).value, out["mi_ce"], abs(out["mi_ce"]))
    assert mutual_information(of_pc, y).value <= bound(y, prior)


def test_with_balanced_classes_information_is_log_c_less_cross_entropy():
    y = np.arange(60) % 4
    p = points(60, 4, 5)
    found = mutual_information(pmi(log_likelihoods(p, np.full(4, 0.25)), np.full(4, 0.25)), y)
    assert found.value == pytest.approx(np.log(4) - log_loss(y, p, labels=range(4)), rel=1e-12)


def test_a_perfect_head_reaches_the_bound_and_only_their_own_prior_makes_it_the_entropy():
    y = np.array([0, 0, 0, 1, 1, 2])
    own = np.bincount(y) / 6
    sure = np.where(np.eye(3)[y] > 0, 0.0, -800.0)
    for prior in (own, np.array([0.2, 0.3, 0.5])):
        assert mutual_information(pmi(sure, prior), y).value == pytest.approx(bound(y, prior))
    assert bound(y, own) == pytest.approx(entropy(own)) == pytest.approx(mutual_info_score(y, y))
    assert bound(y, [0.2, 0.3, 0.5]) > entropy([0.2, 0.3, 0.5])


def test_information_of_a_discrete_channel_is_that_of_scikit_learn():
    """x takes few values and the head is exact, so the mean pmi is the plug-in information."""
    rng = np.random.default_rng(0)
    y = rng.choice(3, 400, p=[0.5, 0.3, 0.2])
    x = (y + rng.choice(3, 400, p=[0.6, 0.3, 0.1])) % 3
    joint = np.zeros((3, 3))
    np.add.at(joint, (x, y), 1)
    prior = joint.sum(axis=0) / 400
    p = (joint / joint.sum(axis=1, keepdims=True))[x]
    found = mutual_information(pmi(log_likelihoods(p, prior), prior), y)
    assert found.value == pytest.approx(mutual_info_score(x, y), rel=1e-10)


MEANS, WIDTHS = np.array([-1.0, 0.5, 2.0]), np.array([1.0, 0.6, 1.4])


def posterior(x, prior):
    joint = norm.pdf(x[:, None], MEANS, WIDTHS) * prior
    return joint / joint.sum(axis=1, keepdims=True)


def test_retargeting_is_bayes_rule_on_a_gaussian_mixture():
    x = np.linspace(-4, 5, 50)
    old, new = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    np.testing.assert_allclose(retarget(posterior(x, old), old, new), posterior(x, new), rtol=1e-10)
    there = retarget(posterior(x, old), old, [0.5, 0.5, 0.0])
    two = norm.pdf(x[:, None], MEANS[:2], WIDTHS[:2])
    np.testing.assert_allclose(there[:, :2], two / two.sum(axis=1, keepdims=True), rtol=1e-10)
    assert (there[:, 2] == 0).all()


def test_under_a_shift_of_the_prior_the_retargeted_estimate_is_the_information_there():
    """Against numerical integration; without re-targeting the figure is of no distribution."""
    old, new = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    rng = np.random.default_rng(0)
    y = rng.choice(3, 60_000, p=new)
    x = rng.normal(MEANS[y], WIDTHS[y])
    head = log_likelihoods(posterior(x, old), old)
    grid = np.linspace(-12, 14, 40_001)
    density = norm.pdf(grid[:, None], MEANS, WIDTHS)
    terms = new * density * np.log(posterior(grid, new) / new)
    truth = np.trapezoid(terms.sum(axis=1), grid)
    assert mutual_information(pmi(head, new), y).value == pytest.approx(truth, abs=0.01)
    assert abs(mutual_information(pmi(head, old), y).value - truth) > 0.05


def test_over_confident_predictions_have_negative_information():
    y = np.array([0, 1] * 20)
    p = np.where(np.arange(40)[:, None] % 4 < 2, [[0.999, 0.001]], [[0.001, 0.999]])
    prior = [0.5, 0.5]
    assert mutual_information(pmi(log_likelihoods(p, prior), prior), y).value < -2


def test_a_true_class_of_probability_zero_has_no_information_and_says_so():
    p = np.array([[1.0, 0.0], [0.5, 0.5]])
    found = mutual_information(pmi(log_likelihoods(p, [0.5, 0.5]), [0.5, 0.5]), np.array([1, 0]))
    assert found.value is None
    assert "exactly 0" in found.reason


def test_priors_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="sum to 1"):
        retarget(points(2, 3), [0.5, 0.5, 0.5], [1, 0, 0])
    with pytest.raises(ConfigError, match="class 2 has no share"):
        retarget(points(2, 3), [0.5, 0.5, 0], [1, 0, 0])
