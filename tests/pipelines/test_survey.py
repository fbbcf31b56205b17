"""The survey: which files are opened, in which order slides are told, what is left for later."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import child_tasks
import numpy as np
import openslide
import pytest
import tifffile

import pipelines.survey as under_test
from pipelines.console import Console
from pipelines.slides_csv import Surveyed, read_slides_csv
from pipelines.survey import (
    Sources,
    listed_slides,
    note_lines,
    survey,
    survey_one,
    tell_passed_over,
)
from wsi.errors import ConfigError
from wsi.slides import SlideFile, open_slide, stamp_of
from wsi.slides.dress import pyramid, write_slide
from wsi.specs import SlidesSpec
from wsi.supervision import Crew

SPEC = SlidesSpec()
Look = Callable[..., list[Surveyed]]


@pytest.fixture
def slides(slide_folder: Path, tmp_path: Path) -> Path:
    """A copy of the four sound slides that a test may change; times are kept."""
    return Path(shutil.copytree(slide_folder, tmp_path / "slides"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the slides opened so far."""
    names: list[str] = []

    def counted(path: Path, *words, **more):
        names.append(Path(path).name)
        return open_slide(path, *words, **more)

    monkeypatch.setattr(under_test, "open_slide", counted)
    return names


@pytest.fixture
def look(tmp_path: Path, crew_of_one: Any) -> Look:
    """Survey sources in this process, with OUT/slides.csv kept."""

    def of(
        *sources: Path, spec: SlidesSpec = SPEC, crew: Any = crew_of_one, **options
    ) -> list[Surveyed]:
        options = {"slides_csv": tmp_path / "out" / "slides.csv"} | options
        return survey(listed_slides(sources), spec, Console(hushed=True), crew, **options)

    return of


def states(found: list[Surveyed]) -> dict[str, str]:
    return {item.file.slide_id: item.status for item in found}


# -- what is opened ------------------------------------------------------------------------------


def test_an_unchanged_slide_is_opened_once(slides: Path, look: Look, opened: list[str]) -> None:
    first = look(slides)
    assert sorted(opened) == ["a.svs", "b.tif", "c.tif", "glass.tif"]
    opened.clear()
    assert look(slides) == first
    assert opened == []


def test_only_a_changed_slide_is_opened_again(slides: Path, look: Look, opened: list[str]) -> None:
    look(slides)
    opened.clear()
    shutil.copy(slides / "site" / "c.tif", slides / "a.svs")
    found = look(slides)
    assert opened == ["a.svs"]
    assert found[0].info is not None
    assert found[0].info.vendor == "generic-tiff"
    os.utime(slides / "glass.tif", ns=(1, 1))
    opened.clear()
    look(slides)
    assert opened == ["glass.tif"]


def test_a_new_slide_is_opened_and_none_is_forgotten(
    slides: Path, look: Look, opened: list[str], tmp_path: Path
) -> None:
    look(slides / "site")
    shutil.copy2(slides / "a.svs", slides / "site" / "new.svs")
    opened.clear()
    look(slides / "site")
    assert opened == ["new.svs"]
    (slides / "site" / "b.tif").unlink()
    look(slides / "site")
    rows = read_slides_csv(tmp_path / "out" / "slides.csv")
    assert [row["slide_id"] for row in rows] == ["b", "c", "new"]


def test_a_bad_slide_is_tried_again_and_others_are_not(
    slides: Path, look: Look, opened: list[str]
) -> None:
    (slides / "zero.svs").write_bytes(b"")
    assert states(look(slides))["zero"] == "open-failed"
    opened.clear()
    look(slides)
    assert opened == ["zero.svs"]


def test_other_settings_are_another_answer(
    slides: Path, look: Look, opened: list[str], picture
) -> None:
    write_slide(slides / "bare.svs", [picture((256, 256))], mpp=None, dress="aperio")
    assert states(look(slides))["bare"] == "no-mpp"
    opened.clear()
    assume = SlidesSpec(no_mpp="assume", assume_mpp=0.25)
    found = {item.file.slide_id: item for item in look(slides, spec=assume)}
    assert len(opened) == 5
    assert found["bare"].info is not None
    assert (found["bare"].status, found["bare"].info.mpp) == ("ok", (0.25, 0.25))
    assert found["bare"].info.mpp_source == "assumed"
    assert found["a"].info is not None
    assert found["a"].info.mpp == (0.5, 0.5)
    assert states(look(slides))["bare"] == "no-mpp"


def test_a_dry_look_leaves_the_table_alone(slides: Path, look: Look, tmp_path: Path) -> None:
    look(slides, keep=False)
    assert not (tmp_path / "out").exists()


def test_a_stopped_survey_has_kept_what_it_found(
    slides: Path, look: Look, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopping(path: Path, *words, **more):
        if path.name == "c.tif":
            raise KeyboardInterrupt
        return open_slide(path, *words, **more)

    monkeypatch.setattr(under_test, "open_slide", stopping)
    monkeypatch.setattr(under_test, "_KEEP_S", 0)
    with pytest.raises(KeyboardInterrupt):
        look(slides)
    rows = read_slides_csv(tmp_path / "out" / "slides.csv")
    assert [row["slide_id"] for row in rows] == ["a", "glass", "site/b"]


# -- a slides.csv given back ---------------------------------------------------------------------


def edited(path: Path, slide_id: str, mpp: str) -> None:
    lines = path.read_text().splitlines()
    at = lines[0].split(",").index("mpp")
    for k, line in enumerate(lines):
        cells = line.split(",")
        if cells[0] == slide_id:
            cells[at] = mpp
            lines[k] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n")


def test_a_table_given_back_is_not_opened(
    slides: Path, look: Look, opened: list[str], tmp_path: Path
) -> None:
    first = look(slides)
    table = tmp_path / "out" / "slides.csv"
    opened.clear()
    again = look(table, slides_csv=tmp_path / "elsewhere" / "slides.csv")
    assert opened == []
    assert [item.info for item in again] == [item.info for item in first]
    assert [item.file.site for item in again] == ["", "", "site", "site"]
    os.utime(slides / "a.svs", ns=(1, 1))
    look(table, slides_csv=None)
    assert opened == ["a.svs"]


def test_a_table_given_back_after_an_edit_of_mpp(
    slides: Path, look: Look, opened: list[str], tmp_path: Path
) -> None:
    look(slides)
    table = tmp_path / "out" / "slides.csv"
    edited(table, "glass", "0.4")
    opened.clear()
    found = {item.file.slide_id: item for item in look(table)}
    assert opened == ["glass.tif"]
    glass, other = found["glass"].info, found["a"].info
    assert glass is not None
    assert other is not None
    assert (glass.mpp, glass.mpp_source) == ((0.4, 0.4), "table")
    assert other.mpp_source == "openslide"
    assert any("taken from the table" in line for line in note_lines(list(found.values())))
    opened.clear()
    assert {i.file.slide_id: i for i in look(table)} == found
    assert opened == []


def test_an_edit_is_not_overwritten_unseen(slides: Path, look: Look, tmp_path: Path) -> None:
    look(slides)
    table = tmp_path / "out" / "slides.csv"
    edited(table, "glass", "0.4")
    before = table.read_bytes()
    with pytest.raises(ConfigError, match=r"mpp of glass was changed by hand — .*--slides"):
        look(slides)
    assert table.read_bytes() == before


def test_axes_that_differ_survive_the_way_back(
    look: Look, opened: list[str], tmp_path: Path, picture
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_slide(folder / "x.tif", [picture((256, 256))], mpp=(0.25, 0.5))
    (first,) = look(folder)
    assert first.info is not None
    assert first.info.mpp == pytest.approx((0.25, 0.5), rel=1e-6)
    opened.clear()
    (again,) = look(tmp_path / "out" / "slides.csv")
    assert opened == []
    assert again.info == first.info
    assert again.reason.startswith("x and y differ")


def test_one_id_in_two_sources_is_refused(slides: Path, look: Look, tmp_path: Path) -> None:
    look(slides)
    with pytest.raises(ConfigError, match=r"'a' — name every slide once"):
        listed_slides([tmp_path / "out" / "slides.csv", slides])


# -- tables of people ----------------------------------------------------------------------------


def test_a_table_that_contradicts_slides_is_told_and_summed_up(
    slides: Path, look: Look, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        "slide_id,path,mpp,center\n"
        "a,slides/a.svs,0.25,north\nb,slides/site/b.tif,0.25,north\nc,slides/site/c.tif,0.503,south\n"
    )
    found = look(table)
    assert [item.file.site for item in found] == ["north", "north", "south"]
    lines = note_lines(found)
    assert lines[-1] == "mpp taken from the table against the slide's own metadata: 2 in all"
    about = [line for line in lines if "0.25 um/px, where openslide says 0.5" in line]
    assert [line.split(":")[1].strip() for line in about] == ["a", "b"]


def test_what_was_passed_over_is_counted(slides: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.txt", "site/b.txt", "c.xml"):
        (slides / name).write_text("x")
    tell_passed_over(listed_slides([slides]), Console())
    tell_passed_over(listed_slides([slides / "a.svs"]), Console())
    assert capsys.readouterr().err == "ignored 3 files: 2 .txt, 1 .xml\n"


def test_a_folder_that_may_not_be_read_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    tell_passed_over(Sources((), closed=(Path("site-b"),)), Console())
    assert "warning: site-b: this folder may not be read — " in capsys.readouterr().err


# -- slides that are still being written ---------------------------------------------------------


def test_a_fresh_file_waits_and_is_taken_by_the_next_run(
    slides: Path, look: Look, opened: list[str]
) -> None:
    for path in slides.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    os.utime(slides / "a.svs")
    found = look(slides, settle=60)
    assert states(found) == {
        "a": "still-being-written",
        "glass": "ok",
        "site/b": "ok",
        "site/c": "ok",
    }
    assert "a.svs" not in opened
    assert "run again" in found[0].reason
    assert states(look(slides))["a"] == "ok"


def test_a_clock_that_is_ahead_holds_nothing_up(slides: Path, look: Look) -> None:
    for path in slides.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    ahead = time.time() + 86_400
    os.utime(slides / "a.svs", (ahead, ahead))
    assert set(states(look(slides, settle=60)).values()) == {"ok"}


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_that_grows_while_it_is_looked_at_waits(slides: Path, whole: bool) -> None:
    path = slides / "a.svs"
    if not whole:
        path.write_bytes(path.read_bytes()[:2000])
    stamp = stamp_of(path)
    with path.open("ab") as handle:
        handle.write(b"more")
    found = survey_one(SlideFile("a", path), SPEC, stamp)
    assert (found.status, found.info) == ("still-being-written", None)


# -- side by side --------------------------------------------------------------------------------


def test_order_and_facts_are_those_of_one_process(slides: Path, look: Look) -> None:
    for k in range(18):
        shutil.copy2(slides / "a.svs", slides / f"s{k}.svs")
    (slides / "s3.svs").write_bytes(b"")
    with Crew(2) as crew:
        two = look(slides, crew=crew, slides_csv=None)
        assert crew.started == 2
    assert two == look(slides, slides_csv=None)


def test_a_slide_that_kills_its_process_is_found(
    slides: Path, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "_look", child_tasks.look_and_die_of_b)
    with Crew(1) as crew:
        found = look(slides, crew=crew)
        assert crew.started > 1  # the one that died was replaced
    assert states(found) == {"a": "ok", "glass": "ok", "site/b": "decoder-crash", "site/c": "ok"}
    assert "b.tif: its decoder ended by itself with code 139 — " in found[2].reason


# -- what is never opened ------------------------------------------------------------------------


def test_associated_images_are_named_and_never_opened(
    tmp_path: Path, look: Look, picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_slide(folder / "x.svs", pyramid(picture((512, 512)), 1), mpp=0.5, dress="aperio")
    with tifffile.TiffWriter(folder / "x.svs", append=True) as tiff:
        tiff.write(np.full((64, 48, 3), 90, np.uint8), photometric="rgb", metadata=None)
    with openslide.OpenSlide(folder / "x.svs") as slide:
        assert list(slide.associated_images) == ["thumbnail"]

    def never(*words):
        raise AssertionError("an associated image was opened")

    monkeypatch.setattr(openslide.lowlevel, "read_associated_image", never)
    monkeypatch.setattr(openslide.lowlevel, "get_associated_image_dimensions", never)
    monkeypatch.setattr(openslide._AssociatedImageMap, "__getitem__", never)
    (found,) = look(folder)
    assert found.info is not None
    assert (found.status, found.info.associated) == ("ok", ("thumbnail",))
