"""Bags of a store as a sequence: indexed without reading, read one by one when needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from wsi.bags.base import BagStore
from wsi.bags.packed import PackedCohort
from wsi.bags.select import check_uniform
from wsi.errors import BagMissingError
from wsi.findings import few
from wsi.registry import suggest


@dataclass(frozen=True)
class StoredBag:
    """One bag of a store, not yet read.

    Attributes:
        recipe_key: of the settings that made it, which all bags of one model share.
    """

    slide_id: str
    recipe_key: str
    store: BagStore | PackedCohort = field(repr=False, compare=False)

    def read(self) -> Any:
        """Return the bag: features (N, D), xy0 (N, 2), tissue and scores (N,)."""
        return self.store.read(self.slide_id)


class StoredBags(Sequence[StoredBag]):
    """Bags of a store in the order given, as scikit-learn takes them: nothing is read here.

    A whole number gives one bag; a slice, whole numbers or a mask give the bags they choose.

    Args:
        store: from `open_store`, or a packed cohort.
        ids: slide ids; all bags of the store, sorted, when not given.

    Raises:
        BagMissingError: an id has no bag.
        BagMismatchError: the bags are of different recipes.
    """

    def __init__(self, store: BagStore | PackedCohort, ids: Iterable[str] | None = None) -> None:
        known = store.ids()
        self.ids = tuple(known if ids is None else ids)
        _refuse_unknown(store, self.ids, known)
        self.store = store
        self.recipe_key = _recipe_key(store, self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[StoredBag]:
        return (StoredBag(slide_id, self.recipe_key, self.store) for slide_id in self.ids)

    @overload
    def __getitem__(self, index: int) -> StoredBag: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> StoredBags: ...
    def __getitem__(self, index: Any) -> StoredBag | StoredBags:
        if isinstance(index, int | np.integer):
            return StoredBag(self.ids[index], self.recipe_key, self.store)
        if isinstance(index, slice):
            return self._of(self.ids[index])
        return self._of(np.asarray(self.ids, dtype=object)[np.asarray(index)].tolist())

    def __repr__(self) -> str:
        return f"StoredBags({len(self)} bags of {self.store.root.name})"

    def _of(self, ids: Iterable[str]) -> StoredBags:
        """Return a view of some of these bags, which need no second check."""
        view = object.__new__(StoredBags)
        view.ids, view.store, view.recipe_key = tuple(ids), self.store, self.recipe_key
        return view


def _refuse_unknown(store: BagStore | PackedCohort, ids: Sequence[str], known: list[str]) -> None:
    missing = sorted(set(ids) - set(known))
    if missing:
        raise BagMissingError(
            f"{len(missing)} of {len(ids)} slides have no bag in {store.root}: {few(missing)}"
            f"{suggest(missing[0], known)} — run `wsi preprocess` for them, or leave them out"
        )


def _recipe_key(store: BagStore | PackedCohort, ids: Sequence[str]) -> str:
    if isinstance(store, PackedCohort):
        return store.recipe_key
    chosen = set(ids)
    return check_uniform(info for info in store.infos() if info.slide_id in chosen)
