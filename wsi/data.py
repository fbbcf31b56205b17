"""Bags to packed batches: reading, tile draws, order and packing, all from explicit seeds.

Tiles of several bags are laid end to end, so nothing is padded and no mask can be forgotten.
Every draw comes from a generator of (seed, epoch, what is drawn), never from a shared stream, so
the order in which bags are read cannot change a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from wsi.bags import ALL_TILES, TileFilter
from wsi.errors import BagError, BagMismatchError

_ORDER, _TILES = 0, 1  # streams of random numbers within one epoch


class BagLike(Protocol):
    """What is read of a bag: features (N, D); xy0 (N, 2), tissue and scores (N,), each or None."""

    @property
    def features(self) -> Any: ...
    @property
    def xy0(self) -> Any: ...
    @property
    def tissue(self) -> Any: ...
    @property
    def quality(self) -> Any: ...


Reader = Callable[[str], BagLike]
"""A slide id to its bag; the `read` of a bag store is one."""

Draw = Callable[[int, int], np.ndarray | None]
"""(index of the slide, N) to the rows used, or None for all."""


@dataclass(frozen=True)
class ArrayBag:
    """A bag in memory: features (N, D), and xy0 (N, 2), tissue and scores (N,) where known."""

    features: np.ndarray
    xy0: np.ndarray | None = None
    tissue: np.ndarray | None = None
    quality: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class BagBatch:
    """Several bags laid end to end.

    Attributes:
        x: features (sum N, D), float32, or as they are stored where a model widens them.
        offsets: (B + 1,) int64; bag b is rows offsets[b] to offsets[b + 1]. They stay on the
            host, where bags are cut, since reading them back from a device would stall it.
        y: class indices (B,) int64, or None where labels are not known.
        slide_ids: the B ids.
        xy0: top-left corners (sum N, 2) in level-0 px, or None; on the host, too, where grids are
            laid out.
    """

    x: Tensor
    offsets: Tensor
    y: Tensor | None
    slide_ids: tuple[str, ...]
    xy0: Tensor | None = None

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Return the number of tiles of each bag."""
        return tuple(self.offsets.diff().tolist())

    def to(self, device: torch.device | str) -> BagBatch:
        """Return the batch with tiles and labels on `device`.

        From pinned memory they are sent without waiting for them.
        """

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(self, x=self.x.to(device, non_blocking=True), y=moved(self.y))

    def pinned(self) -> BagBatch:
        """Return the batch in memory that an accelerator reads by itself."""

        def held(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.pin_memory()

        return replace(self, x=self.x.pin_memory(), y=held(self.y))


def pack(bags: Sequence[tuple[Any, int | None, str, Any]], *, as_stored: bool = False) -> BagBatch:
    """Return one batch of `bags`, each (features (N, D), y or None, slide_id, xy0 or None).

    Coordinates are kept when every bag has them.

    Args:
        as_stored: leave float16 as it is, half as much to copy, for a model that widens it.

    Raises:
        BagError: a bag is empty or not two-dimensional, or only some bags have labels.
        BagMismatchError: bags differ in D.
    """
    if not bags:
        raise BagError("there is no bag to pack — give at least one")
    x = [_array(features) for features, *_ in bags]
    ids = tuple(slide_id for _, _, slide_id, _ in bags)
    _check_shapes(x, ids)
    labels = [y for _, y, _, _ in bags if y is not None]
    if labels and len(labels) < len(bags):
        raise BagError(
            f"some of {', '.join(ids)} have labels and some have none — give all or none"
        )
    corners = [_tensor(xy0) for *_, xy0 in bags if xy0 is not None]
    sizes = torch.tensor([0, *(len(tiles) for tiles in x)])
    return BagBatch(
        x=_joined(x, as_stored=as_stored),
        offsets=sizes.cumsum(0),
        y=torch.tensor(labels, dtype=torch.int64) if labels else None,
        slide_ids=ids,
        xy0=torch.cat(corners) if len(corners) == len(bags) else None,
    )


def unset(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return a new matrix (rows, width) on the host whose numbers are still to be written.

    NumPy asks for large pages, which torch does not: new memory then costs a fifth, and that is
    most of the time that copying into it takes.
    """
    size = dtype.itemsize
    return torch.from_numpy(np.empty((rows, width * size), np.uint8)).view(dtype)


def _array(values: Any) -> Tensor | np.ndarray:
    return values if isinstance(values, Tensor) else np.asarray(values)


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)  # a memory map is read-only, which torch will not share
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _joined(x: list[Tensor | np.ndarray], *, as_stored: bool) -> Tensor:
    """Return the tiles of all bags as float32, or as float16 where all are and it may stay."""
    held = [tiles for tiles in x if isinstance(tiles, Tensor)]
    narrow = as_stored and all(str(t.dtype) in ("float16", "torch.float16") for t in x)
    dtype = torch.float16 if narrow else torch.float32
    if any(tiles.requires_grad or tiles.device.type != "cpu" for tiles in held):
        return torch.cat([_tensor(tiles) for tiles in x]).to(dtype)
    rows = [len(tiles) for tiles in x]
    joined = unset(sum(rows), x[0].shape[1], dtype)
    for part, tiles in zip(joined.split(rows), x, strict=True):
        if isinstance(tiles, np.ndarray):
            np.copyto(part.numpy(), tiles, casting="same_kind")
        else:
            part.copy_(tiles)
    return joined


def _check_shapes(x: list[Tensor | np.ndarray], ids: tuple[str, ...]) -> None:
    for tiles, slide_id in zip(x, ids, strict=True):
        if tiles.ndim != 2:
            raise BagError(f"{slide_id}: features must be (N, D), not {tuple(tiles.shape)}")
        if len(tiles) == 0:
            raise BagError(f"{slide_id}: the bag has no tile — leave the slide out")
        if tiles.shape[1] != x[0].shape[1]:
            raise BagMismatchError(
                f"{slide_id} has {tiles.shape[1]} features per tile, {ids[0]} has "
                f"{x[0].shape[1]} — use bags of one encoder"
            )


class CachedReader:
    """A reader that keeps bags in memory, as they are stored, until `max_bytes` are taken.

    Several data sets may share one, such as the parts of a split.
    """

    def __init__(self, read: Reader, max_bytes: int) -> None:
        self._read = read
        self._room = max_bytes
        self._kept: dict[str, BagLike] = {}

    def __call__(self, slide_id: str) -> BagLike:
        """Return the bag of `slide_id`, from memory when it is there."""
        if slide_id in self._kept:
            return self._kept[slide_id]
        bag = self._read(slide_id)
        parts = (bag.features, bag.xy0, bag.tissue, *(bag.quality or {}).values())
        size = sum(np.asarray(part).nbytes for part in parts if part is not None)
        if size <= self._room:
            self._room -= size
            self._kept[slide_id] = bag
        return bag


class BagDataset:
    """Slides in a fixed order, read when needed, with labels or without.

    Args:
        read: slide id to bag.
        slide_ids: distinct ids.
        y: class index per slide, or None: then batches carry no labels.
        tiles: which tiles of each bag are used.
    """

    def __init__(
        self,
        read: Reader,
        slide_ids: Sequence[str],
        y: Sequence[int] | np.ndarray | None = None,
        *,
        tiles: TileFilter = ALL_TILES,
    ) -> None:
        if y is not None and len(y) != len(slide_ids):
            raise BagError(f"{len(slide_ids)} slides have {len(y)} labels — give one per slide")
        if len(set(slide_ids)) < len(slide_ids):
            raise BagError("a slide id stands twice in the data set — list each slide once")
        self.slide_ids = tuple(slide_ids)
        self.y = None if y is None else np.asarray(y, dtype=np.int64)
        self._read = read
        self._filter = tiles

    def __len__(self) -> int:
        return len(self.slide_ids)

    def unlabelled(self) -> BagDataset:
        """Return the same slides without labels: what prediction gets to see."""
        return BagDataset(self._read, self.slide_ids, tiles=self._filter)

    def tiles(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return features (N, D) and xy0 (N, 2) or None of the tiles used of one slide.

        Raises:
            BagError: no tile is left, or tissue fractions or scores are needed and absent.
        """
        slide_id = self.slide_ids[index]
        bag = self._read(slide_id)
        features = np.asarray(bag.features)
        xy0 = None if bag.xy0 is None else np.asarray(bag.xy0)
        keep = self._filter.kept(slide_id, bag)
        if keep is not None:
            features, xy0 = features[keep], None if xy0 is None else xy0[keep]
        if len(features) == 0:
            raise BagError(
                f"{slide_id}: no tile is left by {self._filter} — loosen it or leave the slide out"
            )
        return features, xy0

    def batch(self, indices: Iterable[int], draw: Draw | None = None) -> BagBatch:
        """Return slides packed, each with the rows that `draw` picks, or with all its tiles."""
        return pack([self.bag(index, draw) for index in indices])

    def bag(
        self, index: int, draw: Draw | None = None
    ) -> tuple[np.ndarray, int | None, str, np.ndarray | None]:
        """Return what `pack` takes of one slide, with the rows that `draw` picks or all tiles."""
        features, xy0 = self.tiles(index)
        rows = None if draw is None else draw(index, len(features))
        if rows is not None:
            features, xy0 = features[rows], None if xy0 is None else xy0[rows]
        y = None if self.y is None else int(self.y[index])
        return features, y, self.slide_ids[index], xy0


def from_arrays(
    features: Mapping[str, np.ndarray], y: Sequence[int] | np.ndarray | None = None
) -> BagDataset:
    """Return a data set of feature arrays (N, D) held in memory, by slide id."""
    bags = {slide_id: ArrayBag(array) for slide_id, array in features.items()}
    return BagDataset(bags.__getitem__, list(bags), y)


def training_steps(
    dataset: BagDataset,
    *,
    bags_per_step: int,
    max_tiles: int | None,
    most_tiles: int,
    seed: int,
    epoch: int,
) -> Iterator[tuple[BagBatch, ...]]:
    """Yield the steps of one epoch in a shuffled order, each as one or more packed pieces.

    Args:
        dataset: the bags; each comes once.
        bags_per_step: bags of one step; the last has what remains.
        max_tiles: tiles drawn of each bag, anew every epoch; all where it has no more.
        most_tiles: of one piece; a bag with more is a piece by itself.
        seed: of the order and the draws.
        epoch: number of the epoch, which decides both beside the seed.
    """

    def draw(index: int, n: int) -> np.ndarray | None:
        if max_tiles is None or n <= max_tiles:
            return None
        generator = _generator(seed, epoch, _TILES, index)
        return np.sort(generator.choice(n, size=max_tiles, replace=False))

    order = _generator(seed, epoch, _ORDER).permutation(len(dataset)).tolist()
    for start in range(0, len(order), bags_per_step):
        bags = (dataset.bag(index, draw) for index in order[start : start + bags_per_step])
        yield tuple(_pieces(bags, most_tiles))


def whole_bags(dataset: BagDataset, most_tiles: int = 0) -> Iterator[BagBatch]:
    """Yield every bag with all its tiles, in the order of the data set.

    Args:
        most_tiles: pack bags while they have no more tiles together; by default each comes alone,
            and its result then does not depend, to the last bit, on its neighbours.
    """
    return _pieces((dataset.bag(index) for index in range(len(dataset))), most_tiles)


def _pieces(
    bags: Iterable[tuple[Any, int | None, str, Any]], most_tiles: int
) -> Iterator[BagBatch]:
    """Yield bags in their order, packed while they have no more than `most_tiles` together."""
    packed: list[tuple[Any, int | None, str, Any]] = []
    tiles = 0
    for bag in bags:
        if packed and tiles + len(bag[0]) > most_tiles:
            yield pack(packed, as_stored=True)
            packed, tiles = [], 0
        packed.append(bag)
        tiles += len(bag[0])
    if packed:
        yield pack(packed, as_stored=True)


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([seed % 2**64, *stream])  # seed sequences take no negatives
