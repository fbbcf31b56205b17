"""Runs that are killed at any moment end, after as many new starts, as if nothing had been.

The oracle is a run that nobody disturbed, and hashes that are computed from the files here.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Run, Start, bags, leftovers, states

Slides = Callable[[int], Path]


def kill_one(run: Run, rng: random.Random, k: int) -> str:
    """Kill one of the run's children, where there are any and k is even, else the run itself."""
    children = run.children()
    if children and k % 2 == 0:
        victim = rng.choice(children)
        victim.send_signal(signal.SIGKILL)
        return "child"
    run.process.kill()
    return "parent"


def disturbed(
    start: Start, slides: Path, out: Path, kills: int, rng: random.Random, jobs: int
) -> tuple[dict[str, int], list[Run]]:
    """Run until a run ends by itself, killing at random moments; return who was killed how often.

    What is finished before all kills are spent begins anew.
    """
    killed = {"parent": 0, "child": 0}
    runs: list[Run] = []
    run = None
    while sum(killed.values()) < kills:
        if run is None or run.process.poll() is not None:
            if run is not None and run.process.returncode == 0:
                shutil.rmtree(out)
            run = start(slides, out, "--jobs", str(jobs))
            runs.append(run)
            run.until_started()
            if rng.random() < 0.8:  # else it is killed while it looks at what slides there are
                run.until_working()
        time.sleep(rng.uniform(0, 1.2))
        if run.process.poll() is not None:
            continue
        who = kill_one(run, rng, sum(killed.values()))
        killed[who] += 1
        if who == "parent":
            run.process.wait()
            assert run.left() == []
    for _ in range(2):  # a slide whose child was killed thrice is quarantined, for this run alone
        if run is None or run.wait() != 0:
            run = start(slides, out, "--jobs", str(jobs))
            runs.append(run)
    assert run is not None
    assert run.wait() == 0, run.output
    return killed, runs


def sweep(start: Start, slides: Path, tmp_path: Path, n: int, kills: int, seed: int) -> None:
    calm = start(slides, tmp_path / "calm")
    assert calm.wait(600) == 0, calm.output
    out = tmp_path / "out"
    killed, runs = disturbed(start, slides, out, kills, random.Random(seed), 2)
    assert sum(killed.values()) == kills
    assert min(killed.values()) > 0
    golden = bags(tmp_path / "calm")
    assert len(golden) == n
    assert bags(out) == golden
    assert leftovers(out) == []
    assert set(states(out).values()) == {"done"}
    assert not (out / "quarantine.csv").exists() or (
        len((out / "quarantine.csv").read_text().splitlines()) == 1
    )
    assert [run.left() for run in runs] == [[]] * len(runs)
    print(f"{n} slides, killed {killed}, {len(runs)} runs")


def test_two_kills_leave_the_bags_of_an_undisturbed_run(
    start: Start, small_slides: Slides, tmp_path: Path
) -> None:
    sweep(start, small_slides(12), tmp_path, 12, 2, 4)


@pytest.mark.slow
def test_50_kills_leave_the_bags_of_an_undisturbed_run(
    start: Start, small_slides: Slides, tmp_path: Path
) -> None:
    sweep(start, small_slides(200), tmp_path, 200, 50, 0)
