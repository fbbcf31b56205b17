"""Slides to bags: find tissue, lay tiles, read, encode, store. One slide at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray

from wsi.bags import BagInfo, BagStore, Interleaved, Provenance, earlier_rows, held_rows
from wsi.errors import BagError, ConfigError
from wsi.pixels import PixelPlan, PixelSteps, fit_pixels, plan_pixels
from wsi.prepared import Preparation, Prepared
from wsi.quality import FoldRule, fold_rule
from wsi.slides import Slide, SlideInfo, Thumbnail
from wsi.specs import Config, QualitySpec, TilingSpec, TissueSpec
from wsi.tiling import TileGrid, make_grid
from wsi.tissue import OwnTissue, TissueMask, recipe_of

if TYPE_CHECKING:
    from wsi.encoders import Encoder, EncoderInfo

DEFAULT_BATCH = 64
_NO_FOLDS = FoldRule(threshold=1.0, um=1.0)  # of a slide without tiles: nothing is above 1


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

    @property
    def settings(self) -> dict[str, Any]:
        """Return what all its bags share, see `Provenance.recipe`."""
        part: dict[str, Any] = {"settings": self.pixels.settings} if self.pixels.settings else {}
        of_any_slide = Provenance(
            {"fingerprint": "any"},
            {"settings": asdict(self.tiling)},
            self.encoder,
            {"settings": recipe_of(self.tissue)},
            self.precision,
            quality={"settings": self.quality.model_dump(exclude_none=True)},
            pixels=part,
        )
        return of_any_slide.recipe

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


@dataclass(frozen=True)
class BagPlan:
    """What a bag will hold, known before the first tile is encoded.

    Attributes:
        made: what it is made from.
        rule: how folds look on this slide.
        held: for each tile, the row of an earlier bag that holds it, -1 where it must be read.
        empty: why there are no tiles; nothing where there are.
    """

    slide_id: str
    grid: TileGrid
    made: Provenance
    rule: FoldRule
    held: NDArray[np.int64]
    empty: str = ""

    @property
    def fresh(self) -> NDArray[np.int64]:
        """Return the tiles that must be read."""
        return np.flatnonzero(self.held < 0)


def plan_bag(
    slide: Slide,
    located: Located,
    recipe: Recipe,
    store: BagStore,
    steps: PixelSteps,
    known: Mapping[str, str] | None = None,
) -> BagPlan:
    """Return what the bag of a slide will hold.

    Args:
        store: where an earlier bag of the slide may lie, whose tiles are used again.
        steps: the recipe's pixel steps fitted to this slide.
        known: what else to record of the slide file, such as its `sha256`.
    """
    grid, slide_id = located.grid, slide.info.slide_id
    made = recipe.provenance(slide.info, located, steps=steps)
    made = replace(made, slide=made.slide | dict(known or {}))
    if not len(grid):
        found = located.tissue.mask.any()
        reason = "no-tile-with-enough-tissue" if found else "no-tissue"
        return BagPlan(slide_id, grid, made, _NO_FOLDS, np.zeros(0, np.int64), reason)
    rule = _fold_rule(located, slide.info, steps)
    made = replace(made, quality=made.quality | {"fold": asdict(rule)})
    held = earlier_rows(store, slide_id, made, grid.xy0).row
    return BagPlan(slide_id, grid, made, rule, held)


def store_empty(store: BagStore, plan: BagPlan) -> BagInfo:
    """Record that a slide has no tile, and why."""
    counts = {"considered": plan.grid.considered, "planned": 0}
    return store.write_empty(plan.slide_id, plan.made, reason=plan.empty, counts=counts)


class BagInProgress:
    """One slide's bag while its parts come in; it exists when `finish` returns.

    A context manager: what was not finished leaves nothing.

    Args:
        dim: width of the features.
    """

    def __init__(self, store: BagStore, plan: BagPlan, dim: int) -> None:
        self.timings: dict[str, float] = {}
        self._store = store
        self._plan = plan
        self._undo = ExitStack()
        grid = plan.grid
        self._writer = self._undo.enter_context(
            store.writer(plan.slide_id, len(grid), dim, plan.made)
        )
        self._writer.counts.update({"considered": grid.considered, "planned": len(grid)})
        self._writer.versions.update(_versions())
        earlier = held_rows(store, plan.slide_id, plan.held)
        self._rows = Interleaved(self._writer, earlier, grid.xy0, grid.tissue)

    def __enter__(self) -> BagInProgress:
        return self

    def __exit__(self, *exc: object) -> None:
        # Without an error of its own the writer would take the rows that came for all of them.
        self._undo.__exit__(BagError, BagError("not finished"), None)

    def add(self, part: Prepared, features: NDArray[np.float32]) -> None:
        """Take the features (k, D) of a part's tiles, and count what was left out of it.

        Raises:
            BagError: a feature is not finite.
        """
        for reason, n in part.left_out.items():
            self._writer.leave_out(n, reason)
        self._writer.bad_tiles += [asdict(bad) for bad in part.bad]
        new = self._plan.held[part.rows] < 0  # a bag of another encoder may lack more than this one
        if new.any():
            scores = {name: values[new] for name, values in part.scores.items()}
            self._rows.append(part.rows[new], features[new], scores)

    def finish(self) -> BagInfo:
        """Publish the bag and return its sidecar; a bag of the same key that is there stays.

        Raises:
            BagError: parts are missing.
        """
        slide_id = self._plan.slide_id
        if not self._store.holds(slide_id, self._plan.made.key):  # else another process was quicker
            self._rows.finish()
            self._writer.timings.update(self.timings)
            self._undo.close()
        return self._store.info(slide_id)


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
    """Embed a slide's tiles in this process, store the bag and return its sidecar.

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
    grid = located.grid
    if steps is None:
        steps = fit_pixels(slide, located.tissue, grid, recipe.pixels)
    plan = plan_bag(slide, located, recipe, store, steps)
    if not len(grid):
        return store_empty(store, plan)
    work = Preparation(slide, grid, recipe.quality.limits, plan.rule, steps, batch, max_bad_tiles)
    encoding = 0.0
    with BagInProgress(store, plan, encoder.info.dim) as bag:
        reused = len(grid) - len(plan.fresh)
        for part in work.parts(plan.fresh, reused):
            before = time.perf_counter()
            features = encode(encoder, part.tiles)
            encoding += time.perf_counter() - before
            bag.add(part, features)
            on_tiles(part.size)
        on_tiles(reused)
        read = time.perf_counter() - started - encoding - work.spent["score"]
        spent = {"encode_s": encoding, "score_s": work.spent["score"], "read_s": read}
        bag.timings.update({name: round(seconds, 3) for name, seconds in spent.items()})
        return bag.finish()


def encode(encoder: Encoder, tiles: NDArray[np.uint8] | None) -> NDArray[np.float32]:
    """Return features (k, D) of uint8 tiles (k, h, w, 3); none of no tiles."""
    import torch

    if tiles is None or not len(tiles):
        return np.zeros((0, encoder.info.dim), np.float32)
    return encoder.embed(torch.from_numpy(tiles)).cpu().numpy()


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


@cache
def _versions() -> dict[str, str]:
    """Return the versions of what decodes, resizes and encodes tiles."""
    found = {name: version(name) for name in ("simplejpeg", "tifffile", "pillow", "torch", "timm")}
    return found | {"openslide": openslide.__library_version__, "opencv": cv2.__version__}
