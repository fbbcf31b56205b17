"""`wsi scan`: one row per slide, whatever the slide is."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from errno import EACCES
from pathlib import Path

import pytest

from pipelines.cli import run_command
from pipelines.slides_csv import COLUMNS
from wsi.errors import SlideOpenError
from wsi.slides import open_slide
from wsi.slides.dress import pyramid, write_slide


def scan(*words: object) -> int:
    return run_command(["scan", *map(str, words)])


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        found = {row["slide_id"]: row for row in reader}
        assert tuple(reader.fieldnames or ()) == COLUMNS
    return found


def test_sound_slides_are_rows_and_exit_code_0(slide_folder: Path, tmp_path: Path) -> None:
    assert scan(slide_folder, "--out", tmp_path / "s.csv") == 0
    found = rows(tmp_path / "s.csv")
    assert list(found) == ["a", "glass", "site/b", "site/c"]
    a = found["a"]
    assert (a["vendor"], a["width"], a["height"], a["levels"]) == ("aperio", "1024", "1024", "2")
    assert (a["mpp"], a["mpp_source"], a["magnification"]) == ("0.5", "openslide", "20")
    assert (a["status"], a["reason"]) == ("ok", "")
    assert found["site/b"]["vendor"] == "philips"
    assert {row["status"] for row in found.values()} == {"ok"}


@pytest.fixture
def mixed(tmp_path: Path, picture) -> Path:
    """One sound slide among every kind of bad one."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    levels = pyramid(picture((512, 512)), 2)
    write_slide(folder / "good.svs", levels, mpp=0.5, dress="aperio")
    write_slide(folder / "no-mpp.svs", levels, mpp=None, dress="aperio")
    write_slide(folder / "trestle.tif", levels, mpp=0.5, dress="trestle")
    write_slide(folder / "dpi72.tif", levels, mpp=25400 / 72, dress="generic")
    write_slide(folder / "huge.svs", levels, mpp=50.0, dress="aperio")
    (folder / "zero.svs").write_bytes(b"")
    (folder / "text.svs").write_text("this is no slide\n" * 100)
    (folder / "cut.svs").write_bytes((folder / "good.svs").read_bytes()[:3000])
    return folder


def test_bad_slides_are_rows_with_reasons_and_exit_code_3(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scan(mixed, "--out", tmp_path / "s.csv") == 3
    found = rows(tmp_path / "s.csv")
    assert {slide_id: row["status"] for slide_id, row in found.items()} == {
        "good": "ok",
        "no-mpp": "no-mpp",
        "trestle": "no-mpp",
        "dpi72": "no-mpp",
        "huge": "implausible-mpp",
        "zero": "open-failed",
        "text": "unsupported-format",
        "cut": found["cut"]["status"],
    }
    assert found["cut"]["status"] in ("open-failed", "unsupported-format")
    for row in found.values():
        if row["status"] != "ok":
            assert " — " in row["reason"]
            assert row["mpp"] == ""
    err = capsys.readouterr().err
    assert "8 slides: 1 ready, 7 not" in err
    assert "Traceback" not in err


def test_json_is_one_document_on_stdout(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mixed / "notes.txt").write_text("x")
    assert scan(mixed, "--json") == 3
    said = json.loads(capsys.readouterr().out)
    assert len(said["slides"]) == 8
    assert {tuple(row) for row in said["slides"]} == {COLUMNS}
    good = next(row for row in said["slides"] if row["slide_id"] == "good")
    assert (good["width"], good["mpp"], good["magnification"]) == (512, 0.5, 40)
    assert (good["downsamples"], good["bounds"]) == ([[1, 1], [2, 2]], [0, 0, 512, 512])
    assert (good["icc"], good["associated"]) == (None, [])
    assert good["reason"] == "0.5 um/px is unusual for a 40x objective"
    assert good["size_bytes"] == (mixed / "good.svs").stat().st_size
    zero = next(row for row in said["slides"] if row["slide_id"] == "zero")
    assert (zero["width"], zero["mpp"], zero["size_bytes"]) == (None, None, 0)
    assert (said["ready"], said["not_ready"], said["ignored"]) == (1, 7, {".txt": 1})
    resolved, without = said["mpp_by_site"]
    assert (resolved["mpp"], resolved["slide_ids"], resolved["sources"]) == (
        0.5,
        ["good"],
        {"openslide": 1},
    )
    assert (without["mpp"], without["slide_ids"]) == (None, ["dpi72", "huge", "no-mpp", "trestle"])


def test_resolutions_are_counted_by_site(
    tmp_path: Path, picture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    write_slide(folder / "north" / "s.svs", [picture((64, 64))], mpp=0.2425, dress="aperio")
    for k in range(9):
        shutil.copy(folder / "north" / "s.svs", folder / "north" / f"s{k}.svs")
    write_slide(folder / "north" / "odd.svs", [picture((64, 64))], mpp=0.2268, dress="aperio")
    write_slide(folder / "south.tif", [picture((64, 64))], mpp=0.5)
    assert scan(folder) == 0
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["-", "0.5", "1", "generic-tiff", "openslide"] in lines
    assert ["north", "0.2268", "1", "aperio", "openslide"] in lines
    assert ["north", "0.2425", "10", "aperio", "openslide"] in lines
    outliers = "outliers: north: 0.2268 x1, 0.2425 x10: north/odd (0.2268)"
    assert outliers.split() in lines


def test_settings_of_slides_show_what_preprocess_would_make_of_them(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("slides.no_mpp=assume", "slides.assume_mpp=0.25", "--out", tmp_path / "s.csv")
    assert scan(mixed, *words) == 3
    found = rows(tmp_path / "s.csv")
    assert {i for i, row in found.items() if row["mpp_source"] == "assumed"} == {
        "no-mpp",
        "trestle",
        "dpi72",
    }
    assert (found["no-mpp"]["mpp"], found["good"]["mpp_source"]) == ("0.25", "openslide")
    assert found["huge"]["status"] == "implausible-mpp"
    config = tmp_path / "c.yaml"
    config.write_text("slides: {no_mpp: assume, assume_mpp: 0.3}\ntiling: {mpp: 1.0}\n")
    assert scan(mixed, config, "--out", tmp_path / "t.csv") == 3
    assert rows(tmp_path / "t.csv")["no-mpp"]["mpp"] == "0.3"
    capsys.readouterr()
    assert scan(mixed, "tiling.mpp=0.5") == 2
    assert "tiling.mpp=0.5: a scan takes only settings of slides.*" in capsys.readouterr().err
    assert scan(mixed, "slides.no_mp=stop") == 2
    assert "did you mean 'slides.no_mpp'?" in capsys.readouterr().err


def test_a_folder_is_a_place_for_the_table_too(
    slide_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scan(slide_folder / "site", "--out", tmp_path / "out") == 0
    assert scan(slide_folder / "a.svs", "--out", tmp_path / "out") == 0
    assert list(rows(tmp_path / "out" / "slides.csv")) == ["a", "b", "c"]
    assert "keeps 2 slides that are not in this run" in capsys.readouterr().err


def test_a_table_of_something_else_stops_a_scan_in_one_line(
    slide_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.csv").write_text("path,label\nx.svs,1\n")
    assert scan(slide_folder, "--out", tmp_path / "mine.csv") == 2
    err = capsys.readouterr().err
    assert err.startswith("error[CONFIG]: ")
    assert err.count("\n") == 1
    assert "mine.csv is no table that a scan wrote" in err


def test_fresh_files_are_reported(
    slide_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(slide_folder / "a.svs", tmp_path / "new.svs")
    assert scan(tmp_path / "new.svs", "--settle", 1000) == 3
    assert "still-being-written: new: changed less than 1000 s ago" in capsys.readouterr().err
    assert scan(tmp_path / "new.svs") == 0
    assert scan(tmp_path / "new.svs", "--settle", -1) == 2


def test_the_table_written_can_be_given_back(slide_folder: Path, tmp_path: Path) -> None:
    assert scan(slide_folder, "--out", tmp_path / "s.csv") == 0
    assert scan(tmp_path / "s.csv", "--out", tmp_path / "again.csv") == 0
    once, again = rows(tmp_path / "s.csv"), rows(tmp_path / "again.csv")
    assert list(once) == list(again)
    for slide_id, row in once.items():
        assert again[slide_id] == row


def test_an_mpp_column_rescues_a_slide(mixed: Path, tmp_path: Path) -> None:
    table = tmp_path / "slides.csv"
    table.write_text("path,mpp\nmixed/no-mpp.svs,0.23\nmixed/good.svs,\n")
    assert scan(table, "--out", tmp_path / "s.csv") == 0
    found = {Path(row["path"]).name: row for row in rows(tmp_path / "s.csv").values()}
    assert (found["no-mpp.svs"]["mpp"], found["no-mpp.svs"]["mpp_source"]) == ("0.23", "table")
    assert found["good.svs"]["mpp_source"] == "openslide"


def test_nothing_to_scan_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scan() == 2
    assert scan(tmp_path / "nowhere") == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert scan(tmp_path) == 3


def test_a_slide_whose_name_is_no_text_is_a_row(
    slide_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    sound = (slide_folder / "glass.tif").read_bytes()
    (folder / "good.tif").write_bytes(sound)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.tif")).write_bytes(sound)
    (folder / "line\nbreak.tif").write_bytes(sound)
    assert scan(folder, "--out", tmp_path / "s.csv") == 3
    found = rows(tmp_path / "s.csv")
    assert len(found) == 3
    assert [row["status"] for row in found.values()].count("ok") == 1
    assert "BUG" not in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_slide_that_may_not_be_read_is_a_row(slide_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes((slide_folder / "glass.tif").read_bytes())
    path.chmod(0)
    assert scan(path, "--out", tmp_path / "s.csv") == 3
    assert rows(tmp_path / "s.csv")["x"]["status"] == "io-error"


def test_a_slide_closed_to_us_is_not_called_damaged(
    slide_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(EACCES, os.strerror(EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SlideOpenError, match=r"glass\.tif .*Permission.* — check its perm") as told:
        open_slide(slide_folder / "glass.tif")
    assert told.value.reason == "io-error"


def test_the_command_runs_as_a_program_without_torch(slide_folder: Path) -> None:
    code = (
        "import sys; from pipelines.cli import run_command; "
        f"code = run_command(['scan', {str(slide_folder)!r}, '--json']); "
        "heavy = {'torch', 'timm', 'sklearn', 'zarr'} & set(sys.modules); "
        "sys.exit(90 if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["slides"]) == 4


def test_quiet_says_only_what_went_wrong(
    slide_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["scan", str(slide_folder), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    (tmp_path / "zero.svs").touch()
    assert run_command(["scan", str(tmp_path), "--quiet"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "zero.svs is empty" in err
