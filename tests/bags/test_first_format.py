"""Bags that were written before tiles had scores are read, checked, listed and converted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from wsi.bags import Bag, Provenance, TileFilter, check_uniform, convert, open_store
from wsi.bags.h5 import H5Store
from wsi.errors import BagError

WRITTEN = Path(__file__).parent / "wsi-bag-1"  # by the code of that time, never made anew
KEY = "e8f15f1d162b541b50ecb22574eb7e78b67ec4c62bc2b9aaa03dcce84146a64a"  # as it was stored
RECIPE_KEY = "f6bf0109ec419b370883464f3a1a4ccac758fae8a33205dc88928fd7ffc10a16"
K = np.arange(4)
FEATURES = np.arange(12).reshape(4, 3)
XY0 = np.stack([512 * K, 0 * K], axis=1)


def check_values(bag: Bag) -> None:
    np.testing.assert_array_equal(bag.features, FEATURES)
    np.testing.assert_array_equal(bag.xy0, XY0)
    np.testing.assert_array_equal(bag.tissue, K / 4)
    assert bag.quality is None
    assert (bag.provenance.key, bag.provenance.recipe_key) == (KEY, RECIPE_KEY)


@pytest.mark.parametrize("fmt", ["h5", "zarr"])
def test_they_are_read_and_sound(fmt: str) -> None:
    store = open_store(WRITTEN / fmt)
    assert store.format == fmt
    assert [(i.slide_id, i.status, i.reason) for i in store.infos()] == [
        ("glass", "empty", "no-tissue"),
        ("site/a", "done", None),
    ]
    assert list(store.verify_all()) == []
    check_values(store.read("site/a"))
    np.testing.assert_array_equal(store.read("site/a", [2, 0]).features, FEATURES[[2, 0]])
    assert store.info("site/a").counts == {"considered": 9, "planned": 5, "missing": 1}


def test_any_changed_byte_of_their_sidecars_is_found(tmp_path: Path) -> None:
    shutil.copytree(WRITTEN / "h5", tmp_path / "bags")
    path = tmp_path / "bags" / "site%2Fa.json"
    sound = path.read_bytes()
    store = H5Store(tmp_path / "bags")
    with path.open("r+b", buffering=0) as handle:  # in place: a file system is slow to make anew
        for position in range(len(sound)):
            for changed in (b"\t", b" ", b"7", bytes([sound[position] ^ 1])):
                if changed[0] != sound[position]:
                    os.pwrite(handle.fileno(), changed, position)
                    assert [f.state for f in store.verify("site/a")] == ["corrupt"], position
            os.pwrite(handle.fileno(), sound[position : position + 1], position)
    assert path.read_bytes() == sound
    assert store.verify("site/a") == []


@pytest.mark.parametrize("fmt", ["h5", "zarr"])
def test_their_slides_need_no_work(fmt: str) -> None:
    assert open_store(WRITTEN / fmt).holds("site/a", KEY)


@pytest.mark.parametrize(("fmt", "to"), [("h5", "zarr"), ("zarr", "h5"), ("h5", "h5")])
def test_they_are_converted(tmp_path: Path, fmt: str, to: str) -> None:
    list(convert(open_store(WRITTEN / fmt), tmp_path, to))
    store = open_store(tmp_path, to)
    assert list(store.verify_all()) == []
    check_values(store.read("site/a"))
    assert store.info("site/a").key == KEY


def test_they_stand_in_one_set_with_bags_of_today(tmp_path: Path) -> None:
    shutil.copytree(WRITTEN / "h5", tmp_path / "bags")
    store = open_store(tmp_path / "bags")
    old = store.read("site/a")
    made = Provenance(**old.provenance.to_json() | {"slide": {"fingerprint": "another"}})
    quality = {name: np.zeros(4, np.float16) for name in ("blur", "pen", "fold")}
    store.put(Bag("b", old.features, old.xy0, old.tissue, made, quality))
    assert check_uniform(store.infos()) == RECIPE_KEY


def test_a_limit_on_scores_says_how_to_get_them() -> None:
    bag = open_store(WRITTEN / "h5").read("site/a")
    with pytest.raises(BagError, match=r"site/a.*no scores.*data\.max_pen=0\.2.*--redo"):
        TileFilter(limits={"pen": 0.2}).left_out("site/a", bag)


@pytest.mark.parametrize("fmt", ["h5", "zarr"])
def test_a_flipped_bit_is_still_found(tmp_path: Path, fmt: str) -> None:
    shutil.copytree(WRITTEN / fmt, tmp_path / "bags")
    store = open_store(tmp_path / "bags")
    (path,) = (tmp_path / "bags").glob(f"*{store.suffix}")
    content = path.read_bytes()
    for position in range(0, len(content), len(content) // 20):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        assert [f.state for f in store.verify("site/a")] == ["corrupt"]
