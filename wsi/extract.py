"""Slides to bags: find tissue, lay tiles, read, encode, store. One slide at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wsi.bags import BagInfo, BagStore, Provenance
from wsi.errors import ConfigError, RegionError
from wsi.slides import Slide, SlideInfo, Thumbnail
from wsi.specs import Config, TilingSpec, TissueSpec
from wsi.tiling import TileGrid, make_grid
from wsi.tissue import OwnTissue, TissueMask, find_tissue

if TYPE_CHECKING:
    from wsi.encoders import Encoder, EncoderInfo

DEFAULT_BATCH = 64


@dataclass(frozen=True)
class Tiling:
    """A tiling with `auto` settled: what all slides of one recipe share."""

    mpp: float
    tile_px: int
    stride_um: float | None
    min_tissue: float
    max_upsampling: float


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a bag's features, but for the slide itself.

    Attributes:
        encoder: `Encoder.describe()` at this tiling, with its fingerprint.
    """

    tiling: Tiling
    tissue: TissueSpec
    encoder: dict[str, Any]
    precision: Literal["float16", "float32"]

    @property
    def name(self) -> str:
        """Return the recipe's folder name: encoder, um per pixel and tile edge."""
        encoder = self.encoder["name"].replace("/", "--").replace(":", "-")
        return f"{encoder}_{self.tiling.mpp:g}um_{self.tiling.tile_px}px"

    def provenance(
        self, info: SlideInfo, located: Located | None = None, own: OwnTissue | None = None
    ) -> Provenance:
        """Return what a bag of this slide is made from; its key needs no tissue search.

        Args:
            located: adds what was found; it brings its own `own`.
            own: what this slide has in place of the common tissue settings.
        """
        own = located.own if located else own or OwnTissue()
        slide = {
            "fingerprint": info.fingerprint,
            "mpp": info.mpp,
            "mpp_source": info.mpp_source,
            "vendor": info.vendor,
            "size0": info.size0,
            "bounds0": info.bounds0,
            "magnification": info.magnification,
        }
        tiling: dict[str, Any] = {"settings": asdict(self.tiling)}
        tissue: dict[str, Any] = {"settings": self.tissue.model_dump(mode="json")}
        tissue |= own.provenance(self.tissue)
        if located is not None:
            grid = located.grid
            tiling["resolved"] = {
                "size0": grid.size0,
                "level": grid.level,
                "downsample": info.downsamples[grid.level],
                "upsampling": grid.upsampling,
                "considered": grid.considered,
            }
            tissue["flags"] = located.tissue.flags
        return Provenance(slide, tiling, self.encoder, tissue, self.precision)


@dataclass(frozen=True)
class Located:
    """Where a slide's tissue and tiles are."""

    tissue: TissueMask
    grid: TileGrid
    thumbnail: Thumbnail
    own: OwnTissue = field(default_factory=OwnTissue)


def settle_tiling(spec: TilingSpec, encoder: EncoderInfo) -> Tiling:
    """Return the tiling with `auto` replaced by what the encoder was made for."""
    mpp = encoder.mpp if spec.mpp == "auto" else spec.mpp
    tile_px = encoder.tile_px if spec.tile_px == "auto" else spec.tile_px
    return Tiling(mpp, tile_px, spec.stride, spec.min_tissue, spec.max_upsampling)


def make_recipe(config: Config, encoder: Encoder) -> Recipe:
    """Return the recipe of a configuration with its encoder loaded.

    Raises:
        ConfigError: tiles are smaller than the encoder can take.
    """
    tiling = settle_tiling(config.tiling, encoder.info)
    if tiling.tile_px < encoder.min_tile_px:
        raise ConfigError(
            f"tiling.tile_px={tiling.tile_px} is too small for {encoder.info.name} — "
            f"give at least {encoder.min_tile_px}"
        )
    described = encoder.describe(tiling.tile_px, tiling.mpp)
    return Recipe(tiling, config.tissue, described, config.precision)


def locate(
    slide: Slide, tissue: TissueSpec, tiling: Tiling, own: OwnTissue | None = None
) -> Located:
    """Return the tissue and tiles of a slide.

    Args:
        own: settings of this slide in place of `tissue`, and shapes that change its mask.

    Raises:
        MissingMppError: the slide has no believable resolution.
        NeedsUpsamplingError: it is coarser than the tiling asks for.
        RegionError: its thumbnail cannot be decoded.
    """
    slide.info.check_upsampling(tiling.mpp, tiling.max_upsampling)
    own = own or OwnTissue()
    mask, thumbnail = find_tissue(slide, own.spec or tissue)
    mask = own.edits.apply(mask)
    grid = make_grid(
        slide.info,
        mask.fraction,
        tile_px=tiling.tile_px,
        mpp=tiling.mpp,
        stride_um=tiling.stride_um,
        min_tissue=tiling.min_tissue,
        max_upsampling=tiling.max_upsampling,
    )
    return Located(mask, grid, thumbnail, own)


def embed(
    slide: Slide,
    located: Located,
    encoder: Encoder,
    recipe: Recipe,
    store: BagStore,
    *,
    batch: int = DEFAULT_BATCH,
    on_tiles: Callable[[int], None] = lambda n: None,
) -> BagInfo:
    """Embed a slide's tiles, store the bag and return its sidecar.

    A tile without data is left out and counted as missing. A slide without tiles, or with missing
    ones only, is stored as empty.

    Args:
        batch: tiles per encoder call.
        on_tiles: called with the number of tiles dealt with, for progress.

    Raises:
        RegionError: a tile cannot be decoded; nothing is stored.
        BagError: a feature is not finite; nothing is stored.
    """
    started = time.perf_counter()
    grid, info = located.grid, slide.info
    made = recipe.provenance(info, located)
    counts = {"considered": grid.considered, "planned": len(grid)}
    if not len(grid):
        reason = "no-tissue" if not located.tissue.mask.any() else "no-tile-with-enough-tissue"
        return store.write_empty(info.slide_id, made, reason=reason, counts=counts)
    encoding = 0.0
    with store.writer(info.slide_id, len(grid), encoder.info.dim, made) as writer:
        writer.counts.update(counts)
        for rows, tiles, missing in _batches(slide, grid, batch):
            if missing:
                writer.leave_out(missing, "missing")
            if len(rows):
                before = time.perf_counter()
                features = _features(encoder, tiles)
                encoding += time.perf_counter() - before
                writer.append(features, grid.xy0[rows], grid.tissue[rows])
            on_tiles(len(rows) + missing)
        total = time.perf_counter() - started
        writer.timings.update(encode_s=round(encoding, 3), read_s=round(total - encoding, 3))
    return store.info(info.slide_id)


def _batches(
    slide: Slide, grid: TileGrid, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield rows of the grid, their tiles (k, px, px, 3), and how many more had no data."""
    rows: list[int] = []
    tiles: list[np.ndarray] = []
    missing = 0
    for row, tile in enumerate(slide.read_tiles(map(tuple, grid.xy0), grid.tile_px, grid.mpp)):
        if isinstance(tile, RegionError):
            raise tile
        if tile is None:
            missing += 1
        else:
            rows.append(row)
            tiles.append(tile)
        if len(tiles) == batch:
            yield np.asarray(rows), np.stack(tiles), missing
            rows, tiles, missing = [], [], 0
    if tiles or missing:
        stacked = (
            np.stack(tiles) if tiles else np.empty((0, grid.tile_px, grid.tile_px, 3), np.uint8)
        )
        yield np.asarray(rows, int), stacked, missing


def _features(encoder: Encoder, tiles: np.ndarray) -> np.ndarray:
    import torch

    return encoder.embed(torch.from_numpy(tiles)).cpu().numpy()
