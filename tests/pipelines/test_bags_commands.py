"""`wsi bags ls|verify|convert` as typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from pipelines.cli import run_command
from wsi.bags import open_store

if TYPE_CHECKING:
    from tests.pipelines.conftest import Study

Json = Callable[..., Any]
Refused = Callable[..., str]


def test_bags_are_listed_as_they_are_stored(shared_study: Study, said_json: Json) -> None:
    listed = {row["slide_id"]: row for row in said_json(["bags", "ls", shared_study.bags])}
    assert set(listed) == {row.slide_id for row in shared_study.rows}
    for slide_id, row in listed.items():
        with h5py.File(shared_study.recipe / f"{slide_id}.h5") as file:
            shapes = {value.shape for value in file.values() if len(value.shape) == 2}  # pyright: ignore
        assert (row["tiles"], row["dim"]) in shapes
        assert (row["encoder"], row["mpp"], row["tile_px"]) == ("texture-v1", 0.5, 256)
        assert row["status"] == "done"


def test_an_empty_slide_is_listed_with_its_reason(
    study: Study, said_json: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(study.bags)
    store.write_empty("glass", store.info("x-itc-0-0").provenance, reason="no-tissue")
    assert run_command(["bags", "ls", str(study.recipe)]) == 0
    said = capsys.readouterr()
    (line,) = [line for line in said.out.splitlines() if line.startswith("glass\t")]
    assert line.split("\t")[1:3] == ["empty", "0"]
    assert line.endswith("no-tissue")
    assert "27 bags" in said.err
    assert "1 empty" in said.err


def test_sound_bags_verify(shared_study: Study, said_json: Json) -> None:
    assert said_json(["bags", "verify", shared_study.bags]) == []


@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_flipped_bit_is_found_and_named(study: Study, said_json: Json, position: int) -> None:
    path = study.recipe / "y-macro-1-0.h5"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    (finding,) = said_json(["bags", "verify", study.bags], code=5)
    assert (finding["name"], finding["state"]) == ("y-macro-1-0", "corrupt")


def test_a_lost_bag_is_found_and_named(study: Study, said_json: Json) -> None:
    (study.recipe / "y-macro-1-0.h5").unlink()
    (finding,) = said_json(["bags", "verify", study.bags], code=5)
    assert (finding["name"], finding["state"]) == ("y-macro-1-0", "missing")


def test_a_stray_file_is_told_but_no_damage(study: Study, said_json: Json) -> None:
    (study.recipe / "y-macro-1-0.json").unlink()
    (finding,) = said_json(["bags", "verify", study.bags])
    assert finding["state"] == "orphan"


def test_converting_there_and_back_loses_nothing(
    shared_study: Study, tmp_path: Path, said_json: Json
) -> None:
    there, back = tmp_path / "zarr", tmp_path / "h5"
    said = said_json(["bags", "convert", shared_study.bags, "--to", "zarr", "--out", there])
    assert said == {"bags": 27, "path": str(there), "format": "zarr"}
    assert len(list(there.glob("*.zarr.zip"))) == 27
    assert run_command(["bags", "convert", str(there), "--to", "h5", "--out", str(back)]) == 0
    before, after = open_store(shared_study.bags), open_store(back)
    assert after.ids() == before.ids()
    for slide_id in before.ids():
        old, new = before.read(slide_id), after.read(slide_id)
        np.testing.assert_array_equal(new.features, old.features)
        np.testing.assert_array_equal(new.xy0, old.xy0)
        assert new.provenance.key == old.provenance.key


def test_bags_are_never_converted_over_others(
    shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    there = tmp_path / "zarr"
    words = ["bags", "convert", shared_study.bags, "--to"]
    assert run_command([*map(str, words), "zarr", "--out", str(there)]) == 0
    assert "already holds zarr" in refused([*words, "h5", "--out", there], 5)


def test_a_quick_look_passes_over_a_flipped_bit(study: Study, said_json: Json) -> None:
    path = study.recipe / "y-macro-1-0.h5"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert said_json(["bags", "verify", study.bags, "--quick"]) == []
    path.write_bytes(data[:-1])
    (finding,) = said_json(["bags", "verify", study.bags, "--quick"], code=5)
    assert (finding["name"], finding["state"]) == ("y-macro-1-0", "corrupt")


def test_repair_says_what_it_would_move_and_then_moves_it(
    study: Study, said_json: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study.recipe / "y-macro-1-0.h5"
    path.write_bytes(path.read_bytes()[:-1])
    (study.recipe / ".tmp-1-z.h5").write_bytes(b"")
    words = ["bags", "verify", study.bags, "--repair"]
    damaged = ["y-macro-1-0.json", "y-macro-1-0.h5"]
    said = {f["name"]: f["moved"] for f in said_json([*words, "--dry-run"], code=5)}
    assert said == {"y-macro-1-0": damaged, ".tmp-1-z.h5": [".tmp-1-z.h5"]}
    assert not (study.recipe / "corrupt").exists()
    assert run_command([*map(str, words)]) == 5
    spoken = capsys.readouterr().err
    assert "27 bags in" in spoken
    assert "26 ok, 1 corrupt, 1 temp" in spoken
    assert "3 files moved to" in spoken
    assert sorted(p.name for p in (study.recipe / "corrupt").iterdir()) == sorted(
        [*damaged, ".tmp-1-z.h5"]
    )
    assert said_json(words) == []
    assert "y-macro-1-0" not in open_store(study.bags).ids()


def test_a_dry_run_without_repair_is_refused(shared_study: Study, refused: Refused) -> None:
    assert "--repair" in refused(["bags", "verify", shared_study.bags, "--dry-run"], 2)


def test_replaced_slides_and_slides_without_bags_are_named(
    study: Study, said_json: Json, tmp_path: Path
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    lines = ["slide_id,path"]
    for slide_id in ("x-itc-0-0", "new"):
        (slides / f"{slide_id}.svs").write_bytes(b"another file")
        lines.append(f"{slide_id},slides/{slide_id}.svs")
    (tmp_path / "slides.csv").write_text("\n".join(lines))
    words = ["bags", "verify", study.bags, "--quick", "--slides", tmp_path / "slides.csv"]
    found = {f["name"]: f["state"] for f in said_json(words, code=5)}
    assert found == {"x-itc-0-0": "stale", "new": "missing"}
