"""The run folder knows its own run from another, and says what it ran on."""

from __future__ import annotations

import getpass
import json
import os
import platform
import socket
from importlib.metadata import version
from pathlib import Path

import pytest

from pipelines.config import load_config, read_config
from pipelines.rundir import RunDir, changes, environment
from wsi.errors import ConfigError, TrainingError
from wsi.files import TEMPORARY_PREFIX

INPUTS = {"cohort": "c", "slides": 3, "bags_sha256": "ab"}


def test_a_new_folder_is_begun_and_then_continued(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "deep" / "run")
    config = load_config(["fit.epochs=3", "objective=ncmi"])
    assert run.begin(config, INPUTS) is False
    assert read_config(run.config) == config
    assert run.read_inputs() == INPUTS
    assert run.begin(config, INPUTS) is True


def test_one_process_at_a_time_makes_a_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    refusal = pytest.raises(TrainingError, match="another `wsi train`")
    with run.claimed(60), refusal as told, run.claimed(60):
        raise AssertionError
    assert f"process {os.getpid()}" in str(told.value)
    assert list(tmp_path.iterdir()) == []
    with run.claimed(60):  # given free by the first
        assert list(tmp_path.iterdir()) != []


def test_a_log_alone_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("said before the first file\n")
    assert RunDir(tmp_path).begin(load_config(), INPUTS) is False


def test_a_run_killed_while_it_began_goes_on(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.begin(load_config(), INPUTS)
    run.config.unlink()
    (tmp_path / f"{TEMPORARY_PREFIX}here-1-2-3-config.yaml").write_text("seed")
    assert run.begin(load_config(), INPUTS) is False
    assert read_config(run.config) == load_config()


def test_settings_that_somebody_keeps_in_a_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("fit: {epochs: 3}\n")
    with pytest.raises(ConfigError, match="neither empty nor a run"):
        RunDir(tmp_path).begin(load_config(), INPUTS)
    assert (tmp_path / "config.yaml").read_text() == "fit: {epochs: 3}\n"


@pytest.mark.parametrize(
    ("words", "inputs", "told"),
    [
        (["fit.epochs=4"], INPUTS, "fit.epochs 30 -> 4"),
        (["objective=ncmi"], INPUTS, "objective.name ce -> ncmi"),
        (["objective=ncmi", "objective.temperature=1"], INPUTS, "objective.temperature None -> 1"),
        ([], INPUTS | {"slides": 4}, "slides"),
        ([], INPUTS | {"more": 1}, "more"),
    ],
)
def test_another_run_is_refused_with_what_differs(
    tmp_path: Path, words: list[str], inputs: dict, told: str
) -> None:
    run = RunDir(tmp_path)
    run.begin(load_config(), INPUTS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="other settings or inputs") as caught:
        run.begin(load_config(words), inputs)
    assert told in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_no_run_has_no_inputs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        RunDir(tmp_path).read_inputs()
    (tmp_path / "inputs.json").write_text("{")
    with pytest.raises(ConfigError, match="not a run folder"):
        RunDir(tmp_path).read_inputs()


def test_cells_are_found_by_fold_and_seed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for fold, seed in [(1, 0), (0, 0), (0, 12)]:
        run.cell(fold, seed).mkdir()
    (tmp_path / "folder").mkdir()
    assert [cell.name for cell in run.cells()] == ["fold0-seed0", "fold0-seed12", "fold1-seed0"]


def test_the_environment_names_versions_but_no_one(tmp_path: Path) -> None:
    found = environment()
    assert found["python"] == platform.python_version()
    for name in ("numpy", "torch", "scikit-learn"):
        assert found["libraries"][name] == version(name)
    text = json.dumps(found)
    for private in (socket.gethostname(), getpass.getuser() + "/", str(Path.home())):
        assert private not in text


def test_a_new_order_is_called_one() -> None:
    old, new = {"data": {"classes": ["a", "b"]}}, {"data": {"classes": ["b", "a"]}}
    assert changes(old, new) == ["data.classes ['a', 'b'] -> ['b', 'a'], the same in another order"]
    assert changes(old, {"data": {"classes": ["a", "c"]}}) == [
        "data.classes ['a', 'b'] -> ['a', 'c']"
    ]
