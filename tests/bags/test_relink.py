"""Bags follow their slides to new ids by content; nothing is recomputed, nothing overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsi.bags import Bag, BagStore, Provenance, create_store, open_store
from wsi.bags.relink import Move, plan_relinking, relink
from wsi.errors import BagCorruptError
from wsi.files import sampled_fingerprint


def bag(slide_id: str, fingerprint: str, seed: int = 0) -> Bag:
    rng = np.random.default_rng(seed)
    made = Provenance(
        slide={"fingerprint": fingerprint, "mpp": [0.5, 0.5]},
        tiling={"settings": {"mpp": 0.5, "tile_px": 256}},
        encoder={"name": "x", "fingerprint": "e"},
        tissue={"settings": {"method": "od_otsu"}},
        precision="float32",
    )
    features = rng.standard_normal((9, 3)).astype(np.float32)
    scores = {n: rng.uniform(0, 1, 9).astype(np.float16) for n in ("blur", "pen", "fold")}
    xy0, tissue = np.zeros((9, 2), np.int32), np.ones(9, np.float16)
    return Bag(slide_id, features, xy0, tissue, made, scores)


@pytest.fixture(params=["h5", "zarr"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> BagStore:
    return create_store(tmp_path / "bags", request.param)


def moved(store: BagStore, fingerprints: dict[str, str]) -> list[Move]:
    return list(relink(store, plan_relinking(store, fingerprints)))


def test_a_renamed_slide_keeps_its_bag(store, tmp_path):
    slide = tmp_path / "old.svs"
    slide.write_bytes(bytes(range(256)) * 2000)
    before = bag("old", sampled_fingerprint(slide))
    counts, timings, bad = (
        {"planned": 11, "bad": 2},
        {"read_s": 1.5},
        [{"xy0": [1, 2], "reason": "r"}],
    )
    was = store.put(before, counts=counts, timings=timings, bad_tiles=bad)
    slide = slide.rename(tmp_path / "new.svs")
    assert moved(store, {"site/new": sampled_fingerprint(slide)}) == [Move("old", "site/new")]
    assert open_store(store.root).ids() == ["site/new"]
    after, info = store.read("site/new"), store.info("site/new")
    np.testing.assert_array_equal(after.features, before.features)
    np.testing.assert_array_equal(after.quality["pen"], before.quality["pen"])
    assert (info.key, info.counts, info.timings, info.bad_tiles) == (was.key, counts, timings, bad)
    assert list(store.verify_all()) == []
    assert len(list(store.root.iterdir())) == 2
    if store.format == "h5":
        with h5py.File(store.root / "site%2Fnew.h5") as file:
            assert file.attrs["slide_id"] == "site/new"
    assert moved(store, {"site/new": sampled_fingerprint(slide)}) == []


def test_bags_of_slides_that_are_as_they_were_stay(store):
    store.put(bag("a", "f1"))
    store.put(bag("b", "f2", 1))
    plan = plan_relinking(store, {"a": "f1", "c": "f3"})
    assert (plan.moves, plan.refused, plan.absent) == ((), {}, ("b",))


def test_an_empty_slide_is_moved_too(store):
    store.write_empty("old", bag("x", "f1").provenance, reason="no-tissue", counts={"planned": 0})
    assert moved(store, {"new": "f1"}) == [Move("old", "new")]
    info = store.info("new")
    assert (info.status, info.reason) == ("empty", "no-tissue")
    assert [i.slide_id for i in store.infos()] == ["new"]


def test_a_copy_of_a_slide_is_no_move(store):
    store.put(bag("a", "f1"))
    plan = plan_relinking(store, {"a": "f1", "copy": "f1"})
    assert (plan.moves, plan.refused) == ((), {})


def test_what_could_mean_several_slides_is_refused_by_name(store):
    store.put(bag("old", "f1"))
    plan = plan_relinking(store, {"x": "f1", "y": "f1"})
    assert plan.moves == ()
    assert set(plan.refused) == {"x", "y"}
    assert "old" in plan.refused["x"]
    store.put(bag("older", "f1"))
    plan = plan_relinking(store, {"x": "f1"})
    assert plan.moves == ()
    assert "old, older" in plan.refused["x"]


def test_ids_that_pass_on_in_a_chain_never_overwrite_a_bag(store):
    for seed, (slide_id, fingerprint) in enumerate({"a": "f1", "b": "f2", "c": "f3"}.items()):
        store.put(bag(slide_id, fingerprint, seed))
    slides = {"b": "f1", "c": "f2", "d": "f3"}
    assert moved(store, slides) == [Move("c", "d"), Move("b", "c"), Move("a", "b")]
    assert store.ids() == ["b", "c", "d"]
    for seed, slide_id in enumerate("bcd"):
        np.testing.assert_array_equal(store.read(slide_id).features, bag("x", "f", seed).features)


def test_exchanged_ids_are_refused_and_both_bags_stay(store):
    store.put(bag("a", "f1"))
    store.put(bag("b", "f2", 1))
    plan = plan_relinking(store, {"a": "f2", "b": "f1"})
    assert (plan.moves, set(plan.refused)) == ((), {"a", "b"})
    list(relink(store, plan))
    np.testing.assert_array_equal(store.read("a").features, bag("a", "f1").features)


def test_an_id_that_another_slide_has_now_is_given_up(store):
    store.put(bag("a", "f1"))
    assert moved(store, {"a": "replaced", "elsewhere": "f1"}) == [Move("a", "elsewhere")]
    assert store.ids() == ["elsewhere"]


def test_an_interrupted_move_is_finished(store, monkeypatch):
    store.put(bag("old", "f1"))

    def killed(slide_id: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        moved(store, {"new": "f1"})
    monkeypatch.undo()
    assert store.ids() == ["new", "old"]
    assert moved(store, {"new": "f1"}) == [Move("old", "new")]
    assert store.ids() == ["new"]
    assert len(list(store.root.iterdir())) == 2


def test_the_bag_of_an_equal_slide_that_was_not_given_is_left_alone(store):
    store.put(bag("x/a", "f1"))
    store.put(bag("y/a", "f1"))
    plan = plan_relinking(store, {"x/a": "f1"})
    assert (plan.moves, plan.leftovers, plan.absent) == ((), (), ("y/a",))


def test_a_damaged_bag_stays_where_it_is(store):
    store.put(bag("old", "f1"))
    (path,) = store.root.glob(f"old{store.suffix}")
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(BagCorruptError, match="old"):
        moved(store, {"new": "f1"})
    assert json.loads((store.root / "old.json").read_text())["slide_id"] == "old"
    assert not (store.root / "new.json").exists()
