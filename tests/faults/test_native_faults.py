"""Decoders that crash, hang, are killed, eat memory or meet a dying disk: one slide each is lost.

Faults are planted in the children only, see `injection/sitecustomize.py`; the program is as it is.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from tests.faults.conftest import ROOT, Run, Start, bags, leftovers, small_slide, states

INJECTION = Path(__file__).with_name("injection")
REASONS = {
    "segv": "decoder-crash",
    "exit": "decoder-crash",
    "kill": "decoder-killed",
    "hang": "decoder-timeout",
    "alloc": "decoder-oom",
    "eio": "io-error",
}


def faulty(start: Start, folder: Path, out: Path, stages: tuple[str, ...]) -> Run:
    """Run over good slides and one for each fault, and return the run that has ended."""
    folder.mkdir()
    small_slide(folder / "a.tif", 1)
    for stage in stages:
        for fault in REASONS:
            shutil.copy(folder / "a.tif", folder / f"{stage}-{fault}.tif")
    small_slide(folder / "z.tif", 2)
    path = f"{INJECTION}:{ROOT}"
    limits = ("limits.silence_s=4", "limits.memory_gb=1", "--jobs", "2")
    run = start(folder, out, *limits, PYTHONPATH=path)
    run.wait(300)
    return run


@pytest.mark.slow
def test_a_fault_costs_its_slide_only_and_is_named(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = faulty(start, tmp_path / "slides", out, ("scan", "read"))
    assert run.process.returncode == 3, run.output
    expected = {f"{stage}-{f}": r for stage in ("scan", "read") for f, r in REASONS.items()}
    assert states(out) == expected | {"a": "done", "z": "done"}
    with (out / "quarantine.csv").open() as file:
        told = {row["slide_id"]: row["message"] for row in csv.DictReader(file)}
    assert told.keys() == expected.keys()
    for slide, message in told.items():
        assert message.startswith(f"{slide}.tif: ") or f"{slide}.tif " in message, message
        assert " — " in message
    assert "Traceback" not in run.output
    assert leftovers(out) == []
    assert run.left() == []
    again = start(tmp_path / "slides", out)  # without the faults
    assert again.wait() == 3
    left = {s: r for s, r in states(out).items() if r not in ("done", "empty")}
    lasting = ("decoder-crash", "decoder-timeout", "decoder-oom")
    assert left == {s: r for s, r in expected.items() if s[:4] == "read" and r in lasting}
    asked = start(tmp_path / "slides", out, "--retry-quarantined")
    assert asked.wait() == 0, asked.output
    assert len(bags(out)) == len(expected) + 2
