"""`wsi preprocess` with tissue settings of single slides and sites in the slide table."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli import run_command
from wsi.bags import BagStore, check_uniform, open_store

SETTINGS = ("tiling.mpp=1.0", "tiling.tile_px=64")
HUGE = "99"  # mm2: no tissue of these slides is that large


@pytest.fixture
def table(slide_folder: Path, tmp_path: Path) -> Path:
    """Two sites: `a` alone, `b` and `c` together."""
    path = tmp_path / "slides.csv"
    path.write_text(
        "slide_id,path,site\n"
        f"a,{slide_folder / 'a.svs'},one\n"
        f"b,{slide_folder / 'site/b.tif'},two\n"
        f"c,{slide_folder / 'site/c.tif'},two\n"
    )
    return path


def with_settings(table: Path, column: str, **by_slide: str) -> Path:
    """Write the table again with one more column; `site=value` gives a row for all of site two."""
    header, *rows = table.read_text().splitlines()
    lines = [f"{header},{column}"]
    lines += [f"{row},{by_slide.get(row.split(',')[0], '')}" for row in rows]
    lines += [f"*,,two,{by_slide['site']}"] if "site" in by_slide else []
    other = table.with_name("own.csv")
    other.write_text("\n".join(lines) + "\n")
    return other


def preprocess(table: Path, out: Path, *words: str) -> int:
    return run_command(["preprocess", *SETTINGS, "--slides", str(table), "--out", str(out), *words])


def store_of(out: Path) -> BagStore:
    return open_store(out / "bags")


def test_a_setting_applies_to_its_slides_alone(table: Path, tmp_path: Path, capsys) -> None:
    plain, own = tmp_path / "plain", tmp_path / "own"
    assert preprocess(table, plain) == 0
    assert "own tissue settings" not in capsys.readouterr().err
    assert preprocess(with_settings(table, "tissue.min_area_mm2", site=HUGE, c="0.01"), own) == 0
    assert "2 slides have their own tissue settings" in capsys.readouterr().err
    before = {info.slide_id: info for info in store_of(plain).infos()}
    after = {info.slide_id: info for info in store_of(own).infos()}
    assert {k: v.status for k, v in after.items()} == {"a": "done", "b": "empty", "c": "done"}
    assert after["a"].key == before["a"].key
    assert after["b"].provenance.tissue["overrides"] == {"min_area_mm2": 99.0}
    assert after["c"].provenance.tissue["overrides"] == {"min_area_mm2": 0.01}
    assert len({after["c"].key, before["c"].key}) == 2
    assert after["c"].n == before["c"].n


def test_such_bags_are_still_of_one_recipe(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert preprocess(with_settings(table, "tissue.mpp", a="4", site="16"), out) == 0
    infos = store_of(out).infos()
    assert len({info.key for info in infos}) == 3
    assert check_uniform(infos) == infos[0].recipe_key


def test_a_changed_setting_redoes_its_slide_alone(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert preprocess(table, out) == 0
    times = {p.name: p.stat().st_mtime_ns for p in store_of(out).root.iterdir()}
    own = with_settings(table, "tissue.mpp", b="4")
    for _ in range(2):  # the second run has nothing left to do
        assert preprocess(own, out) == 0
        now = {p.name: p.stat().st_mtime_ns for p in store_of(out).root.iterdir()}
        assert {name for name in now if now[name] != times[name]} == {"b.h5", "b.json"}
    changed = {name: time for name, time in now.items() if name.startswith("b.")}
    assert preprocess(table, out) == 0
    assert all((store_of(out).root / n).stat().st_mtime_ns != t for n, t in changed.items())


def test_what_does_not_go_with_the_method_stops_before_work(
    table: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    assert preprocess(with_settings(table, "tissue.pem", a="true"), out) == 5
    assert "did you mean 'tissue.pen'" in capsys.readouterr().err
    assert preprocess(with_settings(table, "tissue.method", a="watershed"), out) == 5
    assert "line 2, column 4 (tissue.method)" in capsys.readouterr().err
    assert not (out / "bags").exists()


def test_two_processes_take_the_same_settings(table: Path, tmp_path: Path) -> None:
    own = with_settings(table, "tissue.min_area_mm2", site=HUGE)
    assert preprocess(own, tmp_path / "out", "--jobs", "2") == 0
    found = {info.slide_id: info.status for info in store_of(tmp_path / "out").infos()}
    assert found == {"a": "done", "b": "empty", "c": "empty"}
