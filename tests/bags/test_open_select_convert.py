"""Which bags a path means, which may stand together, and the same bags in another format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi.bags import Bag, Provenance, check_uniform, convert, create_store, open_store
from wsi.bags.zarr_zip import ZarrStore
from wsi.errors import (
    BagCorruptError,
    BagMismatchError,
    BagMissingError,
    ConfigError,
    UnknownNameError,
)


def provenance(slide_id: str, encoder: str = "e1", **settings: Any) -> Provenance:
    return Provenance(
        slide={"fingerprint": f"slide {slide_id}"},
        tiling={"settings": {"mpp": 0.5, "tile_px": 256} | settings},
        encoder={"name": "texture-v1", "fingerprint": encoder},
        tissue={"settings": {"method": "od_otsu"}},
        precision="float16",
    )


def bag(slide_id: str, dim: int = 4, **settings: Any) -> Bag:
    rng = np.random.default_rng(len(slide_id))
    return Bag(
        slide_id,
        rng.normal(size=(9, dim)).astype(np.float16),
        rng.integers(0, 999, (9, 2)).astype(np.int32),
        rng.uniform(size=9).astype(np.float16),
        provenance(slide_id, **settings),
        {k: rng.uniform(size=9).astype(np.float16) for k in ("blur", "pen", "fold")},
    )


def test_importing_bags_loads_no_heavy_library():
    code = "import sys, wsi.bags; print([m for m in ('torch','zarr','h5py') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- opening ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["h5", "zarr"])
def test_the_format_is_read_from_the_sidecars(tmp_path, fmt):
    create_store(tmp_path / "bags" / "recipe", fmt).put(bag("a"))
    for path in (tmp_path / "bags" / "recipe", tmp_path / "bags"):
        assert open_store(path).format == fmt
        assert open_store(str(path), fmt).ids() == ["a"]


def test_a_folder_of_several_recipes_lists_them(tmp_path):
    for recipe in ("texture-v1_0.5um_256px", "uni_0.5um_256px"):
        create_store(tmp_path / recipe, "h5").put(bag("a"))
    with pytest.raises(BagMismatchError, match=r"texture-v1_0.5um_256px, uni_0.5um_256px"):
        open_store(tmp_path)


def test_the_outputs_of_a_run_stand_for_its_bags_and_its_pictures_for_none(tmp_path):
    create_store(tmp_path / "bags" / "recipe", "h5").put(bag("a"))
    (tmp_path / "slides.csv").touch()
    for name in ("thumbnails", "quarantine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.json").write_text("{}")
        with pytest.raises(BagMissingError, match=f"{name}: holds no bags — give .*bags"):
            open_store(tmp_path / name)
    assert open_store(tmp_path).ids() == ["a"]


@pytest.mark.parametrize("made", [(), ("bags",), ("bags", "bags/recipe")])
def test_a_folder_without_bags_says_what_to_run(tmp_path, made):
    for folder in made:
        (tmp_path / folder).mkdir()
    with pytest.raises(BagMissingError, match="wsi preprocess"):
        open_store(tmp_path / "bags")


def test_a_folder_of_damaged_sidecars_points_to_verify(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(BagMissingError, match="wsi bags verify"):
        open_store(tmp_path)


def test_two_formats_in_one_folder_are_refused(tmp_path):
    create_store(tmp_path, "h5").put(bag("a"))
    with pytest.raises(BagMismatchError, match="h5"):
        create_store(tmp_path, "zarr")
    with pytest.raises(BagMismatchError, match="not zarr"):
        open_store(tmp_path, "zarr")
    ZarrStore(tmp_path).put(bag("b"))
    with pytest.raises(BagMismatchError, match="h5 and zarr"):
        open_store(tmp_path)


def test_an_unknown_format_or_a_file_for_a_folder_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'zarr'"):
        create_store(tmp_path, "zarrr")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        create_store(tmp_path / "file", "h5")


# -- one recipe -------------------------------------------------------------------------------


def test_bags_of_one_recipe_pass_with_an_empty_slide_among_them(tmp_path):
    store = create_store(tmp_path, "h5")
    for slide_id in ("a", "b"):
        store.put(bag(slide_id))
    store.write_empty("c", provenance("c"), reason="no-tissue")
    assert check_uniform(store.infos()) == provenance("x").recipe_key


def test_mixed_tilings_are_counted_with_what_differs(tmp_path):
    store = create_store(tmp_path, "h5")
    for k in range(12):
        store.put(bag(f"s{k}"))
    for k in range(3):
        store.put(bag(f"t{k}", tile_px=512))
    with pytest.raises(
        BagMismatchError,
        match=r"12 bags encoder=texture-v1 mpp=0.5 tile_px=256, "
        r"3 bags encoder=texture-v1 mpp=0.5 tile_px=512",
    ):
        check_uniform(store.infos())


def test_mixed_encoders_of_one_name_and_mixed_widths_are_told_apart(tmp_path):
    store = create_store(tmp_path, "h5")
    store.put(bag("a"))
    store.put(bag("b", encoder="e2"))
    with pytest.raises(BagMismatchError, match=r"encoder.fingerprint=e1 .*fingerprint=e2"):
        check_uniform(store.infos())
    store.put(bag("b", dim=5))
    with pytest.raises(BagMismatchError, match=r"dim=4.*dim=5"):
        check_uniform(store.infos())


def test_a_set_without_bags_is_refused():
    with pytest.raises(BagMissingError, match="preprocess"):
        check_uniform([])


# -- converting -------------------------------------------------------------------------------


@pytest.mark.parametrize(("fmt", "to"), [("h5", "zarr"), ("zarr", "h5")])
def test_conversion_there_and_back_loses_nothing(tmp_path, fmt, to):
    source = create_store(tmp_path / "source", fmt)
    originals = {slide_id: bag(slide_id) for slide_id in ("site/a", "site/bb")}
    for original in originals.values():
        counts, timings = {"planned": 11, "bad": 2}, {"decode_s": 0.5}
        bad = [{"xy0": [1, 2], "reason": "no such marker"}]
        source.put(original, counts=counts, timings=timings, max_rel_error=1e-4, bad_tiles=bad)
    source.write_empty("c", provenance("c"), reason="no-tissue", counts={"planned": 0})
    assert list(convert(source, tmp_path / "there", to)) == ["c", "site/a", "site/bb"]
    there = open_store(tmp_path / "there", to)
    assert list(convert(there, tmp_path / "back", fmt)) == ["c", "site/a", "site/bb"]
    for store in (there, open_store(tmp_path / "back", fmt)):
        assert list(store.verify_all()) == []
        for slide_id, original in originals.items():
            read, info = store.read(slide_id), store.info(slide_id)
            np.testing.assert_array_equal(read.features, original.features)
            np.testing.assert_array_equal(read.xy0, original.xy0)
            np.testing.assert_array_equal(read.tissue, original.tissue)
            assert original.quality is not None
            assert read.quality is not None
            for name, values in original.quality.items():
                np.testing.assert_array_equal(read.quality[name], values)
            assert info.bad_tiles == [{"xy0": [1, 2], "reason": "no such marker"}]
            assert read.provenance == original.provenance
            assert info.key == original.provenance.key
            assert (info.counts, info.timings) == ({"planned": 11, "bad": 2}, {"decode_s": 0.5})
            assert info.max_rel_error == 1e-4
        assert store.info("c").reason == "no-tissue"


def test_conversion_leaves_what_is_done_and_mends_what_is_damaged(tmp_path):
    source = create_store(tmp_path / "source", "h5")
    source.put(bag("a"))
    source.put(bag("bb"))
    list(convert(source, tmp_path / "there", "zarr"))
    done, damaged = tmp_path / "there" / "a.zarr.zip", tmp_path / "there" / "bb.zarr.zip"
    before = done.stat().st_mtime_ns
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert list(convert(source, tmp_path / "there", "zarr")) == ["a", "bb"]
    assert done.stat().st_mtime_ns == before
    assert open_store(tmp_path / "there").verify("bb") == []


def test_a_damaged_bag_is_not_converted_into_a_sound_one(tmp_path):
    source = create_store(tmp_path / "source", "h5")
    source.put(bag("a"))
    path: Path = tmp_path / "source" / "a.h5"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BagCorruptError, match=r"a\.h5"):
        list(convert(source, tmp_path / "there", "zarr"))
    assert not (tmp_path / "there" / "a.json").exists()
