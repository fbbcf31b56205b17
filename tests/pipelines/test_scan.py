"""`wsi scan`: one row per slide, whatever the slide is."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import run_command
from pipelines.slides_csv import COLUMNS
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
    assert scan(mixed, "--json") == 3
    listed = json.loads(capsys.readouterr().out)
    assert len(listed["slides"]) == 8
    assert {tuple(row) for row in listed["slides"]} == {COLUMNS}


def test_the_table_written_can_be_given_back(slide_folder: Path, tmp_path: Path) -> None:
    assert scan(slide_folder, "--out", tmp_path / "s.csv") == 0
    assert scan(tmp_path / "s.csv", "--out", tmp_path / "again.csv") == 0
    once, again = rows(tmp_path / "s.csv"), rows(tmp_path / "again.csv")
    assert list(once) == list(again)
    for slide_id, row in once.items():
        same = {k: v for k, v in row.items() if k != "mpp_source"}
        assert same == {k: v for k, v in again[slide_id].items() if k != "mpp_source"}


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
