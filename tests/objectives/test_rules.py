"""Decision rules: what they are fitted to, which one is settled, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from wsi.aggregators.base import Output
from wsi.errors import ConfigError, TrainingError
from wsi.objectives import OBJECTIVES
from wsi.objectives.ncmi import NCMI
from wsi.objectives.rules import ClassMeans, LinearProbe, balanced_nll, fitted_tau

C, E = 3, 5


def bags(n=30, spread=1.0, seed=0, classes=C):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    z = 2 * np.eye(C, E)[y] + spread * rng.normal(size=(n, E))
    return torch.from_numpy(z), torch.from_numpy(y)


def output(z, logits=None):
    logits = torch.zeros(len(z), C) if logits is None else logits
    return Output(z.float(), logits)


# -- what the rules are ---------------------------------------------------------------------------


def test_class_means_score_by_squared_distance_and_are_linear_up_to_a_shared_term():
    z, y = bags()
    rule = ClassMeans(C, E)
    rule.settle(z, y)
    means = np.stack([z[y == c].numpy().mean(0) for c in range(C)])
    squares = ((z.numpy()[:, None] - means) ** 2).sum(-1)
    pairs = [((means[a] - means[b]) ** 2).sum() for a in range(C) for b in range(C) if a != b]
    np.testing.assert_allclose(rule.scores(z), -squares / (np.mean(pairs) / 20), rtol=1e-9)
    W, b = rule.linear()  # pyright: ignore[reportGeneralTypeIssues]
    lacking = rule.scores(z) - (z @ W.T + b)
    np.testing.assert_allclose(lacking - lacking[:, :1], 0, atol=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_is_scikit_learns_on_standardised_embeddings(classes):
    z, y = bags(classes=classes)
    z[:, -1] = 7.0  # a feature that does not vary
    z, y = z[4:], y[4:]  # classes of different size
    rule = LinearProbe(classes, E)
    rule.settle(z, y)
    scaler = StandardScaler().fit(z)
    oracle = LogisticRegression(class_weight="balanced", max_iter=1000)
    oracle.fit(scaler.transform(z), y)
    test = bags(seed=1)[0]
    test[:, -1] = 7.0
    np.testing.assert_allclose(
        rule.scores(test).softmax(-1), oracle.predict_proba(scaler.transform(test)), atol=1e-6
    )


def test_tau_is_the_best_of_a_grid_within_its_range():
    z, y = bags(60, spread=2.0)
    rule = ClassMeans(C, E)
    rule.settle(z, y)
    scores = -rule.distances(z)
    doubt = (C - 1) / (len(y) + C)
    target = np.full((len(y), C), doubt / (C - 1))
    target[np.arange(len(y)), y] = 1 - doubt
    grid = np.geomspace(rule.scale / 40, rule.scale * 100, 4000)
    nll = [-(target * log_softmax(scores.numpy() / t, axis=1)).sum(1).mean() for t in grid]
    assert 0 < np.argmin(nll) < len(grid) - 1
    assert fitted_tau(scores, y, rule.scale) == pytest.approx(grid[np.argmin(nll)], rel=5e-3)


def test_tau_of_bags_far_apart_ends_at_its_range():
    scores, y = 1e6 * torch.eye(C, dtype=torch.float64), torch.arange(C)
    assert fitted_tau(1e9 * scores, y, 8.0) == pytest.approx(800, rel=1e-3)
    assert fitted_tau(1e-9 * scores, y, 8.0) == pytest.approx(0.2, rel=1e-3)


def test_tau_after_training_is_that_of_bare_distances():
    objective, z, y = settled(perfect, "class_mean", spread=3.0)
    rule = objective.class_mean
    expected = fitted_tau(-rule.distances(z), y, rule.scale)
    assert float(rule.tau) == pytest.approx(expected, rel=1e-4)
    assert expected > rule.scale / 30  # within the range, where the unit shows


# -- which one is settled -------------------------------------------------------------------------


def settled(logits_of_val, predict="auto", val=True, classes=C, spread=1.0):
    """Return CE settled on embeddings that tell classes apart a little, and on given logits."""
    objective = OBJECTIVES.load("ce")(C, E, [10, 10, 10], predict=predict)
    z, y = bags(spread=spread)
    z_val, y_val = bags(24, spread=spread, seed=1, classes=classes)
    pairs = [(output(z_val, logits_of_val(y_val)), y_val)]
    objective.after_fit([(output(z), y)], pairs if val else None)
    return objective, z_val, y_val


def perfect(y):
    return 20.0 * torch.nn.functional.one_hot(y, C).float()


def misleading(y):
    return -perfect(y)


def test_auto_takes_the_rule_that_validation_bags_prefer():
    assert settled(perfect)[0].rule == "own"
    assert settled(misleading)[0].rule in ("class_mean", "probe")


def test_auto_chooses_by_the_class_balanced_nll():
    """The own rule is sure of a common class and wrong on a rare one: it is not taken."""
    objective = OBJECTIVES.load("ce")(C, E, [10, 10, 10], predict="auto")
    z, y = bags(spread=0.9)
    z_val, _ = bags(300, spread=0.9, seed=1)
    y_val = torch.arange(300) % C
    keep = (y_val == 0) | (torch.arange(300) < 12)
    z_val, y_val = z_val[keep], y_val[keep]
    logits = torch.tensor([[6.0, 0.0, 0.0]]).repeat(len(y_val), 1)
    objective.after_fit([(output(z), y)], [(output(z_val, logits), y_val)])
    assert objective.rule != "own"


def test_balanced_nll_is_the_mean_over_classes_present():
    rows = [[3.0, 0, 0], [0, 1, 0], [2, 0, 0], [1, 0, 0], [2, 1, 0]]
    scores, y = torch.tensor(rows, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0])
    t = fitted_tau(scores, y, 1.0)
    nll = -log_softmax(scores.numpy() / t, axis=1)[np.arange(5), y]
    expected = (nll[[0, 2, 4]].mean() + nll[[1, 3]].mean()) / 2  # no bag of class 2
    assert abs(expected - nll.mean()) > 0.05
    assert balanced_nll(scores, y) == pytest.approx(expected, rel=1e-4)


def test_auto_without_validation_leaves_the_own_rule():
    assert settled(misleading, val=False)[0].rule == "own"


@pytest.mark.parametrize("predict", ["class_mean", "probe", "auto"])
def test_a_class_absent_from_validation_is_no_error(predict):
    objective, z, y = settled(misleading, predict, classes=2)
    p = objective.probabilities(output(z, misleading(y)))
    assert p.isfinite().all()
    assert p.shape == (24, C)


@pytest.mark.parametrize(
    ("predict", "prior"), [("own", "training"), ("class_mean", None), ("probe", "uniform")]
)
def test_each_rule_says_under_which_prior_it_predicts(predict, prior):
    assert settled(perfect, predict)[0].predicts_prior == prior


def test_temperatures_are_of_validation_bags_alone():
    """The same training bags, and validation bags whose labels are chance: tau grows."""
    taus = []
    for shuffled in (False, True):
        objective = OBJECTIVES.load("ce")(C, E, [10, 10, 10], predict="class_mean")
        z, y = bags()
        z_val, y_val = bags(60, seed=1)
        y_val = (
            y_val[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
            if shuffled
            else y_val
        )
        objective.after_fit([(output(z), y)], [(output(z_val), y_val)])
        taus.append(float(objective.class_mean.tau))
    assert taus[1] > 3 * taus[0]


# -- what they refuse -----------------------------------------------------------------------------


@pytest.mark.parametrize("predict", ["class_mean", "probe", "auto"])
def test_a_class_missing_from_the_training_outputs_is_named(predict):
    objective = OBJECTIVES.load("ce")(C, E, [10, 10, 10], predict=predict)
    z, y = bags(classes=2)
    with pytest.raises(TrainingError, match=r"class 2 has no training bag .* give bags"):
        objective.after_fit([(output(z), y)], None)


@pytest.mark.parametrize("predict", ["class_mean", "probe", "auto"])
@pytest.mark.parametrize("name", ["ce", "ncmi"])
def test_embeddings_that_are_not_finite_are_told(name, predict):
    objective = OBJECTIVES.load(name)(C, E, [10, 10, 10], predict=predict)
    z, y = bags()
    z[3, 2] = float("nan")
    with pytest.raises(TrainingError, match=r"embeddings of 1 training bags .* lower fit\.lr"):
        objective.after_fit([(output(z), y)], None)


def test_centroids_that_have_merged_still_get_a_temperature():
    objective = NCMI(C, E, [10, 10, 10], predict="own")
    objective.centroids.b.copy_(objective.centroids.b[:1].expand_as(objective.centroids.b).clone())
    z, y = bags()
    objective.after_fit([(output(z), y)], [(output(z), y)])
    np.testing.assert_allclose(objective.probabilities(output(z)).detach(), 1 / C, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_dimensions_that_are_none_are_refused(name):
    if "m" not in OBJECTIVES.settings(name):
        pytest.skip("projects nothing")
    for m in (0, -1):
        with pytest.raises(ConfigError, match=rf"m={m} must be above 0"):
            OBJECTIVES.load(name)(C, E, [10, 10, 10], m=m)
