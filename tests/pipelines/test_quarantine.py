"""The table of slides that could not be used."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pipelines.quarantine import Entry, Quarantine, failed


def entry(slide_id: str = "a", **changes: object) -> Entry:
    values = {
        "slide_id": slide_id,
        "path": f"{slide_id}.svs",
        "reason": "decode-error",
        "message": 'tile 3, "broken", é — copy\nit again',
        "attempts": 2,
        "first_time": "2024-01-01T00:00:00+00:00",
        "last_time": "2024-01-02T00:00:00+00:00",
        "fingerprint": "f" * 64,
    }
    return Entry(**(values | changes))  # pyright: ignore[reportArgumentType]


def test_entries_survive_the_files_and_the_table_is_sorted(tmp_path: Path) -> None:
    entries = {i: entry(i) for i in ("b/2", "a", "b/1")}
    quarantine = Quarantine(tmp_path)
    for each in entries.values():
        quarantine.put(each)
    assert Quarantine(tmp_path).entries() == entries
    quarantine.write_csv()
    table = pd.read_csv(tmp_path / "quarantine.csv")  # as anyone else would read it
    assert table["slide_id"].tolist() == ["a", "b/1", "b/2"]
    assert table["attempts"].tolist() == [2, 2, 2]
    assert table["message"].tolist()[0] == entry().message


def test_without_entries_no_table_is_made(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.write_csv()
    assert quarantine.entries() == {}
    assert list(tmp_path.iterdir()) == []


def test_a_removed_entry_leaves_the_table(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.put(entry("a"))
    quarantine.write_csv()
    quarantine.remove("a")
    quarantine.write_csv()
    assert quarantine.entry("a") is None
    assert pd.read_csv(tmp_path / "quarantine.csv").empty


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"slide_id": "a"}', "\x00\x01"])
def test_a_damaged_entry_is_as_none_so_that_its_slide_is_tried(tmp_path: Path, text: str) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.put(entry("a"))
    quarantine.put(entry("b"))
    (tmp_path / "quarantine" / "a.json").write_text(text)
    assert quarantine.entries() == {"b": entry("b")}
    assert quarantine.entry("a") is None


def test_the_same_file_failing_again_is_one_more_attempt() -> None:
    before = entry()
    again = failed(before, "a", "a.svs", "open-failed", "why", before.fingerprint)
    assert (again.attempts, again.first_time) == (3, before.first_time)
    assert again.last_time > before.last_time
    assert (again.reason, again.message) == ("open-failed", "why")


def test_another_file_failing_starts_anew() -> None:
    again = failed(entry(), "a", "a.svs", "decode-error", "why", "e" * 64)
    assert again.attempts == 1
    assert again.first_time == again.last_time
    assert failed(None, "a", "a.svs", "no-mpp", "why", "").attempts == 1
