"""Small archives written as each tool describes its own files, by h5py and torch alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

DIM = 6


@dataclass(frozen=True)
class Tiles:
    """What one slide of an archive holds."""

    features: np.ndarray
    xy0: np.ndarray


def tiles(seed: int, n: int = 40, dtype: str = "float32", step: int = 512) -> Tiles:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, DIM)).astype(dtype)
    grid = np.stack(np.meshgrid(np.arange(7), np.arange(7)), -1).reshape(-1, 2)[:n] * step + 100
    return Tiles(features, grid.astype(np.int64))


def write_clam(
    root: Path, slides: dict[str, Tiles], *, coords: bool = True, kind: str = "h5", **more: Any
) -> Path:
    """Write `h5_files/` or `pt_files/`, and `patches/` where `coords`."""
    for name, given in slides.items():
        if kind in ("h5", "both"):
            path = root / "h5_files" / f"{name}.h5"
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                shape = (None, given.features.shape[1])
                file.create_dataset(
                    "features",
                    data=given.features.astype(np.float32),
                    chunks=(32, DIM),
                    maxshape=shape,
                )
                file.create_dataset("coords", data=given.xy0.astype(np.int32))
        if kind in ("pt", "both"):
            import torch

            (root / "pt_files").mkdir(parents=True, exist_ok=True)
            torch.save(torch.from_numpy(given.features), root / "pt_files" / f"{name}.pt")
        if coords:
            write_clam_coords(root / "patches" / f"{name}.h5", given, **more)
    return root


def write_clam_coords(
    path: Path, given: Tiles, patch_size: int = 256, level: int = 1, downsample: float = 2.0
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "coords", data=given.xy0, chunks=(32, 2), maxshape=(None, 2), dtype="int64"
        )
        data.attrs["patch_size"] = patch_size
        data.attrs["patch_level"] = level
        data.attrs["downsample"] = (downsample, downsample)
        data.attrs["downsampled_level_dim"] = (2500, 2000)
        data.attrs["level_dim"] = (5000, 4000)
        data.attrs["name"] = path.stem
        data.attrs["save_path"] = "patches"


def write_trident(
    root: Path,
    slides: dict[str, Tiles],
    *,
    encoder: str = "uni_v1",
    size0: float = 512,
    patches: bool = True,
) -> Path:
    """Write `20x_256px_0px_overlap/features_<encoder>/` and `patches/`."""
    job = root / "20x_256px_0px_overlap"
    for name, given in slides.items():
        said = {
            "patch_size": 256,
            "patch_size_level0": size0,
            "level0_magnification": 40,
            "target_magnification": 20,
            "overlap": 0,
            "name": name,
            "savetodir": str(job),
            "level0_width": 6000,
            "level0_height": 5000,
            "resolution": "None",
        }
        path = job / f"features_{encoder}" / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            data = file.create_dataset(
                "features", data=given.features, chunks=(1, given.features.shape[1])
            )
            data.attrs.update({"name": name, "savetodir": str(job), "encoder": encoder})
            coords = file.create_dataset("coords", data=given.xy0, chunks=(1, 2), dtype="int64")
            coords.attrs.update(said)
        if patches:
            plan = job / "patches" / f"{name}_patches.h5"
            plan.parent.mkdir(exist_ok=True)
            with h5py.File(plan, "w") as file:
                file.create_dataset(
                    "coords", data=given.xy0, chunks=(1, 2), dtype="int64"
                ).attrs.update(said)
    return job


def write_stamp(root: Path, slides: dict[str, Tiles], mpp0: float = 0.25) -> Path:
    """Write `uni-0123abcd/<path>.h5` with micrometres of slides of `mpp0`."""
    folder = root / "uni-0123abcd"
    for name, given in slides.items():
        path = folder / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["coords"] = (given.xy0 * mpp0).astype(np.float32)
            file["feats"] = given.features.astype(np.float16)
            file.attrs["stamp_version"] = "2.3.0"
            file.attrs["extractor"] = "uni"
            file.attrs["unit"] = "um"
            file.attrs["tile_size_um"] = 256.0
            file.attrs["tile_size_px"] = 224
            file.attrs["code_hash"] = "0123abcd"
            file.attrs["feat_type"] = "tile"
    return root


def write_atlaspatch(
    root: Path,
    slides: dict[str, Tiles],
    *,
    encoders: tuple[str, ...] = ("resnet50",),
    mpp: float = 0.25,
) -> Path:
    """Write `patches/<name>.h5`; features of the k-th encoder are those given plus k."""
    for name, given in slides.items():
        path = root / "patches" / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        n = len(given.features)
        with h5py.File(path, "w") as file:
            more = np.tile([512, 512, 0], (n, 1))
            file["coords"] = np.hstack([given.xy0, more]).astype(np.int32)
            file["passports"] = np.full(n, b"tile", "S160")
            for k, encoder in enumerate(encoders):
                file.create_dataset(
                    f"features/{encoder}",
                    data=given.features + k,
                    chunks=(8, DIM),
                    maxshape=(None, DIM),
                )
            file.attrs.update(
                {
                    "patch_size": 256,
                    "patch_size_level0": 512,
                    "level0_magnification": 40,
                    "target_magnification": 20,
                    "overlap": 0,
                    "level0_width": 6000,
                    "level0_height": 5000,
                    "wsi_path": f"{name}.svs",
                    "num_patches": n,
                    "creation_date": "2026-01-01",
                    "mpp": mpp,
                    "vendor": "aperio",
                }
            )
    return root


@pytest.fixture(scope="session")
def archives() -> SimpleNamespace:
    """What writes archives: `tiles`, and one writer for each layout."""
    return SimpleNamespace(
        tiles=tiles,
        clam=write_clam,
        clam_coords=write_clam_coords,
        trident=write_trident,
        stamp=write_stamp,
        atlaspatch=write_atlaspatch,
    )
