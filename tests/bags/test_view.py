"""Bags of a store as a sequence that scikit-learn cuts without reading."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.utils import _safe_indexing, indexable

from wsi.bags import Bag, BagStore, PackedCohort, Provenance, StoredBags, create_store
from wsi.bags.packing import pack, packable
from wsi.errors import BagMismatchError, BagMissingError

IDS = [f"site/{letter}" for letter in "abcd"]


def put(store: BagStore, slide_id: str, mpp: float = 0.5) -> None:
    made = Provenance(
        slide={"fingerprint": slide_id, "mpp": [mpp, mpp]},
        tiling={"settings": {"mpp": mpp, "tile_px": 256}},
        encoder={"fingerprint": "e" * 16, "name": "texture-v1"},
        tissue={"settings": {"method": "od_otsu"}},
        precision="float32",
    )
    n = 1 + sum(map(ord, slide_id)) % 5
    features = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
    store.put(Bag(slide_id, features, np.zeros((n, 2), np.int32), np.ones(n, np.float16), made))


@pytest.fixture
def store(tmp_path: Path) -> BagStore:
    made = create_store(tmp_path / "bags")
    for slide_id in IDS:
        put(made, slide_id)
    return made


def test_indexing_follows_numpy_and_reads_nothing(store: BagStore, monkeypatch) -> None:
    monkeypatch.setattr(BagStore, "read", lambda *_: pytest.fail("a bag was read"))
    bags, ids = StoredBags(store), np.array(IDS)
    assert list(bags.ids) == IDS
    assert bags[-1].slide_id == IDS[-1]
    mask = np.array([True, False, False, True])
    for index in (slice(1, 3), [2, 0], np.array([3, 3]), mask, np.array([], int)):
        chosen = bags[index]
        assert list(chosen.ids) == ids[index].tolist()
        assert [bag.slide_id for bag in chosen] == list(chosen.ids)
    (same,) = indexable(bags)
    cut = _safe_indexing(same, np.array([2, 1]))
    assert [bag.slide_id for bag in cut] == [IDS[2], IDS[1]]


def test_a_bag_is_read_when_asked_for_after_a_pickle_too(store: BagStore) -> None:
    for bags in (StoredBags(store, IDS[1:]), pickle.loads(pickle.dumps(StoredBags(store)))[1:]):
        for slide_id, bag in zip(IDS[1:], bags, strict=True):
            np.testing.assert_array_equal(bag.read().features, store.read(slide_id).features)


def test_a_packed_cohort_reads_the_same(store: BagStore, tmp_path: Path) -> None:
    list(pack(store, tmp_path / "packed", packable(store, None), whole=True))
    packed = StoredBags(PackedCohort(tmp_path / "packed"))
    assert packed.recipe_key == StoredBags(store).recipe_key
    for one, other in zip(packed, StoredBags(store), strict=True):
        np.testing.assert_array_equal(one.read().features, other.read().features)


def test_an_id_without_a_bag_is_named_with_the_nearest(store: BagStore) -> None:
    with pytest.raises(BagMissingError, match=r"1 of 2 .*site/dd.*did you mean 'site/d'"):
        StoredBags(store, ["site/a", "site/dd"])


def test_bags_of_two_recipes_are_refused_unless_one_is_chosen(store: BagStore) -> None:
    put(store, "other", mpp=1.0)
    with pytest.raises(BagMismatchError, match=r"mpp=1\.0"):
        StoredBags(store)
    assert len(StoredBags(store, IDS)) == 4
