"""Bags as people have them, in memory or in a store, to what the loop reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi.bags import StoredBag
from wsi.data import ArrayBag, BagDataset, BagLike, CachedReader
from wsi.errors import BagError, BagMismatchError, ConfigError

CACHE_BYTES = 4 << 30


@dataclass(frozen=True)
class Bags:
    """Bags by name, read when needed.

    Attributes:
        names: distinct; a slide id, or `bag 0`, `bag 1` ... where there is none.
        owners: what is one sample of tissue where no groups are given: a bag that is given twice
            has one owner.
        recipe: of stored bags; empty where it is unknown.
    """

    names: tuple[str, ...]
    owners: tuple[str, ...]
    recipe: str
    _held: dict[str, StoredBag | BagLike]

    @staticmethod
    def of(bags: Any) -> Bags:
        """Return bags given as a sequence of arrays (N, D), tensors, bag objects or stored bags.

        Raises:
            ConfigError: what is given is no sequence of bags.
            BagError: a bag is empty or no matrix of numbers.
            BagMismatchError: stored bags are of several recipes.
        """
        given = _sequence(bags)
        owners = tuple(getattr(bag, "slide_id", f"bag {k}") for k, bag in enumerate(given))
        names = _distinct(owners)
        held = {name: _held(name, bag) for name, bag in zip(names, given, strict=True)}
        return Bags(names, owners, _recipe(held), held)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def dim(self) -> int:
        """Return the features per tile of the first bag, D."""
        return int(np.shape(self._read(self.names[0]).features)[1])

    def dataset(self, rows: Sequence[int], y: Sequence[int] | None, dim: int) -> BagDataset:
        """Return the data set of some bags, each of which must have `dim` features per tile.

        Raises:
            BagMismatchError: a bag in memory has not; one of a store is found out when read.
        """
        for row in rows:
            bag = self._held[self.names[row]]
            if not isinstance(bag, StoredBag):
                _check_dim(self.names[row], bag, dim)

        def read(name: str) -> BagLike:
            bag = self._read(name)
            _check_dim(name, bag, dim)
            return bag

        return BagDataset(CachedReader(read, CACHE_BYTES), [self.names[row] for row in rows], y)

    def _read(self, name: str) -> BagLike:
        bag = self._held[name]
        return bag.read() if isinstance(bag, StoredBag) else bag


def _sequence(bags: Any) -> list[Any]:
    if isinstance(bags, str | bytes | dict) or not hasattr(bags, "__len__"):
        raise ConfigError(
            f"bags are a sequence of arrays (N, D), or wsi.StoredBags, not {type(bags).__name__}"
        )
    if hasattr(bags, "features"):
        raise ConfigError("one bag is given where a sequence is needed — write [bag]")
    given = [bags[k] for k in range(len(bags))]
    if not given:
        raise ConfigError("there is no bag — give at least one")
    return given


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, those that come again with a number behind."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} (given {seen[name]} times)")
    return tuple(found)


def _held(name: str, bag: Any) -> StoredBag | BagLike:
    if isinstance(bag, StoredBag):
        return bag
    if hasattr(bag, "features"):
        _check_shape(name, np.shape(bag.features))
        return bag
    return ArrayBag(_array(name, bag))


def _array(name: str, bag: Any) -> np.ndarray:
    """Return the features (N, D) of one bag, of a type that torch knows."""
    if hasattr(bag, "detach"):
        bag = bag.detach().cpu()
        bag = bag.float() if bag.is_floating_point() and bag.element_size() < 4 else bag
    array = np.asarray(bag)
    if array.dtype.kind not in "fiub":
        raise BagError(f"{name}: features of type {array.dtype} — give numbers (N, D)")
    _check_shape(name, array.shape)
    known = array.dtype.kind == "f" and array.dtype.itemsize <= 8 and array.dtype.isnative
    return array if known else array.astype(np.float32)


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or not shape[1]:
        raise BagError(
            f"{name}: features of shape {shape} — each bag is (N, D), N tiles of D features"
        )
    if not shape[0]:
        raise BagError(f"{name}: the bag has no tile — leave it out")


def _check_dim(name: str, bag: BagLike, dim: int) -> None:
    found = np.shape(bag.features)[1]
    if found != dim:
        raise BagMismatchError(
            f"{name} has {found} features per tile where {dim} belong — use bags of one encoder"
        )


def _recipe(held: dict[str, StoredBag | BagLike]) -> str:
    found = {bag.recipe_key for bag in held.values() if isinstance(bag, StoredBag)}
    if len(found) > 1:
        raise BagMismatchError(
            f"the bags are of {len(found)} recipes (encoder, resolution, tissue ...) — use bags "
            "of one store"
        )
    return found.pop() if found else ""
