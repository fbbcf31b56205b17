"""Packing, tile draws, order and labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsi.bags import TileFilter
from wsi.data import (
    ArrayBag,
    BagDataset,
    CachedReader,
    from_arrays,
    pack,
    training_steps,
    whole_bags,
)
from wsi.errors import BagError, BagMismatchError


def numbered(n, start=0):
    """Tiles whose single feature tells them apart."""
    return (start + np.arange(n, dtype=np.float32))[:, None]


def epoch_of(dataset, *, bags_per_step=2, max_tiles=None, most_tiles=1000, seed=0, epoch=0):
    steps = training_steps(
        dataset,
        bags_per_step=bags_per_step,
        max_tiles=max_tiles,
        most_tiles=most_tiles,
        seed=seed,
        epoch=epoch,
    )
    return [piece for pieces in steps for piece in pieces]


def drawn(batches):
    """Return {slide id: sorted features seen}."""
    seen = {}
    for batch in batches:
        for slide_id, part in zip(batch.slide_ids, batch.x.split(batch.sizes), strict=True):
            seen[slide_id] = part[:, 0].tolist()
    return seen


def test_pack_lays_bags_end_to_end():
    a, b = numbered(3).astype(np.float16), torch.arange(2.0)[:, None] + 10
    batch = pack([(a, 1, "a", np.zeros((3, 2))), (b, 0, "b", np.ones((2, 2)))])
    assert batch.x[:, 0].tolist() == [0, 1, 2, 10, 11]
    assert batch.x.dtype == torch.float32
    assert batch.offsets.tolist() == [0, 3, 5]
    assert batch.sizes == (3, 2)
    assert batch.y is not None
    assert batch.y.tolist() == [1, 0]
    assert batch.xy0 is not None
    assert batch.xy0[:, 0].tolist() == [0, 0, 0, 1, 1]


def test_pack_takes_read_only_arrays_without_changing_them():
    tiles = numbered(3)
    tiles.setflags(write=False)
    batch = pack([(tiles, None, "a", None)])
    batch.x.add_(1)
    assert tiles[:, 0].tolist() == [0, 1, 2]
    assert batch.y is None
    assert batch.xy0 is None


def test_an_empty_bag_is_named():
    with pytest.raises(BagError, match="hollow: the bag has no tile"):
        pack([(numbered(2), None, "full", None), (numbered(0), None, "hollow", None)])


def test_bags_of_different_width_are_named():
    with pytest.raises(BagMismatchError, match="wide has 2 features per tile, a has 1"):
        pack([(numbered(2), None, "a", None), (np.zeros((2, 2)), None, "wide", None)])


def test_labels_of_some_bags_only_are_refused():
    with pytest.raises(BagError, match="some of a, b have labels"):
        pack([(numbered(2), 1, "a", None), (numbered(2), None, "b", None)])


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_features_must_be_a_matrix(shape):
    with pytest.raises(BagError, match="a: features must be"):
        pack([(np.zeros(shape), None, "a", None)])


def test_an_epoch_shows_every_bag_once_in_a_new_order():
    dataset = from_arrays({f"s{i}": numbered(1, i) for i in range(20)}, np.arange(20) % 2)
    orders = []
    for epoch in range(3):
        batches = epoch_of(dataset, bags_per_step=3, epoch=epoch)
        assert [len(b.slide_ids) for b in batches] == [3] * 6 + [2]
        order = [slide_id for batch in batches for slide_id in batch.slide_ids]
        assert sorted(order) == sorted(dataset.slide_ids)
        for batch in batches:
            assert batch.y is not None
            assert batch.y.tolist() == [int(s[1:]) % 2 for s in batch.slide_ids]
        orders.append(order)
    assert len({tuple(order) for order in orders}) == 3


def test_draws_are_distinct_tiles_renewed_every_epoch_and_fixed_by_the_seed():
    dataset = from_arrays({"long": numbered(100), "short": numbered(4)}, [0, 1])
    first = drawn(epoch_of(dataset, max_tiles=10))
    assert len(set(first["long"])) == 10
    assert first["short"] == [0, 1, 2, 3]
    assert first == drawn(epoch_of(dataset, max_tiles=10))
    assert first["long"] != drawn(epoch_of(dataset, max_tiles=10, epoch=1))["long"]
    assert first["long"] != drawn(epoch_of(dataset, max_tiles=10, seed=1))["long"]


def test_every_tile_is_drawn_equally_often():
    dataset = from_arrays({"a": numbered(20)}, [0])
    counts = np.zeros(20)
    for epoch in range(2000):
        counts[np.array(drawn(epoch_of(dataset, max_tiles=5, epoch=epoch))["a"], int)] += 1
    assert counts.sum() == 10_000
    np.testing.assert_allclose(counts, 500, atol=5 * np.sqrt(2000 * 0.25 * 0.75))


def test_draws_do_not_depend_on_how_bags_are_grouped():
    dataset = from_arrays({f"s{i}": numbered(50) for i in range(6)}, [0] * 6)
    alone = drawn(epoch_of(dataset, max_tiles=7, bags_per_step=1))
    assert alone == drawn(epoch_of(dataset, max_tiles=7, bags_per_step=4))


def test_a_negative_seed_is_a_seed_like_any_other():
    dataset = from_arrays({"a": numbered(50)}, [0])
    negative = drawn(epoch_of(dataset, max_tiles=7, seed=-1))
    assert negative == drawn(epoch_of(dataset, max_tiles=7, seed=-1))
    assert negative != drawn(epoch_of(dataset, max_tiles=7, seed=1))


def test_evaluation_sees_all_tiles_in_the_order_given():
    dataset = from_arrays({"b": numbered(30), "a": numbered(2)})
    batches = list(whole_bags(dataset))
    assert [batch.slide_ids for batch in batches] == [("b",), ("a",)]
    assert [batch.sizes for batch in batches] == [(30,), (2,)]


TISSUE = ArrayBag(numbered(4), np.arange(8).reshape(4, 2), np.array([0.0, 0.5, 0.2, 0.9]))


def test_tiles_with_little_tissue_are_left_out_with_their_coordinates():
    dataset = BagDataset(lambda _: TISSUE, ["a"], tiles=TileFilter(0.5))
    (batch,) = whole_bags(dataset)
    assert batch.x[:, 0].tolist() == [1, 3]
    assert batch.xy0 is not None
    assert batch.xy0.tolist() == [[2, 3], [6, 7]]


def test_a_bag_without_enough_tissue_is_named():
    with pytest.raises(BagError, match=r"a: no tile is left by data\.min_tissue=0\.95"):
        list(whole_bags(BagDataset(lambda _: TISSUE, ["a"], tiles=TileFilter(0.95))))


SCORED = ArrayBag(
    numbered(4),
    np.arange(8).reshape(4, 2),
    np.array([0.0, 0.5, 0.2, 0.9]),
    {"blur": np.array([0.9, 0.1, 0.6, 0.2]), "pen": np.array([0, 0, 0, 0.7]), "fold": np.zeros(4)},
)


@pytest.mark.parametrize(
    ("tiles", "left"),
    [
        (TileFilter(limits={"blur": 0.5}), [1, 3]),
        (TileFilter(limits={"blur": 0.6}), [1, 2, 3]),
        (TileFilter(limits={"blur": 0.6, "pen": 0.5}), [1, 2]),
        (TileFilter(0.5, {"pen": 0.5}), [1]),
        (TileFilter(limits={"fold": 0.0}), [0, 1, 2, 3]),
    ],
)
def test_tiles_above_a_limit_are_left_out_with_their_coordinates(tiles, left):
    dataset = BagDataset(lambda _: SCORED, ["a"], tiles=tiles).unlabelled()
    (batch,) = whole_bags(dataset)
    assert batch.x[:, 0].tolist() == left
    assert batch.xy0 is not None
    assert batch.xy0[:, 0].tolist() == [2 * row for row in left]


def test_missing_scores_are_named_when_needed():
    with pytest.raises(BagError, match=r"a: .*no scores.*data\.max_blur=0\.5.*--redo"):
        list(
            whole_bags(BagDataset(lambda _: TISSUE, ["a"], tiles=TileFilter(limits={"blur": 0.5})))
        )


def test_missing_tissue_fractions_are_named_when_needed():
    with pytest.raises(BagError, match="a: no tissue fractions"):
        list(whole_bags(BagDataset(lambda _: ArrayBag(numbered(2)), ["a"], tiles=TileFilter(0.5))))


def test_unlabelled_bags_carry_no_labels():
    dataset = from_arrays({"a": numbered(2), "b": numbered(3)}, [0, 1]).unlabelled()
    assert dataset.y is None
    assert [batch.y for batch in whole_bags(dataset)] == [None, None]
    assert dataset.slide_ids == ("a", "b")


def test_one_label_per_slide_and_each_slide_once():
    with pytest.raises(BagError, match="2 slides have 1 labels"):
        BagDataset(lambda _: TISSUE, ["a", "b"], [0])
    with pytest.raises(BagError, match="stands twice"):
        BagDataset(lambda _: TISSUE, ["a", "a"])


def test_a_cached_reader_reads_once_and_keeps_within_its_bytes():
    reads = []

    def read(slide_id):
        reads.append(slide_id)
        return ArrayBag(numbered(25))  # 100 bytes

    cached = CachedReader(read, max_bytes=250)
    for _ in range(2):
        for slide_id in "abc":
            assert cached(slide_id).features.shape == (25, 1)
    assert reads == ["a", "b", "c", "c"]


def test_offsets_and_corners_stay_on_the_host_where_bags_are_cut():
    batch = pack([(np.ones((3, 2), np.float32), 1, "a", np.zeros((3, 2), np.int32))]).to("meta")
    assert {batch.x.device.type, batch.y.device.type} == {"meta"}
    assert {batch.offsets.device.type, batch.xy0.device.type} == {"cpu"}
