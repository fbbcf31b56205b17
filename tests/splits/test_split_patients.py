"""Splits of slides as splits of patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi.cohorts import Cohort, SlideRow, patients_of
from wsi.errors import LeakageError
from wsi.specs import SplitSpec
from wsi.splits import by_patient, make_splits, names_patients, read_splits, write_splits


@pytest.fixture
def slides() -> Cohort:
    rng = np.random.default_rng(0)
    rows = [
        SlideRow(f"s{k}-{s}", f"p{k}", label="ab"[k % 2])
        for k in range(24)
        for s in range(rng.integers(1, 4))
    ]
    return Cohort("c", ("a", "b"), tuple(rows))


def test_patients_stand_where_their_slides_do(slides: Cohort) -> None:
    of_slides = make_splits(slides, SplitSpec(folds=3, seed=4))
    found = by_patient(of_slides, patients_of(slides))
    owner = {row.slide_id: row.patient_id for row in slides.rows}
    for one, other in zip(of_slides.folds, found.folds, strict=True):
        for part, ids in one.parts().items():
            assert list(other.parts()[part]) == sorted({owner[s] for s in ids})
    assert {patient for _, patient, _, _ in found.rows()} == set(owner.values())


def test_a_patient_in_two_parts_is_named(slides: Cohort) -> None:
    spec = SplitSpec.model_validate({"folds": 3, "val": {"by": "slide"}})
    with pytest.raises(LeakageError, match=r"in two parts: p.*data\.bag=slide"):
        by_patient(make_splits(slides, spec), patients_of(slides))


def test_a_table_tells_what_it_divides(slides: Cohort, tmp_path: Path) -> None:
    of_slides = make_splits(slides, SplitSpec(folds=3))
    patients = patients_of(slides)
    found = by_patient(of_slides, patients)
    write_splits(of_slides, tmp_path / "slides.csv")
    write_splits(found, tmp_path / "patients.csv")
    assert not names_patients(tmp_path / "slides.csv")
    assert names_patients(tmp_path / "patients.csv")
    assert read_splits(tmp_path / "patients.csv", patients).folds == found.folds
    (tmp_path / "bare.csv").write_text("slide_id,fold,part\ns0-0,0,train\n")
    assert not names_patients(tmp_path / "bare.csv")
