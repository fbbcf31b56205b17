"""A cohort of slides as one of patients."""

from __future__ import annotations

from typing import Any

import pytest

from wsi.cohorts import Cohort, SlideRow, patients_of, slides_of_patients
from wsi.cohorts.patients import several_sites
from wsi.errors import CohortError


def cohort(*rows: tuple[Any, ...]) -> Cohort:
    names = ("slide_id", "patient_id", "label", "site", "split")
    return Cohort("c", ("a", "b"), tuple(SlideRow(**dict(zip(names, row))) for row in rows))


def test_a_row_is_a_patient_under_its_own_id() -> None:
    given = cohort(
        ("s2", "p", "a", "x"), ("s1", "p", "a", "y"), ("s3", "p", "a", "y"), ("p", "q", "b")
    )
    found = patients_of(given)
    assert [(r.slide_id, r.patient_id, r.label, r.site) for r in found.rows] == [
        ("p", "p", "a", "y"),
        ("q", "q", "b", None),
    ]
    assert found.classes == ("a", "b")
    assert slides_of_patients(given) == {"p": ("s1", "s2", "s3"), "q": ("p",)}
    assert several_sites(given) == ["p"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("s1", "p", "a"), ("s2", "p", "b"), ("s3", "q", "b")],
            r"1 patients have different labels: p \(a, b\).*data.label",
        ),
        (
            [("s1", "p", "a", None, "train"), ("s2", "p", "a", None, "val")],
            r"different official parts: p \(train, val\)",
        ),
    ],
)
def test_patients_of_two_minds_are_named(rows: list[Any], message: str) -> None:
    with pytest.raises(CohortError, match=message):
        patients_of(cohort(*rows))
