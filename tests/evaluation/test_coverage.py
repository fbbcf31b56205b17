"""Intervals hold the truth, and tests tell equal models apart, as often as they say."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.coverage.__main__ import main
from benchmarks.coverage.cohorts import BRACS_TEST, DESIGNS, Design, drawn, truth
from benchmarks.coverage.trials import (
    PAIRED,
    covered,
    differences_of,
    false_positives,
    intervals_of,
    many,
)

COHORTS = 1000


def test_the_truth_of_the_process_is_its_closed_form():
    """Of two classes a difference of scores is normal: area Phi(skill / sqrt(1 + .7^2))."""
    design = Design("two", 10, (0.5, 0.5), skill=1.0, sites=1)
    expected = norm.cdf(1.0 / np.sqrt(1 + 0.7**2))
    found = truth(design, patients=60_000)
    assert found["auc"] == pytest.approx(expected, abs=0.005)
    # A class is called where its score is the larger one, with as many errors on either side.
    accuracy = norm.cdf(1.0 / np.sqrt(2 * (1 + 0.7**2)))
    assert found["macro_f1"] == pytest.approx(accuracy, abs=0.005)


def test_slides_of_a_patient_are_alike_and_sites_keep_their_shares():
    design = Design("100", 100)
    cohort = drawn(design, np.random.default_rng(0), patients=20_000)
    noise = cohort.scores[0][np.arange(len(cohort.y)), (cohort.y + 1) % 3]  # never the true class
    first, second = (np.flatnonzero(np.diff(cohort.patient) == 0) + k for k in (0, 1))
    assert np.corrcoef(noise[first], noise[second])[0, 1] > 0.1
    assert (cohort.y[first] == cohort.y[second]).mean() > 0.5
    sites = np.bincount(cohort.site[np.unique(cohort.patient, return_index=True)[1]])
    assert sites / 20_000 == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=1e-3)


def test_bracs_cohorts_have_the_slides_of_its_official_test_part():
    assert (len(BRACS_TEST), sum(BRACS_TEST)) == (31, 87)
    (design,) = [d for d in DESIGNS if d.name == "BRACS test, 7 classes"]
    cohort = drawn(design, np.random.default_rng(1))
    assert sorted(np.bincount(cohort.patient)) == sorted(BRACS_TEST)


def test_the_page_is_written_from_what_was_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--cohorts", "3", "--replicates", "100", "--jobs", "1", "--only", "40"]
    out, page = tmp_path / "results.json", tmp_path / "page.md"
    known = lambda design: {"macro_f1": 0.7, "auc": 0.9}  # noqa: E731
    monkeypatch.setattr("benchmarks.coverage.__main__.truth", known)
    monkeypatch.setattr(sys, "argv", ["benchmarks.coverage", *words, "--out", str(out)])
    main()
    printed = capsys.readouterr().out
    monkeypatch.setattr(
        sys, "argv", ["benchmarks.coverage", "--out", str(out), "--page", str(page)]
    )
    main()
    rows = [line for line in printed.splitlines() if line.startswith("| 40 patients")]
    assert len(rows) == 2 + 6
    assert set(rows) <= set(page.read_text(encoding="utf-8").splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.name)
def test_95_percent_intervals_cover_the_truth_as_often_as_they_say(design: Design) -> None:
    records = many(intervals_of, design, COHORTS, replicates=600, jobs=2)
    for metric, found in covered(records, truth(design)).items():
        n = found.cohorts - found.lacking
        share = 1 - (found.below + found.above - found.lacking_missed) / n
        print(f"{design.name}, {metric}: {share:.1%} of {n} cohorts that have every class")
        assert found.without == 0
        if design.patients >= 100:
            assert 0.93 <= share <= 0.97
        else:
            # At least 93 %, but for what chance does to 1,000 cohorts.
            assert share + 1.64 * (0.93 * 0.07 / n) ** 0.5 >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("design", PAIRED, ids=lambda design: design.name)
def test_equal_models_are_told_apart_about_5_times_in_100(design: Design) -> None:
    found = false_positives(many(differences_of, design, COHORTS, replicates=400, jobs=2))
    for metric, tests in found.items():
        for test, (hits, n) in tests.items():
            print(f"{design.name}, {metric}, {test}: {hits / n:.1%} of {n}")
            assert n == COHORTS
            if test != "mcnemar":  # it takes the slides of a patient for independent
                assert 0.02 <= hits / n <= 0.08
