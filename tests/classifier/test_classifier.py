"""The scikit-learn face: against scikit-learn's own checks, splitters and baselines."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedGroupKFold,
    cross_val_predict,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import estimator_checks

from wsi import MILClassifier
from wsi.errors import (
    BagError,
    BagMismatchError,
    CohortError,
    ConfigError,
    TrainingError,
    UnknownNameError,
)
from wsi.specs import FitSpec
from wsi.training import load

D = 6
SMALL: dict[str, Any] = {
    "aggregator_params": {"hidden": 8, "attention_dim": 4},
    "epochs": 2,
    "lr": 0.01,
    "bags_per_step": 4,
}


def small(**params: Any) -> MILClassifier:
    return MILClassifier(**(SMALL | params))


def cohort(n: int = 24, shift: float = 1.0, classes: tuple[Any, ...] = ("low", "high")) -> Any:
    """Return bags of 1 to 8 tiles, labels and patients: two bags of one class per patient."""
    rng = np.random.default_rng(0)
    patients = np.arange(n) // 2
    codes = patients % len(classes)
    bags = [
        (rng.normal(size=(rng.integers(1, 9), D)) + shift * np.eye(D)[code]).astype(np.float32)
        for code in codes
    ]
    return bags, [classes[code] for code in codes], [f"p{k}" for k in patients]


# -- as scikit-learn's own -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        "check_parameters_default_constructible",
        "check_no_attributes_set_in_init",
        "check_get_params_invariance",
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
    ],
)
def test_scikit_learn_finds_a_proper_estimator(check: str) -> None:
    getattr(estimator_checks, check)("MILClassifier", MILClassifier())


def test_parameters_of_the_loop_are_those_of_the_settings() -> None:
    params, fields = MILClassifier().get_params(), FitSpec.model_fields
    assert {k: params[k] for k in fields if k != "seeds"} == {
        k: field.default for k, field in fields.items() if k != "seeds"
    }


def test_a_clone_learns_the_same_and_a_pickle_predicts_the_same() -> None:
    bags, y, groups = cohort()
    fitted = small(random_state=3).fit(bags, y, groups)
    again = clone(fitted).fit(bags, y, groups)
    expected = fitted.predict_proba(bags)
    np.testing.assert_array_equal(again.predict_proba(bags), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(bags), expected)
    other = small(random_state=4).fit(bags, y, groups)
    assert not np.array_equal(other.predict_proba(bags), expected)


def test_a_fit_leaves_the_random_numbers_of_others_alone() -> None:
    bags, y, _ = cohort()
    states = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    small().fit(bags, y)
    assert np.array_equal(np.random.get_state()[1], states[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])


def test_probabilities_come_in_the_order_of_sorted_classes() -> None:
    bags, y, groups = cohort(shift=4.0)
    model = small(epochs=10).fit(bags, y, groups)
    assert model.classes_.tolist() == ["high", "low"]
    p = model.predict_proba(bags)
    assert p.shape == (len(bags), 2)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert model.predict(bags).tolist() == model.classes_[p.argmax(axis=1)].tolist()
    right = [found == label for found, label in zip(model.predict(bags), y)]
    assert model.score(bags, y) == np.mean(right) > 0.9


@pytest.mark.parametrize(
    ("classes", "kind"),
    [((0, 1), "i"), ((True, False), "b"), ((2.5, 1.5), "f"), ((("t", 1), ("t", 2)), "O")],
)
def test_labels_of_any_kind_come_back_as_they_were(classes: Any, kind: str) -> None:
    bags, y, _ = cohort(classes=classes)
    found = small().fit(bags, y).predict(bags)
    assert found.dtype.kind == kind
    assert set(found.tolist()) <= set(classes)


def test_labels_may_be_an_array_or_a_tensor() -> None:
    bags, y, _ = cohort(classes=(0, 1))
    expected = small().fit(bags, y).predict_proba(bags)
    for given in (np.array(y, np.int8), torch.tensor(y)):
        np.testing.assert_array_equal(small().fit(bags, given).predict_proba(bags), expected)


# -- cross-validation ------------------------------------------------------------------------------


def test_out_of_fold_it_is_no_worse_than_logistic_regression_on_bag_means() -> None:
    bags, y, groups = cohort(48, shift=0.8)
    cv = StratifiedGroupKFold(3)
    floor = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    means = np.stack([bag.mean(axis=0) for bag in bags])
    given: dict[str, Any] = {"groups": groups, "cv": cv, "method": "predict_proba"}
    base = cross_val_predict(floor, means, y, **given)
    model = small(epochs=20, aggregator="mean", aggregator_params={"hidden": 16})
    found = cross_val_predict(model, bags, y, **given)
    truth = np.array(y) == "low"
    assert found.shape == base.shape == (48, 2)
    assert roc_auc_score(truth, base[:, 1]) > 0.7
    assert roc_auc_score(truth, found[:, 1]) >= roc_auc_score(truth, base[:, 1]) - 0.02


def test_groups_in_params_reach_the_inner_validation() -> None:
    bags, y, groups = cohort(40)
    # Without groups of its own, validation divides patients: the check below can fail.
    for params, whole in (({"groups": groups}, True), ({}, False)):
        found = cross_validate(
            small(),
            bags,
            y,
            groups=groups,
            cv=StratifiedGroupKFold(2),
            params=params,
            return_estimator=True,
            return_indices=True,
        )
        sides = []
        for model, train in zip(found["estimator"], found["indices"]["train"]):
            held_out = {groups[train[k]] for k in model.validation_}
            kept = {groups[k] for k in np.delete(train, model.validation_)}
            sides.append(not held_out & kept)
        assert all(sides) == whole


def test_metadata_routing_carries_groups_through_a_grid_search() -> None:
    bags, y, groups = cohort(40)
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(
            small().set_fit_request(groups=True),
            {"objective": ["ce", "ncmi"], "aggregator": ["mean"], "aggregator_params": [None]},
            cv=StratifiedGroupKFold(2),
        )
        search.fit(bags, y, groups=groups)
    assert set(search.cv_results_["param_objective"]) == {"ce", "ncmi"}
    inner = search.best_estimator_.validation_
    held_out, kept = ({groups[k] for k in rows} for rows in (inner, np.delete(range(40), inner)))
    assert held_out
    assert not held_out & kept
    assert search.predict_proba(bags).shape == (40, 2)


def test_a_pipeline_hands_groups_on_and_changes_bags_first() -> None:
    bags, y, groups = cohort()

    def doubled(given: list[np.ndarray]) -> list[np.ndarray]:
        return [2 * bag for bag in given]

    line = make_pipeline(FunctionTransformer(doubled), small(standardise=False))
    line.fit(bags, y, milclassifier__groups=groups)
    plain = small(standardise=False).fit(doubled(bags), y, groups)
    np.testing.assert_array_equal(line.predict_proba(bags), plain.predict_proba(doubled(bags)))
    assert not np.allclose(line.predict_proba(bags), plain.predict_proba(bags))


@pytest.mark.slow
def test_two_processes_give_what_one_gives() -> None:
    bags, y, groups = cohort()
    given: dict[str, Any] = {
        "groups": groups,
        "cv": StratifiedGroupKFold(3),
        "method": "predict_proba",
    }
    one = cross_val_predict(small(), bags, y, **given)
    two = cross_val_predict(small(), bags, y, n_jobs=2, **given)
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-6)


# -- validation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_whole_groups_are_held_out_by_class(share: float) -> None:
    bags, y, groups = cohort(80)
    model = small(validation=share).fit(bags, y, groups)
    held_out = set(model.validation_.tolist())
    patients = {groups[k] for k in held_out}
    assert held_out == {k for k, patient in enumerate(groups) if patient in patients}
    assert len(patients) == round(share * 40)
    assert max(Counter(y[k] for k in held_out).values()) <= share * 80 / 2 + 2
    assert len(model.history_) == 2
    assert all(row["monitor"] is not None for row in model.history_)


def test_without_validation_nothing_is_held_out_and_the_last_epoch_stands() -> None:
    bags, y, _ = cohort()
    model = small(validation=None).fit(bags, y)
    assert model.validation_ is None
    assert model.best_epoch_ == 1
    assert model.history_[-1]["monitor"] is None


def test_a_class_of_one_group_is_told_and_stays_in_training() -> None:
    bags, y, groups = cohort(20)
    y, groups = [*y[:-2], "rare", "rare"], [*groups[:-2], "r", "r"]
    with pytest.warns(UserWarning, match="no bag of class rare is held out"):
        model = small().fit(bags, y, groups)
    assert not {18, 19} & set(model.validation_.tolist())


@pytest.mark.parametrize(
    ("n", "message"), [(4, "none can be held out"), (12, "of class high only")]
)
def test_when_too_little_can_be_held_out_it_says_so(n: int, message: str) -> None:
    bags, y, groups = cohort(n)
    with pytest.raises(CohortError, match=f"{message}.*validation=None"):
        small().fit(bags, y, groups)


# -- bags ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "as_given",
    [
        lambda bags: tuple(bags),
        lambda bags: [bag.astype(np.float64) for bag in bags],
        lambda bags: [bag.astype(">f4") for bag in bags],
        lambda bags: [torch.from_numpy(bag) for bag in bags],
        lambda bags: [torch.from_numpy(bag).bfloat16() for bag in bags],
        lambda bags: [bag.astype(np.int64) for bag in bags],
        lambda bags: [bag.tolist() for bag in bags],
    ],
    ids=["tuple", "float64", "big-endian", "tensors", "bfloat16", "integers", "lists"],
)
def test_bags_may_be_of_any_number_type(as_given: Any) -> None:
    bags, y, _ = cohort()
    bags = [np.round(bag) for bag in bags]  # so that every type holds the same numbers
    expected = small().fit(bags, y).predict_proba(bags)
    np.testing.assert_array_equal(small().fit(as_given(bags), y).predict_proba(bags), expected)


def test_bags_may_be_an_array_of_objects_or_of_equal_bags() -> None:
    bags, y, _ = cohort()
    held = np.empty(len(bags), object)
    held[:] = bags
    cut = np.stack([np.resize(bag, (3, D)) for bag in bags])
    model = small().fit(held, y)
    np.testing.assert_array_equal(model.predict_proba(held), model.predict_proba(bags))
    np.testing.assert_array_equal(model.predict_proba(cut), model.predict_proba(list(cut)))


def test_a_bag_given_twice_stays_on_one_side() -> None:
    bags, y, _ = cohort()
    drawn = [0, 0, 0, *range(1, 24)]
    model = small().fit([bags[k] for k in drawn], [y[k] for k in drawn])
    assert len(model.predict([bags[0], bags[0]])) == 2


@pytest.mark.parametrize(
    ("bags", "error", "message"),
    [
        ([np.zeros((3, D)), np.zeros((0, D))], BagError, "bag 1: the bag has no tile"),
        ([np.zeros((3, D)), np.zeros(D)], BagError, r"bag 1: features of shape \(6,\)"),
        ([np.zeros((3, D)), np.zeros((3, D - 1))], BagMismatchError, "bag 1 has 5 features"),
        ([np.array([["a"] * D])] * 2, BagError, "bag 0: features of type"),
        ([], ConfigError, "no bag"),
        ("slides", ConfigError, "sequence of arrays"),
        (iter([]), ConfigError, "sequence of arrays"),
    ],
)
def test_what_is_no_bag_is_named(bags: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small(validation=None).fit(bags, ["a", "b"])


def test_bags_of_another_width_are_refused_in_prediction() -> None:
    bags, y, _ = cohort()
    with pytest.raises(BagMismatchError, match="bag 0 has 4 features per tile where 6 belong"):
        small().fit(bags, y).predict([np.zeros((2, 4))])


def test_a_tile_that_is_no_number_is_named() -> None:
    bags, y, _ = cohort()
    model = small().fit(bags, y)
    bags[3] = np.full((2, D), np.nan, np.float32)
    with pytest.raises(TrainingError, match="bag 3"):
        model.predict(bags)
    with pytest.raises(TrainingError, match="bag 3"):
        small(validation=None).fit(bags, y)


# -- labels and parameters that cannot be used -----------------------------------------------------


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["a"] * 24, "one class only"),
        (["a", "b"], "24 bags have 2 labels"),
        (["a", None] * 12, r"labels\[1\] is missing"),
        ([0.0, float("nan")] * 12, r"labels\[1\] is missing"),
        ([["a"], ["b"]] * 12, r"labels\[0\] is \['a'\]"),
        ([1, "1"] * 12, "read the same"),
    ],
)
def test_labels_that_cannot_be_used_are_named(y: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small().fit(cohort()[0], y)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"lr": 5}, ConfigError, "lr=5"),
        ({"epochs": "many", "patience": 0}, ConfigError, "epochs='many'.*patience=0"),
        ({"monitor": "accuracy"}, ConfigError, "monitor='accuracy'"),
        ({"validation": 1.5}, ConfigError, "validation=1.5"),
        ({"aggregator": "abmill"}, UnknownNameError, "did you mean 'abmil'"),
        ({"aggregator": {"name": "abmil"}}, ConfigError, "give its name as text"),
        ({"aggregator_params": {"hiden": 8}}, ConfigError, "did you mean 'hidden'"),
        ({"objective_params": [1]}, ConfigError, "give a dictionary"),
        ({"device": "gpu"}, ConfigError, "unknown device 'gpu'"),
    ],
)
def test_wrong_values_are_named_when_it_is_fitted(
    params: dict[str, Any], error: type[Exception], message: str
) -> None:
    bags, y, _ = cohort()
    with pytest.raises(error, match=message):
        MILClassifier(**params).fit(bags, y)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("epoch", "did you mean 'epochs'"),
        ("batch_size", "ours is bags_per_step"),
        ("aggregator__hidden", r"aggregator_params=\{'hidden'"),
    ],
)
def test_a_misspelt_parameter_is_suggested_at_once(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MILClassifier(**{name: 1})
    with pytest.raises(ConfigError, match=message):
        MILClassifier().set_params(**{name: 1})


@pytest.mark.parametrize("use", ["predict", "predict_proba", "embed", "attention"])
def test_before_a_fit_nothing_is_predicted(use: str) -> None:
    with pytest.raises(NotFittedError):
        getattr(small(), use)(cohort()[0])


# -- what a model tells ----------------------------------------------------------------------------


def test_embeddings_of_mean_pooling_are_those_of_numpy() -> None:
    bags, y, _ = cohort()
    model = small(aggregator="mean", aggregator_params={"hidden": 8}).fit(bags, y)
    state = {k: v.double().numpy() for k, v in model.model_.state_dict().items()}
    expected = []
    for bag in bags:
        x = (bag - state["feature_mean"]) / state["feature_scale"]
        h = x @ state["aggregator.embed.0.weight"].T + state["aggregator.embed.0.bias"]
        expected.append(np.maximum(h, 0).mean(axis=0))
    np.testing.assert_allclose(model.embed(bags), expected, rtol=0, atol=1e-5)


def test_attention_is_one_column_of_shares_per_head() -> None:
    bags, y, _ = cohort()
    found = small().fit(bags, y).attention(bags)
    assert [a.shape for a in found] == [(len(bag), 1) for bag in bags]
    np.testing.assert_allclose([a.sum() for a in found], 1, atol=1e-5)
    model = small(aggregator="max", aggregator_params=None).fit(bags, y)
    with pytest.raises(ConfigError, match="no attention"):
        model.attention(bags)


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [("low", "high"), (7, 3), (True, False)])
def test_a_saved_classifier_is_the_same_again(classes: Any, tmp_path: Any) -> None:
    bags, y, groups = cohort(classes=classes)
    model = small(objective="ncmi", random_state=np.random.RandomState(5)).fit(bags, y, groups)
    model.save(tmp_path / "model.safetensors")
    again = MILClassifier.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.predict_proba(bags), model.predict_proba(bags))
    assert again.predict(bags).tolist() == model.predict(bags).tolist()
    assert again.classes_.dtype == model.classes_.dtype
    kept = again.get_params() | {"random_state": None}
    assert kept == model.get_params() | {"random_state": None}
    # Trained again, it is the same, though its seed was drawn.
    np.testing.assert_array_equal(
        clone(again).fit(bags, y, groups).predict_proba(bags), model.predict_proba(bags)
    )
    plain, _ = load(tmp_path / "model.safetensors")
    assert plain.card.classes == tuple(str(label) for label in model.classes_.tolist())


def test_labels_without_a_text_of_their_own_are_not_saved(tmp_path: Any) -> None:
    bags, y, _ = cohort(classes=(("t", 1), ("t", 2)))
    with pytest.raises(ConfigError, match="keeps text and numbers"):
        small().fit(bags, y).save(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_name_costs_no_heavy_library() -> None:
    code = (
        "import sys, wsi; assert 'MILClassifier' in dir(wsi); "
        "print({'torch', 'sklearn', 'pandas', 'h5py'} & set(sys.modules)); "
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_objects_with_features_are_bags() -> None:
    bags, y, _ = cohort()

    class Held:
        tissue = quality = None

        def __init__(self, features: np.ndarray) -> None:
            self.features = features
            self.xy0 = np.zeros((len(features), 2), np.int32)

    held = [Held(bag) for bag in bags]
    np.testing.assert_array_equal(
        small().fit(held, y).predict_proba(held), small().fit(bags, y).predict_proba(bags)
    )
