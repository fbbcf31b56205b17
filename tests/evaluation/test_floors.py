"""Floors against scikit-learn and figures by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wsi.bags import BagMeans
from wsi.errors import PredictionsError
from wsi.evaluation import Predictions, compare
from wsi.evaluation.floor_scores import conclusion, score_floors
from wsi.evaluation.floors import FLOORS, FloorData, floor_probabilities, unseen_sites
from wsi.evaluation.logistic import FIXED, STRENGTHS, Rows, logistic_probabilities
from wsi.evaluation.site_signal import site_from_features
from wsi.specs import EvaluateSpec
from wsi.splits import Fold

FEW = EvaluateSpec(replicates=200)
CLASSES = ("a", "b", "c")


class Toy:
    """n slides of one patient each, with three sites, five folds, and no signal at all."""

    def __init__(self, n: int = 150, D: int = 6, draw: int = 0, C: int = 3) -> None:
        self.rng, self.C = np.random.default_rng(draw), C
        self.ids = [f"s{k:03}" for k in range(n)]
        self.y = self.rng.integers(0, C, n)
        self.tiles = self.rng.integers(50, 500, n)
        self.x = self.rng.standard_normal((n, D))
        self.sites = self.rng.choice(["x", "y", "z"], n)

    @property
    def data(self) -> FloorData:
        sites = dict(zip(self.ids, map(str, self.sites)))
        return FloorData(BagMeans(tuple(self.ids), self.tiles, self.x), sites)

    @property
    def labels(self) -> dict[str, int]:
        return dict(zip(self.ids, self.y.tolist()))

    def folds(self, part: Sequence[Any] | None = None) -> list[Fold]:
        """Return one fold per value of `part`, a sixth of the others for validation."""
        values = np.arange(len(self.ids)) % 5 if part is None else np.asarray(part)
        made = []
        for k, value in enumerate(sorted(set(values.tolist()))):
            test = [s for s, v in zip(self.ids, values) if v == value]
            rest = [s for s in self.ids if s not in set(test)]
            made.append(Fold(k, str(k), tuple(rest[20:]), tuple(rest[:20]), tuple(test)))
        return made

    def table(self, name: str, folds: Sequence[Fold] | None = None) -> Predictions:
        """Return the labelled predictions of a floor."""
        tables = []
        for fold in folds or self.folds():
            p = floor_probabilities(name, self.data, fold, self.labels, self.C)
            columns = [f"p_{c}" for c in CLASSES[: self.C]]
            tables.append(pd.DataFrame(p, columns=columns).assign(slide_id=fold.test))
            tables[-1]["fold"] = fold.index
        table = pd.concat(tables, ignore_index=True)
        labels = self.labels
        table["patient_id"] = table["slide_id"].str.replace("s", "p")
        table["y_true"] = [CLASSES[labels[s]] for s in table["slide_id"]]
        return Predictions(CLASSES[: self.C], table)

    def auc(self, name: str, folds: Sequence[Fold] | None = None) -> float:
        """Return the mean over folds of scikit-learn's one-vs-rest AUC."""
        table = self.table(name, folds).table
        found = []
        for _, rows in table.groupby("fold"):
            p = rows[[f"p_{c}" for c in CLASSES[: self.C]]].to_numpy()
            if self.C == 2:
                found.append(roc_auc_score(rows["y_true"] == "b", p[:, 1]))
            else:
                found.append(roc_auc_score(rows["y_true"], p, multi_class="ovr"))
        return float(np.mean(found))


def test_majority_is_scikit_learns_dummy() -> None:
    toy = Toy()
    toy.y[toy.rng.random(150) < 0.4] = 1
    expected: dict[str, np.ndarray] = {}
    for fold in toy.folds():
        train = [toy.labels[s] for s in fold.train]
        dummy = DummyClassifier(strategy="prior").fit(np.zeros((len(train), 1)), train)
        p = floor_probabilities("majority", toy.data, fold, toy.labels, 3)
        assert np.allclose(p, dummy.predict_proba(np.zeros((len(fold.test), 1))), atol=1e-15)
        expected |= dict(zip(fold.test, dummy.predict(np.zeros((len(fold.test), 1)))))
    scores = score_floors(toy.table("mean-features"), {"majority": toy.table("majority")}, FEW)
    decided = [expected[s] for s in toy.ids]
    f1 = f1_score(toy.y, decided, average="macro", zero_division=0.0)
    assert scores["majority"]["macro_f1"]["value"] == pytest.approx(f1, abs=1e-12)
    assert scores["majority"]["auc"]["value"] == 0.5


def test_site_frequencies_are_those_counted_by_hand() -> None:
    sites = {"1": "x", "2": "x", "3": "x", "4": "x", "5": "y", "6": "", "7": "y", "8": ""}
    labels = {"1": 0, "2": 0, "3": 0, "4": 1, "5": 1, "6": 1, "7": 1, "8": 0}
    tested = {"t": "x", "u": "new", "v": "", "w": "y"}
    nothing = BagMeans((), np.zeros(0, int), np.zeros((0, 1)))
    fold = Fold(0, "0", tuple(sites), (), tuple(tested))
    p = floor_probabilities("site", FloorData(nothing, sites | tested), fold, labels, 2)
    # Half of all training slides are of each class; each site counts one more slide of those.
    assert np.allclose(p, [[3.5 / 5, 1.5 / 5], [0.5, 0.5], [0.5, 0.5], [0.5 / 3, 2.5 / 3]])
    assert unseen_sites(FloorData(nothing, sites | tested), fold) == {"new"}


@pytest.mark.parametrize(("n", "D", "telling"), [(60, 5, 1), (40, 70, 35)])
@pytest.mark.parametrize("balanced", [False, True])
def test_regression_is_scikit_learns_on_standardised_features(
    n: int, D: int, telling: int, balanced: bool
) -> None:
    rng = np.random.default_rng(D)
    x, y = rng.normal(3, 5, (n + 30, D)), rng.integers(0, 3, n + 30)
    x[:, :telling] += 8 / np.sqrt(telling) * 2 * y[:, None]
    train, val, test = slice(0, n), slice(n, n + 20), slice(n + 20, None)

    def peer(strength: float) -> Any:
        weight = "balanced" if balanced else None
        regression = LogisticRegression(
            C=strength / D, class_weight=weight, max_iter=5000, tol=1e-8
        )
        return make_pipeline(StandardScaler(), regression).fit(x[train], y[train])

    losses = [log_loss(y[val], peer(s).predict_proba(x[val]), labels=[0, 1, 2]) for s in STRENGTHS]
    chosen = STRENGTHS[int(np.argmin(losses))]
    assert chosen not in (STRENGTHS[0], FIXED)  # or the test would not tell whether it chose
    rows, held_out, none = Rows(x[train], y[train]), Rows(x[val], y[val]), Rows(x[:0], y[:0])
    p = logistic_probabilities(rows, held_out, x[test], 3, balanced=balanced)
    assert np.allclose(p, peer(chosen).predict_proba(x[test]), atol=2e-3)
    p = logistic_probabilities(rows, none, x[test], 3, balanced=balanced)
    assert np.allclose(p, peer(FIXED).predict_proba(x[test]), atol=2e-3)


def test_classes_and_features_that_do_not_vary_in_training_are_no_trouble() -> None:
    x = np.stack([np.ones(10), np.arange(10.0)], axis=1)
    none = Rows(x[:0], np.zeros(0, int))
    p = logistic_probabilities(Rows(x, np.arange(10) % 2 * 2), none, x, 3)
    assert np.isfinite(p).all()
    assert (p[:, 1] == 0).all()
    assert (logistic_probabilities(Rows(x, np.ones(10, int)), none, x, 3) == [0, 1, 0]).all()


@pytest.mark.parametrize("shape", ["monotone", "both ends"])
def test_only_the_tile_count_floor_sees_what_tile_counts_tell(shape: str) -> None:
    toy = Toy(C=2)
    rank = np.argsort(np.argsort(toy.tiles, kind="stable"))
    toy.y = (rank >= 75).astype(int) if shape == "monotone" else (abs(rank - 75) > 40).astype(int)
    assert toy.auc("tile-count") > 0.97
    assert 0.35 < toy.auc("mean-features") < 0.65
    assert 0.35 < toy.auc("site") < 0.65


def test_only_the_floor_of_mean_features_sees_what_they_tell() -> None:
    toy = Toy()
    toy.x[np.arange(150), toy.y] += 4
    assert toy.auc("mean-features") > 0.95
    assert 0.4 < toy.auc("tile-count") < 0.6
    assert 0.4 < toy.auc("site") < 0.6


def test_sites_tell_confounded_classes_unless_they_are_left_out() -> None:
    toy = Toy()
    toy.sites = np.array(["x", "y", "z"])[toy.y]
    swap = toy.rng.random(150) < 0.15
    toy.sites[swap] = toy.rng.choice(["x", "y", "z"], int(swap.sum()))
    assert toy.auc("site") > 0.85
    by_site = toy.folds(toy.sites)
    assert toy.auc("site", by_site) == 0.5
    left_out = toy.table("site", by_site).p
    assert np.allclose(left_out, toy.table("majority", by_site).p, atol=1e-15)
    assert [unseen_sites(toy.data, fold) for fold in by_site] == [{"x"}, {"y"}, {"z"}]


@pytest.mark.parametrize("name", FLOORS)
def test_test_labels_tell_floors_nothing(name: str) -> None:
    toy = Toy()
    toy.x[np.arange(150), toy.y] += 2
    fold = toy.folds()[0]
    made = floor_probabilities(name, toy.data, fold, toy.labels, 3)
    without = {s: y for s, y in toy.labels.items() if s not in fold.test}
    other = toy.labels | {s: (toy.labels[s] + 1) % 3 for s in fold.test}
    for labels in (without, other):
        assert (floor_probabilities(name, toy.data, fold, labels, 3) == made).all()
    trained = toy.labels | {s: (toy.labels[s] + 1) % 3 for s in fold.train[:60]}
    assert (floor_probabilities(name, toy.data, fold, trained, 3) != made).any()


def signal(shift: float, n: int = 240, **changed: Mapping[str, str]) -> dict[str, Any]:
    toy = Toy(n=n, D=12, draw=4)
    toy.x[:, 0] += shift * (toy.sites == "x")
    toy.x[:, 1] += shift * (toy.sites == "y")
    patients = {s: f"p{k // 2}" for k, s in enumerate(toy.ids)}
    sites = changed.get("sites", toy.data.sites)
    return site_from_features(toy.data.means, sites, changed.get("patients", patients), FEW)


def test_features_of_noise_do_not_tell_the_site() -> None:
    found = signal(0.0)
    assert (found["n"], found["n_patients"], found["n_sites"], found["folds"]) == (240, 120, 3, 5)
    for name, chance in (("balanced_accuracy", 1 / 3), ("auc", 0.5)):
        assert found[name]["chance"] == chance
        assert found[name]["value"] == pytest.approx(chance, abs=0.1)
        assert found[name]["low"] < chance < found[name]["high"]


def test_features_that_are_shifted_at_a_site_tell_it() -> None:
    found = signal(30.0)
    assert found["balanced_accuracy"]["value"] == 1.0
    assert found["auc"]["value"] == 1.0


def test_slides_of_a_patient_do_not_tell_each_others_site() -> None:
    """Features that know the patient and nothing else are worth nothing: patients are grouped."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(30), 8)
    site = np.array(["x", "y"])[rng.permutation(np.arange(30) % 2)][owner]
    ids = tuple(f"s{k}" for k in range(240))
    x = rng.standard_normal((30, 40))[owner] + 0.01 * rng.standard_normal((240, 40))
    means = BagMeans(ids, np.ones(240, int), x)
    patients = dict(zip(ids, map(str, owner)))
    found = site_from_features(means, dict(zip(ids, map(str, site))), patients, FEW)
    assert found["balanced_accuracy"]["value"] < 0.75


def test_sites_that_cannot_be_told_are_left_out_and_said() -> None:
    toy = Toy(n=240, D=12, draw=3)
    sites = dict(toy.data.sites) | {toy.ids[0]: "", toy.ids[1]: "lone"}
    found = signal(30.0, sites=sites)
    assert (found["n"], found["n_sites"]) == (238, 3)
    assert found["note"] == "1 slides have no site; sites of one patient are left out: lone"
    alone = signal(30.0, sites=dict.fromkeys(toy.ids, "x"))
    assert alone["balanced_accuracy"] is None
    assert alone["auc"] is None
    assert alone["note"] == "fewer than two sites have 2 patients or more"


Maker = Callable[..., Predictions]


def test_differences_are_those_of_a_comparison(toy: Maker) -> None:
    run, floor = toy(skill=2.0), toy(skill=0.5, seeds=1)
    found = score_floors(run, {"weak": floor}, FEW, {"weak": "made up"})["weak"]
    assert found["note"] == "made up"
    for metric in ("macro_f1", "auc", "micro_f1", "balanced_accuracy"):
        (expected,) = compare([("floor", floor), ("run", run)], metric, FEW)["differences"]
        for key in ("value", "low", "high"):
            assert found[metric]["run_minus_floor"][key] == pytest.approx(expected[key], abs=1e-12)


def test_the_conclusion_names_the_floors_that_a_run_does_not_beat(toy: Maker) -> None:
    run, weak, alike = toy(skill=2.0), toy(skill=0.0), toy(skill=2.0, seeds=1)
    told = conclusion(score_floors(run, {"weak": weak}, FEW))
    assert told.startswith("above every floor in macro-F1 and AUC")
    told = conclusion(score_floors(run, {"weak": weak, "alike": alike}, FEW))
    assert told.startswith("not shown to be above these floors: alike in macro-F1; alike in AUC")


def test_a_floor_of_other_slides_is_refused(toy: Maker) -> None:
    run = toy(skill=2.0)
    other = replace(run, table=run.table[run.table["slide_id"] != "s0001"])
    with pytest.raises(PredictionsError, match=r"floor other.*s0001"):
        score_floors(run, {"other": other}, FEW)
