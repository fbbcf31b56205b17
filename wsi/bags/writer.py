"""Collects one slide's rows outside of memory and publishes them when complete."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from wsi.bags.bag import Bag, Json, Provenance, check_finite, check_fractions
from wsi.bags.scores import SCORES, check_scores
from wsi.errors import BagError
from wsi.files import TEMPORARY_PREFIX, check_slide_id, disk_errors, file_name_of

if TYPE_CHECKING:
    from wsi.bags.base import BagStore

DROPPED = "dropped-"
"""How the counts of tiles begin that a limit on a score left out, such as `dropped-blur`."""

_SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)


class BagWriter:
    """Takes one slide's rows in pieces; the bag exists when the with-block ends normally.

    Rows wait in a nameless file of the store's folder: memory stays flat for any slide, and a
    killed process leaves nothing. Fill `counts`, `timings`, `versions` and
    `bad_tiles` before the block ends. Where every row was left out, the slide is stored as empty.

    Raises:
        BagError: at the end, when fewer or more rows came than planned.
    """

    def __init__(self, store: BagStore, slide_id: str, n: int, dim: int, made: Provenance) -> None:
        check_slide_id(slide_id)
        if n < 1 or dim < 1:
            raise BagError(f"bag {slide_id}: {n} x {dim} features — store it with write_empty")
        self.counts: dict[str, int] = {"planned": n}
        self.timings: dict[str, float] = {}
        self.versions: dict[str, str] = {}
        self.bad_tiles: list[Json] = []
        self._store = store
        self._slide_id = slide_id
        self._subject = f"bag {slide_id}"
        self._expected = n
        self._dim = dim
        self._provenance = made
        self._rows = 0
        self._xy0: list[np.ndarray] = []
        self._tissue: list[np.ndarray] = []
        self._scores: list[Mapping[str, np.ndarray] | None] = []
        self._max_rel_error: float | None = None

    def __enter__(self) -> BagWriter:
        self._store.root.mkdir(parents=True, exist_ok=True)
        self._scratch = tempfile.TemporaryFile(prefix=TEMPORARY_PREFIX, dir=self._store.root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._scratch:
            if kind is None:
                self._commit()

    def append(
        self,
        features: np.ndarray,
        xy0: np.ndarray,
        tissue: np.ndarray,
        scores: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Add k rows.

        Args:
            features: (k, D) float32 (or float16 when stored as such), finite.
            xy0: (k, 2) integers, top-left corners in level-0 pixels.
            tissue: (k,) tissue fractions in [0, 1].
            scores: `blur`, `pen` and `fold`, (k,) each in [0, 1]; for all rows or for none.

        Raises:
            BagError: a shape, a type or a value is not as said above.
        """
        features, xy0, tissue = np.asarray(features), np.asarray(xy0), np.asarray(tissue)
        self._check_shapes(features, xy0, tissue)
        if scores is not None:
            scores = {name: np.asarray(values, np.float16) for name, values in scores.items()}
            check_scores(self._subject, scores, len(features))
        stored = self._rounded(features)
        self._keep(np.ascontiguousarray(stored))
        self._xy0.append(_int32(self._subject, xy0))
        self._tissue.append(tissue.astype(np.float16))
        self._scores.append(scores)
        self._rows += len(features)

    def leave_out(self, k: int, reason: str) -> None:
        """Announce that `k` of the planned rows will not come, counted under `reason`."""
        self._expected -= k
        self.counts[reason] = self.counts.get(reason, 0) + k

    def rounded_before(self, max_rel_error: float | None) -> None:
        """Say how far at most the rows given in stored precision are from what was computed."""
        if max_rel_error is not None:
            self._max_rel_error = max(self._max_rel_error or 0.0, max_rel_error)

    def _check_shapes(self, features: np.ndarray, xy0: np.ndarray, tissue: np.ndarray) -> None:
        k = len(tissue) if tissue.ndim else 0
        if (features.shape, xy0.shape, tissue.shape) != ((k, self._dim), (k, 2), (k,)):
            raise BagError(
                f"{self._subject}: features {features.shape}, xy0 {xy0.shape}, tissue "
                f"{tissue.shape} — expected (k, {self._dim}), (k, 2), (k,)"
            )
        if self._rows + k > self._expected:
            raise BagError(
                f"{self._subject}: {self._rows + k} rows for {self._expected} planned tiles — "
                "plan n before encoding"
            )
        check_fractions(self._subject, tissue)

    def _rounded(self, features: np.ndarray) -> np.ndarray:
        if features.dtype.name not in ("float32", self._provenance.precision):
            raise BagError(f"{self._subject}: features are {features.dtype.name} — give float32")
        check_finite(self._subject, features, self._rows)
        with np.errstate(over="ignore", under="ignore"):
            stored = features.astype(self._provenance.precision)
        check_finite(self._subject, stored, self._rows)
        if stored.dtype != features.dtype and len(features):
            worst = _relative_error(stored, features)
            self._max_rel_error = max(self._max_rel_error or 0.0, worst)
        return stored

    def _keep(self, stored: np.ndarray) -> None:
        with disk_errors(self._store.root / file_name_of(self._slide_id)):
            self._scratch.write(stored.data)

    def _commit(self) -> None:
        if self._rows != self._expected:
            raise BagError(
                f"{self._subject}: {self._rows} rows came for {self._expected} planned tiles, "
                "nothing was stored — append every tile or leave_out those that failed"
            )
        if self._rows == 0:
            self._store.write_empty(
                self._slide_id,
                self._provenance,
                reason="all-dropped" if self._dropped() else "no-data",
                counts=self.counts,
                timings=self.timings,
                bad_tiles=self.bad_tiles,
            )
            return
        self._scratch.flush()
        shape = (self._rows, self._dim)
        bag = Bag(
            slide_id=self._slide_id,
            features=np.memmap(self._scratch, self._provenance.precision, "r", shape=shape),
            xy0=np.concatenate(self._xy0),
            tissue=np.concatenate(self._tissue),
            provenance=self._provenance,
            quality=self._joined_scores(),
        )
        self._store.put(
            bag,
            counts=self.counts,
            timings=self.timings,
            versions=self.versions,
            max_rel_error=self._max_rel_error,
            bad_tiles=self.bad_tiles,
        )

    def _dropped(self) -> bool:
        return any(n and reason.startswith(DROPPED) for reason, n in self.counts.items())

    def _joined_scores(self) -> dict[str, np.ndarray] | None:
        given = [scores for scores in self._scores if scores is not None]
        if not given:
            return None
        if len(given) < len(self._scores):
            raise BagError(f"{self._subject}: some rows have scores and some none — give all")
        return {name: np.concatenate([scores[name] for scores in given]) for name in SCORES}


def _relative_error(stored: np.ndarray, given: np.ndarray) -> float:
    difference = np.abs(stored.astype(np.float32) - given)
    return float((difference / np.maximum(np.abs(given), _SMALLEST_NORMAL)).max())


def _int32(subject: str, xy0: np.ndarray) -> np.ndarray:
    if xy0.dtype.kind not in "iu":
        raise BagError(f"{subject}: xy0 are {xy0.dtype.name} — give whole level-0 pixels")
    limits = np.iinfo(np.int32)
    if xy0.size and (xy0.min() < limits.min or xy0.max() > limits.max):
        raise BagError(f"{subject}: xy0 exceed int32 — give level-0 pixels")
    return xy0.astype(np.int32)
