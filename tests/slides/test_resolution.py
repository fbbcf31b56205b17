"""Where um per pixel comes from, and what is no measurement."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from wsi.slides import open_slide
from wsi.slides.dress import write_slide
from wsi.slides.resolution import TABLE_WINS, resolve_mpp


def properties(
    x: object = None, y: object = None, vendor: str = "aperio", **more: str
) -> dict[str, str]:
    found = {"openslide.vendor": vendor}
    if x is not None:
        found |= {"openslide.mpp-x": str(x), "openslide.mpp-y": str(x if y is None else y)}
    return found | {key.replace("__", "."): value for key, value in more.items()}


def ome(x: str, y: str, unit: str = "") -> dict[str, str]:
    units = f' PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"' if unit else ""
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels PhysicalSizeX="{x}" PhysicalSizeY="{y}"{units} SizeX="9"/></Image></OME>'
    )
    return {"openslide.vendor": "generic-tiff", "tiff.ImageDescription": xml}


def test_the_table_outranks_the_metadata() -> None:
    found = resolve_mpp(properties(0.25), table_mpp=0.5, assume_mpp=1.0)
    assert (found.mpp, found.source, found.state) == ((0.5, 0.5), "table", "ok")


def test_an_implausible_table_is_not_papered_over_by_the_metadata() -> None:
    found = resolve_mpp(properties(0.25), table_mpp=250.0)
    assert (found.mpp, found.source, found.state) == (None, "table", "implausible-mpp")
    assert "250" in found.notes[0]


def test_a_scanner_is_believed() -> None:
    found = resolve_mpp(properties(0.2522, 0.2524))
    assert (found.mpp, found.source, found.state) == ((0.2522, 0.2524), "openslide", "ok")
    assert found.notes == ()


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (properties(352.78, vendor="generic-tiff", tiff__ResolutionUnit="inch"), "72 dpi"),
        (properties(1, vendor="trestle", tiff__ResolutionUnit="none"), "untagged trestle"),
        (properties(1, vendor="generic-tiff", tiff__ResolutionUnit="none"), "a bare ratio"),
        (properties(), "nothing"),
        (properties("abc"), "no number"),
        (properties("nan"), "not a number"),
        (properties("inf"), "infinite"),
        (properties(-0.25), "negative"),
        (properties(0), "zero"),
    ],
)
def test_what_is_no_measurement_is_no_resolution(case: dict[str, str], why: str) -> None:
    found = resolve_mpp(case)
    assert (found.mpp, found.state) == (None, "no-mpp"), why
    assert "mpp column" in found.notes[0]


def test_one_axis_alone_is_no_resolution() -> None:
    assert resolve_mpp({"openslide.mpp-x": "0.25"}).state == "no-mpp"


@pytest.mark.parametrize("vendor", ["aperio", "dicom", "hamamatsu", "philips", "mirax"])
@pytest.mark.parametrize("value", [0.0499, 20.1, 352.78])
def test_a_medical_format_that_says_nonsense_is_implausible(vendor: str, value: float) -> None:
    found = resolve_mpp(properties(value, vendor=vendor))
    assert (found.mpp, found.state) == (None, "implausible-mpp")
    assert f"{value:g}" in found.notes[0]


def test_a_picture_of_a_whole_glass_may_be_right_and_too_coarse() -> None:
    coarse, fine = (resolve_mpp(properties(v, vendor="dicom")).notes[0] for v in (28.97, 0.01))
    assert "too coarse for tiles: leave it out" in coarse
    assert "mpp column" in coarse
    assert "too coarse" not in fine


@pytest.mark.parametrize("value", [0.05, 20])
def test_the_ends_of_the_range_are_believed(value: float) -> None:
    assert resolve_mpp(properties(value)).mpp == (value, value)


@pytest.mark.parametrize(
    ("unit", "x", "mpp"),
    [("", "0.5", 0.5), ("µm", "0.25", 0.25), ("nm", "250", 0.25), ("mm", "0.0005", 0.5)],
)
def test_ome_xml_is_read_with_its_unit(unit: str, x: str, mpp: float) -> None:
    found = resolve_mpp(ome(x, x, unit))
    assert (found.source, found.state) == ("ome-xml", "ok")
    assert found.mpp == pytest.approx((mpp, mpp))


def test_a_pixel_is_no_unit_of_length() -> None:
    assert resolve_mpp(ome("1", "1", "pixel")).state == "no-mpp"


def test_an_implausible_ome_value_is_told() -> None:
    assert resolve_mpp(ome("352.78", "352.78")).state == "implausible-mpp"


@pytest.mark.parametrize(
    "text",
    [
        "<OME><Pixels PhysicalSizeX='0.5'",
        "Aperio <not xml>",
        '<!DOCTYPE x [<!ENTITY a "0.5">]>'
        '<OME><Pixels PhysicalSizeX="&a;" PhysicalSizeY="&a;"/></OME>',
        "<OME>" + " " * (1 << 20) + "<Pixels PhysicalSizeX='.5' PhysicalSizeY='.5'/></OME>",
    ],
)
def test_xml_that_is_broken_or_hostile_is_not_read(text: str) -> None:
    assert resolve_mpp({"tiff.ImageDescription": text}).state == "no-mpp"


@pytest.mark.parametrize(("y", "told"), [(0.2549, False), (0.2551, True), (0.245, True)])
def test_axes_that_differ_are_told(y: float, told: bool) -> None:
    found = resolve_mpp(properties(0.25, y))
    assert found.mpp == (0.25, y)
    assert any("differ" in note for note in found.notes) == told


@pytest.mark.parametrize(
    ("mpp", "told"), [(0.25, False), (0.5, True), (0.2265, False), (0.1, True)]
)
def test_a_resolution_that_contradicts_the_objective_is_told(mpp: float, told: bool) -> None:
    found = resolve_mpp(properties(mpp) | {"openslide.objective-power": "40"})
    assert found.state == "ok"
    assert any("40x" in note for note in found.notes) == told


def test_the_objective_is_used_only_when_allowed() -> None:
    powered = properties() | {"openslide.objective-power": "20"}
    assert resolve_mpp(powered).state == "no-mpp"
    found = resolve_mpp(powered, use_magnification=True)
    assert (found.mpp, found.source) == ((0.5, 0.5), "objective-power")
    better = resolve_mpp(powered | properties(0.23), use_magnification=True)
    assert better.source == "openslide"


def test_an_assumed_value_only_fills_gaps() -> None:
    filled = resolve_mpp(properties(), assume_mpp=0.5)
    assert (filled.mpp, filled.source, filled.state) == ((0.5, 0.5), "assumed", "ok")
    assert filled.notes
    assert resolve_mpp(properties(0.23), assume_mpp=0.5).mpp == (0.23, 0.23)
    assert (
        resolve_mpp(
            properties(1, vendor="trestle", tiff__ResolutionUnit="none"), assume_mpp=0.5
        ).source
        == "assumed"
    )


numbers = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.just("x"))
positive = st.one_of(st.none(), st.floats(0, 1000, exclude_min=True))


@given(
    x=numbers,
    y=numbers,
    vendor=st.sampled_from(["aperio", "generic-tiff", "trestle", "image", "dicom"]),
    unit=st.sampled_from(["none", "inch", "centimeter"]),
    power=numbers,
    table=positive,
    use=st.booleans(),
)
def test_what_is_called_ok_is_believable(x, y, vendor, unit, power, table, use) -> None:
    case = {"openslide.vendor": vendor, "tiff.ResolutionUnit": unit}
    for key, value in [("mpp-x", x), ("mpp-y", y), ("objective-power", power)]:
        if value is not None:
            case[f"openslide.{key}"] = str(value)
    found = resolve_mpp(case, table_mpp=table, use_magnification=use)
    if found.state == "ok":
        assert found.mpp is not None
        assert all(0.05 <= value <= 20 for value in found.mpp)
    else:
        assert found.mpp is None
        assert found.notes


def test_an_assumed_value_never_contradicts_what_a_slide_says() -> None:
    stated = {"openslide.vendor": "dicom", "openslide.mpp-x": "28.969", "openslide.mpp-y": "28.968"}
    found = resolve_mpp(stated, assume_mpp=0.5)
    assert (found.mpp, found.state) == (None, "implausible-mpp")


# -- a table that says something else than the slide ----------------------------------------------


@pytest.mark.parametrize(
    ("own", "table", "told"),
    [
        ((0.25, 0.25), 0.5, True),
        ((0.25, 0.25), 0.2551, True),
        ((0.25, 0.25), 0.2549, False),
        ((0.25, 0.25), 0.25, False),
        ((0.25, 0.30), 0.25, True),
        ((28.9, 28.9), 0.5, True),
    ],
)
def test_a_table_that_contradicts_the_slide_wins_and_it_is_told(
    own: tuple[float, float], table: float, told: bool
) -> None:
    found = resolve_mpp(properties(*own), table_mpp=table)
    assert (found.mpp, found.source, found.state) == ((table, table), "table", "ok")
    assert any(note.startswith(TABLE_WINS) for note in found.notes) == told
    if told:
        assert f"{table:.4g} um/px, where openslide says {own[0]:.4g}" in found.notes[-1]


def test_a_dpi_default_contradicts_nothing() -> None:
    dpi = properties(352.78, vendor="generic-tiff", tiff__ResolutionUnit="inch")
    assert resolve_mpp(dpi, table_mpp=0.5).notes == ()


def test_an_implausible_table_wins_nothing() -> None:
    notes = resolve_mpp(properties(0.25), table_mpp=250.0).notes
    assert not any(TABLE_WINS in note for note in notes)


def test_a_leica_file_states_its_resolution_in_its_xml(tmp_path) -> None:
    pixels = np.full((300, 400, 3), 200, np.uint8)
    path = tmp_path / "a.scn"
    write_slide(path, [pixels], mpp=(0.25, 0.26), dress="leica")
    with tifffile.TiffFile(path, mode="r+") as tiff:  # scanners leave the TIFF tags out
        for name in ("XResolution", "YResolution"):
            tiff.pages.first.tags[name].overwrite((0, 1))
    with open_slide(path) as slide:
        assert slide.info.mpp == pytest.approx((0.25, 0.26))
        assert slide.info.mpp_source == "scn-xml"
