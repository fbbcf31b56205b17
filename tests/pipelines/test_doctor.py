"""`wsi doctor`: a verdict on each part of the machine, and an exit code that says whether to go."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import doctor
from pipelines.cli import run_command

Json = Callable[..., Any]


def verdicts(said: list[dict[str, str]]) -> dict[str, str]:
    return {row["what"]: row["verdict"] for row in said}


def test_a_sound_machine_passes(
    tmp_path: Path, said_json: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    said = said_json(["doctor", "--out", tmp_path / "not" / "made" / "yet"])
    found = {row["what"]: row["found"] for row in said}
    assert verdicts(said)["slides"] == "PASS"
    assert "FAIL" not in verdicts(said).values()
    assert found["torch"] == version("torch")
    assert found["sklearn"] == version("scikit-learn")
    assert list(tmp_path.iterdir()) == []
    assert run_command(["doctor", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "PASS\tslides\t" in printed.out
    assert "ready" in printed.err


def test_an_output_folder_that_cannot_be_written_fails(tmp_path: Path, said_json: Json) -> None:
    (tmp_path / "file").write_text("")
    said = said_json(["doctor", "--out", tmp_path / "file"], code=1)
    assert verdicts(said)["output folder"] == "FAIL"
    assert "--out" in said[-1]["found"]


def test_a_library_that_does_not_load_fails(
    tmp_path: Path, said_json: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_LIBRARIES", ("numpy", "no_such_library"))
    said = said_json(["doctor", "--out", tmp_path], code=1)
    assert verdicts(said)["numpy"] == "PASS"
    assert verdicts(said)["no_such_library"] == "FAIL"


def test_little_space_is_a_warning(
    tmp_path: Path, said_json: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 10**9))
    said = said_json(["doctor", "--out", tmp_path])
    assert verdicts(said)["output folder"] == "WARN"
    assert "1 GB free" in said[-1]["found"]


def test_a_slide_that_comes_back_changed_fails(
    tmp_path: Path, said_json: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wsi.slides.dress as dress

    write = dress.write_slide

    def wrong(path: Path, levels: list[np.ndarray], **words: Any) -> None:
        write(path, [255 - levels[0]], **words)

    monkeypatch.setattr(dress, "write_slide", wrong)
    said = said_json(["doctor", "--out", tmp_path], code=1)
    assert verdicts(said)["slides"] == "FAIL"
