"""Which files make one slide, and when one of them has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from wsi.errors import SlideOpenError
from wsi.slides import open_slide
from wsi.slides.parts import is_other_dicom, parts_of, stamp_of

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
CT = "1.2.840.10008.5.1.4.1.1.2"


def put(path: Path, size: int, mtime_ns: int = 10**18) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def stamp(path: Path) -> tuple[int, int] | None:
    found = stamp_of(path)
    return (found.size_bytes, found.mtime_ns) if found else None


def dicom(path: Path, series: str, kind: str = WHOLE_SLIDE) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(kind)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = UID(kind)
    dataset.SeriesInstanceUID = series
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_one_file_has_its_own_size_and_time(tmp_path: Path) -> None:
    path = put(tmp_path / "a.svs", 7, 123_456_789_123_456_789)
    put(tmp_path / "a" / "other.dat", 100)
    assert stamp(path) == (7, 123_456_789_123_456_789)


def test_what_is_not_there_has_no_stamp(tmp_path: Path) -> None:
    (tmp_path / "dangling.svs").symlink_to(tmp_path / "nowhere")
    assert stamp(tmp_path / "a.svs") is None
    assert stamp(tmp_path / "dangling.svs") is None
    assert stamp(tmp_path / "no-folder" / "a.dcm") is None


def test_the_folder_of_an_mrxs_slide_is_part_of_it(tmp_path: Path) -> None:
    path = put(tmp_path / "a.mrxs", 10, 5)
    assert stamp(path) == (10, 5)
    put(tmp_path / "a" / "Data0000.dat", 1000, 7)
    put(tmp_path / "a" / "Slidedat.ini", 1, 6)
    put(tmp_path / "b" / "Data0000.dat", 5000, 9)
    assert stamp(path) == (1011, 7)


def test_the_pictures_that_a_hamamatsu_index_names_are_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.vms"
    path.write_text("[Virtual Microscope Specimen]\nImageFile=a 1.jpg\r\nMapFile=map.jpg\n")
    for name in ("a 1.jpg", "map.jpg", "holiday.jpg"):
        put(tmp_path / name, 100)
    assert {p.name for p in parts_of(path)} == {"a.vms", "a 1.jpg", "map.jpg"}
    assert stamp(path) == (200 + path.stat().st_size, path.stat().st_mtime_ns)


def test_all_files_of_a_dicom_series_are_one_slide(tmp_path: Path) -> None:
    one, two = (dicom(tmp_path / f"{k}.dcm", "1.2.3") for k in (1, 2))
    other = dicom(tmp_path / "3.dcm", "1.2.4")
    broken = put(tmp_path / "4.dcm", 11)
    assert parts_of(two) == (one, two)
    assert parts_of(other) == (other,)
    assert stamp(one) == stamp(two)
    assert stamp(one) == (
        one.stat().st_size + two.stat().st_size,
        max(one.stat().st_mtime_ns, two.stat().st_mtime_ns),
    )
    assert stamp(broken) == (11, 10**18)


def test_a_file_that_joins_a_dicom_series_changes_its_slide(tmp_path: Path) -> None:
    one = dicom(tmp_path / "1.dcm", "1.2.3")
    before = stamp(one)
    dicom(tmp_path / "2.dcm", "1.2.3")
    os.utime(tmp_path, ns=(1, 1))  # a coarse clock must not hide that the folder changed
    after = stamp(one)
    assert before is not None
    assert after is not None
    assert after[0] > before[0]


@pytest.mark.parametrize("suffix", [".vms", ".vmu"])
def test_an_index_that_is_no_text_has_no_parts(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(bytes(range(256)))
    assert parts_of(path) == (path,)


def test_dicom_of_something_else_is_not_called_damaged(tmp_path: Path) -> None:
    other, slide = (dicom(tmp_path / f"{k[-4:]}.dcm", "1.2", k) for k in (CT, WHOLE_SLIDE))
    with pytest.raises(SlideOpenError, match="is a DICOM file, but no whole-slide image") as told:
        open_slide(other)
    assert told.value.reason == "unsupported-format"
    with pytest.raises(SlideOpenError, match="cannot be opened"):  # it lacks all but its kind
        open_slide(slide)
    cut = put(tmp_path / "cut.dcm", 200)
    cut.write_bytes(other.read_bytes()[:140])
    with pytest.raises(SlideOpenError, match="is damaged, or"):
        open_slide(cut)


@pytest.mark.filterwarnings("error")
def test_a_dicom_header_with_any_byte_changed_is_told_apart_without_an_error(
    tmp_path: Path,
) -> None:
    sound = dicom(tmp_path / "sound.dcm", "1.2.3").read_bytes()
    for k in range(128, len(sound)):
        folder = tmp_path / f"{k}"
        folder.mkdir()
        path = folder / "a.dcm"
        path.write_bytes(sound[:k] + bytes([sound[k] ^ 0x13]) + sound[k + 1 :])
        assert parts_of(path) == (path,)
        is_other_dicom(path)
