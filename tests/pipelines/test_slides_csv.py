"""slides.csv: it says all that opening a slide says, and never loses or invents a row."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.slides_csv import (
    COLUMNS,
    STABLE,
    Row,
    Surveyed,
    changed_by_hand,
    given_mpp,
    read_slides_csv,
    recalled,
    settings_key,
    write_slides_csv,
)
from wsi.errors import ConfigError
from wsi.slides import FileStamp, SlideFile, SlideInfo, open_slide
from wsi.specs import SlidesSpec

SPEC = SlidesSpec()
STAMP = FileStamp(10, 20)


def info(**changed) -> SlideInfo:
    facts = {
        "slide_id": "site/a",
        "path": Path("/data/site/a.svs"),
        "vendor": "aperio",
        "size0": (2220, 2967),
        "mpp": (0.2522, 0.25231415926535),
        "mpp_source": "openslide",
        "mpp_state": "ok",
        "level_sizes": ((2220, 2967), (555, 741)),
        "downsamples": ((1.0, 1.0), (4.0, 2967 / 741)),
        "bounds0": (10, 20, 300, 400),
        "background": (255, 254, 0),
        "fingerprint": "ab12",
        "magnification": 20.0,
        "notes": ("one note", "and, with a comma"),
        "reader": "openslide",
        "reader_note": 'quoted "why"',
        "icc": "Aperio sRGB",
        "associated": ("label", "macro"),
    }
    return SlideInfo(**(facts | changed))  # pyright: ignore[reportArgumentType]


def surveyed(found: SlideInfo | None = None, mpp: float | None = None) -> Surveyed:
    found = found or info()
    file = SlideFile(found.slide_id, found.path, mpp, "site")
    reason = "; ".join(found.notes)
    return Surveyed(file, found, found.mpp_state, reason, STAMP, settings_key(file, SPEC))


def through_the_file(item: Surveyed, path: Path) -> Row:
    write_slides_csv([item], path)
    (row,) = read_slides_csv(path)
    return row


BARE = {"mpp": None, "mpp_source": "none", "mpp_state": "no-mpp", "notes": ("none — give one",)}
EMPTY = {"magnification": None, "icc": None, "associated": (), "reader_note": ""}


@pytest.mark.parametrize(
    "changed",
    [{}, BARE, EMPTY, {"notes": ()}, {"mpp": (0.25, 0.35)}, {"magnification": 41.5}],
)
def test_a_row_says_all_that_was_known_of_a_slide(tmp_path: Path, changed: dict) -> None:
    item = surveyed(info(**changed))
    row = through_the_file(item, tmp_path / "s.csv")
    assert recalled(row, item.file, STAMP, item.settings) == item


def test_a_row_says_all_that_opening_says(slide_folder: Path, tmp_path: Path) -> None:
    for path in sorted(slide_folder.rglob("*.*")):
        with open_slide(path, "x") as slide:
            item = surveyed(slide.info)
        row = through_the_file(item, tmp_path / "s.csv")
        found = recalled(row, item.file, STAMP, item.settings)
        assert found is not None
        assert found.info == slide.info


def test_the_old_columns_come_first() -> None:
    assert COLUMNS[: len(STABLE)] == STABLE
    assert ",".join(STABLE) == (
        "slide_id,path,vendor,width,height,levels,mpp,mpp_source,magnification,status,reason"
    )


def test_cells_are_what_people_and_programs_read(tmp_path: Path) -> None:
    row = through_the_file(surveyed(), tmp_path / "s.csv")
    assert (row["mpp"], row["mpp_x"], row["magnification"]) == ("0.252257", "0.2522", "20")
    assert (row["bounds"], row["associated"]) == ("10;20;300;400", "label;macro")
    assert row["level_sizes"] == "2220x2967;555x741"
    assert row["downsamples"].startswith("1x1;4x4.004")
    assert (row["size_bytes"], row["mtime_ns"]) == ("10", "20")
    assert through_the_file(surveyed(info(mpp=(0.25, 0.35))), tmp_path / "t.csv")["mpp"] == ""


def test_facts_are_numbers_and_null() -> None:
    facts = surveyed(info(**BARE, **EMPTY)).facts()
    assert (facts["width"], facts["levels"], facts["mpp"], facts["icc"]) == (2220, 2, None, None)
    assert facts["downsamples"][1] == (4.0, 2967 / 741)
    failed = Surveyed(SlideFile("a", Path("a.svs")), None, "open-failed", "why").facts()
    assert (failed["width"], failed["fingerprint"], failed["status"]) == (None, None, "open-failed")


def test_a_row_does_not_hold_for_another_file_or_other_settings(tmp_path: Path) -> None:
    item = surveyed()
    row = through_the_file(item, tmp_path / "s.csv")
    file, key = item.file, item.settings
    assert recalled(row, file, STAMP, key)
    assert recalled(row, file, FileStamp(11, 20), key) is None
    assert recalled(row, file, FileStamp(10, 21), key) is None
    assert recalled(row, file, None, key) is None
    for other in (
        settings_key(replace(file, mpp=0.5), SPEC),
        settings_key(file, SlidesSpec(use_magnification=True)),
        settings_key(file, SlidesSpec(no_mpp="assume", assume_mpp=0.5)),
        settings_key(file, SlidesSpec(reader="openslide")),
    ):
        assert recalled(row, file, STAMP, other) is None
    assert settings_key(file, SlidesSpec(no_mpp="stop")) == key


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("width", "2221"),
        ("mpp_x", "0.5"),
        ("status", "open-failed"),
        ("bounds", "0;0;1;1"),
        ("fingerprint", ""),
        ("downsamples", "1x1;4"),
        ("mtime_ns", "2E+01"),
        ("resolved_with", ""),
        ("level_sizes", "broken"),
    ],
)
def test_a_row_that_was_tampered_with_is_not_believed(
    tmp_path: Path, column: str, cell: str
) -> None:
    item = surveyed()
    row = through_the_file(item, tmp_path / "s.csv") | {column: cell}
    assert recalled(row, item.file, STAMP, item.settings) is None


def test_a_row_may_be_renamed_and_keeps_its_facts(tmp_path: Path) -> None:
    item = surveyed()
    row = through_the_file(item, tmp_path / "s.csv") | {"slide_id": "new", "site": "other"}
    found = recalled(row, replace(item.file, slide_id="new"), STAMP, item.settings)
    assert found is not None
    assert found.info is not None
    assert (found.info.slide_id, found.info.size0) == ("new", (2220, 2967))


def test_only_what_a_hand_wrote_is_given(tmp_path: Path) -> None:
    row = through_the_file(surveyed(), tmp_path / "s.csv")
    assert given_mpp(row) is None
    assert given_mpp(row | {"mpp": "0.2522570"}) is None
    assert given_mpp(row | {"mpp": ""}) is None
    assert given_mpp(row | {"mpp": "0.5"}) == 0.5
    bare = through_the_file(surveyed(info(**BARE)), tmp_path / "t.csv")
    assert given_mpp(bare) is None
    assert given_mpp(bare | {"mpp": "0.23"}) == 0.23
    table = info(mpp=(0.5, 0.5), mpp_source="table")
    given = through_the_file(surveyed(table, mpp=0.5), tmp_path / "u.csv")
    assert given_mpp(given) == 0.5
    assert [changed_by_hand(r) for r in (row, row | {"mpp": "0.5"}, bare, given)] == [
        False,
        True,
        False,
        False,
    ]


# -- the file ------------------------------------------------------------------------------------


def named(slide_id: str) -> Surveyed:
    return surveyed(info(slide_id=slide_id, path=Path(f"/data/{slide_id}.svs")))


def ids(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as handle:
        return [row["slide_id"] for row in csv.DictReader(handle)]


def test_fewer_slides_never_shrink_the_table(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    assert write_slides_csv([named("c"), named("a")], path) == 0
    assert write_slides_csv([named("b")], path) == 2
    assert ids(path) == ["a", "b", "c"]
    changed = surveyed(info(slide_id="a", vendor="leica"))
    assert write_slides_csv([changed], path) == 2
    assert {row["slide_id"]: row["vendor"] for row in read_slides_csv(path)} == {
        "a": "leica",
        "b": "aperio",
        "c": "aperio",
    }


def test_columns_of_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    write_slides_csv([named("a"), named("b")], path)
    rows = read_slides_csv(path)
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, [*COLUMNS, "stain"])
        writer.writeheader()
        writer.writerows(row | {"stain": "H&E"} for row in rows)
    write_slides_csv([named("b"), named("c")], path)
    assert [row["stain"] for row in read_slides_csv(path)] == ["H&E", "H&E", ""]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"path,mpp\nx.svs,0.5\n",
        b"\x89PNG\r\n\x1a\n\xff\xfe",
        ",".join(STABLE).encode() + b"\nonly,two\n",
        ",".join(STABLE).encode() + b"\na,p,v,1,1,1,much,o,,ok,\n",
        ",".join(STABLE).encode() + b'\na,"p,v,1,1,1,,o,,ok,\n',
    ],
)
def test_a_table_of_something_else_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "slides.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"no table that a scan wrote .* — ") as caught:
        read_slides_csv(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        write_slides_csv([named("a")], path)
    assert path.read_bytes() == content


def test_a_table_of_the_first_version_is_read_but_recalls_nothing(tmp_path: Path) -> None:
    path = tmp_path / "slides.csv"
    path.write_text(",".join(STABLE) + "\nsite/a,/data/site/a.svs,aperio,1,1,1,0.5,o,20,ok,\n")
    (row,) = read_slides_csv(path)
    item = surveyed()
    assert recalled(row, item.file, STAMP, item.settings) is None
    assert not changed_by_hand(row)
    write_slides_csv([item], path)
    assert recalled(read_slides_csv(path)[0], item.file, STAMP, item.settings) == item


def test_no_table_is_no_rows(tmp_path: Path) -> None:
    assert read_slides_csv(tmp_path / "slides.csv") == []
