"""One slide's features as a value, and where they came from."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from wsi.bags.scores import Scores, check_scores
from wsi.errors import BagError
from wsi.files import check_slide_id, sha256_json

SCHEMA = "wsi-bag/2"
READABLE = (SCHEMA, "wsi-bag/1")  # the first had no scores and no list of bad tiles
_KEYED = "wsi-bag/1"  # a format that stores the same features must not change their key
Precision = Literal["float16", "float32"]
Json = dict[str, Any]

_NEEDED = (
    ("slide", "fingerprint"),
    ("tiling", "settings"),
    ("encoder", "fingerprint"),
    ("tissue", "settings"),
)
_BLOCK_BYTES = 1 << 23
_RELEASE = getattr(mmap, "MADV_DONTNEED", None)  # not every system can be told
_PARTS = (*(part for part, _ in _NEEDED), "quality", "pixels")


@dataclass(frozen=True)
class Provenance:
    """What a bag was made from; two bags of equal `key` hold the same features.

    Args:
        slide: `fingerprint` and `mpp`, which enter `key`; whatever else is known of the slide
            (size0, vendor) does not.
        tiling: `settings` (mpp, tile_px, stride_um, min_tissue, max_upsampling), which enter the
            keys, and `resolved` (size0, level, mpp0 ... of this slide), which does not.
        encoder: `Encoder.describe()`, with its `fingerprint`.
        tissue: `settings` (method and parameters), which enter the keys; `mask`, the hash of
            edited shapes, and `overrides`, settings of this slide alone, enter `key` alone: such
            bags belong to the set, so training takes them, and their sidecars say so. Anything
            else enters neither.
        precision: of the stored features.
        quality: `settings` (limits on the scores of tiles), which enter the keys where there are
            any; anything else enters neither.
        pixels: `settings` of what was done to tiles before the encoder, those that are not the
            defaults, which enter the keys; `fitted`, what was found on this slide, does not. Empty
            where tiles went to the encoder as read, as in all bags before there were such steps.

    Raises:
        BagError: a part lacks its fingerprint or settings, or is not JSON.
    """

    slide: Json
    tiling: Json
    encoder: Json
    tissue: Json
    precision: Precision
    quality: Json = field(default_factory=dict)
    pixels: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part, value in _plain_json({part: getattr(self, part) for part in _PARTS}).items():
            object.__setattr__(self, part, value)
        for part, needed in _NEEDED:
            if getattr(self, part).get(needed) in (None, ""):
                raise BagError(
                    f"provenance: {part} has no '{needed}' — give one, it enters the key"
                )
        if self.precision not in get_args(Precision):
            raise BagError(f"provenance: precision {self.precision!r} — use float16 or float32")

    @property
    def key(self) -> str:
        """Return the SHA-256 of everything the features depend on."""
        # The resolution may come from the user's table, so the same file may be tiled anew.
        slide = {"slide": self.slide["fingerprint"], "mpp": self.slide.get("mpp")}
        own: Json = {"mask": self.tissue.get("mask")}
        if self.tissue.get("overrides"):  # absent from the keys of bags written before there were
            own["overrides"] = self.tissue["overrides"]
        return sha256_json({"schema": _KEYED, **slide, **own, **self.recipe})

    @property
    def recipe_key(self) -> str:
        """Return the SHA-256 of the settings alone, equal for all slides of one recipe."""
        return sha256_json(self.recipe)

    @property
    def recipe(self) -> Json:
        """Return the settings that all bags of one set must share."""
        recipe = {
            "tiling": self.tiling["settings"],
            "tissue": self.tissue["settings"],
            "encoder": self.encoder["fingerprint"],
            "precision": self.precision,
        }
        # Left out when empty: the keys of bags made before there were such settings still hold.
        for part in ("quality", "pixels"):
            settings = getattr(self, part).get("settings")
            if settings:
                recipe[part] = settings
        return recipe

    def to_json(self) -> Json:
        """Return the fields as one JSON object."""
        return {part: getattr(self, part) for part in (*_PARTS, "precision")}


@dataclass(frozen=True)
class Bag:
    """One slide's tiles as features.

    Args:
        slide_id: the slide's id.
        features: (N, D) float16 or float32, as `provenance.precision` says; finite.
        xy0: (N, 2) int32, top-left corners (x, y) in level-0 pixels.
        tissue: (N,) float16, tissue fraction of each tile in [0, 1].
        provenance: what the features were made from.
        quality: `blur`, `pen` and `fold` of each tile, float16 (N,) in [0, 1]; None where the
            bag was made without.

    Raises:
        BagError: shapes or types differ from the above, a value is not finite, or N is 0.
    """

    slide_id: str
    features: np.ndarray
    xy0: np.ndarray
    tissue: np.ndarray
    provenance: Provenance
    quality: Scores | None = None

    def __post_init__(self) -> None:
        check_slide_id(self.slide_id)
        n = len(self.features)
        found = [(a.shape, a.dtype.name) for a in (self.features, self.xy0, self.tissue)]
        dim = self.features.shape[1] if self.features.ndim == 2 else 0
        if found != [((n, dim), self.provenance.precision), ((n, 2), "int32"), ((n,), "float16")]:
            raise BagError(
                f"bag {self.slide_id}: features, xy0 and tissue are {found} — expected (N, D) "
                f"{self.provenance.precision}, (N, 2) int32 and (N,) float16"
            )
        if n == 0 or dim == 0:
            raise BagError(f"bag {self.slide_id}: no features — store it with write_empty")
        check_finite(f"bag {self.slide_id}", self.features)
        check_fractions(f"bag {self.slide_id}", self.tissue)
        if self.quality is not None:
            check_scores(f"bag {self.slide_id}", self.quality, n)

    def __len__(self) -> int:
        return len(self.features)


def check_finite(subject: str, features: np.ndarray, row0: int = 0) -> None:
    """Raise BagError, naming count and rows, unless all of `features` (N, D) is finite.

    Args:
        subject: what the message is about.
        features: float16, float32 or float64.
        row0: number of the first row, for the message.
    """
    bad: list[int] = []
    for start, block in blocks(features):
        if block.size and _has_nonfinite(block):
            bad += (start + np.flatnonzero(~np.isfinite(block).all(axis=1))).tolist()
    if bad:
        shown = ", ".join(str(row0 + row) for row in bad[:10]) + (", ..." if len(bad) > 10 else "")
        raise BagError(
            f"{subject}: {len(bad)} rows have NaN or infinite features (rows {shown}) — "
            "look at these tiles, or use precision=float32 if float16 overflowed"
        )


def blocks(array: np.ndarray, rows: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Yield runs of rows, each with the number of its first row.

    Of a mapped file no more than one run stays in memory, however large the file is.
    """
    rows = rows or max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]
        if isinstance(array.base, mmap.mmap) and _RELEASE is not None:
            array.base.madvise(_RELEASE)


def check_fractions(subject: str, tissue: np.ndarray) -> None:
    """Raise BagError unless all of `tissue` lies in [0, 1]."""
    bad = int(np.count_nonzero(~((tissue >= 0) & (tissue <= 1))))
    if bad:
        raise BagError(f"{subject}: {bad} tissue fractions lie outside [0, 1] — check the mask")


def _has_nonfinite(features: np.ndarray) -> bool:
    # An exponent of all ones is infinity or NaN: as whole numbers these are the largest of either
    # sign. Two maxima run as fast as memory does, np.isfinite on float16 ten times as slow.
    bits = 8 * features.dtype.itemsize
    infinity = int(np.array(np.inf, features.dtype).view(f"u{bits // 8}"))
    negative = 1 << (bits - 1)
    signed, unsigned = features.view(f"i{bits // 8}"), features.view(f"u{bits // 8}")
    return bool(signed.max() >= infinity or unsigned.max() >= negative + infinity)


def _plain_json(parts: dict[str, Any]) -> dict[str, Json]:
    for part, value in parts.items():
        if not isinstance(value, dict):
            raise BagError(f"provenance: {part} is {type(value).__name__} — give a dictionary")
    try:
        # Tuples become lists and the caller's dictionaries are let go of, so that a bag reads
        # back equal to what was stored.
        return json.loads(json.dumps(parts, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BagError(f"provenance: not JSON ({error}) — use plain values") from error
