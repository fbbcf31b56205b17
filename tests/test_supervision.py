"""Child processes that crash, hang, are killed or ask for too much: each costs its task only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import child_tasks as tasks
import psutil
import pytest

from wsi.supervision import (
    BUG,
    CRASH,
    KILLED,
    MEMORY,
    TIMEOUT,
    Crew,
    Ended,
    Event,
    Limits,
    Lost,
    Said,
)

PIECE = 4096
GB = 1 << 30


@pytest.fixture(scope="module")
def warm() -> Iterator[Crew]:
    """A crew of one that many tests share: a child needs half a second to start."""
    with Crew(1) as crew:
        yield crew


def heard(crew: Crew, until: Callable[[list[Event]], bool], seconds: float = 60) -> list[Event]:
    found: list[Event] = []
    end = time.monotonic() + seconds
    while not until(found):
        assert time.monotonic() < end, found
        found += crew.events(0.1)
    return found


def ended(events: list[Event]) -> bool:
    return any(isinstance(event, Ended | Lost) for event in events)


def result(crew: Crew, call: Callable[..., Any], *args: Any) -> Ended | Lost:
    """Return how a task ended; nothing else may have been said of any other."""
    crew.give("task", call, *args)
    events = heard(crew, ended)
    assert {event.key for event in events} == {"task"}
    last = events[-1]
    assert isinstance(last, Ended | Lost)
    return last


def value(crew: Crew, call: Callable[..., Any], *args: Any) -> Any:
    last = result(crew, call, *args)
    assert isinstance(last, Ended), last
    return last.value


def lost(crew: Crew, call: Callable[..., Any], *args: Any) -> Lost:
    last = result(crew, call, *args)
    assert isinstance(last, Lost), last
    return last


def said_by(crew: Crew) -> Any:
    """Return the first message of the task."""
    (first,) = heard(crew, bool)
    assert isinstance(first, Said)
    return first.message


def wait_until(true: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# -- tasks that end well -------------------------------------------------------------------------


def test_a_task_is_done_in_another_process_which_lives_on(warm: Crew) -> None:
    assert value(warm, tasks.add, 2, 3) == 5
    first, second = value(warm, tasks.pid), value(warm, tasks.pid)
    assert first == second != os.getpid()
    assert warm.pids() == [first]
    assert (warm.idle, warm.busy) == (1, 0)


def test_as_many_children_as_are_needed_do_tasks_side_by_side(tmp_path: Path) -> None:
    with Crew(2) as crew:
        crew.give("a", tasks.wait_for, tmp_path / "a")
        crew.give("b", tasks.wait_for, tmp_path / "b")
        assert (crew.idle, crew.busy) == (0, 2)
        heard(crew, lambda events: len(events) == 2)
        (tmp_path / "b").touch()
        (last,) = heard(crew, ended)
        assert last == Ended("b", True)
        (tmp_path / "a").touch()
        assert heard(crew, ended) == [Ended("a", True)]
        assert crew.started == 2


def test_every_item_comes_back_with_what_was_made_of_it() -> None:
    with Crew(2) as crew:
        assert sorted(crew.each(tasks.double, range(7), 100)) == [
            (k, 2 * k + 100) for k in range(7)
        ]
        found = dict(crew.each(tasks.double_or_die, range(10)))
    assert {k: v for k, v in found.items() if isinstance(v, int)} == {
        k: 2 * k for k in range(10) if k not in (3, 8)
    }
    assert [found[k].reason for k in (3, 8)] == [KILLED, KILLED]


def test_what_is_not_asked_for_to_the_end_is_dropped() -> None:
    with Crew(1) as crew:
        next(iter(crew.each(tasks.double, range(100))))
        assert crew.busy == 0
        assert value(crew, tasks.add, 1, 1) == 2


# -- tasks that do not ---------------------------------------------------------------------------


def test_a_crash_costs_its_task_and_says_which_signal(warm: Crew) -> None:
    end = lost(warm, tasks.segfault)
    assert (end.reason, end.message) == (CRASH, "its decoder crashed (SIGSEGV)")
    assert value(warm, tasks.add, 1, 2) == 3


@pytest.mark.parametrize("code", [0, 3])
def test_a_child_that_ends_itself_is_a_crash_with_its_code(warm: Crew, code: int) -> None:
    end = lost(warm, tasks.leave, code)
    assert (end.reason, end.message) == (CRASH, f"its decoder ended by itself with code {code}")


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, KILLED), (signal.SIGRTMIN + 3, CRASH)]
)
def test_a_child_killed_from_outside_is_told_apart(warm: Crew, number: int, reason: str) -> None:
    warm.give("task", tasks.hang)
    os.kill(said_by(warm), number)
    (end,) = heard(warm, ended)
    assert isinstance(end, Lost)
    assert end.reason == reason
    assert value(warm, tasks.add, 1, 2) == 3


def test_an_error_nobody_foresaw_is_a_bug_with_its_trace(warm: Crew) -> None:
    before = warm.started
    end = lost(warm, tasks.fail)
    assert (end.reason, end.message) == (BUG, "ValueError: the cat sat")
    assert "child_tasks.py" in end.trace
    assert "on the mat" in end.trace
    assert lost(warm, tasks.unpicklable).reason == BUG
    assert value(warm, tasks.add, 1, 2) == 3
    assert warm.started <= before + 1  # the child lives on


def test_a_child_without_a_word_is_ended(tmp_path: Path) -> None:
    with Crew(1, Limits(silence_s=0.5)) as crew:
        assert value(crew, tasks.whisper, 4, 0.3) == "all said"  # each word counts
        crew.give("task", tasks.hang)
        pid, before = said_by(crew), time.monotonic()
        (end,) = heard(crew, ended)
        assert isinstance(end, Lost)
        assert (end.reason, end.message) == (TIMEOUT, "its decoder said nothing for 0.5 s")
        assert 0.4 < time.monotonic() - before < 10
        assert is_gone(pid)
        assert value(crew, tasks.add, 1, 2) == 3


def test_memory_beyond_the_limit_is_refused_to_the_child_alone() -> None:
    with Crew(1, Limits(memory_bytes=GB)) as crew:
        assert value(crew, tasks.allocate, GB // 2) == GB // 2
        pid = value(crew, tasks.pid)
        end = lost(crew, tasks.allocate, 2 * GB)
        assert end.reason in (MEMORY, BUG)
        assert value(crew, tasks.allocate, GB // 2) == GB // 2
        if end.reason == MEMORY:
            assert value(crew, tasks.pid) != pid  # what is left of it may have no memory


def test_a_child_that_died_while_it_was_idle_is_replaced(warm: Crew) -> None:
    pid = value(warm, tasks.pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))
    assert value(warm, tasks.add, 1, 2) == 3
    assert pid not in warm.pids()


def test_a_death_is_told_even_when_another_task_was_given_since() -> None:
    with Crew(2) as crew:
        crew.give("first", tasks.leave, 1)
        wait_until(lambda: not crew.pids())
        crew.give("second", tasks.add, 1, 2)
        events = heard(crew, lambda events: len(events) == 2)
    assert {event.key: type(event) for event in events} == {"first": Lost, "second": Ended}


def test_a_dropped_task_is_heard_of_no_more(warm: Crew) -> None:
    warm.give("task", tasks.hang)
    pid = said_by(warm)
    warm.drop("task")
    assert is_gone(pid)
    assert list(warm.events(0.1)) == []
    assert warm.idle == 1


# -- shared memory -------------------------------------------------------------------------------


def pieces(crew: Crew, n: int) -> list[Said]:
    """Return the next pieces of shared memory."""

    def filled(events: list[Event]) -> list[Said]:
        return [event for event in events if isinstance(event, Said)]

    return filled(heard(crew, lambda events: len(filled(events)) >= n))


def finish(crew: Crew) -> None:
    """Wait until the task has ended."""
    heard(crew, lambda events: not crew.busy)


def test_pixels_come_through_shared_memory_and_wait_for_room() -> None:
    with Crew(1, Limits(slots=2, silence_s=0.3)) as crew:
        crew.share(PIECE)
        crew.give("task", tasks.fill, 5, 10)
        first = pieces(crew, 2)
        assert crew.blocked
        for _ in range(5):  # it waits for us for longer than silence is borne
            assert list(crew.events(0.1)) == []
        for k, piece in enumerate(first):
            assert piece.pixels is not None
            assert (piece.message, piece.pixels.shape) == (k, (PIECE,))
            assert (piece.pixels == 10 + k).all()
        crew.free(first[1])
        assert not crew.blocked
        (third,) = pieces(crew, 1)
        assert (third.message, third.slot) == (2, first[1].slot)
        assert (first[0].pixels == 10).all()  # held all the while
        crew.free(first[0])
        crew.free(third)
        rest = pieces(crew, 2)
        assert [piece.message for piece in rest] == [3, 4]
        finish(crew)


def test_pieces_held_when_a_task_ends_are_not_written_over_by_the_next(warm: Crew) -> None:
    warm.share(PIECE)
    warm.give("one", tasks.fill, 3, 10)
    held = pieces(warm, 3)
    finish(warm)
    warm.give("two", tasks.fill, 6, 100)  # one piece is left to it: it goes round in that
    seen = []
    while len(seen) < 6:
        (piece,) = pieces(warm, 1)
        assert piece.pixels is not None
        seen.append(int(piece.pixels[0]))
        warm.free(piece)
    assert seen == [100, 101, 102, 103, 104, 105]
    assert [int(piece.pixels[-1]) for piece in held] == [10, 11, 12]  # pyright: ignore
    for piece in held:
        warm.free(piece)
    finish(warm)


def test_memory_of_another_size_replaces_the_old_which_stays_as_it_is(warm: Crew) -> None:
    warm.share(PIECE)
    warm.give("small", tasks.fill, 4, 10)
    small = pieces(warm, 4)
    finish(warm)
    warm.share(3 * PIECE)
    warm.give("large", tasks.fill, 4, 50)  # none of the old pieces is missing
    large = pieces(warm, 4)
    finish(warm)
    assert [piece.pixels.shape for piece in large] == [(3 * PIECE,)] * 4  # pyright: ignore
    assert [int(piece.pixels[-1]) for piece in small] == [10, 11, 12, 13]  # pyright: ignore
    for piece in small:
        warm.free(piece)  # of memory that is no longer in use: says nothing of the new
    warm.give("wait", tasks.fill, 1, 90)
    assert list(warm.events(0.2)) == []
    assert warm.blocked
    assert [int(piece.pixels[-1]) for piece in large] == [50, 51, 52, 53]  # pyright: ignore
    warm.free(large[0])
    finish(warm)
    for piece in large:
        warm.free(piece)


def test_pixels_stay_when_their_child_is_dead(warm: Crew) -> None:
    warm.share(PIECE)
    warm.give("task", tasks.fill, 9, 7)
    held = pieces(warm, 4)
    os.kill(warm.pids()[0], signal.SIGKILL)
    finish(warm)
    assert [int(piece.pixels.min()) for piece in held] == [7, 8, 9, 10]  # pyright: ignore
    for piece in held:
        warm.free(piece)
    warm.give("next", tasks.fill, 2, 1)
    assert len(pieces(warm, 2)) == 2
    finish(warm)


def test_a_task_without_shared_memory_does_not_wait_for_it() -> None:
    with Crew(1, Limits(silence_s=5)) as crew:
        end = lost(crew, tasks.ask_for_memory)
        assert (end.reason, end.message) == (
            BUG,
            "RuntimeError: no shared memory was set up for this task",
        )


# -- parents -------------------------------------------------------------------------------------

PARENT = """
    import signal, sys, time
    sys.path[:] = {path!r}
    import child_tasks as tasks
    from wsi.supervision import Crew, Lost, Limits
    {body}
"""


def parent(body: str, **more: Any) -> subprocess.Popen[str]:
    """Start a process with a crew of its own."""
    text = textwrap.dedent(PARENT).format(path=sys.path, body=textwrap.dedent(body))
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, bufsize=1, **more
    )


SLEEPING = """
signal.signal(signal.SIGINT, lambda *about: print("asked", flush=True))
crew = Crew(2)
for k in range(2):
    crew.give(k, tasks.hang)
n = 0
while True:
    for event in crew.events(0.1):
        n += 1
        print(event.message, flush=True)
"""


def test_children_die_with_a_killed_parent() -> None:
    with parent(SLEEPING) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(2)]
        assert not any(map(is_gone, pids))
        process.kill()
        wait_until(lambda: all(map(is_gone, pids)))


def test_an_interrupt_of_the_whole_group_is_the_parents_alone() -> None:
    with parent(SLEEPING, start_new_session=True) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(2)]
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        time.sleep(0.3)
        assert not any(map(is_gone, pids))
        process.kill()
        wait_until(lambda: all(map(is_gone, pids)))


STOPPED = """
with Crew(1, Limits(silence_s=1)) as crew:
    crew.give("a", tasks.hang)
    heard = []
    while not heard:
        heard += crew.events(5)
    print(heard[0].message, flush=True)
    crew.drop("a")
    crew.give("b", tasks.whisper, 12, 0.75)
    while not any(type(event).__name__ != "Said" for event in heard[1:]):
        heard += crew.events(5)
        print(len(heard), flush=True)
    print(heard[-1], flush=True)
"""


@pytest.mark.slow  # it is suspended for longer than a busy parent may be away
def test_a_suspended_parent_blames_no_child_for_its_own_absence() -> None:
    with parent(STOPPED, start_new_session=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(8)
        os.killpg(process.pid, signal.SIGCONT)
        assert process.stdout.read().splitlines()[-1] == "Ended(key='b', value='all said')"


def test_nothing_is_left_open_by_many_tasks() -> None:
    process = psutil.Process()
    with Crew(1) as crew:
        crew.share(PIECE)
        value(crew, tasks.add, 0, 0)
        before = process.num_fds(), psutil.Process(crew.pids()[0]).num_fds()
        for k in range(200):
            crew.share(PIECE * (1 + k % 2))  # new memory every time
            assert value(crew, tasks.add, k, 1) == k + 1
        assert (process.num_fds(), psutil.Process(crew.pids()[0]).num_fds()) == before
        for _ in range(2):
            lost(crew, tasks.leave, 1)
        value(crew, tasks.add, 0, 0)
        assert process.num_fds() == before[0]
        (pid,) = crew.pids()
    assert is_gone(pid)


def test_a_child_sees_no_files_of_its_parent(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file, Crew(2) as crew:
        os.set_inheritable(file.fileno(), True)
        crew.give("a", tasks.wait_for, tmp_path / "a")
        crew.give("b", tasks.wait_for, tmp_path / "b")
        heard(crew, lambda events: len(events) == 2)
        for pid in crew.pids():
            child = psutil.Process(pid)
            assert child.open_files() == []
            assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
            pipes = [p for p in Path(f"/proc/{pid}/fd").iterdir() if "socket" in str(p.readlink())]
            assert len(pipes) == 1  # its own, not those of the other
