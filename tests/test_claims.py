"""Claims: who has a slide, when a claim is stale, and what is left behind (nothing)."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from wsi import claim_files, claims, files
from wsi.claims import Claims
from wsi.errors import CohortError, ReadOnlyError, ResourceError
from wsi.files import file_name_of
from wsi.processes import current_process, uptime

HEARTBEAT = 0.05


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(folder: Path, name: str, age_s: float = 0, **changes: Any) -> Path:
    """Write a claim of this living process, as another program would, `age_s` seconds old."""
    me = current_process()
    content = {
        "name": name,
        "host": socket.gethostname(),
        "boot_id": me.boot_id,
        "namespace": me.namespace,
        "pid": me.pid,
        "started": me.started,
        "token": "another",
        "time": "2026-01-02T03:04:05+00:00",
    } | changes
    path = folder / f"{file_name_of(name)}.claim"
    path.write_text(json.dumps(content))
    grow_old(path, age_s)
    return path


def grow_old(path: Path, age_s: float) -> None:
    now = path.stat().st_mtime
    os.utime(path, (now - age_s,) * 2)


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


@pytest.fixture(params=["hard links", "no hard links"])
def taker(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Claims]:
    """Claims of a folder whose file system has hard links, and of one that has none."""
    if request.param == "no hard links":
        monkeypatch.setattr(Path, "hardlink_to", refusing(errno.EPERM))
    with Claims(tmp_path, ttl_s=100) as opened:
        yield opened


def refusing(number: int) -> Callable[..., None]:
    def refuse(self: Path, *_: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    return refuse


# -- one process ------------------------------------------------------------------------------


def test_a_claim_is_had_once_until_it_is_released(taker: Claims, tmp_path: Path) -> None:
    claim = taker.take("site/a")
    assert claim is not None
    assert claim.name == "site/a"
    assert claim.is_live()
    assert names(tmp_path) == ["site%2Fa.claim"]
    assert taker.take("site/a") is None
    with Claims(tmp_path) as other:
        assert other.take("site/a") is None
    assert claim.is_live()
    claim.release()
    assert names(tmp_path) == []
    assert not claim.is_live()
    assert taker.take("site/a") is not None


def test_releasing_twice_does_not_take_the_next_holders_claim(taker: Claims) -> None:
    first = taker.take("a")
    assert first
    first.release()
    second = taker.take("a")
    first.release()
    assert second
    assert second.is_live()


def test_the_end_of_a_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Claims(tmp_path / "claims") as opened:  # noqa: PT012
        assert opened.take("a")
        assert opened.take("b")
        raise KeyboardInterrupt
    assert names(tmp_path / "claims") == []
    assert not [thread for thread in threading.enumerate() if thread.name == "claims"]


def test_an_interruption_right_after_a_claim_was_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, content: bytes) -> bool:
        claim_files.create(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(claims, "create", interrupted)
    with pytest.raises(KeyboardInterrupt), Claims(tmp_path) as opened:
        opened.take("a")
    assert names(tmp_path) == []


def test_looking_makes_no_folder_and_closing_what_took_nothing_neither(tmp_path: Path) -> None:
    with Claims(tmp_path / "claims") as opened:
        assert opened.holder("a") is None
        assert opened.held() == []
    assert names(tmp_path) == []


def test_a_folder_removed_in_the_midst_is_made_again(tmp_path: Path) -> None:
    with Claims(tmp_path / "claims") as opened:
        claim = opened.take("a")
        assert claim
        (tmp_path / "claims" / "a.claim").unlink()
        (tmp_path / "claims").rmdir()
        assert not claim.is_live()
        assert opened.take("a")


def test_an_id_that_is_no_name_is_refused(taker: Claims) -> None:
    with pytest.raises(CohortError):
        taker.take("../x")


def test_long_and_odd_ids_are_claimed_apart(taker: Claims) -> None:
    ids = ["x" * 240, "x" * 241, "日" * 90, "日" * 91, "CON", "con", "é", "e\u0301", "a%2Fb", "a/b"]
    assert all(taker.take(i) for i in ids)
    assert taker.held() == sorted(ids)


# -- renewing ---------------------------------------------------------------------------------


def test_claims_are_renewed_by_one_thread(tmp_path: Path) -> None:
    with Claims(tmp_path, heartbeat_s=HEARTBEAT) as opened:
        assert opened.take("a")
        assert opened.take("b")
        paths = [tmp_path / "a.claim", tmp_path / "b.claim"]
        for path in paths:
            grow_old(path, 50)
        old = time.time() - 40
        assert eventually(lambda: all(path.stat().st_mtime > old for path in paths))
        assert [thread.name for thread in threading.enumerate()].count("claims") == 1


def test_a_renewal_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def broken(path: Path) -> None:
        calls.append(path)
        raise OSError(errno.EIO, "Input/output error")

    with Claims(tmp_path, heartbeat_s=HEARTBEAT) as opened:
        assert opened.take("a")
        monkeypatch.setattr(claims.os, "utime", broken)
        assert eventually(lambda: len(calls) >= 3)


def test_a_lost_claim_is_neither_renewed_nor_released(tmp_path: Path) -> None:
    with Claims(tmp_path, heartbeat_s=HEARTBEAT) as opened:
        claim = opened.take("a")
        assert claim
        path = write(tmp_path, "a", age_s=50)  # another has taken it over
        before = path.stat().st_mtime_ns
        time.sleep(4 * HEARTBEAT)
        assert not claim.is_live()
        claim.release()
        assert path.stat().st_mtime_ns == before
    assert names(tmp_path) == ["a.claim"]


def test_asking_renews(taker: Claims, tmp_path: Path) -> None:
    claim = taker.take("a")
    assert claim
    grow_old(tmp_path / "a.claim", 99)
    assert claim.is_live()
    assert (tmp_path / "a.claim").stat().st_mtime > time.time() - 50


def test_a_claim_that_cannot_be_read_is_not_ours(
    taker: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = taker.take("a")
    assert claim
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refusing(errno.EIO))
        assert not claim.is_live()
    assert claim.is_live()


def test_a_forked_child_leaves_its_parents_claims_alone(tmp_path: Path) -> None:
    # A process of its own: pytest's has threads and must not fork.
    code = (
        "import os, sys; from pathlib import Path; from wsi.claims import Claims\n"
        "opened = Claims(Path(sys.argv[1])); claim = opened.take('a')\n"
        "opened._stop.set(); opened._thread.join()\n"  # forking with threads is warned about
        "pid = os.fork()\n"
        "if not pid: code = claim.is_live(); claim.release(); opened.close(); os._exit(code)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert claim.is_live()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], check=True)
    assert names(tmp_path) == ["a.claim"]


# -- stale or not -----------------------------------------------------------------------------

LIVE = {
    "a living process, just renewed": (0, {}),
    "a living process, nearly too old": (90, {}),
    "another machine, nearly too old": (90, {"host": "x", "boot_id": "x"}),
    "another machine of our name, renewed since we started": (1, {"boot_id": "x"}),
    "another container, whose pids are not ours": (90, {"namespace": "x", "pid": 2**22 + 1}),
    "a pid that is not ours to judge": (90, {"host": "x", "pid": 2**22 + 1}),
    "no number": (90, {"pid": "1"}),
    "no host": (90, {"host": None}),
    "from the future": (-1000, {"host": "x"}),
}
STALE = {
    "no such process": (0, {"pid": 2**22 + 1}),
    "the pid is another process's now": (0, {"started": 1}),
    "a living process, suspended for too long": (101, {}),
    "another machine, too old": (101, {"host": "x", "boot_id": "x"}),
    "another container, too old": (101, {"namespace": "x"}),
    "no number, too old": (101, {"pid": "1"}),
}


@pytest.mark.parametrize("case", LIVE)
def test_a_living_claim_is_left_alone(taker: Claims, tmp_path: Path, case: str) -> None:
    age_s, changes = LIVE[case]
    path = write(tmp_path, "a", age_s, **changes)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert taker.take("a") is None
    assert taker.held() == ["a"]
    assert taker.holder("a") is not None
    taker.close()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert names(tmp_path) == ["a.claim"]


@pytest.mark.parametrize("case", STALE)
def test_a_stale_claim_is_taken_over_at_once(taker: Claims, tmp_path: Path, case: str) -> None:
    age_s, changes = STALE[case]
    write(tmp_path, "a", age_s, **changes)
    assert taker.held() == []
    assert taker.holder("a") is None
    claim = taker.take("a")
    assert claim
    assert claim.is_live()
    assert names(tmp_path) == ["a.claim"]


def test_a_claim_from_before_this_machine_started_anew_is_taken_over_at_once(
    tmp_path: Path,
) -> None:
    up = uptime()
    with Claims(tmp_path, ttl_s=up + 10_000) as opened:
        write(tmp_path, "a", up - 30, boot_id="x")
        assert opened.take("a") is None
        write(tmp_path, "a", up + 30, boot_id="x")
        assert opened.take("a")
        write(tmp_path, "b", up + 30, boot_id="x", host="x")  # not this machine
        assert opened.take("b") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_claim_that_says_nothing_lives_for_the_ttl(
    taker: Claims, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "site%2Fa.claim"
    path.write_bytes(content)
    assert taker.take("site/a") is None
    assert taker.held() == ["site/a"]
    holder = taker.holder("site/a")
    assert holder
    assert (holder.host, holder.pid) == ("unknown", 0)
    grow_old(path, 101)
    assert taker.take("site/a")


def test_a_claim_closed_to_us_lives_for_the_ttl(
    taker: Claims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "a", pid=2**22 + 1)  # would be stale if it could be read
    opened = Path.open

    def closed(self: Path, *args: Any, **options: Any) -> Any:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", closed)
    assert taker.take("a") is None
    assert taker.held() == ["a"]


def test_age_is_told_by_the_server_and_not_by_our_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "a", host="x")
    server = 1_000_000.0  # its clock stands in 1970
    monkeypatch.setattr(claims, "server_time", lambda folder: server)
    for age_s, taken in ((99, False), (103, True)):
        os.utime(path, (server - age_s,) * 2)
        with Claims(tmp_path, ttl_s=100) as opened:
            assert bool(opened.take("a")) == taken


def test_a_folder_that_does_not_tell_the_time_lets_claims_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a", 10_000, host="x", pid=7)

    def read_only(folder: Path) -> float:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(claims, "server_time", read_only)
    holder = Claims(tmp_path).holder("a")
    assert holder
    assert (holder.host, holder.pid, holder.age_s) == ("x", 7, None)


def test_a_holder_is_told(taker: Claims, tmp_path: Path) -> None:
    assert taker.take("a")
    grow_old(tmp_path / "a.claim", 42)
    holder = taker.holder("a")
    assert holder
    assert (holder.host, holder.pid) == (socket.gethostname(), os.getpid())
    assert holder.age_s == pytest.approx(42, abs=5)
    assert abs(datetime.now(UTC) - holder.since) < timedelta(seconds=10)
    write(tmp_path, "b")
    other = taker.holder("b")
    assert other
    assert other.since == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("when", ["yesterday", 7, None, "2026-01-02T03:04:05"])
def test_a_claim_without_a_moment_began_when_it_was_renewed(
    taker: Claims, tmp_path: Path, when: object
) -> None:
    path = write(tmp_path, "a", 5, time=when)
    holder = taker.holder("a")
    assert holder
    assert holder.since.timestamp() == pytest.approx(path.stat().st_mtime, abs=0.01)


# -- taking over ------------------------------------------------------------------------------


def test_a_holder_that_renews_while_it_is_being_judged_keeps_its_claim(
    taker: Claims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "a", 101)

    def renewing(file: Path, content: bytes) -> bool:
        os.utime(path)  # it wakes up
        return claim_files.create(file, content)

    monkeypatch.setattr(claims, "create", renewing)
    assert taker.take("a") is None
    assert json.loads(path.read_text())["token"] == "another"
    assert names(tmp_path) == ["a.claim"]


def test_a_claim_made_since_is_put_back(
    taker: Claims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = write(tmp_path, "a", 101).read_bytes()
    path = tmp_path / "a.claim"
    rename = Path.rename

    def too_late(self: Path, target: Path) -> Path:
        write(tmp_path, "a", token="quicker")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", too_late)
    claim_files.withdraw(path, stale)
    assert json.loads(path.read_text())["token"] == "quicker"
    assert names(tmp_path) == ["a.claim"]


def test_a_takeover_under_way_is_waited_for(taker: Claims, tmp_path: Path) -> None:
    write(tmp_path, "a", 101)
    write(tmp_path, "a").rename(tmp_path / "a.takeover")
    write(tmp_path, "a", 101)
    assert taker.take("a") is None
    assert names(tmp_path) == ["a.claim", "a.takeover"]


@pytest.mark.parametrize("claimed", [True, False])
def test_a_takeover_whose_process_ended_is_no_obstacle_and_not_left(
    tmp_path: Path, claimed: bool
) -> None:
    write(tmp_path, "a", pid=2**22 + 1).rename(tmp_path / "a.takeover")
    if claimed:
        write(tmp_path, "a", pid=2**22 + 1)
    with Claims(tmp_path) as opened:
        assert opened.take("a")
    assert names(tmp_path) == []


def test_closing_clears_away_what_ended_processes_left_of_any_slide(tmp_path: Path) -> None:
    write(tmp_path, "done already", pid=2**22 + 1)
    living = write(tmp_path, "in progress")
    with Claims(tmp_path) as opened:
        assert opened.take("a")
    assert list(tmp_path.iterdir()) == [living]


def test_a_link_whose_answer_was_lost_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_twice(self: Path, target: Path) -> None:
        os.link(target, self)
        os.link(target, self)  # what a network file system does when it hears no answer

    monkeypatch.setattr(Path, "hardlink_to", made_twice)
    with Claims(tmp_path) as opened:
        claim = opened.take("a")
        assert claim
        assert claim.is_live()
        assert opened.take("a") is None


# -- a disk that is full, or closed to writing --------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["write_bytes", "hardlink_to", "mkdir"])
def test_a_full_disk_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: str
) -> None:
    with Claims(tmp_path) as opened:
        with monkeypatch.context() as patch:
            patch.setattr(Path, step, failing_after_opening(number))
            with pytest.raises(ResourceError, match=r"no space left for a\.claim"):
                opened.take("a")
        assert names(tmp_path) == []
        assert opened.take("a")


def failing_after_opening(number: int) -> Callable[..., None]:
    def fail(self: Path, *_: object, **__: object) -> None:
        if self.name.startswith(files.TEMPORARY_PREFIX):
            self.touch()
        raise OSError(number, os.strerror(number), str(self))

    return fail


def test_a_disk_that_fills_while_a_claim_is_written_in_place_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open

    def filling(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode != "xb":
            return opened(self, mode, *args, **options)
        opened(self, mode).close()
        return Full()

    monkeypatch.setattr(Path, "hardlink_to", refusing(errno.EOPNOTSUPP))
    monkeypatch.setattr(Path, "open", filling)
    with Claims(tmp_path) as taker, pytest.raises(ResourceError):
        taker.take("a")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_claim_is_released_in_a_folder_without_room_for_another_name(
    taker: Claims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    claim = taker.take("a")
    assert claim
    monkeypatch.setattr(Path, "rename", refusing(number))
    claim.release()
    assert names(tmp_path) == []


def test_a_claim_that_cannot_be_released_is_no_error(
    taker: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = taker.take("a")
    assert claim
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refusing(errno.EIO))
        claim.release()
    assert taker.held() == ["a"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_closed_to_writing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with Claims(tmp_path) as opened:
        monkeypatch.setattr(Path, "write_bytes", refusing(number))
        with pytest.raises(ReadOnlyError, match="may not be written to"):
            opened.take("a")


def test_other_errors_of_the_disk_stay_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Claims(tmp_path) as opened:
        monkeypatch.setattr(Path, "hardlink_to", refusing(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            opened.take("a")
        assert names(tmp_path) == []
