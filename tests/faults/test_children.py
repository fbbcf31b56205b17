"""Children that die unheard, or hang at once: every task has an end."""

from __future__ import annotations

import os
import signal
import time

from wsi.supervision import KILLED, TIMEOUT, Channel, Crew, Ended, Limits, Lost


def die(channel: Channel) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(channel: Channel) -> None:
    time.sleep(600)


def answer(channel: Channel) -> int:
    return 42


def ended(crew: Crew, n: int, within_s: float = 30) -> dict[str, Ended | Lost]:
    """Return the ends of n tasks by name, as far as they come in time."""
    found: dict[str, Ended | Lost] = {}
    until = time.monotonic() + within_s
    while len(found) < n and time.monotonic() < until:
        for event in crew.events(0.2):
            assert isinstance(event, Ended | Lost)
            found[event.key] = event
    return found


def test_a_death_that_was_not_heard_yet_is_not_forgotten_over_a_new_task() -> None:
    with Crew(2) as crew:
        crew.give("a", die)
        until = time.monotonic() + 30
        while crew.pids() and time.monotonic() < until:
            time.sleep(0.05)
        assert crew.pids() == []
        crew.give("b", answer)
        found = ended(crew, 2)
    assert isinstance(found["a"], Lost)
    assert found["a"].reason == KILLED
    assert found["b"] == Ended("b", 42)


def test_a_child_that_hangs_on_its_first_task_is_found_as_soon_as_any_other() -> None:
    with Crew(1, Limits(silence_s=0.5)) as crew:
        crew.give("a", hang)
        begun = time.monotonic()
        found = ended(crew, 1)
    assert isinstance(found["a"], Lost)
    assert found["a"].reason == TIMEOUT
    assert time.monotonic() - begun < 20  # its libraries may take a while to be imported
