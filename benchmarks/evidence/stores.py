"""Arrays to what `wsi study` takes: a bag store, a cohort table and, where drawn, a split file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi.bags import Bag, Provenance, create_store
from wsi.files import publish_json, sha256_json

MADE = "made.json"  # written last: what lies beside it is whole


@dataclass(frozen=True)
class Made:
    """A data set on disk.

    Attributes:
        classes: in order.
        settings: what the study needs to know, as `key=value` words.
    """

    root: Path
    classes: tuple[str, ...]
    settings: tuple[str, ...] = ()

    @property
    def cohort(self) -> Path:
        return self.root / "cohort.csv"

    @property
    def bags(self) -> Path:
        return self.root / "bags"

    @property
    def splits(self) -> Path | None:
        path = self.root / "splits.csv"
        return path if path.is_file() else None

    @property
    def is_whole(self) -> bool:
        return (self.root / MADE).is_file()

    def close(self) -> Made:
        """Mark the data set as whole."""
        publish_json(self.root / MADE, {"classes": list(self.classes)})
        return self


def put_bags(root: Path, recipe: str, bags: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write bags (slide_id, features (N, D)) to root/bags/<recipe>; tiles have no place."""
    store = create_store(root / "bags" / recipe)
    for slide_id, features in bags:
        n, dim = features.shape
        xy0 = np.stack([np.arange(n), np.zeros(n)], axis=1).astype(np.int32)
        made = _provenance(recipe, slide_id, dim)
        bag = Bag(slide_id, features.astype(np.float32), xy0, np.ones(n, np.float16), made)
        store.put(bag)


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_cohort(root: Path, ids: Sequence[str], **columns: Sequence[str]) -> None:
    """Write root/cohort.csv, in which every bag is a patient of its own."""
    rows = zip(ids, ids, *columns.values(), strict=True)
    write_rows(root / "cohort.csv", ["slide_id", "patient_id", *columns], rows)


def write_splits(root: Path, folds: Sequence[Mapping[str, Sequence[str]]]) -> None:
    """Write root/splits.csv: ids by part, for each fold."""
    rows = [
        (slide_id, slide_id, fold, part)
        for fold, parts in enumerate(folds)
        for part, ids in parts.items()
        for slide_id in ids
    ]
    write_rows(root / "splits.csv", ["slide_id", "patient_id", "fold", "part"], rows)


def _provenance(recipe: str, slide_id: str, dim: int) -> Provenance:
    # No slide was read: the parts name what stands in for it.
    encoder = {"name": recipe, "dim": dim}
    return Provenance(
        slide={"fingerprint": f"{recipe}/{slide_id}", "mpp": [1.0, 1.0]},
        tiling={
            "settings": {"mpp": 1.0, "tile_px": 16, "stride_um": 16.0, "min_tissue": 0.0},
            "resolved": {"size0": [1.0, 1.0]},
        },
        encoder={**encoder, "fingerprint": sha256_json(encoder)[:16]},
        tissue={"settings": {"method": "none"}},
        precision="float32",
    )
