"""Which files are slides, and what they are called."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from wsi.errors import ConfigError
from wsi.slides import find_slides, search_archive


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def ids(*roots: Path) -> list[str]:
    return [slide.slide_id for slide in find_slides(roots)]


def test_an_id_is_the_path_below_the_root_without_extension(tmp_path: Path) -> None:
    touch(tmp_path, "site-b/x.svs", "site-a/x.svs", "y.tif", "deep/er/z.ndpi")
    assert ids(tmp_path) == ["deep/er/z", "site-a/x", "site-b/x", "y"]
    assert {s.slide_id: s.path for s in find_slides([tmp_path])}["site-a/x"] == (
        tmp_path / "site-a" / "x.svs"
    )


def test_twins_of_one_folder_keep_their_extensions(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.svs", "a/x.tif", "b/x.tif")
    assert ids(tmp_path) == ["a/x.svs", "a/x.tif", "b/x"]


def test_dots_within_a_name_are_part_of_it(tmp_path: Path) -> None:
    touch(tmp_path, "TCGA-1.2.svs", "TCGA-1.3.svs", "x.ome.tif")
    assert ids(tmp_path) == ["TCGA-1.2", "TCGA-1.3", "x.ome"]


def test_hidden_files_and_other_kinds_are_left_alone(tmp_path: Path) -> None:
    touch(tmp_path, ".x.svs", "._y.svs", ".trash/z.svs", "a/.b/c.tif", "notes.txt", "a.csv", "svs")
    touch(tmp_path, "ok.SVS")
    (tmp_path / "folder.tif").mkdir()
    assert ids(tmp_path) == ["ok"]


def test_a_hidden_root_is_searched_when_named(tmp_path: Path) -> None:
    touch(tmp_path / ".hidden", "a.svs")
    assert ids(tmp_path / ".hidden") == ["a"]


def test_the_order_is_the_same_wherever_the_files_came_from(tmp_path: Path) -> None:
    touch(tmp_path / "one", "b.svs", "d.svs")
    touch(tmp_path / "two", "a.svs", "c.svs")
    assert ids(tmp_path / "one", tmp_path / "two") == ["a", "b", "c", "d"]
    assert ids(tmp_path / "two", tmp_path / "one") == ["a", "b", "c", "d"]


def test_a_file_may_be_named_itself(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.dat")
    assert ids(tmp_path / "a.svs", tmp_path / "b.dat") == ["a", "b"]


def test_one_id_from_two_places_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "one/x.svs", "two/x.svs")
    with pytest.raises(ConfigError, match=r"'x'.*common parent"):
        find_slides([tmp_path / "one", tmp_path / "two"])
    with pytest.raises(ConfigError, match="'x'"):
        find_slides([tmp_path / "one", tmp_path / "one"])
    assert ids(tmp_path) == ["one/x", "two/x"]


def test_an_id_is_never_two_files(tmp_path: Path) -> None:
    # `x.svs` keeps its extension beside `x.tif`, and so would collide with `x.svs.tif`.
    touch(tmp_path, "x.svs", "x.tif", "x.svs.tif")
    try:
        found = ids(tmp_path)
    except ConfigError:
        return
    assert len(set(found)) == 3


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such file or folder — "):
        find_slides([tmp_path / "nowhere"])


def test_slides_may_be_links(tmp_path: Path) -> None:
    touch(tmp_path, "store/x.svs")
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "y.svs").symlink_to(tmp_path / "store" / "x.svs")
    (tmp_path / "slides" / "dangling.svs").symlink_to(tmp_path / "nowhere.svs")
    assert "y" in ids(tmp_path / "slides")


def dicom(path: Path, series: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.77.1.6")
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID = series
    dataset.PixelData = np.zeros(16, np.uint8).tobytes()
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)


def test_a_dicom_series_is_one_slide_named_after_its_lowest_file(tmp_path: Path) -> None:
    for name in ("2.dcm", "1.dcm", "3.dcm"):
        dicom(tmp_path / "case" / name, "1.2.3")
    dicom(tmp_path / "case" / "other.dcm", "1.2.4")
    dicom(tmp_path / "copy" / "1.dcm", "1.2.3")
    touch(tmp_path, "case/broken.dcm")
    assert ids(tmp_path) == ["case/1", "case/broken", "case/other", "copy/1"]


@pytest.mark.skipif(os.name != "posix", reason="such names exist on POSIX only")
def test_a_name_that_is_no_text_does_not_stop_the_listing(tmp_path: Path) -> None:
    touch(tmp_path, "good.svs")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.svs")).write_bytes(b"x")
    assert len(ids(tmp_path)) == 2


# -- what is passed over, and where a search leads ------------------------------------------------


def test_files_that_are_no_slides_are_counted_by_suffix(tmp_path: Path) -> None:
    touch(
        tmp_path, "a.svs", "a.TXT", "s/b.txt", "s/c.xml", "README", ".x", ".git/y.svs", "d.svs.part"
    )
    found = search_archive([tmp_path])
    assert [s.slide_id for s in found.slides] == ["a"]
    assert dict(found.ignored) == {".txt": 2, ".xml": 1, "no suffix": 1, "hidden": 2, ".part": 1}


def test_the_site_is_the_first_folder_below_the_root(tmp_path: Path) -> None:
    touch(tmp_path, "x.svs", "a/x.svs", "b/deep/x.svs")
    found = search_archive([tmp_path]).slides
    assert {s.slide_id: s.site for s in found} == {"x": "", "a/x": "a", "b/deep/x": "b"}
    (alone,) = search_archive([tmp_path / "a" / "x.svs"]).slides
    assert alone.site == ""


def test_a_linked_folder_is_searched_and_a_loop_is_not(tmp_path: Path) -> None:
    touch(tmp_path, "disk2/s.svs", "slides/t.svs")
    (tmp_path / "slides" / "more").symlink_to(tmp_path / "disk2")
    (tmp_path / "slides" / "self").symlink_to(tmp_path / "slides")
    (tmp_path / "disk2" / "up").symlink_to(tmp_path)
    assert ids(tmp_path / "slides") == ["more/s", "t"]


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/s.svs", "b/t.svs")
    (tmp_path / "a" / "x").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "y").symlink_to(tmp_path / "a")
    assert ids(tmp_path / "a") == ["s", "x/t"]
    assert ids(tmp_path) == ["a/s", "a/x/t", "b/t", "b/y/s"]


def test_a_slide_whose_link_leads_nowhere_is_listed(tmp_path: Path) -> None:
    (tmp_path / "gone.svs").symlink_to(tmp_path / "nowhere.svs")
    assert ids(tmp_path) == ["gone"]


def test_what_preprocess_wrote_is_no_slide(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "out/slides.csv", "out/run.jsonl", "out/thumbnails/a.jpg")
    touch(tmp_path, "thumbnails/mine.jpg", "out/more/b.svs")
    assert ids(tmp_path) == ["a", "out/more/b", "thumbnails/mine"]
    touch(tmp_path, "slides.csv", "log/a-process.jsonl")
    assert ids(tmp_path) == ["a", "out/more/b"]


def test_the_data_of_a_slide_are_no_slides(tmp_path: Path) -> None:
    touch(tmp_path, "m.mrxs", "m/Data0.dat", "m/preview.jpg", "n/photo.jpg", "h-map.jpg")
    (tmp_path / "h.vms").write_text("MapFile=h-map.jpg\n")
    assert ids(tmp_path) == ["h", "m", "n/photo"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "closed/b.svs")
    (tmp_path / "closed").chmod(0)
    found = search_archive([tmp_path])
    (tmp_path / "closed").chmod(0o700)
    assert found.closed == (tmp_path / "closed",)


def test_a_folder_that_fails_to_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.svs", "closed/b.svs")
    scandir = os.scandir

    def failing(path: str):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    found = search_archive([tmp_path])
    assert [s.slide_id for s in found.slides] == ["a"]
    assert found.closed == (tmp_path / "closed",)
