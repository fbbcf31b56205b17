"""Tile counts and mean features of bags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.pipelines.conftest import provenance
from wsi.bags import Bag, TileFilter, bag_means, create_store
from wsi.errors import BagError


def store_of(root: Path, sizes: dict[str, int]) -> Any:
    rng, store = np.random.default_rng(0), create_store(root)
    for slide_id, n in sizes.items():
        features = (10 * rng.standard_normal((n, 8))).astype(np.float16)
        tissue = np.linspace(0, 1, n).astype(np.float16)
        xy0 = np.stack([np.arange(n) * 256, np.zeros(n)], axis=1).astype(np.int32)
        made = replace(provenance(slide_id), precision="float16")
        store.put(Bag(slide_id, features, xy0, tissue, made))
    return store


def test_means_are_those_of_the_files(tmp_path: Path) -> None:
    store = store_of(tmp_path / "bags", {"a": 400, "b": 7})
    found = bag_means(store.read, ["b", "a"])
    assert found.ids == ("b", "a")
    assert found.tiles.tolist() == [7, 400]
    for slide_id, mean in zip(found.ids, found.features, strict=True):
        with h5py.File(tmp_path / "bags" / f"{slide_id}.h5") as file:
            features = np.asarray(file["features"], np.float64)
        assert np.allclose(mean, features.sum(axis=0) / len(features), rtol=0, atol=1e-12)


def test_tiles_that_a_filter_leaves_out_do_not_count(tmp_path: Path) -> None:
    store = store_of(tmp_path / "bags", {"a": 11})
    found = bag_means(store.read, ["a"], TileFilter(min_tissue=0.45))
    with h5py.File(tmp_path / "bags" / "a.h5") as file:
        features = np.asarray(file["features"], np.float64)
    assert found.tiles.tolist() == [6]  # 0.5, 0.6, ... 1.0
    assert np.allclose(found.features[0], features[5:].mean(axis=0), rtol=0, atol=1e-12)


def test_a_bag_without_tiles_left_or_of_no_numbers_is_named(tmp_path: Path) -> None:
    store = store_of(tmp_path / "bags", {"a": 11})
    with pytest.raises(BagError, match="a: no tile is left"):
        bag_means(store.read, ["a"], TileFilter(min_tissue=2.0))

    class Broken:
        features, tissue, quality = np.array([[1.0, np.nan]]), None, None

    with pytest.raises(BagError, match="broken: features are not finite"):
        bag_means(lambda _: Broken(), ["broken"])
