"""Several processes on one output folder, as on a cluster: at once, ended, suspended.

The oracle is a run that was alone, and what every process logged of the slides it made.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Run, Start, bags, leftovers, logged, states

Slides = Callable[[int], Path]
_MOST_WASTED = 0.02


def made(out: Path) -> Counter[str]:
    """Return how often each slide was made, over the logs of all processes."""
    events = logged(out)
    return Counter(e["slide_id"] for e in events if e.get("event") == "slide")


def check(out: Path, alone: Path, n: int, runs: list[Run]) -> None:
    """Compare with what a run made alone: same bags, nothing left behind."""
    golden = bags(alone)
    assert len(golden) == n
    assert bags(out) == golden
    assert leftovers(out) == []
    assert set(states(out).values()) == {"done"}
    assert [run.left() for run in runs] == [[]] * len(runs)


def alone(start: Start, slides: Path, out: Path) -> Path:
    run = start(slides, out)
    assert run.wait(600) == 0, run.output
    return out


def together(start: Start, slides: Path, tmp_path: Path, n: int, processes: int) -> None:
    golden = alone(start, slides, tmp_path / "alone")
    out = tmp_path / "out"
    runs = [start(slides, out, "--wait") for _ in range(processes)]
    assert [run.wait(600) for run in runs] == [0] * processes
    check(out, golden, n, runs)
    counts = made(out)
    wasted = counts.total() - n
    assert len(counts) == n
    assert wasted <= _MOST_WASTED * n, counts.most_common(5)
    shares = [len([e for e in run.events() if e.get("event") == "slide"]) for run in runs]
    print(f"{n} slides by {processes} processes {shares}, {wasted} made twice")


@pytest.mark.slow
def test_two_processes_make_every_slide_once(
    start: Start, small_slides: Slides, tmp_path: Path
) -> None:
    together(start, small_slides(12), tmp_path, 12, 2)


@pytest.mark.slow
def test_four_processes_make_200_slides_once(
    start: Start, small_slides: Slides, tmp_path: Path
) -> None:
    together(start, small_slides(200), tmp_path, 200, 4)


@pytest.mark.slow
def test_four_processes_that_are_ended_and_started_again_lose_nothing(
    start: Start, small_slides: Slides, tmp_path: Path
) -> None:
    slides = small_slides(200)
    golden = alone(start, slides, tmp_path / "alone")
    out = tmp_path / "out"
    first = [start(slides, out) for _ in range(4)]
    for run in first:
        run.until_working()
    time.sleep(2)
    asked = time.monotonic()
    for run in first:
        run.process.send_signal(signal.SIGTERM)
    codes = [run.wait(60) for run in first]
    took = time.monotonic() - asked
    assert codes == [143] * 4, [run.output for run in first]
    assert took <= 10
    assert leftovers(out) == []
    assert [run.left() for run in first] == [[]] * 4
    before = len(bags(out))
    assert 0 < before < 200
    second = [start(slides, out, "--wait") for _ in range(4)]
    assert [run.wait(600) for run in second] == [0] * 4
    check(out, golden, 200, second)
    done = Counter(
        e["slide_id"] for e in logged(out) if e.get("event") == "slide" and e["state"] == "done"
    )
    assert done.total() <= 200 * (1 + _MOST_WASTED)
    print(f"ended after {took:.1f} s with {before} done; made {done.total()} in all")


@pytest.mark.slow
def test_a_process_suspended_beyond_the_life_of_its_claims_changes_nothing(
    start: Start, small_slides: Slides, tmp_path: Path
) -> None:
    slides = small_slides(40)
    golden = alone(start, slides, tmp_path / "alone")
    out = tmp_path / "out"
    short = "limits.claim_ttl_s=3"
    asleep = start(slides, out, "--wait", short)
    asleep.until_working()
    asleep.process.send_signal(signal.SIGSTOP)
    assert list((out / "claims").glob("*.claim")), "it was suspended between two slides"
    other = start(slides, out, "--wait", short)
    assert other.wait(300) == 0, other.output
    assert bags(out) == bags(golden)  # it waited for nobody
    before = {p: p.stat().st_mtime_ns for p in (out / "quarantine").glob("*")}
    asleep.process.send_signal(signal.SIGCONT)
    assert asleep.wait(120) == 0, asleep.output
    check(out, golden, 40, [asleep, other])
    assert {p: p.stat().st_mtime_ns for p in (out / "quarantine").glob("*")} == before
