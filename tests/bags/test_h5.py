"""HDF5 bags as other programs see them, and files that pretend to be bags."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsi.bags import Bag, Provenance
from wsi.bags import h5 as h5_module
from wsi.bags.h5 import H5Store
from wsi.bags.sidecar import write_sidecar
from wsi.errors import BagCorruptError, ResourceError
from wsi.files import sha256_file

N, DIM = 30, 5


@pytest.fixture
def bag() -> Bag:
    rng = np.random.default_rng(0)
    return Bag(
        slide_id="a",
        features=rng.normal(size=(N, DIM)).astype(np.float16),
        xy0=rng.integers(0, 9999, (N, 2)).astype(np.int32),
        tissue=rng.uniform(size=N).astype(np.float16),
        provenance=Provenance(
            slide={"fingerprint": "s", "text": "x" * 200_000},
            tiling={"settings": {"mpp": 0.5, "tile_px": 256}},
            encoder={"name": "texture-v1", "fingerprint": "e"},
            tissue={"settings": {"method": "od_otsu"}},
            precision="float16",
        ),
        quality={k: rng.uniform(size=N).astype(np.float16) for k in ("blur", "pen", "fold")},
    )


@pytest.fixture
def store(tmp_path: Path, bag: Bag) -> H5Store:
    store = H5Store(tmp_path)
    store.put(bag)
    return store


def accept(store: H5Store) -> None:
    """Make the sidecar agree with a tampered file, so that only its structure can betray it."""
    path = store.root / "a.h5"
    info = replace(store.info("a"), bytes=path.stat().st_size, sha256=sha256_file(path))
    write_sidecar(store.root, info)


def test_equal_bags_have_equal_bytes_whenever_they_are_made(store, bag, tmp_path):
    time.sleep(1.1)  # HDF5 counts in seconds
    later = H5Store(tmp_path / "later")
    later.put(bag)
    assert (later.root / "a.h5").read_bytes() == (store.root / "a.h5").read_bytes()


def test_plain_h5py_reads_features_and_coords_by_the_usual_names(store, bag):
    with h5py.File(store.root / "a.h5", "r") as file:
        assert sorted(file) == ["blur", "coords", "features", "fold", "pen", "tissue"]
        for name, expected in [
            ("features", bag.features),
            ("coords", bag.xy0),
            ("tissue", bag.tissue),
            *(bag.quality or {}).items(),
        ]:
            data = file[name]
            np.testing.assert_array_equal(data[:], expected)
            assert data.dtype == expected.dtype
            assert data.chunks is None
            assert data.compression is None
        assert file.attrs["schema_version"] == "wsi-bag/2"
        assert file.attrs["slide_id"] == "a"
        for name in ("slide", "tiling", "encoder", "tissue"):
            assert json.loads(file.attrs[name]) == getattr(bag.provenance, name)
        assert "wsi" in json.loads(file.attrs["versions"])


def test_a_bag_made_by_plain_h5py_of_the_same_layout_is_read(store, bag):
    with h5py.File(store.root / "a.h5", "r") as file:
        attributes = dict(file.attrs)
    with h5py.File(store.root / "a.h5", "w") as file:
        file.attrs.update(attributes)
        file.update({"features": bag.features, "coords": bag.xy0, "tissue": bag.tissue})
        file.update(bag.quality)
    accept(store)
    np.testing.assert_array_equal(store.read("a").features, bag.features)
    assert store.verify("a") == []


def _external_link(file: h5py.File, folder: Path) -> None:
    file["features"] = h5py.ExternalLink(str(folder / "other.h5"), "features")


def _soft_link(file: h5py.File, folder: Path) -> None:
    file["hidden"] = np.ones((N, DIM), np.float16)
    file["features"] = h5py.SoftLink("/hidden")


def _external_storage(file: h5py.File, folder: Path) -> None:
    file.create_dataset(
        "features", (N, DIM), "f2", external=[(str(folder / "raw"), 0, N * DIM * 2)]
    )


def _virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((N, DIM), "f2")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "features", (N, DIM))
    file.create_virtual_dataset("features", layout)


def _compressed(file: h5py.File, folder: Path) -> None:
    file.create_dataset("features", (N, DIM), "f2", compression="gzip")


def _too_many(file: h5py.File, folder: Path) -> None:
    file.create_dataset("features", (10**9, DIM), "f2")


def _unallocated(file: h5py.File, folder: Path) -> None:
    file.create_dataset("features", (N, DIM), "f2")


def _other_type(file: h5py.File, folder: Path) -> None:
    file["features"] = np.ones((N, DIM), np.float32)


def _big_endian(file: h5py.File, folder: Path) -> None:
    file["features"] = np.ones((N, DIM), ">f2")


def _group(file: h5py.File, folder: Path) -> None:
    file.create_group("features")


def _absent(file: h5py.File, folder: Path) -> None:
    file["feats"] = np.ones((N, DIM), np.float16)


def _not_finite(file: h5py.File, folder: Path) -> None:
    file["features"] = np.full((N, DIM), np.nan, np.float16)


@pytest.mark.parametrize(
    "tamper",
    [
        _external_link,
        _soft_link,
        _external_storage,
        _virtual,
        _compressed,
        _too_many,
        _unallocated,
        _other_type,
        _big_endian,
        _group,
        _absent,
        _not_finite,
    ],
)
def test_anything_but_plain_data_inside_the_file_is_refused(store, tmp_path, tamper):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["features"] = np.ones((N, DIM), np.float16)
    (tmp_path / "raw").write_bytes(b"\0" * N * DIM * 2)
    with h5py.File(store.root / "a.h5", "r+") as file:
        del file["features"]
        tamper(file, tmp_path)
    accept(store)
    with pytest.raises(BagCorruptError, match=r"a\.h5"):
        store.read("a")
    assert [f.state for f in store.verify("a")] == ["corrupt"]


@pytest.mark.parametrize("name", ["blur", "pen", "fold"])
def test_scores_that_were_lost_or_changed_are_noticed(store, bag, name):
    with h5py.File(store.root / "a.h5", "r+") as file:
        file[name][3] = 1.5
    accept(store)
    with pytest.raises(BagCorruptError, match=rf"1 {name} scores"):
        store.read("a")
    with h5py.File(store.root / "a.h5", "r+") as file:
        del file[name]
    accept(store)
    assert [f.state for f in store.verify("a")] == ["corrupt"]


def test_a_full_disk_is_said_before_writing(store, bag, monkeypatch):
    usage = type(h5_module.shutil.disk_usage(store.root))
    monkeypatch.setattr(h5_module.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(ResourceError, match="free space and rerun"):
        store.put(replace(bag, slide_id="b"))
    assert sorted(p.name for p in store.root.iterdir()) == ["a.h5", "a.json"]


def test_a_bag_made_again_later_has_the_same_bytes(store, bag):
    first = (store.root / "a.h5").read_bytes()
    time.sleep(1.1)  # HDF5 dates what it stores, to the second, unless told not to
    store.put(bag)
    assert (store.root / "a.h5").read_bytes() == first
