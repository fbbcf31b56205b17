"""Damaged slides of many containers: the run ends, accounts for all of them, and leaves nothing."""

from __future__ import annotations

import csv
import re
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import Run, Start, leftovers, states
from tests.faults.mutants import originals, write_mutants

_TELLS_NOTHING = re.compile(r"\b[A-Z]\w*(Error|Exception)\b|Traceback|NoneType")
_MB = 1e6


def memory(run: Run) -> dict[str, float]:
    """Return MB of the run and of its largest child."""
    sizes = {"parent": 0.0, "child": 0.0}
    try:
        sizes["parent"] = psutil.Process(run.pid).memory_info().rss / _MB
    except psutil.Error:
        return sizes
    for child in run.children():
        try:
            sizes["child"] = max(sizes["child"], child.memory_info().rss / _MB)
        except psutil.Error:
            continue
    return sizes


def damaged(start: Start, tmp_path: Path, n: int, seed: int) -> None:
    slides, sound = tmp_path / "slides", tmp_path / "sound"
    slides.mkdir()
    sound.mkdir()
    bases = originals(sound)
    written = write_mutants(bases, slides, n, seed)
    out = tmp_path / "out"
    limits = ("limits.silence_s=30", "limits.memory_gb=2")
    assumed = ("slides.no_mpp=assume", "slides.assume_mpp=0.5")
    run = start(slides, out, *limits, *assumed, "--jobs", "2")
    begun, sizes = time.monotonic(), []
    while run.process.poll() is None:
        assert time.monotonic() - begun < 60 + 3 * n, "it hangs"
        sizes.append(memory(run))
        time.sleep(0.2)
    assert run.process.returncode in (0, 3), run.output
    assert run.left() == []
    assert leftovers(out) == []
    assert "Traceback" not in run.output
    found = states(out)
    assert len(found) == n
    with (out / "slides.csv").open() as file:
        files = {Path(row["path"]).name for row in csv.DictReader(file)}
    assert files == set(written)
    messages = {p.stem: p.read_text() for p in (out / "quarantine").glob("*.json")}
    bad = [text for text in messages.values() if _TELLS_NOTHING.search(text)]
    peaks = {who: max(size[who] for size in sizes) for who in ("parent", "child")}
    third = len(sizes) // 3
    growth = {
        who: max(s[who] for s in sizes[2 * third :]) - max(s[who] for s in sizes[third : 2 * third])
        for who in peaks
    }
    print(f"{n} mutants of {len(bases)} containers in {time.monotonic() - begun:.0f} s:")
    print(f"{Counter(found.values())}; peak MB {peaks}, growth in the last third {growth}")
    assert bad == []
    assert max(growth.values()) < 300


def test_26_damaged_slides(start: Start, tmp_path: Path) -> None:
    damaged(start, tmp_path, 26, 1)


@pytest.mark.slow
def test_300_damaged_slides(start: Start, tmp_path: Path) -> None:
    damaged(start, tmp_path, 300, 2)
