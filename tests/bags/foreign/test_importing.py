"""Archives of other tools become bags, copied or in place, and what they lack is asked for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from wsi.bags import check_uniform, convert, create_store, open_store
from wsi.bags.foreign import Given, import_archive, open_archive
from wsi.errors import BagError, BagMismatchError, BagMissingError, ConfigError, UnknownNameError

GIVEN = {
    "clam": Given(encoder="resnet50"),
    "trident": Given(),
    "stamp": Given(mpp=0.25),
    "atlaspatch": Given(),
}
EACH = pytest.mark.parametrize("layout", list(GIVEN))
WAYS = pytest.mark.parametrize("way", ["h5", "zarr", "foreign"])


def write(archives: SimpleNamespace, layout: str, root: Path, names=("a", "b")) -> Path:
    return getattr(archives, layout)(root, {n: archives.tiles(k) for k, n in enumerate(names)})


def brought(
    layout: str, source: Path, out: Path, way: str = "h5", given: Given | None = None, **more
):
    store = create_store(out, way)
    archive = open_archive(layout, source, given or GIVEN[layout])
    return store, list(import_archive(archive, store, **more))


@EACH
@WAYS
def test_features_and_corners_are_those_of_the_archive(archives, tmp_path, layout, way):
    source = write(archives, layout, tmp_path / "theirs")
    _, outcomes = brought(layout, source, tmp_path / "ours", way)
    assert [(o.slide_id, o.status) for o in outcomes] == [("a", "imported"), ("b", "imported")]
    store = open_store(tmp_path / "ours")
    precision = "float16" if layout == "stamp" else "float32"
    for seed, slide_id in enumerate(("a", "b")):
        expected, bag = archives.tiles(seed), store.read(slide_id)
        np.testing.assert_array_equal(bag.features, expected.features.astype(precision))
        assert bag.features.dtype == precision
        np.testing.assert_array_equal(bag.xy0, expected.xy0)
        rows = np.array([7, 2, 39, 2])
        np.testing.assert_array_equal(store.read(slide_id, rows).features, bag.features[rows])
        np.testing.assert_array_equal(store.read(slide_id, rows).xy0, bag.xy0[rows])
    assert list(store.verify_all()) == []
    check_uniform(store.infos())


@EACH
def test_in_place_leaves_sidecars_alone_and_the_archive_as_it_was(archives, tmp_path, layout):
    source = write(archives, layout, tmp_path / "theirs")
    before = {p: p.read_bytes() for p in (tmp_path / "theirs").rglob("*") if p.is_file()}
    store, _ = brought(layout, source, tmp_path / "ours", "foreign")
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == ["a.json", "b.json"]
    store.remove("a")
    assert {p: p.read_bytes() for p in (tmp_path / "theirs").rglob("*") if p.is_file()} == before
    assert store.ids() == ["b"]
    with pytest.raises(BagError, match="takes no bags"):
        store.put(store.read("b"))
    assert store.ids() == ["b"]


@EACH
@pytest.mark.parametrize("position", [-1, -2000])
def test_any_changed_byte_of_a_file_left_in_place_is_found(archives, tmp_path, layout, position):
    source = write(archives, layout, tmp_path / "theirs")
    store, _ = brought(layout, source, tmp_path / "ours", "foreign")
    (path,) = [
        p for p in source.rglob("a.h5") if p.parent.name != "patches" or layout == "atlaspatch"
    ]
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    (finding,) = store.verify_all()
    assert (finding.name, finding.state) == ("a", "corrupt")
    with pytest.raises(BagError, match=r"a\.h5 is not what was imported"):
        store.read("a")
    path.unlink()
    (finding,) = store.verify_all()
    assert (finding.name, finding.state) == ("a", "missing")
    with pytest.raises(BagError, match="gone"):
        store.read("a")


def test_two_files_exchanged_in_place_are_found(archives, tmp_path):
    source = write(archives, "trident", tmp_path)
    store, _ = brought("trident", source, tmp_path / "ours", "foreign")
    a, b = (source / "features_uni_v1" / f"{n}.h5" for n in "ab")
    a.rename(tmp_path / "c")
    b.rename(a)
    (tmp_path / "c").rename(b)
    assert {f.name for f in store.verify_all()} == {"a", "b"}


def test_bags_in_place_convert_to_bags_of_our_own(archives, tmp_path):
    source = write(archives, "clam", tmp_path / "theirs")
    store, _ = brought("clam", source, tmp_path / "there", "foreign")
    assert list(convert(store, tmp_path / "ours", "h5")) == ["a", "b"]
    ours = open_store(tmp_path / "ours")
    assert str(tmp_path).encode() not in (tmp_path / "ours" / "a.h5").read_bytes()
    shutil.rmtree(source)
    np.testing.assert_array_equal(ours.read("a").features, archives.tiles(0).features)
    assert ours.info("a").key == store.info("a").key


# -- what is known and what is asked for ---------------------------------------------------------


def test_trident_tells_what_was_asked_for_and_slides_what_it_was(archives, tmp_path):
    source = archives.trident(tmp_path, {"a": archives.tiles(0)}, size0=470)
    store, _ = brought("trident", source, tmp_path / "ours", given=Given(mpp=0.25))
    made = store.info("a").provenance
    assert made.tiling["settings"]["mpp"] == 0.5
    assert made.tiling["settings"]["tile_px"] == 256
    assert made.tiling["resolved"]["size0"] == [470, 470]
    assert made.tiling["resolved"]["fov_um"] == [117.5, 117.5]
    assert made.encoder["name"] == "uni_v1"
    assert made.encoder["fingerprint"].startswith("declared:")
    assert made.slide["size0"] == [6000, 5000]
    assert made.slide["source"]["bytes"] == (source / "features_uni_v1" / "a.h5").stat().st_size


def test_resolution_that_nobody_knows_is_recorded_as_unknown(archives, tmp_path):
    source = write(archives, "trident", tmp_path)
    store, _ = brought("trident", source, tmp_path / "ours")
    made = store.info("a").provenance
    assert made.slide["mpp"] is None
    assert "fov_um" not in made.tiling["resolved"]


def test_stamp_without_a_resolution_is_refused_with_what_to_give(archives, tmp_path):
    source = write(archives, "stamp", tmp_path)
    store, outcomes = brought("stamp", source, tmp_path / "ours", given=Given())
    assert {(o.status, o.reason) for o in outcomes} == {("refused", "no-mpp")}
    assert "--mpp" in outcomes[0].message
    assert store.ids() == []


def test_the_slide_at_hand_outranks_a_given_resolution(archives, tmp_path):
    source = archives.stamp(tmp_path, {"site/a": archives.tiles(0)}, mpp0=0.5)
    slide = SimpleNamespace(
        mpp=(0.5, 0.5), fingerprint="f" * 64, size0=(1, 2), vendor="x", magnification=20.0
    )
    store, _ = brought("stamp", source, tmp_path / "ours", slides={"a": slide}, given=Given(mpp=9))
    np.testing.assert_array_equal(store.read("site/a").xy0, archives.tiles(0).xy0)
    assert store.info("site/a").provenance.slide["fingerprint"] == "f" * 64
    assert store.info("site/a").provenance.tiling["resolved"]["size0"] == [512, 512]


def test_clam_needs_the_encoder(archives, tmp_path):
    source = write(archives, "clam", tmp_path)
    with pytest.raises(ConfigError, match="--encoder"):
        brought("clam", source, tmp_path / "ours", given=Given())


def test_clam_takes_the_tiling_from_its_coordinates(archives, tmp_path):
    source = write(archives, "clam", tmp_path)
    store, _ = brought("clam", source, tmp_path / "ours", given=Given("resnet50", mpp=0.25))
    tiling = store.info("a").provenance.tiling
    assert tiling["resolved"]["size0"] == [512, 512]
    assert tiling["settings"] | {"stride_um": None} == {
        "mpp": 0.5,
        "tile_px": 256,
        "stride_um": None,
        "patch_level": 1,
    }


def test_clam_without_coordinates_files_needs_the_tiling(archives, tmp_path):
    source = archives.clam(tmp_path, {"a": archives.tiles(0)}, coords=False)
    _, (outcome,) = brought("clam", source, tmp_path / "ours")
    assert (outcome.status, outcome.reason) == ("refused", "no-tiling")
    given = Given("resnet50", mpp=0.5, tile_px=256)
    store, (outcome,) = brought("clam", source, tmp_path / "ours", given=given)
    assert outcome.status == "imported"
    tiling = store.info("a").provenance.tiling
    assert (tiling["settings"]["mpp"], tiling["resolved"]["size0"]) == (0.5, [256, 256])


def test_clam_tensors_are_paired_with_coordinates_of_equal_length(archives, tmp_path):
    slides = {n: archives.tiles(k) for k, n in enumerate("abc")}
    source = archives.clam(tmp_path, slides, kind="pt")
    archives.clam_coords(source / "patches" / "b.h5", archives.tiles(1, n=41))
    (source / "patches" / "c.h5").unlink()
    store, outcomes = brought("clam", source, tmp_path / "ours")
    assert [(o.slide_id, o.status, o.reason) for o in outcomes] == [
        ("a", "imported", ""),
        ("b", "refused", "short"),
        ("c", "refused", "no-coords"),
    ]
    np.testing.assert_array_equal(store.read("a").features, slides["a"].features)
    np.testing.assert_array_equal(store.read("a").xy0, slides["a"].xy0)


def test_clam_masks_are_never_opened_and_that_is_said(archives, tmp_path):
    source = write(archives, "clam", tmp_path)
    (source / "masks").mkdir()
    (source / "masks" / "a_mask.pkl").write_bytes(b"\x80\x04.")
    (said,) = open_archive("clam", source).passed_over()
    assert "1 pickles" in said


def test_bfloat16_widens_without_loss(archives, tmp_path):
    source = archives.clam(tmp_path, {"a": archives.tiles(0)}, kind="pt")
    narrow = torch.from_numpy(archives.tiles(0).features).bfloat16()
    torch.save(narrow, source / "pt_files" / "a.pt")
    store, _ = brought("clam", source, tmp_path / "ours")
    np.testing.assert_array_equal(store.read("a").features, narrow.float().numpy())


def test_wider_numbers_are_refused_and_not_narrowed(archives, tmp_path):
    slides = {"a": archives.tiles(0, dtype="float64")}
    _, (outcome,) = brought("trident", archives.trident(tmp_path, slides), tmp_path / "ours")
    assert (outcome.reason, "float64" in outcome.message) == ("wrong-type", True)
    _, (outcome,) = brought("clam", archives.clam(tmp_path, slides, kind="pt"), tmp_path / "o")
    assert (outcome.reason, "float64" in outcome.message) == ("wrong-type", True)


def test_one_of_several_encoders_is_chosen_by_name(archives, tmp_path):
    source = archives.atlaspatch(tmp_path, {"a": archives.tiles(0)}, encoders=("uni", "conch"))
    with pytest.raises(ConfigError, match=r"conch, uni.*--encoder"):
        brought("atlaspatch", source, tmp_path / "ours")
    store, _ = brought("atlaspatch", source, tmp_path / "ours", given=Given("conch"))
    np.testing.assert_array_equal(store.read("a").features, archives.tiles(0).features + 1)
    job = write(archives, "trident", tmp_path / "t")
    archives.trident(tmp_path / "t", {"a": archives.tiles(3)}, encoder="conch")
    with pytest.raises(ConfigError, match="--encoder"):
        open_archive("trident", job)
    with pytest.raises(ConfigError, match=r"'conhc'.*did you mean 'conch'"):
        open_archive("trident", job, Given("conhc"))
    assert len(open_archive("trident", job, Given("conch")).files()) == 1


def test_unknown_layouts_and_folders_of_others_are_named(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'trident'"):
        open_archive("tridant", tmp_path)
    for layout in GIVEN:
        with pytest.raises(ConfigError, match=str(tmp_path)):
            open_archive(layout, tmp_path)


def test_imported_bags_never_mix_with_our_own_unasked(archives, tmp_path):
    source = write(archives, "trident", tmp_path)
    store, _ = brought("trident", source, tmp_path / "ours")
    bag = store.read("a")
    from dataclasses import replace

    own = replace(bag.provenance, encoder={"name": "uni_v1", "fingerprint": "e" * 64})
    store.put(replace(bag, slide_id="own", provenance=own))
    with pytest.raises(BagMismatchError, match=r"fingerprint=declared"):
        check_uniform(store.infos())


# -- rows and slides that are left out -----------------------------------------------------------


@pytest.mark.parametrize("way", ["h5", "foreign"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused_or_counted(archives, tmp_path, way, value):
    slides = {"a": archives.tiles(0), "b": archives.tiles(1)}
    slides["a"].features[[3, 17], 2] = value
    source = archives.trident(tmp_path, slides)
    store, outcomes = brought("trident", source, tmp_path / "ours", way)
    assert [(o.slide_id, o.reason) for o in outcomes] == [("a", "non-finite"), ("b", "")]
    assert "3, 17" in outcomes[0].message
    assert store.ids() == ["b"]
    store, outcomes = brought("trident", source, tmp_path / "ours", way, allow_nonfinite=True)
    assert [(o.status, o.left_out) for o in outcomes] == [("imported", 2), ("kept", 0)]
    keep = np.delete(np.arange(40), [3, 17])
    np.testing.assert_array_equal(store.read("a").features, slides["a"].features[keep])
    np.testing.assert_array_equal(store.read("a").xy0, slides["a"].xy0[keep])
    np.testing.assert_array_equal(store.read("a", [16]).xy0, slides["a"].xy0[[18]])
    assert store.info("a").counts == {"planned": 40, "dropped-non-finite": 2}
    assert list(store.verify_all()) == []


@pytest.mark.parametrize("way", ["h5", "foreign"])
def test_a_slide_without_tiles_is_empty_and_not_a_bag(archives, tmp_path, way):
    source = archives.trident(tmp_path, {"a": archives.tiles(0, n=1)})
    with h5py.File(source / "features_uni_v1" / "a.h5", "r+") as file:
        said = dict(file["coords"].attrs)
        del file["coords"], file["features"]
        file["features"] = np.zeros((0, 6), np.float32)
        file["coords"] = np.zeros((0, 2), np.int64)
        file["coords"].attrs.update(said)
    shutil.rmtree(source / "patches")
    store, (outcome,) = brought("trident", source, tmp_path / "ours", way)
    assert (outcome.status, outcome.reason) == ("empty", "no-tiles")
    assert store.ids() == []
    with pytest.raises(BagMissingError, match="no-tiles"):
        store.read("a")


def test_features_cut_short_are_refused(archives, tmp_path):
    source = write(archives, "trident", tmp_path)
    with h5py.File(source / "features_uni_v1" / "a.h5", "r+") as file:
        said = dict(file["coords"].attrs)
        features, coords = file["features"][:30], file["coords"][:30]
        del file["features"], file["coords"]
        file["features"], file["coords"] = features, coords
        file["coords"].attrs.update(said)
    _, outcomes = brought("trident", source, tmp_path / "ours")
    assert [(o.status, o.reason) for o in outcomes] == [("refused", "short"), ("imported", "")]


# -- again ---------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("way", ["h5", "foreign"])
def test_what_was_imported_is_kept_and_what_changed_is_imported_again(
    archives, tmp_path, layout, way
):
    source = write(archives, layout, tmp_path / "theirs")
    store, _ = brought(layout, source, tmp_path / "ours", way)
    before = {p.name: p.stat().st_mtime_ns for p in store.root.iterdir()}
    _, outcomes = brought(layout, source, tmp_path / "ours", way)
    assert [o.status for o in outcomes] == ["kept", "kept"]
    assert {p.name: p.stat().st_mtime_ns for p in store.root.iterdir()} == before
    getattr(archives, layout)(tmp_path / "theirs", {"a": archives.tiles(9)})
    _, outcomes = brought(layout, source, tmp_path / "ours", way)
    assert [o.status for o in outcomes] == ["imported", "kept"]
    precision = "float16" if layout == "stamp" else "float32"
    np.testing.assert_array_equal(
        store.read("a").features, archives.tiles(9).features.astype(precision)
    )


def test_a_renamed_slide_keeps_its_bag_in_place(archives, tmp_path):
    from wsi.bags.relink import Move, plan_relinking, relink

    source = archives.trident(tmp_path, {"a": archives.tiles(0)})
    slide = SimpleNamespace(
        mpp=(0.25, 0.25), fingerprint="f1", size0=(1, 2), vendor="x", magnification=40.0
    )
    store, _ = brought("trident", source, tmp_path / "ours", "foreign", slides={"a": slide})
    assert list(relink(store, plan_relinking(store, {"b": "f1"}))) == [Move("a", "b")]
    np.testing.assert_array_equal(store.read("b").features, archives.tiles(0).features)
    assert [p.name for p in store.root.iterdir()] == ["b.json"]
    assert (source / "features_uni_v1" / "a.h5").is_file()
    assert list(store.verify_all()) == []


def test_hidden_files_are_passed_over_and_pipes_refused(archives, tmp_path):
    source = write(archives, "trident", tmp_path)
    (source / "features_uni_v1" / "._a.h5").write_bytes(b"of another system")
    os.mkfifo(source / "features_uni_v1" / "pipe.h5")
    _, outcomes = brought("trident", source, tmp_path / "ours")
    assert [(o.slide_id, o.reason) for o in outcomes] == [
        ("a", ""),
        ("b", ""),
        ("pipe", "missing-file"),
    ]
