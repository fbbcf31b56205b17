"""How the toolkit touches the disk: atomic files, safe names, fingerprints."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import unicodedata
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from wsi import files
from wsi.errors import CohortError, ConfigError, ReadOnlyError, ResourceError
from wsi.files import (
    check_case_twins,
    check_slide_id,
    check_writable,
    collect_temporaries,
    file_name_of,
    inside,
    publish,
    publish_bytes,
    publish_json,
    sampled_fingerprint,
    server_time,
    sha256_file,
    sha256_json,
    temporary_beside,
)

# learn.microsoft.com/windows/win32/fileio/naming-a-file
DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{k}" for port in ("com", "lpt") for k in range(10)),
}
ids = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=320)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def usable(slide_id: str) -> bool:
    try:
        check_slide_id(slide_id)
    except CohortError:
        return False
    return True


@given(ids, ids)
@example("per/cent", "per%2Fcent")
@example("a/b", "a_b")
@example("A", "a")
@example(unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"))
@example("x" * 300, "x" * 301)
@example("x" * 180, "x" * 179)
@example(".a", "%2Ea")
@example("日本" * 60, "日本" * 61)
@example("con", "%63on")
@example("con", "CON")
def test_distinct_ids_have_distinct_names(one: str, other: str) -> None:
    assume(one != other)
    assume(usable(one))
    assume(usable(other))
    assert file_name_of(one) != file_name_of(other)


@given(ids)
@example("site-a/x")
@example("日" * 300)
@example(".hidden")
@example("~" * 200)
@example("aux.1")
def test_a_name_is_one_flat_portable_part_of_a_path(slide_id: str) -> None:
    assume(usable(slide_id))
    name = file_name_of(slide_id)
    assert re.fullmatch(r"[A-Za-z0-9_. ()+,=%~-]+", name)
    assert not name.startswith(".")
    assert name.split(".")[0].lower() not in DEVICES
    assert len(name.encode()) <= 180
    if len(name) < 180:
        assert unquote(name) == slide_id  # nothing but percent-encoding was done


def test_an_id_reads_as_itself_where_it_can() -> None:
    assert file_name_of("site-a/x") == "site-a%2Fx"
    assert file_name_of("tumor_001 (2)") == "tumor_001 (2)"
    assert file_name_of("TCGA-AB-1234.svs") == "TCGA-AB-1234.svs"
    assert file_name_of("console") == "console"


def test_a_name_that_windows_keeps_for_a_device_is_encoded() -> None:
    assert [file_name_of(i) for i in ("CON", "con.svs", "lpt1")] == ["%43ON", "%63on.svs", "%6Cpt1"]


def test_case_twins_are_refused_only_where_they_would_be_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_case_twins(tmp_path, ["A/x", "a/x", "b"])
    exists = Path.exists

    def exists_in_any_case(self: Path) -> bool:
        return exists(self) or any(
            other.name.lower() == self.name.lower() for other in self.parent.iterdir()
        )

    monkeypatch.setattr(Path, "exists", exists_in_any_case)
    check_case_twins(tmp_path, ["A/x", "A/y", "a/z"])
    with pytest.raises(CohortError, match=r"A/x and a/x — "):
        check_case_twins(tmp_path, ["A/x", "a/x", "b"])
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "slide_id",
    ["", "  ", "..", "../../x", "a/../b", "a\\..\\b", "/etc/x", "a\0b", "a\nb", "a\x7f", "a\udce9"],
)
def test_an_id_that_is_no_name_is_refused(slide_id: str) -> None:
    with pytest.raises(CohortError, match=" — "):
        file_name_of(slide_id)


def test_a_published_file_is_whole_and_alone(tmp_path: Path) -> None:
    publish_bytes(tmp_path / "new" / "a.bin", b"abc")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"abc"
    assert names(tmp_path / "new") == ["a.bin"]


def test_after_an_error_the_old_file_stands_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    publish_bytes(path, b"old")
    with pytest.raises(RuntimeError), publish(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with publish(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename across file systems is no single step
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_resource_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as handle:
            handle.write(data[:2])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match=r"a\.bin.*free space and rerun"):
        publish_bytes(tmp_path / "a.bin", b"abcdef")
    assert names(tmp_path) == []


def test_a_full_disk_at_the_flush_is_a_resource_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError):
        publish_bytes(tmp_path / "a.bin", b"abcdef")
    assert names(tmp_path) == []


def test_other_errors_of_the_disk_stay_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Path, data: bytes) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(OSError, match="Input/output"):
        publish_bytes(tmp_path / "a.bin", b"abc")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_closed_to_writing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(self: Path, target: Path) -> Path:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(ReadOnlyError, match=re.escape(f"{tmp_path} may not be written to")) as told:
        publish_bytes(tmp_path / "a.bin", b"abc")
    assert told.value.exit_code == 4
    assert names(tmp_path) == []


def test_a_refusal_elsewhere_is_not_blamed_on_the_folder(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), publish(tmp_path / "out" / "a.bin"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "slides" / "a.svs"))


def test_a_share_without_modes_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "chmod", refused)
    publish_bytes(tmp_path / "a.bin", b"abc")
    assert (tmp_path / "a.bin").read_bytes() == b"abc"


def test_temporary_names_differ_and_fit_whatever_the_name(tmp_path: Path) -> None:
    for name in ("a.h5", "x" * 250 + ".jpg", "é" * 125 + ".png", "日" * 83 + ".json"):
        paths = {temporary_beside(tmp_path / name) for _ in range(3)}
        assert len(paths) == 3
        for path in paths:
            path.touch()  # the file system takes it
            assert path.parent == tmp_path
            assert path.suffix == Path(name).suffix  # writers choose a format by it
            assert path.name.startswith(".tmp-")


MAKE_AND_WAIT = """
import sys, time
from pathlib import Path
from wsi.files import publish
with publish(Path(sys.argv[1]) / "bag.h5") as temporary:
    temporary.write_bytes(b"half")
    print("made", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_makes_is_not(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", MAKE_AND_WAIT, str(tmp_path)]
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE)) for _ in range(2)
        )
        stack.callback(one.kill)
        stack.callback(other.kill)
        assert one.stdout.readline() == other.stdout.readline() == b"made\n"
        own = stack.enter_context(publish(tmp_path / "own.h5"))
        own.write_bytes(b"half")
        for path in tmp_path.iterdir():
            os.utime(path, (0, 0))  # age is no reason while a process lives
        other.send_signal(signal.SIGSTOP)
        assert collect_temporaries(tmp_path) == []
        one.kill()
        one.wait()
        assert len(collect_temporaries(tmp_path)) == 1
        assert len(names(tmp_path)) == 2
        other.kill()
        other.wait()
        assert len(collect_temporaries(tmp_path)) == 1
        assert names(tmp_path) == [own.name]


FOREIGN = [".tmp-0123456789ab-12-34-0-a.h5", ".tmp-12-a.h5", ".tmp-abc", ".tmp-"]


@pytest.mark.parametrize("name", FOREIGN)
def test_leftovers_of_other_machines_go_after_an_hour_of_the_servers_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ahead = time.time() + 10**6  # the server's clock is far from ours
    monkeypatch.setattr(files, "server_time", lambda folder: ahead)
    path = tmp_path / name
    for age, removed in ((3500, []), (3700, [path])):
        path.touch()
        os.utime(path, (ahead - age,) * 2)
        (tmp_path / "a.h5").touch()
        assert collect_temporaries(tmp_path) == removed
        assert (tmp_path / "a.h5").exists()


def test_folders_are_no_leftovers_and_an_absent_folder_has_none(tmp_path: Path) -> None:
    (tmp_path / ".tmp-x").mkdir()
    os.utime(tmp_path / ".tmp-x", (0, 0))
    assert collect_temporaries(tmp_path) == []
    assert collect_temporaries(tmp_path / "absent") == []


def test_the_servers_time_is_the_date_of_a_new_file_and_not_our_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "now").touch()
    date = (tmp_path / "now").stat().st_mtime
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert server_time(tmp_path) == pytest.approx(date, abs=5)
    assert names(tmp_path) == ["now"]


def test_a_folder_that_can_be_written_to_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []


def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(ConfigError, match="is not a folder — "):
            check_writable(folder)


def test_a_link_that_leads_out_of_the_root_is_refused(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "in").mkdir(parents=True)
    other.mkdir()
    (root / "link").symlink_to(root / "in")
    (root / "out").symlink_to(other)
    (tmp_path / "way").symlink_to(root)
    assert inside(root, root / "link" / "new") == (root / "in" / "new").resolve()
    assert inside(tmp_path / "way", tmp_path / "way" / "in") == (root / "in").resolve()
    for path in (root / "out", root / "out" / "new", root / ".." / "other", tmp_path / "root2"):
        with pytest.raises(ConfigError, match="leads out of"):
            inside(root, path)


def test_json_refuses_what_is_no_json(tmp_path: Path) -> None:
    publish_json(tmp_path / "a.json", {"é": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1, 2.5, None]}
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            publish_json(tmp_path / "b.json", {"x": bad})
    assert names(tmp_path) == ["a.json"]


def test_hashes_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_json({"b": 1, "a": [2]}) == hashlib.sha256(b'{"a":[2],"b":1}').hexdigest()


@pytest.mark.parametrize("size", [0, 1, 1000, 65536, 65537, 700_000])
def test_the_sampled_fingerprint_sees_size_and_both_ends(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    data = bytearray(os.urandom(size))
    path.write_bytes(data)
    seen = {sampled_fingerprint(path)}
    path.write_bytes(bytes(data) + b"\0")
    seen.add(sampled_fingerprint(path))
    for position in {0, size // 2, size - 1} if size else set():
        changed = data.copy()
        changed[position] ^= 1
        path.write_bytes(changed)
        seen.add(sampled_fingerprint(path))
    assert len(seen) == 2 + (len({0, size // 2, size - 1}) if size else 0)
