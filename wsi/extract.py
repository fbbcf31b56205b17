"""Slides to bags: find tissue, lay tiles, read, encode, store. One slide at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import openslide

from wsi.bags import (
    DROPPED,
    BagInfo,
    BagStore,
    BagWriter,
    Interleaved,
    Provenance,
    beyond,
    earlier_rows,
)
from wsi.errors import BadTilesError, ConfigError
from wsi.pixels import PixelPlan, PixelSteps, fit_pixels, plan_pixels
from wsi.quality import FoldRule, fold_rule, tile_scores
from wsi.slides import Slide, SlideInfo, Thumbnail
from wsi.specs import Config, QualitySpec, TilingSpec, TissueSpec
from wsi.tile_batches import TileBatch, tile_batches
from wsi.tiling import TileGrid, make_grid
from wsi.tissue import OwnTissue, TissueMask, recipe_of

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
    quality: QualitySpec = field(default_factory=QualitySpec)
    pixels: PixelPlan = field(default_factory=PixelPlan)

    @property
    def name(self) -> str:
        """Return the recipe's folder name: encoder, um per pixel and tile edge."""
        encoder = self.encoder["name"].replace("/", "--").replace(":", "-")
        return f"{encoder}_{self.tiling.mpp:g}um_{self.tiling.tile_px}px"

    def provenance(
        self,
        info: SlideInfo,
        located: Located | None = None,
        own: OwnTissue | None = None,
        steps: PixelSteps | None = None,
    ) -> Provenance:
        """Return what a bag of this slide is made from; its key needs no tissue search.

        Args:
            located: adds what was found; it brings its own `own`.
            own: what this slide has in place of the common tissue settings.
            steps: adds what its pixel steps were fitted to.
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
            "icc": info.icc,
            "icc_sha256": info.icc_sha256,
            "reader": info.reader,
            "reader_note": info.reader_note,
        }
        tiling: dict[str, Any] = {"settings": asdict(self.tiling)}
        tissue: dict[str, Any] = {"settings": recipe_of(self.tissue)}
        tissue |= own.provenance(self.tissue)
        if located is not None:
            grid = located.grid
            tiling["resolved"] = {
                "size0": grid.size0,
                "level": grid.level,
                "downsample": info.downsamples[grid.level],
                "upsampling": grid.upsampling,
                "considered": grid.considered,
                "edge_tissue": grid.edge_tissue,
            }
            tissue["flags"] = located.tissue.flags
        quality = {"settings": self.quality.model_dump(exclude_none=True)}
        settings = self.pixels.settings
        pixels: dict[str, Any] = {"settings": settings} if settings else {}
        if steps is not None and steps.record:
            pixels["fitted"] = steps.record
        return Provenance(
            slide, tiling, self.encoder, tissue, self.precision, quality=quality, pixels=pixels
        )


@dataclass(frozen=True)
class Located:
    """Where a slide's tissue and tiles are.

    Attributes:
        found: the mask before edits of a person; None where it is `tissue`.
    """

    tissue: TissueMask
    grid: TileGrid
    thumbnail: Thumbnail
    own: OwnTissue = field(default_factory=OwnTissue)
    found: TissueMask | None = None


def settle_tiling(spec: TilingSpec, encoder: EncoderInfo) -> Tiling:
    """Return the tiling with `auto` replaced by what the encoder was made for."""
    mpp = encoder.mpp if spec.mpp == "auto" else spec.mpp
    tile_px = encoder.tile_px if spec.tile_px == "auto" else spec.tile_px
    return Tiling(mpp, tile_px, spec.stride, spec.min_tissue, spec.max_upsampling)


def make_recipe(config: Config, encoder: Encoder) -> Recipe:
    """Return the recipe of a configuration with its encoder loaded.

    Raises:
        ConfigError: tiles are smaller than the encoder can take, or a setting of the pixels' steps
            is wrong.
    """
    tiling = settle_tiling(config.tiling, encoder.info)
    if tiling.tile_px < encoder.min_tile_px:
        raise ConfigError(
            f"tiling.tile_px={tiling.tile_px} is too small for {encoder.info.name} — "
            f"give at least {encoder.min_tile_px}"
        )
    described = encoder.describe(tiling.tile_px, tiling.mpp)
    pixels = plan_pixels(config.pixels)
    return Recipe(tiling, config.tissue, described, config.precision, config.quality, pixels)


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
    found, mask, thumbnail = own.find(slide, tissue)
    grid = make_grid(
        slide.info,
        mask.fraction,
        tile_px=tiling.tile_px,
        mpp=tiling.mpp,
        stride_um=tiling.stride_um,
        min_tissue=tiling.min_tissue,
        max_upsampling=tiling.max_upsampling,
    )
    return Located(mask, grid, thumbnail, own, found)


def embed(
    slide: Slide,
    located: Located,
    encoder: Encoder,
    recipe: Recipe,
    store: BagStore,
    *,
    steps: PixelSteps | None = None,
    batch: int = DEFAULT_BATCH,
    max_bad_tiles: int = 0,
    on_tiles: Callable[[int], None] = lambda n: None,
) -> BagInfo:
    """Embed a slide's tiles, store the bag and return its sidecar.

    Left out and counted are tiles without data (`missing`), tiles that cannot be decoded (`bad`,
    each listed) and tiles above a limit of the recipe (`dropped-blur`, ...). A slide of which no
    tile stays is stored as empty. Tiles that an earlier bag of the slide holds, made the same way,
    are taken from it and counted as `reused`.

    Args:
        steps: the recipe's pixel steps fitted to this slide, where they are known already.
        batch: tiles per encoder call.
        max_bad_tiles: how many tiles may fail to decode.
        on_tiles: called with the number of tiles dealt with, for progress.

    Raises:
        BadTilesError: more tiles than that cannot be decoded, or all that hold data; nothing is
            stored.
        StainFitError: the slide's stains cannot be estimated; nothing is stored.
        BagError: a feature is not finite; nothing is stored.
    """
    started = time.perf_counter()
    grid, info = located.grid, slide.info
    if steps is None:
        steps = fit_pixels(slide, located.tissue, grid, recipe.pixels)
    made = recipe.provenance(info, located, steps=steps)
    counts = {"considered": grid.considered, "planned": len(grid)}
    if not len(grid):
        reason = "no-tissue" if not located.tissue.mask.any() else "no-tile-with-enough-tissue"
        return store.write_empty(info.slide_id, made, reason=reason, counts=counts)
    rule = _fold_rule(located, info, steps)
    made = replace(made, quality=made.quality | {"fold": asdict(rule)})
    earlier = earlier_rows(store, info.slide_id, made, grid.xy0)
    with store.writer(info.slide_id, len(grid), encoder.info.dim, made) as writer:
        writer.counts.update(counts)
        writer.versions.update(_versions())
        rows = Interleaved(writer, earlier, grid.xy0, grid.tissue)
        work = _Embedding(grid, encoder, recipe, rule, steps, writer, rows)
        for part in tile_batches(slide, grid, batch, max_bad_tiles, earlier.fresh):
            work.add(part)
            on_tiles(part.size)
        reused = rows.finish()
        on_tiles(reused)
        work.check(info, reused)
        total = time.perf_counter() - started
        writer.timings.update(
            encode_s=round(work.encoding, 3),
            score_s=round(work.scoring, 3),
            read_s=round(total - work.encoding - work.scoring, 3),
        )
    return store.info(info.slide_id)


def _fold_rule(located: Located, info: SlideInfo, steps: PixelSteps) -> FoldRule:
    # By the mask before edits: a person's outline does not change how a tile of it scores. In the
    # colours of the tiles that are measured by it.
    tissue = located.found or located.tissue
    pixels, mask = steps.to_srgb(located.thumbnail.pixels[None])[0], tissue.mask
    h, w = pixels.shape[:2]
    if mask.shape != (h, w):
        mask = cv2.resize(mask.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST) > 0
    um = located.thumbnail.scale[0] * (info.mpp or (1.0, 1.0))[0]
    return fold_rule(pixels, np.asarray(mask), um)


class _Embedding:
    """One slide's batches on their way into a bag: scored, thinned out, embedded."""

    def __init__(
        self,
        grid: TileGrid,
        encoder: Encoder,
        recipe: Recipe,
        rule: FoldRule,
        steps: PixelSteps,
        writer: BagWriter,
        rows: Interleaved,
    ) -> None:
        self.encoding = 0.0
        self.scoring = 0.0
        self._grid = grid
        self._encoder = encoder
        self._limits = recipe.quality.limits
        self._rule = rule
        self._steps = steps
        self._writer = writer
        self._rows = rows
        self._decoded = 0

    def add(self, part: TileBatch) -> None:
        """Embed what stays of a batch and count the rest."""
        if part.missing:
            self._writer.leave_out(part.missing, "missing")
        if part.bad:
            self._writer.leave_out(len(part.bad), "bad")
            self._writer.bad_tiles += [asdict(bad) for bad in part.bad]
        if part.tiles:
            self._decoded += len(part.tiles)
            self._add_tiles(np.asarray(part.rows), np.stack(part.tiles))

    def _add_tiles(self, rows: np.ndarray, tiles: np.ndarray) -> None:
        tiles = self._steps.to_srgb(tiles)
        before = time.perf_counter()
        scores = tile_scores(tiles, self._grid.mpp, self._rule)
        kept = np.ones(len(rows), bool)
        for name, over in beyond(scores, self._limits).items():
            if over.any():
                self._writer.leave_out(int(over.sum()), DROPPED + name)
            kept &= ~over
        self.scoring += time.perf_counter() - before
        if not kept.any():
            return
        rows, scores = rows[kept], {name: values[kept] for name, values in scores.items()}
        tiles = self._steps.normalise(tiles[kept])
        before = time.perf_counter()
        features = _features(self._encoder, tiles)
        self.encoding += time.perf_counter() - before
        self._rows.append(rows, features, scores)

    def check(self, info: SlideInfo, reused: int) -> None:
        """Refuse a slide of which no tile could be decoded, however many were allowed to fail."""
        bad = len(self._writer.bad_tiles)
        if bad and not self._decoded + reused:
            first = self._writer.bad_tiles[0]["reason"]
            raise BadTilesError(
                f"{info.path.name}: none of its {bad} tiles with data can be decoded, {first} — "
                "copy the slide again from its source",
                0,
            )


def _versions() -> dict[str, str]:
    """Return the versions of what decodes, resizes and encodes tiles."""
    found = {name: version(name) for name in ("simplejpeg", "tifffile", "pillow", "torch", "timm")}
    return found | {"openslide": openslide.__library_version__, "opencv": cv2.__version__}


def _features(encoder: Encoder, tiles: np.ndarray) -> np.ndarray:
    import torch

    return encoder.embed(torch.from_numpy(tiles)).cpu().numpy()
