"""`wsi bags pack`, and training from a packed cohort."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipelines.cli import run_command
from wsi.bags import BagStore, PackedCohort, open_store

if TYPE_CHECKING:
    from tests.pipelines.conftest import Study

Json = Callable[..., Any]
Refused = Callable[..., str]

RUN = ("fit.epochs=2", "fit.seeds=1")


def pack(study: Study) -> None:
    assert run_command(["bags", "pack", str(study.bags)]) == 0


def test_it_packs_once_and_again_when_a_bag_changed(study: Study, said_json: Json) -> None:
    words = ["bags", "pack", study.bags]
    said = said_json([*words, "--dry-run"])
    assert not (study.recipe / "packed").exists()
    assert said_json(words) == said
    store = open_store(study.bags)
    assert (said["path"], said["bags"]) == (str(study.recipe / "packed"), 27)
    assert said["tiles"] == sum(info.n for info in store.infos())
    index = study.recipe / "packed" / "index.json"
    before = index.stat().st_mtime_ns
    assert said_json(words) == said
    assert index.stat().st_mtime_ns == before
    store.remove("x-itc-0-0")
    assert said_json(words)["bags"] == 26
    PackedCohort(index.parent).check(store.infos())
    assert said_json(["bags", "verify", study.bags]) == []


def test_chosen_slides_go_to_another_folder(
    shared_study: Study, tmp_path: Path, said_json: Json
) -> None:
    table = tmp_path / "some.csv"
    table.write_text("slide_id\nx-itc-0-0\ny-macro-1-0\n")
    words = ["bags", "pack", shared_study.bags, "--out", tmp_path / "out", "--ids", table]
    assert said_json(words)["bags"] == 2
    assert PackedCohort(tmp_path / "out").ids() == ["x-itc-0-0", "y-macro-1-0"]


def test_a_slide_without_bag_or_a_folder_of_something_else_is_named(
    shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    table = tmp_path / "some.csv"
    table.write_text("slide_id\nx-itc-0-0\nnowhere\n")
    words = ["bags", "pack", shared_study.bags, "--out"]
    assert "nowhere" in refused([*words, tmp_path / "out", "--ids", table], 5)
    assert "--out" in refused([*words, tmp_path], 2)
    assert not (tmp_path / "out").exists()


# -- training from it -------------------------------------------------------------------------


def no_reading(self: BagStore, slide_id: str, rows: object = None) -> None:
    raise AssertionError(f"{slide_id} was read as a single bag")


@pytest.mark.parametrize(
    "more",
    [
        ("fit.max_tiles=7", "fit.bags_per_step=3"),
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("data.min_tissue=0.3", "fit.seeds=2", "--jobs", "2"), marks=pytest.mark.slow),
    ],
)
def test_predictions_are_the_same_to_the_byte(
    study: Study,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
) -> None:
    assert study.train(tmp_path / "single", *RUN, *more) == 0
    assert "packed" not in capsys.readouterr().err
    pack(study)
    if "data.min_tissue=0.3" not in more:  # counting the tiles that stay reads single bags
        monkeypatch.setattr(BagStore, "read", no_reading)
    assert study.train(tmp_path / "packed", *RUN, *more) == 0
    assert f"reading bags from {study.recipe / 'packed'}" in capsys.readouterr().err
    for file in ("predictions.csv", "fold0-seed0/model.safetensors", "inputs.json"):
        one, other = (tmp_path / run / file for run in ("single", "packed"))
        assert one.read_bytes() == other.read_bytes(), file


def changed(study: Study) -> str:
    store = open_store(study.bags)
    info, bag = store.info("x-itc-0-0"), store.read("x-itc-0-0")
    store.put(bag, timings={"again_s": 1.0}, versions={"other": "1"})
    assert store.info("x-itc-0-0").sha256 != info.sha256
    return "1 changed (x-itc-0-0)"


def damaged(study: Study) -> str:
    path = study.recipe / "packed" / "features.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return f"has damaged rows of bags {sorted(open_store(study.bags).ids())[-1]}"


def lacking(study: Study) -> str:
    table = study.root / "some.csv"
    table.write_text("slide_id\nx-itc-0-0\n")
    words = ["bags", "pack", study.bags, "--ids", table]
    assert run_command([str(word) for word in words]) == 0
    return "lacks bags"


@pytest.mark.parametrize("spoil", [changed, damaged, lacking])
def test_one_that_does_not_hold_is_passed_over_and_said(
    study: Study,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Study], str],
) -> None:
    pack(study)
    why = spoil(study)
    capsys.readouterr()
    assert study.train(tmp_path / "run", *RUN, "--dry-run") == 0
    said = capsys.readouterr().err
    assert "reading single bags: " in said
    assert why in said
    assert "wsi bags pack" in said


@pytest.mark.slow
def test_a_damaged_one_changes_no_prediction(study: Study, tmp_path: Path) -> None:
    assert study.train(tmp_path / "single", *RUN) == 0
    pack(study)
    damaged(study)
    assert study.train(tmp_path / "run", *RUN) == 0
    one, other = (tmp_path / run / "predictions.csv" for run in ("single", "run"))
    assert one.read_bytes() == other.read_bytes()


def test_packed_features_are_those_of_the_bags(study: Study) -> None:
    pack(study)
    store, packed = open_store(study.bags), PackedCohort(study.recipe / "packed")
    for slide_id in store.ids():
        np.testing.assert_array_equal(packed.read(slide_id).features, store.read(slide_id).features)
