"""Runs that are asked to end: soon, cleanly, and a new start goes on."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.stopping import Stopped, forget, stoppable, terminated
from tests.faults.conftest import ROOT, Start, bags, leftovers

Slides = Callable[[int], Path]


def stopped(start: Start, slides: Path, out: Path, number: int, after_s: float) -> float:
    """Ask a run to end some time after its reading began; return the seconds that took."""
    run = start(slides, out, "--jobs", "2")
    run.until_started()
    time.sleep(after_s)
    asked = time.monotonic()
    run.process.send_signal(number)
    code = run.wait(60)
    took = time.monotonic() - asked
    assert code == 128 + number, run.output
    last = run.output.splitlines()[-1]
    assert last == "error[INTERRUPTED]: stopped — run the same command again to go on"
    assert "Traceback" not in run.output
    assert run.left() == []
    assert leftovers(out) == []
    return took


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, id="term", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, id="int", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_run_cleanly(
    start: Start, small_slides: Slides, tmp_path: Path, number: int, code: int
) -> None:
    run = start(small_slides(40), tmp_path / "out")
    run.until_working()
    asked = time.monotonic()
    run.process.send_signal(number)
    assert run.wait(60) == code, run.output
    assert time.monotonic() - asked <= 10
    assert run.left() == []
    assert leftovers(tmp_path / "out") == []
    assert 0 < len(bags(tmp_path / "out")) < 40


@pytest.mark.slow
def test_signals_at_random_moments(start: Start, small_slides: Slides, tmp_path: Path) -> None:
    rng = random.Random(3)
    slides, out = small_slides(100), tmp_path / "out"
    took = []
    for _ in range(8):
        shutil.rmtree(out, ignore_errors=True)  # else the last ones would have nothing to do
        number = rng.choice((signal.SIGTERM, signal.SIGINT))
        took.append(stopped(start, slides, out, number, rng.uniform(0, 3)))
    assert max(took) <= 10
    end = start(slides, out)
    assert end.wait(300) == 0, end.output
    assert len(bags(out)) == 100
    print(f"ended after {sorted(round(s, 1) for s in took)} s")


def test_a_run_stopped_in_the_midst_of_a_long_batch_tells_its_own_exit_code(tmp_path: Path) -> None:
    code = """
import sys, threading, time
from pipelines import cli, encoding
from pipelines.stopping import Stopped
import torch

class Slow:
    class info:
        dim = 4
    def embed(self, tiles):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            torch.randn(400, 400) @ torch.randn(400, 400)

def run(argv):
    import numpy as np
    try:
        with encoding.Encoding([Slow()], "cpu", 2) as work:
            for k in range(6):
                work.put(encoding.Encoded(k, np.zeros((1, 8, 8, 3), np.uint8), (0,)))
            time.sleep(0.5)
            raise Stopped(15)
    except Stopped as stopped:
        return 128 + stopped.number

cli.run_command = run
cli.main([])
"""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (143, "")
    assert time.monotonic() - begun < 40


def test_a_signal_that_a_library_swallowed_ends_the_run_at_the_next_safe_place() -> None:
    with contextlib.suppress(BaseException):
        terminated(signal.SIGTERM, None)
    try:
        with stoppable() as stop, pytest.raises(Stopped) as told:
            stop.check()
        assert told.value.number == signal.SIGTERM
    finally:
        forget()
    with stoppable() as stop:
        stop.check()
