"""Exported archives are read by loaders that know CLAM's and TRIDENT's description alone."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from wsi.bags import Bag, BagStore, Provenance, create_store
from wsi.bags.foreign import Given, export_archive, import_archive, open_archive
from wsi.errors import BagCorruptError, BagMismatchError, ConfigError, UnknownNameError

IDS = ("a", "site/b", "per%2Fcent")


def provenance(precision: str = "float16", **changed) -> Provenance:
    settings = {"mpp": 0.5, "tile_px": 256, "stride_um": None, "min_tissue": 0.05}
    return Provenance(
        slide={"fingerprint": "f" * 64, "mpp": [0.25, 0.25], "size0": [6000, 5000]}
        | changed.pop("slide", {}),
        tiling={
            "settings": settings | changed,
            "resolved": {"size0": [changed.get("size0", 512)] * 2},
        },
        encoder={"name": "timm:vit/x", "fingerprint": "e" * 64},
        tissue={"settings": {"method": "od_otsu"}},
        precision=precision,  # pyright: ignore[reportArgumentType]
    )


def bag(slide_id: str, seed: int, precision: str = "float16", n: int = 70, **changed) -> Bag:
    rng = np.random.default_rng(seed)
    return Bag(
        slide_id,
        rng.standard_normal((n, 5)).astype(precision),
        rng.integers(0, 5000, (n, 2)).astype(np.int32),
        np.ones(n, np.float16),
        provenance(precision, **changed),
    )


@pytest.fixture
def store(tmp_path: Path) -> BagStore:
    store = create_store(tmp_path / "bags")
    for seed, slide_id in enumerate(IDS):
        store.put(bag(slide_id, seed, n=20 if seed == 2 else 70))
    store.write_empty("glass", provenance(), reason="no-tissue")
    return store


# -- loaders as the descriptions have them: h5py and torch, nothing of ours ----------------------


def clam_loader(root: Path, slide: str) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Return the tensor, and features and coords of the h5 file."""
    tensor = torch.load(root / "pt_files" / f"{slide}.pt", weights_only=True)
    with h5py.File(root / "h5_files" / f"{slide}.h5", "r") as file:
        return tensor, file["features"][:], file["coords"][:]


def trident_loader(job: Path, encoder: str, slide: str):
    """Return features and coords with the attributes of each."""
    with h5py.File(job / f"features_{encoder}" / f"{slide}.h5", "r") as file:
        features, coords = file["features"], file["coords"]
        return features[:], dict(features.attrs), coords[:], dict(coords.attrs)


def names(root: Path) -> dict[str, str]:
    with (root / "slide_ids.csv").open(encoding="utf-8") as handle:
        return {row["slide_id"]: row["name"] for row in csv.DictReader(handle)}


def test_a_clam_loader_reads_what_is_exported(store, tmp_path):
    root = tmp_path / "clam"
    outcomes = {o.slide_id: o for o in export_archive(store, root, "clam")}
    assert outcomes["glass"].status == "empty"
    assert names(root) == {s: o.name for s, o in outcomes.items() if s != "glass"}
    for slide_id in IDS:
        name, ours = names(root)[slide_id], store.read(slide_id)
        tensor, features, coords = clam_loader(root, name)
        assert (type(tensor), tensor.dtype) == (torch.Tensor, torch.float32)
        np.testing.assert_array_equal(tensor.numpy(), ours.features.astype(np.float32))
        assert (features.dtype, coords.dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(features, ours.features.astype(np.float32))
        np.testing.assert_array_equal(coords, ours.xy0)
        with h5py.File(root / "h5_files" / f"{name}.h5") as file:
            assert file["features"].chunks == (32, 5)
            assert [len(item.attrs) for item in (file, *file.values())] == [0, 0, 0]
            assert set(file) == {"features", "coords"}
        with h5py.File(root / "patches" / f"{name}.h5") as file:
            data = file["coords"]
            assert (data.dtype, data.chunks, data.maxshape) == (np.int64, (32, 2), (None, 2))
            assert set(data.attrs) == {
                "patch_size",
                "patch_level",
                "downsample",
                "downsampled_level_dim",
                "level_dim",
                "name",
                "save_path",
            }
            assert data.attrs["patch_size"] * data.attrs["downsample"][0] == 512
            assert tuple(data.attrs["level_dim"]) == (6000, 5000)
            np.testing.assert_array_equal(data[:], ours.xy0)


def test_a_trident_loader_reads_what_is_exported(store, tmp_path):
    root = tmp_path / "trident"
    list(export_archive(store, root, "trident"))
    job = root / "20x_256px_0px_overlap"
    for slide_id in IDS:
        name, ours = names(root)[slide_id], store.read(slide_id)
        features, of_features, coords, said = trident_loader(job, "timm-vit-x", name)
        assert features.dtype == np.float16
        np.testing.assert_array_equal(features, ours.features)
        assert coords.dtype == np.int64
        np.testing.assert_array_equal(coords, ours.xy0)
        assert set(of_features) == {"name", "savetodir", "encoder"}
        assert of_features["encoder"] == "timm-vit-x"
        assert said == {
            "patch_size": 256,
            "patch_size_level0": 512,
            "level0_magnification": 40,
            "target_magnification": 20,
            "overlap": 0,
            "name": name,
            "savetodir": job.name,
            "level0_width": 6000,
            "level0_height": 5000,
        }
        with h5py.File(job / "patches" / f"{name}_patches.h5") as file:
            assert file["coords"].chunks == (1, 2)
            assert dict(file["coords"].attrs) == said
            np.testing.assert_array_equal(file["coords"][:], ours.xy0)


@pytest.mark.parametrize("layout", ["clam", "trident"])
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_export_and_import_give_the_same_bags(tmp_path, layout, precision):
    store = create_store(tmp_path / "bags")
    for seed, slide_id in enumerate(IDS):
        store.put(bag(slide_id, seed, precision))
    list(export_archive(store, tmp_path / "theirs", layout))
    back = create_store(tmp_path / "back")
    archive = open_archive(layout, tmp_path / "theirs", Given("x" if layout == "clam" else None))
    outcomes = list(import_archive(archive, back))
    assert {o.status for o in outcomes} == {"imported"}
    assert back.ids() == sorted(IDS)
    for slide_id in IDS:
        ours, theirs = store.read(slide_id), back.read(slide_id)
        np.testing.assert_array_equal(theirs.features, ours.features)
        np.testing.assert_array_equal(theirs.xy0, ours.xy0)
        assert theirs.provenance.tiling["resolved"]["size0"] == [512, 512]


@pytest.mark.parametrize("layout", ["clam", "trident"])
def test_what_was_exported_is_kept_and_what_differs_is_written(store, tmp_path, layout):
    root = tmp_path / "theirs"
    assert {o.status for o in export_archive(store, root, layout)} == {"written", "empty"}
    files = sorted(p for p in root.rglob("*") if p.is_file())
    before = {p: p.stat().st_mtime_ns for p in files}
    assert {o.status for o in export_archive(store, root, layout)} == {"kept", "empty"}
    assert {p: p.stat().st_mtime_ns for p in files} == before
    damaged = next(p for p in files if p.stem == "a" and p.suffix == ".h5")
    damaged.write_bytes(damaged.read_bytes()[:-300])
    store.put(bag("site/b", 9))
    statuses = {o.slide_id: o.status for o in export_archive(store, root, layout)}
    assert statuses == {"a": "written", "site/b": "written", "per%2Fcent": "kept", "glass": "empty"}
    again = {p: p.stat().st_mtime_ns for p in files}
    changed = {p.name for p in files if again[p] != before[p]}
    assert all(n.startswith(("a", "site")) for n in changed)


def test_overlap_and_odd_magnifications_are_told(tmp_path):
    store = create_store(tmp_path / "bags")
    store.put(bag("a", 0, mpp=0.4, stride_um=76.8, size0=409.6))
    list(export_archive(store, tmp_path / "t", "trident"))
    job = tmp_path / "t" / "25x_256px_64px_overlap"
    *_, said = trident_loader(job, "timm-vit-x", "a")
    assert (said["patch_size_level0"], said["overlap"]) == (409.6, 64)
    (outcome,) = export_archive(store, tmp_path / "c", "clam")
    assert "no patches/" in outcome.lacking
    assert not (tmp_path / "c" / "patches").exists()


def test_damaged_bags_and_mixed_folders_are_not_exported(store, tmp_path):
    path = store.root / "a.h5"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BagCorruptError, match=r"a\.h5"):
        list(export_archive(store, tmp_path / "c", "clam"))
    store.put(bag("a", 0, tile_px=512))
    with pytest.raises(BagMismatchError, match="tile_px=512"):
        list(export_archive(store, tmp_path / "c", "clam"))


def test_what_cannot_be_said_is_an_error(tmp_path):
    store = create_store(tmp_path / "bags")
    store.put(bag("a", 0, mpp=None))
    with pytest.raises(ConfigError, match="--mpp"):
        list(export_archive(store, tmp_path / "t", "trident"))
    with pytest.raises(UnknownNameError, match="known"):
        list(export_archive(store, tmp_path / "t", "stamp"))


@pytest.mark.parametrize("layout", ["clam", "trident"])
def test_a_killed_export_leaves_whole_files_and_goes_on(store, tmp_path, layout):
    code = f"""
import os, signal
import h5py
from wsi.bags import open_store
from wsi.bags.foreign import export_archive
real = h5py.File
def killing(path, mode="r", **options):
    if mode == "w" and "site" in str(path):
        real(path, mode).create_dataset("half", data=[1])
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, mode, **options)
h5py.File = killing
list(export_archive(open_store({str(store.root)!r}), {str(tmp_path / "t")!r}, {layout!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    shown = [p for p in (tmp_path / "t").rglob("*.h5") if not p.name.startswith(".tmp-")]
    assert shown
    for path in shown:
        with h5py.File(path) as file:
            assert "half" not in file
    assert {o.status for o in export_archive(store, tmp_path / "t", layout)} >= {"kept", "written"}
    assert not list((tmp_path / "t").rglob(".tmp-*"))
