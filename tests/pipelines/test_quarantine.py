"""The table of slides that could not be used."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pipelines.quarantine import Entry, failed, read_quarantine, write_quarantine
from wsi.errors import ConfigError


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


def test_entries_survive_the_file_and_are_sorted(tmp_path: Path) -> None:
    entries = {i: entry(i) for i in ("b/2", "a", "b/1")}
    write_quarantine(tmp_path / "q.csv", entries)
    assert read_quarantine(tmp_path / "q.csv") == entries
    table = pd.read_csv(tmp_path / "q.csv")  # as anyone else would read it
    assert table["slide_id"].tolist() == ["a", "b/1", "b/2"]
    assert table["attempts"].tolist() == [2, 2, 2]
    assert table["message"].tolist()[0] == entry().message


def test_no_file_is_no_entries(tmp_path: Path) -> None:
    assert read_quarantine(tmp_path / "q.csv") == {}


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "slide_id,attempts\na,many\n", "\x00\x01"])
def test_a_file_that_is_no_such_table_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "q.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"q\.csv is no table .* — remove it"):
        read_quarantine(tmp_path / "q.csv")


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_bytes(b"slide_id,attempts\n\xff\xfe,1\n")
    with pytest.raises(ConfigError, match=r"q\.csv"):
        read_quarantine(tmp_path / "q.csv")


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
