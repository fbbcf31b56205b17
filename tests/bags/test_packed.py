"""A packed cohort gives what the bags give, and is refused when it no longer does."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wsi.bags import Bag, BagStore, PackedCohort, Provenance, create_store, open_store, packing
from wsi.bags.packing import is_current, pack, packable, packed_bytes, packed_folder
from wsi.errors import (
    BagCorruptError,
    BagMismatchError,
    BagMissingError,
    ConfigError,
    ResourceError,
)

SIZES = {"a": 1, "site/b": 700, "c": 33, "d": 12}
DIM = 6


def bag(slide_id: str, n: int, *, scored: bool = True, precision: str = "float16", seed=0) -> Bag:
    rng = np.random.default_rng([seed, n])
    return Bag(
        slide_id,
        rng.normal(size=(n, DIM)).astype(precision),
        rng.integers(0, 99_999, (n, 2)).astype(np.int32),
        rng.uniform(size=n).astype(np.float16),
        Provenance(
            slide={"fingerprint": f"{slide_id} {seed}"},
            tiling={"settings": {"mpp": 0.5, "tile_px": 256}},
            encoder={"name": "texture-v1", "fingerprint": "e"},
            tissue={"settings": {"method": "od_otsu"}},
            precision=precision,  # pyright: ignore[reportArgumentType]
        ),
        {k: rng.uniform(size=n).astype(np.float16) for k in ("blur", "pen", "fold")}
        if scored
        else None,
    )


def filled(root: Path, fmt: str = "h5", **changes: str) -> BagStore:
    store = create_store(root, fmt)
    for slide_id, n in SIZES.items():
        store.put(bag(slide_id, n, scored=slide_id != "c", **changes))
    store.write_empty("glass", bag("glass", 1, **changes).provenance, reason="no-tissue")
    return store


def packed(store: BagStore, whole: bool = True, ids: set[str] | None = None) -> PackedCohort:
    infos = packable(store, ids)
    assert list(pack(store, packed_folder(store), infos, whole=whole)) == [
        i.slide_id for i in infos
    ]
    return PackedCohort(packed_folder(store))


@pytest.fixture
def store(tmp_path: Path) -> BagStore:
    return filled(tmp_path / "bags")


@pytest.mark.parametrize("fmt", ["h5", "zarr"])
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_every_bag_reads_as_from_the_store(tmp_path, fmt, precision, monkeypatch):
    monkeypatch.setattr(packing, "_BLOCK_BYTES", 1000)  # so that a bag is copied in pieces
    store = filled(tmp_path / "bags", fmt, precision=precision)
    cohort = packed(store)
    assert cohort.ids() == store.ids()
    for slide_id, n in SIZES.items():
        for rows in (None, slice(0, 5), np.random.default_rng(0).integers(0, n, 5)):
            ours, theirs = cohort.read(slide_id, rows), store.read(slide_id, rows)
            for name in ("features", "xy0", "tissue"):
                expected = getattr(theirs, name)
                assert getattr(ours, name).dtype == expected.dtype
                np.testing.assert_array_equal(getattr(ours, name), expected)
            assert (ours.quality is None) == (theirs.quality is None) == (slide_id == "c")
            for name, values in (theirs.quality or {}).items():
                np.testing.assert_array_equal(ours.quality[name], values)
    assert list(cohort.damaged()) == []
    with pytest.raises(BagMissingError, match="glass"):
        cohort.read("glass")


def test_others_read_the_files_with_numpy_alone(store):
    folder = packed(store).root
    index = json.loads((folder / "index.json").read_text())
    features = np.load(folder / "features.npy")
    assert features.shape == (sum(SIZES.values()), DIM)
    at = index["bags"]["site/b"]
    assert at["sha256"] == store.info("site/b").sha256
    rows = features[at["start"] : at["start"] + at["n"]]
    np.testing.assert_array_equal(rows, store.read("site/b").features)
    size = sum(path.stat().st_size - 128 for path in folder.glob("*.npy"))
    assert size == packed_bytes(packable(store))


def test_whole_bags_are_maps_and_not_copies(store):
    features = packed(store).read("site/b").features
    assert not features.flags.owndata
    assert not features.flags.writeable


# -- no longer the bags -----------------------------------------------------------------------


def test_what_differs_from_the_bags_is_named(store):
    cohort = packed(store)
    cohort.check(store.infos())
    store.put(bag("a", 1, seed=5))
    store.put(bag("new", 4))
    store.remove("d")
    store.write_empty("c", bag("c", 1).provenance, reason="no-data")
    with pytest.raises(
        BagMismatchError,
        match=r"1 changed \(a\), 1 added \(new\), 2 removed \(c, d\).*bags pack",
    ):
        cohort.check(store.infos())
    assert not is_current(cohort.root, packable(store), whole=True)
    again = packed(store)
    again.check(store.infos())
    np.testing.assert_array_equal(again.read("a").features, store.read("a").features)
    assert not list(store.root.glob(".tmp-*"))


def test_a_bag_written_again_the_same_way_changes_nothing(store):
    cohort = packed(store)
    store.put(bag("a", 1))
    cohort.check(store.infos())


def test_of_chosen_bags_others_may_come_and_go(store):
    cohort = packed(store, whole=False, ids={"a", "c"})
    assert cohort.ids() == ["a", "c"]
    store.put(bag("new", 4))
    store.remove("d")
    cohort.check(store.infos())
    assert not is_current(cohort.root, packable(store), whole=True)
    store.remove("c")
    with pytest.raises(BagMismatchError, match=r"1 removed \(c\)"):
        cohort.check(store.infos())


def test_any_flipped_bit_of_rows_is_found_and_its_bag_named(store):
    cohort = packed(store)
    rng = np.random.default_rng(0)
    for path in sorted(cohort.root.glob("*.npy")):
        sound = path.read_bytes()
        for _ in range(8):
            row = rng.integers(sum(SIZES.values()))
            (slide_id,) = (i for i, e in cohort.entries.items() if e.start <= row < e.start + e.n)
            data = bytearray(sound)
            row_bytes = (len(sound) - 128) // sum(SIZES.values())
            data[128 + row * row_bytes + rng.integers(row_bytes)] ^= 1 << rng.integers(8)
            path.write_bytes(data)
            assert list(PackedCohort(cohort.root).damaged()) == [slide_id], path.name
            others = [i for i in SIZES if i != slide_id]
            assert list(PackedCohort(cohort.root).damaged(others)) == []
        path.write_bytes(sound)
    assert is_current(cohort.root, packable(store), whole=True)


def test_any_changed_byte_of_the_index_is_refused(store):
    cohort = packed(store, whole=False, ids={"a"})
    path = cohort.root / "index.json"
    sound = path.read_bytes()
    for position in range(0, len(sound), 7):
        data = bytearray(sound)
        data[position] ^= 1
        path.write_bytes(data)
        with pytest.raises(BagCorruptError, match="index"):
            PackedCohort(cohort.root)


@pytest.mark.parametrize("spoil", ["cut", "header", "gone", "empty"])
def test_a_file_unlike_its_index_is_refused(store, spoil):
    cohort = packed(store)
    path = cohort.root / "coords.npy"
    data = path.read_bytes()
    spoilt = {"cut": data[:-1], "header": b"\x93NUMPY" + data[7:], "empty": b""}
    if spoil == "header":
        np.save(path, np.zeros((3, 2), np.int32))
    elif spoil == "gone":
        path.unlink()
    else:
        path.write_bytes(spoilt[spoil])
    with pytest.raises(BagCorruptError, match=r"coords\.npy"):
        PackedCohort(cohort.root).read("a")


def test_a_folder_without_one_says_what_to_run(store, tmp_path):
    for root in (packed_folder(store), tmp_path / "none" / "packed", store.root / "a.h5" / "x"):
        with pytest.raises(BagMissingError, match="wsi bags pack"):
            PackedCohort(root)


# -- packing ----------------------------------------------------------------------------------


def files(store: BagStore) -> list[str]:
    return sorted(p.name for p in store.root.rglob("*") if p.is_file())


def test_a_damaged_bag_is_not_packed_and_an_earlier_cohort_stays(store):
    cohort = packed(store)
    before = files(store)
    path = store.root / "c.h5"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(BagCorruptError, match=r"c\.h5"):
        list(pack(store, cohort.root, packable(store), whole=True))
    assert files(store) == before
    assert list(PackedCohort(cohort.root).damaged()) == []


def test_a_pack_given_up_half_way_leaves_nothing(store):
    going = pack(store, packed_folder(store), packable(store), whole=True)
    next(going)
    assert list(store.root.glob(".tmp-*"))
    going.close()
    assert not list(store.root.glob(".tmp-*"))
    assert not packed_folder(store).exists()


def test_a_reader_keeps_the_cohort_it_opened(store):
    cohort = packed(store)
    before = cohort.read("a").features.copy()
    store.put(bag("a", 1, seed=5))
    packed(store)
    np.testing.assert_array_equal(cohort.read("a").features, before)


def test_too_little_space_is_said_before_anything_is_written(store, monkeypatch):
    usage = type(packing.shutil.disk_usage(store.root))
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(ResourceError, match="GB needed to pack"):
        packed(store)
    assert not list(store.root.glob(".tmp-*"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_nothing(store, monkeypatch, code):
    def full(*_: object) -> dict:
        raise OSError(code, "full")

    monkeypatch.setattr(packing, "_stored", full)
    with pytest.raises(ResourceError, match="free space and rerun"):
        packed(store)
    assert not list(store.root.glob(".tmp-*"))


def own(folder: Path) -> None:
    (folder / "mine.txt").write_text("x")


def bags_of_another(folder: Path) -> None:
    create_store(folder, "h5").put(bag("index", 3))


@pytest.mark.parametrize("fill", [own, bags_of_another])
def test_nothing_else_is_ever_overwritten(store, tmp_path, fill: Callable[[Path], None]):
    out = tmp_path / "out"
    out.mkdir()
    fill(out)
    before = sorted(out.iterdir())
    with pytest.raises(ConfigError, match="--out"):
        list(pack(store, out, packable(store), whole=True))
    assert sorted(out.iterdir()) == before


def test_mixed_recipes_and_empty_folders_are_refused(store):
    with pytest.raises(BagMissingError, match="no bag to pack"):
        packable(store, {"none of these"})
    store.put(bag("e", 3, precision="float32"))
    with pytest.raises(BagMismatchError, match="precision"):
        packable(store)


def test_a_packed_cohort_is_neither_a_recipe_nor_a_stray_file(store):
    packed(store)
    assert open_store(store.root.parent).root == store.root
    assert list(store.verify_all()) == []
    for path in store.root.glob("*.json"):
        path.unlink()
    for path in store.root.glob("*.h5"):
        path.unlink()
    with pytest.raises(BagMissingError, match="no bags"):
        open_store(store.root)
