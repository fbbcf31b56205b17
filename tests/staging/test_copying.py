"""One slide copied in this process, where its source can be changed at a chosen moment."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from wsi.staging.copying import NoRoomError, NotCopiedError, copy_slide

Put = Callable[[Path, int], Path]


def changes(slide: Path, times: int, data: bytes) -> Callable[[], None]:
    """Return a tick that rewrites a slide at each of its first calls."""
    left = [times]

    def tick() -> None:
        if left[0]:
            left[0] -= 1
            slide.write_bytes(data + bytes([left[0]]))

    return tick


@pytest.mark.parametrize("data", [b"shorter", b"longer" * 100, b"x" * 99])
def test_a_source_that_changes_once_is_copied_again(
    tmp_path: Path, put_slide: Put, data: bytes
) -> None:
    slide = put_slide(tmp_path / "in" / "a.svs", 100)
    copy_slide(slide, tmp_path / "7", 10**6, changes(slide, 1, data))
    assert (tmp_path / "7" / "a.svs").read_bytes() == data + b"\0"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["7", "in"]


def test_a_source_that_changes_again_and_again_is_not_copied(
    tmp_path: Path, put_slide: Put
) -> None:
    slide = put_slide(tmp_path / "in" / "a.svs", 100)
    with pytest.raises(NotCopiedError, match="changed while it was copied"):
        copy_slide(slide, tmp_path / "7", 10**6, changes(slide, 9, b"x"))
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_source_that_grows_never_outgrows_its_room(tmp_path: Path, put_slide: Put) -> None:
    slide = put_slide(tmp_path / "in" / "a.svs", 100)
    with pytest.raises(NoRoomError) as caught:
        copy_slide(slide, tmp_path / "7", 2 * 4096, changes(slide, 1, b"x" * 10_000))
    assert caught.value.bytes_needed == 4 * 4096
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_file_added_to_a_slide_while_it_is_copied_is_copied_too(
    tmp_path: Path, put_slide: Put
) -> None:
    slide = put_slide(tmp_path / "in" / "a.mrxs", 100)
    put_slide(tmp_path / "in" / "a" / "Data0.dat", 100)
    late = tmp_path / "in" / "a" / "Data1.dat"
    copy_slide(slide, tmp_path / "7", 10**6, lambda: late.exists() or late.write_bytes(b"late"))
    assert (tmp_path / "7" / "a" / "Data1.dat").read_bytes() == b"late"


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, NoRoomError), (errno.EDQUOT, NoRoomError), (errno.EIO, NotCopiedError)],
)
def test_an_error_of_the_disk_leaves_nothing(
    tmp_path: Path, put_slide: Put, code: int, error: type[Exception]
) -> None:
    slide = put_slide(tmp_path / "in" / "a.svs", 10 << 20)
    calls = []

    def tick() -> None:
        calls.append(0)
        if len(calls) == 2:
            raise OSError(code, "told")

    with pytest.raises(error):
        copy_slide(slide, tmp_path / "7", 10**9, tick)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
