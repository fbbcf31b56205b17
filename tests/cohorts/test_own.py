"""Tissue settings of single slides and of sites, in the slide table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wsi.cohorts import read_cohort, read_slide_table
from wsi.errors import CohortError

Write = Callable[[str], Path]


@pytest.fixture
def table(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "slides.csv"
        path.write_text(text)
        return path

    return write


def test_a_slide_row_is_stronger_than_its_site(table: Write) -> None:
    path = table(
        "slide_id,path,site,tissue.min_area_mm2,tissue.pen\n"
        "a1,a1.svs,a,,\n"
        "a2,a2.svs,a,0.5,\n"
        "b1,b1.svs,b,,true\n"
        "c1,c1.svs,,,\n"
        "*,,a,0.1,false\n"
        "*,,b,,false\n"
    )
    found = {row.slide_id: row.tissue for row in read_slide_table(path)}
    assert found == {
        "a1": {"min_area_mm2": "0.1", "pen": "false"},
        "a2": {"min_area_mm2": "0.5", "pen": "false"},
        "b1": {"pen": "true"},
        "c1": {},
    }


def test_parameters_of_the_method_are_named_as_on_the_command_line(table: Write) -> None:
    path = table("slide_id,path,tissue.method.pen,tissue.method.threshold\ns,s.svs,false,0.1\n")
    assert read_slide_table(path)[0].tissue == {"pen": "false", "threshold": "0.1"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "slide_id,path,tissue.min_aera_mm2\ns,s.svs,1\n",
            r"line 1, column 3.*unknown setting.*did you mean 'tissue\.min_area_mm2'",
        ),
        (
            "slide_id,path,tiling.mpp\ns,s.svs,1\n",
            r"line 1, column 3.*unknown setting 'tiling.mpp'",
        ),
        (
            "slide_id,path,tissue.method.pem\ns,s.svs,1\n",
            r"column 3.*did you mean 'tissue\.method\.pen'.*use .*tissue\.mpp,.*method\.threshold",
        ),
        (
            "slide_id,path,tissue.pen,tissue.method.pen\ns,s.svs,true,false\n",
            r"line 1, column 4 \(tissue\.method\.pen\): another column sets",
        ),
        ("slide_id,path,tissue.mpp\ns,s.svs,fine\n", r"line 2, column 3 \(tissue\.mpp\).*number"),
        ("slide_id,path,tissue.mpp\ns,s.svs,-1\n", r"line 2, column 3 \(tissue\.mpp\)"),
        ("slide_id,path,tissue.pen\ns,s.svs,maybe\n", r"line 2, column 3 \(tissue\.pen\).*boolean"),
        (
            "slide_id,path,tissue.method\ns,s.svs,od_otzu\n",
            r"line 2, column 3.*did you mean 'od_otsu'",
        ),
        (
            "slide_id,path,site,tissue.mpp\ns,s.svs,rome,\n*,,roma,4\n",
            r"line 3, column 3 \(site\): no slide is of site 'roma' \(did you mean 'rome'",
        ),
        ("slide_id,path,site,tissue.mpp\ns,s.svs,rome,\n*,,,4\n", r"line 3.*name the site"),
        (
            "slide_id,path,site,mpp,tissue.mpp\ns,s.svs,x,,\n*,,x,0.5,4\n",
            r"line 3.*tissue settings only, not mpp",
        ),
        (
            "slide_id,path,site,tissue.mpp\ns,s.svs,x,\n*,,x,4\n*,,x,8\n",
            r"line 4.*another row '\*' with other settings",
        ),
        (
            "slide_id,path,tissue.mpp\ns,s.svs,4\ns,s.svs,8\n",
            r"line 3.*already on line 2.*tissue",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(table: Write, text: str, told: str) -> None:
    with pytest.raises(CohortError, match=told):
        read_slide_table(table(text))


def test_rows_of_sites_are_no_slides_of_a_cohort(table: Write) -> None:
    path = table(
        "slide_id,patient_id,label,site,diagnosis.primary\ns,p,x,rome,q\nt,r,y,rome,\n*,,,rome,\n"
    )
    assert [row.slide_id for row in read_cohort(path, classes=["x", "y"]).rows] == ["s", "t"]
