"""Zarr bags as other programs see them."""

from __future__ import annotations

import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import ZipStore

from wsi.bags import Bag, Provenance
from wsi.bags.sidecar import write_sidecar
from wsi.bags.zarr_zip import ZarrStore
from wsi.errors import BagCorruptError
from wsi.files import sha256_file

N, DIM = 2100, 5


@pytest.fixture
def bag() -> Bag:
    rng = np.random.default_rng(0)
    return Bag(
        slide_id="a",
        features=rng.normal(size=(N, DIM)).astype(np.float16),
        xy0=rng.integers(0, 9999, (N, 2)).astype(np.int32),
        tissue=np.zeros(N, np.float16),
        provenance=Provenance(
            slide={"fingerprint": "s"},
            tiling={"settings": {"mpp": 0.5, "tile_px": 256}},
            encoder={"name": "texture-v1", "fingerprint": "e"},
            tissue={"settings": {"method": "od_otsu"}},
            precision="float16",
        ),
        quality={k: rng.uniform(size=N).astype(np.float16) for k in ("blur", "pen", "fold")},
    )


@pytest.fixture
def store(tmp_path: Path, bag: Bag) -> ZarrStore:
    store = ZarrStore(tmp_path)
    store.put(bag)
    return store


def test_equal_bags_have_equal_bytes_whenever_they_are_made(store, bag, tmp_path) -> None:
    time.sleep(2.1)  # a zip counts in steps of two seconds
    later = ZarrStore(tmp_path / "later")
    later.put(bag)
    path = later.root / "a.zarr.zip"
    assert path.read_bytes() == (store.root / "a.zarr.zip").read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.testzip() is None
    with ZipStore(path, mode="r") as zipped:  # zarr itself still reads it
        group = zarr.open_group(zipped, mode="r")
        np.testing.assert_array_equal(group["features"][...], bag.features)


def accept(store: ZarrStore) -> None:
    path = store.root / "a.zarr.zip"
    info = replace(store.info("a"), bytes=path.stat().st_size, sha256=sha256_file(path))
    write_sidecar(store.root, info)


def rewrite_members(path: Path, keep: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in keep.items():
            archive.writestr(name, data)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_plain_zarr_reads_the_same_names_and_attributes(store, bag):
    with ZipStore(store.root / "a.zarr.zip", mode="r") as opened:
        group = zarr.open_group(opened, mode="r")
        assert sorted(group.array_keys()) == ["blur", "coords", "features", "fold", "pen", "tissue"]
        for name, expected in [
            ("features", bag.features),
            ("coords", bag.xy0),
            ("tissue", bag.tissue),
            *(bag.quality or {}).items(),
        ]:
            data = group[name]
            np.testing.assert_array_equal(data[:], expected)
            assert data.dtype == expected.dtype
            assert data.metadata.zarr_format == 3
            assert data.chunks[0] >= 1024
            assert any(isinstance(codec, Crc32cCodec) for codec in data.metadata.codecs)
        assert group.attrs["schema_version"] == "wsi-bag/2"
        assert group.attrs["encoder"] == bag.provenance.encoder


def test_every_member_is_written_once_even_where_all_is_zero(store):
    with zipfile.ZipFile(store.root / "a.zarr.zip") as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    assert [n for n in names if n.startswith("tissue/c")] == [f"tissue/c/{k}" for k in range(3)]


def test_a_flipped_bit_in_a_chunk_is_noticed_by_reading_alone(store):
    path = store.root / "a.zarr.zip"
    content = members(path)
    chunk = bytearray(content["features/c/1/0"])
    chunk[100] ^= 1
    rewrite_members(path, content | {"features/c/1/0": bytes(chunk)})
    accept(store)
    with pytest.raises(BagCorruptError, match="checksum"):
        store.read("a")


@pytest.mark.parametrize("name", ["blur", "pen", "fold"])
def test_a_flipped_bit_in_a_score_is_noticed_by_reading_alone(store, name):
    path = store.root / "a.zarr.zip"
    content = members(path)
    chunk = bytearray(content[f"{name}/c/1"])
    chunk[100] ^= 1
    rewrite_members(path, content | {f"{name}/c/1": bytes(chunk)})
    accept(store)
    with pytest.raises(BagCorruptError, match="checksum"):
        store.read("a")


@pytest.mark.parametrize(
    "lost",
    [
        "features/c/1/0",
        "tissue/c/2",
        "pen/c/0",
        "features/zarr.json",
        "fold/zarr.json",
        "zarr.json",
    ],
)
def test_a_lost_member_is_noticed_and_never_read_as_zeros(store, lost):
    path = store.root / "a.zarr.zip"
    content = members(path)
    del content[lost]
    rewrite_members(path, content)
    accept(store)
    with pytest.raises(BagCorruptError, match=r"a\.zarr\.zip"):
        store.read("a")
