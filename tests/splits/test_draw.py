from __future__ import annotations

import itertools
import random
import statistics
from collections import Counter, defaultdict

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wsi.cohorts import Cohort, SlideRow
from wsi.errors import CohortError, ConfigError, LeakageError
from wsi.specs import SplitSpec
from wsi.splits import Splits, make_splits

CLASSES = ("neg", "itc", "micro", "macro")


def cohort_of(rows, classes=CLASSES) -> Cohort:
    return Cohort("toy", tuple(classes), tuple(rows))


def node_cohort(patients: int = 50, nodes: int = 4, sites: int = 5, seed: int = 0) -> Cohort:
    """Slides of several labels per patient, classes as uneven as in lymph nodes."""
    draw = random.Random(seed)
    return cohort_of(
        SlideRow(
            f"p{p:02}_n{n}",
            f"p{p:02}",
            label=draw.choices(CLASSES, [64, 8, 12, 16])[0],
            site=f"c{p % sites}",
        )
        for p in range(patients)
        for n in range(nodes)
    )


def spec(**values) -> SplitSpec:
    return SplitSpec.model_validate(values)


def check_parts(splits: Splits, cohort: Cohort, leaking: bool = False) -> None:
    """Every slide in one part of each fold, and no patient in two."""
    patient = {row.slide_id: row.patient_id for row in cohort.rows}
    for fold in splits.folds:
        slides = [*fold.train, *fold.val, *fold.test]
        assert sorted(slides) == sorted(patient)
        train, val, test = ({patient[s] for s in ids} for ids in (fold.train, fold.val, fold.test))
        assert not train & test
        assert not val & test
        assert leaking or not train & val


cohorts = st.builds(
    lambda sizes, labels, sites: cohort_of(
        (
            SlideRow(f"s{p}-{n}", f"p{p}", label=next(labels), site=f"c{p % sites}")
            for p, size in enumerate(sizes)
            for n in range(size)
        ),
        classes=("a", "b", "c"),
    ),
    st.lists(st.integers(1, 6), min_size=6, max_size=30),
    st.lists(st.sampled_from("aaabbc"), min_size=1, max_size=40).map(itertools.cycle),
    st.integers(2, 4),
)


@settings(max_examples=150, deadline=None)
@given(
    cohorts,
    st.sampled_from(["kfold", "leave-one-site-out", "sites"]),
    st.sampled_from(["patient", "site", "slide"]),
    st.integers(2, 6),
    st.integers(0, 5),
    st.floats(0.05, 0.6),
)
def test_no_patient_is_in_two_parts_whatever_the_cohort(cohort, kind, by, folds, seed, fraction):
    wanted = spec(
        kind=kind,
        folds=folds,
        seed=seed,
        test=["c0"] if kind == "sites" else [],
        val={"by": by, "fraction": fraction},
    )
    try:
        splits = make_splits(cohort, wanted)
    except LeakageError:
        raise
    except CohortError:
        # A class that lives in one patient, or too few patients: refused, never drawn wrongly.
        assume(False)
        return
    check_parts(splits, cohort, leaking=by == "slide")
    times = Counter(slide for fold in splits.folds for slide in fold.test)
    if kind == "sites":
        assert set(times) == {row.slide_id for row in cohort.rows if row.site == "c0"}
    else:
        assert times == Counter(row.slide_id for row in cohort.rows)


def spread(cohort: Cohort, tests) -> float:
    """Return the mean over classes of the standard deviation of a class's share over test parts."""
    label = {row.slide_id: row.label for row in cohort.rows}
    total = Counter(label.values())
    counts = [Counter(label[s] for s in test) for test in tests]
    return statistics.mean(statistics.pstdev(k[c] / total[c] for k in counts) for c in CLASSES)


@pytest.mark.parametrize("seed", range(4))
def test_folds_are_as_balanced_as_the_best_of_many_random_groupings(seed):
    cohort = node_cohort(seed=seed)
    drawn = make_splits(cohort, spec(seed=seed))
    ours = spread(cohort, [fold.test for fold in drawn.folds])
    by_patient = defaultdict(list)
    for row in cohort.rows:
        by_patient[row.patient_id].append(row.slide_id)
    draw, patients = random.Random(seed), sorted(by_patient)
    others = []
    for _ in range(500):
        draw.shuffle(patients)
        groups = [patients[k::5] for k in range(5)]
        others.append(spread(cohort, [[s for p in g for s in by_patient[p]] for g in groups]))
    assert ours <= sorted(others)[10]


def test_a_draw_depends_on_the_seed_and_not_on_the_order_of_rows():
    cohort = node_cohort()
    shuffled = list(cohort.rows)
    random.Random(3).shuffle(shuffled)
    for by in ("patient", "site", "slide"):
        one = make_splits(cohort, spec(seed=1, val={"by": by}))
        assert make_splits(cohort_of(shuffled), spec(seed=1, val={"by": by})).folds == one.folds
        assert make_splits(cohort, spec(seed=2, val={"by": by})).folds != one.folds


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.37, 0.5])
def test_validation_is_the_asked_share_of_training_patients_with_every_class(fraction):
    cohort = node_cohort(patients=100)
    label = {row.slide_id: row.label for row in cohort.rows}
    for fold in make_splits(cohort, spec(val={"fraction": fraction})).folds:
        val, train = ({s.split("_")[0] for s in ids} for ids in (fold.val, fold.train))
        assert len(val) == round(fraction * (len(val) + len(train)))
        assert {label[s] for s in fold.val} == set(CLASSES)


def test_validation_never_takes_the_only_training_patient_of_a_class():
    rows = [SlideRow(f"s{k}", f"p{k}", label="a", split="train") for k in range(4)]
    rows += [SlideRow(f"s{k}", f"p{k}", label="b", split="train") for k in range(4, 6)]
    rows += [SlideRow("t", "pt", label="a", split="test")]
    for seed in range(20):
        wanted = spec(kind="official", seed=seed, val={"fraction": 0.9})
        (fold,) = make_splits(cohort_of(rows, ("a", "b")), wanted).folds
        assert set(fold.train) & {"s4", "s5"}


def test_validation_by_site_is_one_whole_training_site_and_rotates():
    cohort = node_cohort()
    site = {row.slide_id: row.site for row in cohort.rows}
    splits = make_splits(cohort, spec(kind="leave-one-site-out", val={"by": "site"}))
    assert [fold.name for fold in splits.folds] == ["c0", "c1", "c2", "c3", "c4"]
    held = []
    for fold in splits.folds:
        assert {site[s] for s in fold.test} == {fold.name}
        (val_site,) = {site[s] for s in fold.val}
        assert sorted(fold.val) == sorted(s for s in site if site[s] == val_site)
        held.append(val_site)
    assert sorted(held) == ["c0", "c1", "c2", "c3", "c4"]


def test_validation_by_slide_is_recorded_as_leaking():
    splits = make_splits(node_cohort(), spec(val={"by": "slide"}))
    assert splits.settings["leaking"] is True
    rules = [(f.severity, f.rule) for f in splits.warnings()]
    assert rules.count(("warning", "leaking-validation")) == 5
    assert make_splits(node_cohort(), spec()).settings["leaking"] is False


def official(*rows: str) -> Cohort:
    parsed = [row.split() for row in rows]
    return cohort_of((SlideRow(s, p, label=c, split=part) for s, p, c, part in parsed), ("a", "b"))


BASE = (
    "s1 p1 a train",
    "s2 p2 b train",
    "s3 p3 a val",
    "s4 p4 b val",
    "s5 p5 a test",
    "s6 p6 b test",
)


def test_official_parts_are_kept():
    splits = make_splits(official(*BASE), spec(kind="official"))
    (fold,) = splits.folds
    assert fold.parts() == {"train": ("s1", "s2"), "val": ("s3", "s4"), "test": ("s5", "s6")}
    assert splits.settings["val"] == "official"
    assert splits.warnings() == []


def test_an_official_train_val_flaw_is_a_warning_with_the_patient():
    splits = make_splits(official(*BASE, "s7 p1 a val"), spec(kind="official"))
    (found,) = splits.warnings()
    assert (found.severity, found.rule, found.ids) == ("warning", "leaking-validation", ("p1",))


@pytest.mark.parametrize("flaw", ["s7 p1 a test", "s7 p3 a test"])
def test_an_official_split_that_leaks_into_test_is_refused(flaw):
    with pytest.raises(LeakageError, match=r"1 patients are in (train|val) and test: p"):
        make_splits(official(*BASE, flaw), spec(kind="official"))


def test_a_class_absent_from_val_or_test_is_a_warning_and_from_train_an_error():
    splits = make_splits(official(*BASE[:5]), spec(kind="official"))
    assert [(f.rule, f.ids) for f in splits.warnings()] == [("absent-class", ("b",))]
    assert "in test" in splits.warnings()[0].message
    with pytest.raises(CohortError, match="no slide of b in train"):
        make_splits(official(BASE[0], *BASE[2:]), spec(kind="official"))


def test_a_declared_class_without_slides_is_an_error():
    cohort = node_cohort()
    with pytest.raises(CohortError, match="no slide of giant in train"):
        make_splits(Cohort("c", (*CLASSES, "giant"), cohort.rows), spec())


def test_a_rare_class_is_told_and_no_warning_of_scikit_learn_escapes():
    rows = [SlideRow(f"s{k}", f"p{k}", label="ab"[k % 2]) for k in range(60)]
    rows += [SlideRow(f"r{k}", f"q{k}", label="rare") for k in range(3)]
    splits = make_splits(cohort_of(rows, ("a", "b", "rare")), spec(folds=5))
    absent = [f for f in splits.warnings() if f.rule == "absent-class" and "in test" in f.message]
    without = [fold for fold in splits.folds if not any(s.startswith("r") for s in fold.test)]
    assert len(absent) == len(without) == 2


@pytest.mark.parametrize(
    ("values", "error", "complaint"),
    [
        ({"kind": "sites", "test": ["c9"]}, ConfigError, "unknown sites: c9 .*has: c0, c1"),
        ({"folds": 60}, CohortError, "50 patients cannot fill 60 folds"),
        ({"kind": "official"}, CohortError, "200 slides have no official part: p00_n0"),
    ],
)
def test_impossible_splits_say_why(values, error, complaint):
    with pytest.raises(error, match=complaint):
        make_splits(node_cohort(), spec(**values))


def test_a_patient_of_two_sites_cannot_be_left_out_by_site():
    rows = [*node_cohort().rows, SlideRow("x", "p00", label="neg", site="c1")]
    with pytest.raises(LeakageError, match="patients are in train and test: p00"):
        make_splits(cohort_of(rows), spec(kind="leave-one-site-out"))


def test_a_missing_site_is_named():
    rows = [*node_cohort().rows, SlideRow("x", "q", label="neg")]
    with pytest.raises(CohortError, match="1 slides have no site: x"):
        make_splits(cohort_of(rows), spec(kind="leave-one-site-out"))


def test_one_training_site_cannot_also_validate():
    with pytest.raises(CohortError, match=r"one training site only \(c1\)"):
        make_splits(node_cohort(sites=2), spec(kind="leave-one-site-out", val={"by": "site"}))
