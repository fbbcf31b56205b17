"""Rows that are written while a fit runs, and the progress that is counted from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.console import Console, Pace, Tracker
from pipelines.live import LiveRows, Tail
from pipelines.watch import Watch


def row(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": 1 / (epoch + 3), **more}


def on_disk(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_can_be_read_as_soon_as_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    live = LiveRows(path)
    for epoch in range(3):
        live.add(row(epoch))
        assert on_disk(path) == [row(e) for e in range(epoch + 1)]
        assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("end", ["", '{"epoch": 4, "trai', '{"epoch": 4}'])
def test_what_an_ended_fit_wrote_beyond_is_cut(tmp_path: Path, end: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row(e)) + "\n" for e in range(4)) + end)
    LiveRows(path).add(row(2, again=True))
    assert on_disk(path) == [row(0), row(1), row(2, again=True)]


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert list(tail.rows()) == []
    path.write_bytes(b'{"epoch": 0}\n{"epo')
    assert list(tail.rows()) == [{"epoch": 0}]
    assert list(tail.rows()) == []
    with path.open("ab") as handle:
        handle.write(b'ch": 1}\n')
    assert list(tail.rows()) == [{"epoch": 1}]


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path, new = tmp_path / "metrics.jsonl", tmp_path / "new"
    path.write_bytes(b'{"epoch": 0}\n{"epoch": 1}\n')
    tail = Tail(path)
    assert len(list(tail.rows())) == 2
    new.write_bytes(b'{"epoch": 0}\n{"epoch": 1}\n{"epoch": 2}\n')
    new.replace(path)
    assert [r["epoch"] for r in tail.rows()] == [0, 1, 2]


# -- progress ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    name: str
    folder: Path
    epochs: int = 10


class Bar:
    """Counts as a bar would."""

    def __init__(self) -> None:
        self.done, self.total = 0, -1

    def __call__(self, n: int, text: str, total: int | None) -> None:
        self.done += n
        self.total = self.total if total is None else total


def watched(tmp_path: Path, n: int) -> tuple[list[Fit], list[tuple[str, int]], Watch, Bar]:
    fits = [Fit(f"fold {k}", tmp_path / str(k)) for k in range(n)]
    told: list[tuple[str, int]] = []
    for fit in fits:
        fit.folder.mkdir(exist_ok=True)
    watch = Watch(fits, lambda fit, r: told.append((fit.name, r["epoch"])))
    bar = Bar()
    watch.track = Tracker(bar)
    return fits, told, watch, bar


def test_epochs_of_all_fits_are_counted_once(tmp_path: Path) -> None:
    fits, told, watch, bar = watched(tmp_path, 3)
    assert watch.left == 30
    lives = [LiveRows(fit.folder / "metrics.jsonl") for fit in fits]
    for epoch in range(4):
        for live in lives[:2]:
            live.add(row(epoch))
        watch.poll()
        watch.poll()
    assert bar.done == 8
    assert watch.left == 22
    assert sorted(told) == [(f"fold {k}", e) for k in range(2) for e in range(4)]


def test_a_fit_that_stops_early_shortens_the_rest(tmp_path: Path) -> None:
    fits, _, watch, bar = watched(tmp_path, 4)
    first, second = (LiveRows(fit.folder / "metrics.jsonl") for fit in fits[:2])
    for epoch in range(6):
        first.add(row(epoch))
    second.add(row(0))
    watch.poll()
    watch.ended("fold 0")
    # The one at work and the two to come are expected to take six epochs each, too.
    assert watch.left == 5 + 6 + 6
    assert (bar.done, bar.total) == (7, 7 + 17)
    for epoch in range(1, 7):
        second.add(row(epoch))
    watch.poll()  # longer than the mean: it may take all its epochs
    assert watch.left == 3 + 6 + 6


def test_what_was_done_before_is_not_done_again(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    before = LiveRows(tmp_path / "0" / "metrics.jsonl")
    for epoch in range(5):
        before.add(row(epoch))
    fits, told, watch, bar = watched(tmp_path, 2)
    assert (watch.goes_on, watch.left) == (1, 15)
    again = LiveRows(fits[0].folder / "metrics.jsonl")
    for epoch in range(3, 7):  # its state was two epochs behind
        again.add(row(epoch))
        watch.poll()
    assert told == [("fold 0", 5), ("fold 0", 6)]
    assert (bar.done, watch.left) == (2, 13)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_the_pace_is_that_of_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("pipelines.console.time", clock)
    pace = Pace(11)
    clock.now = 100.0  # loading
    pace.step(1, None)
    assert pace.left == ""
    for _ in range(5):
        clock.now += 4.0
        pace.step(1, None)
    assert pace.left == "about 20 s left"
    pace.step(0, 6 + 600)
    assert pace.left == "about 40 min left"
    pace.step(0, 6)
    assert pace.left == ""


def test_without_a_terminal_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr("pipelines.console.time", clock)
    for quiet in (False, True):
        with Console(quiet=quiet).progress("epochs", 100) as track:
            for epoch in range(40):
                clock.now += 1.0
                track.advance(1, f"fold 1 seed 0, epoch {epoch}")
        said = capsys.readouterr().err.splitlines()
        assert len(said) == (0 if quiet else 2)
        if not quiet:
            assert said[0] == "fold 1 seed 0, epoch 14: 15/100, about 85 s left"
