"""How the toolkit touches the disk: atomic files, safe names, fingerprints."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from wsi.errors import CohortError, ResourceError
from wsi.files import (
    check_slide_id,
    file_name_of,
    publish,
    publish_bytes,
    publish_json,
    sampled_fingerprint,
    sha256_file,
    sha256_json,
)

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
def test_a_name_is_one_flat_portable_part_of_a_path(slide_id: str) -> None:
    assume(usable(slide_id))
    name = file_name_of(slide_id)
    assert re.fullmatch(r"[A-Za-z0-9_. ()+,=%~-]+", name)
    assert not name.startswith(".")
    assert len(name.encode()) <= 180
    if len(name) < 180:
        assert unquote(name) == slide_id  # nothing but percent-encoding was done


def test_an_id_reads_as_itself_where_it_can() -> None:
    assert file_name_of("site-a/x") == "site-a%2Fx"
    assert file_name_of("tumor_001 (2)") == "tumor_001 (2)"


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
