"""The work of preprocessing on one slide, in a child process: all that touches the slide itself."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.colour import write_colour_strip
from pipelines.overlay import draw_tissue, show_left_out, write_located
from pipelines.own import own_tissue
from pipelines.slides_csv import Surveyed
from wsi.bags import STORES, BagStore
from wsi.errors import BadTilesError, NeedsUpsamplingError, RegionError, ResourceError, SlideError
from wsi.extract import DEFAULT_BATCH, BagPlan, Located, Recipe, Tiling, locate, plan_bag
from wsi.files import sha256_file
from wsi.pixels import PixelPlan, PixelSteps, fit_pixels
from wsi.prepared import Preparation
from wsi.slides import Slide, open_slide
from wsi.specs import Config
from wsi.supervision import Channel
from wsi.tissue import OwnTissue

Until = Literal["tissue", "tiles", "bags"]
NO_SPACE = "no-space"
"""State of a slide whose outputs could not be written: nothing is wrong with it."""
READ = "read"
"""State of a slide whose tiles have all been handed over: its bags are not made yet."""


@dataclass(frozen=True)
class Outcome:
    """How one slide ended: `done`, `empty`, or a quarantine reason with its message.

    Attributes:
        fates: tiles by what became of them, see `pipelines.tilecounts`.
        warning: which tiles of a bag could not be decoded; empty where all could.
        bad_tiles: how many tiles could not be decoded where that is why it failed.
        spent: seconds by kind of work.
        trace: of an error that nobody foresaw.
        bytes, files: of the bags made.
    """

    slide_id: str
    state: str
    message: str = ""
    tiles: int = 0
    fates: Mapping[str, int] = field(default_factory=dict)
    warning: str = ""
    bad_tiles: int = 0
    colour: str = ""
    spent: Mapping[str, float] = field(default_factory=dict)
    trace: str = ""
    bytes: int = 0
    files: int = 0


@dataclass(frozen=True)
class Target:
    """A recipe and the folder its bags go to."""

    recipe: Recipe
    bags: Path


@dataclass(frozen=True)
class Work:
    """What a process needs to read slides.

    Attributes:
        targets: what bags are made, all of one tiling; none where bags are not asked for.
        threads: that decode side by side.
    """

    config: Config
    pixels: PixelPlan
    tiling: Tiling
    targets: tuple[Target, ...]
    out: Path
    until: Until
    max_bad_tiles: int = 0
    threads: int = 1

    @property
    def slot_bytes(self) -> int:
        """Return how much shared memory the tiles of a part need."""
        return DEFAULT_BATCH * self.tiling.tile_px**2 * 3

    def store(self, k: int = 0) -> BagStore:
        """Return the store of a target, whose folder is there and of this format."""
        # Not by create_store: it reads every sidecar, and this is asked for every slide.
        return STORES.load(self.config.store)(self.targets[k].bags)


@dataclass(frozen=True)
class Found:
    """Sent by a child when tissue and tiles of a slide are known: how many tiles it has."""

    tiles: int


@dataclass(frozen=True)
class Planned:
    """Sent before the tiles of a slide: what the bags of the targets wanted will hold."""

    plans: tuple[BagPlan, ...]


def read_slide(
    channel: Channel, work: Work, item: Surveyed, path: Path, wanted: tuple[int, ...]
) -> Outcome:
    """Take one slide as far as its tiles; whatever is wrong with it is the outcome, no error.

    Args:
        path: where to read it, which may be a copy.
        wanted: numbers of the targets whose bags are to be made.
    """
    cv2.setNumThreads(work.threads)
    try:
        with open_slide(
            path,
            item.file.slide_id,
            mpp=item.file.mpp,
            spec=work.config.slides,
            half_dct=work.config.pixels.half_dct,
            threads=work.threads,
        ) as slide:
            return _Reading(channel, work, item, slide).take(wanted)
    except BadTilesError as error:
        return Outcome(item.file.slide_id, error.reason, str(error), bad_tiles=error.bad)
    except SlideError as error:
        return Outcome(item.file.slide_id, error.reason, str(error))
    except ResourceError as error:
        return Outcome(item.file.slide_id, NO_SPACE, str(error))
    except OSError as error:
        if error.filename and Path(error.filename) != path:
            raise  # about the outputs
        reason = f"{path.name} cannot be read ({error.strerror}) — check the file and its disk"
        return Outcome(item.file.slide_id, "io-error", reason)


class _Reading:
    """One slide on its way from file to tiles."""

    def __init__(self, channel: Channel, work: Work, item: Surveyed, slide: Slide) -> None:
        self._channel = channel
        self._work = work
        self._slide = slide
        self._slide_id = item.file.slide_id
        self._started = time.perf_counter()
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._own = own_tissue(work.out, item.file, slide.info, work.config.tissue)

    def take(self, wanted: tuple[int, ...]) -> Outcome:
        """Return how far the slide came."""
        work, slide = self._work, self._slide
        if work.until == "tissue":
            found = draw_tissue(work.out, slide, work.config.tissue, self._own)
            return self._outcome("done" if found else "empty", "" if found else _NOTHING)
        located = _locate(work, slide, self._own)
        n = len(located.grid)
        self._channel.send(Found(n))
        steps = fit_pixels(slide, located.tissue, located.grid, work.pixels)
        if work.pixels.changes_colour and n:
            write_colour_strip(work.out, slide, located.grid, steps)
        self._spent["locate"] = time.perf_counter() - self._started
        if work.until == "tiles":
            _refuse_unreadable(slide, located, work.max_bad_tiles)
            outcome = self._outcome("done" if n else "empty", "" if n else _NOTHING)
            return replace(outcome, tiles=n, fates={"tiles": n}, colour=_colour(steps))
        self._hand_over(located, steps, wanted)
        return replace(self._outcome(READ), colour=_colour(steps))

    def _hand_over(self, located: Located, steps: PixelSteps, wanted: tuple[int, ...]) -> None:
        """Send the plan of each bag, then the tiles that any of them lacks."""
        work, slide, grid = self._work, self._slide, located.grid
        known = self._hashed()
        plans = [
            plan_bag(slide, located, work.targets[k].recipe, work.store(k), steps, known)
            for k in wanted
        ]
        self._channel.send(Planned(tuple(plans)))
        if not len(grid):
            return
        lacking = np.any([plan.held < 0 for plan in plans], axis=0)
        fresh, kept = np.flatnonzero(lacking), ~lacking
        limits = work.config.quality.limits
        tiles = Preparation(
            slide,
            grid,
            limits,
            plans[0].rule,
            steps,
            DEFAULT_BATCH,
            work.max_bad_tiles,
            self._place,
            self._spent,
        )
        file_s = slide.file_s  # tissue was looked for before
        for part in tiles.parts(fresh, int(kept.sum())):
            if len(part.rows):
                self._channel.send_slot(replace(part, tiles=None))
            else:
                self._channel.send(part)
            kept[part.rows] = True
        self._spent["read"] = slide.file_s - file_s
        self._spent["decode"] = max(0.0, slide.decoding_s - self._spent["read"])
        self._spent["resize"] = slide.resizing_s
        if not kept.all():
            tissue = work.config.tissue
            show_left_out(work.out, slide, tissue, located, work.tiling, grid.xy0[kept])

    def _hashed(self) -> dict[str, str]:
        """Return the hash of the whole slide file, where it is asked for."""
        if not self._work.config.slides.sha256:
            return {}
        before = time.perf_counter()
        known = {"sha256": sha256_file(self._slide.info.path)}
        self._spent["hash"] = time.perf_counter() - before
        return known

    def _place(self, shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        size = int(np.prod(shape))
        return self._channel.slot()[:size].reshape(shape)

    def _outcome(self, state: str, message: str = "") -> Outcome:
        self._spent["slide"] = time.perf_counter() - self._started
        return Outcome(self._slide_id, state, message, spent=dict(self._spent))


_NOTHING = "no tissue was found"


def _colour(steps: PixelSteps) -> str:
    return steps.record.get("colour", "")


def _locate(work: Work, slide: Slide, own: OwnTissue) -> Located:
    """Return tissue and tiles, drawn and written; where no tiles can be laid, tissue is drawn."""
    common = work.config.tissue
    try:
        located = locate(slide, common, work.tiling, own)
    except NeedsUpsamplingError:
        draw_tissue(work.out, slide, common, own)
        raise
    write_located(work.out, slide, common, located, work.tiling)
    return located


def _refuse_unreadable(slide: Slide, located: Located, max_bad_tiles: int) -> None:
    """Raise RegionError where a thumbnail already shows what reading the tiles would find."""
    if "unreadable" in located.tissue.flags and not max_bad_tiles:
        raise RegionError(
            f"{slide.info.path.name}: parts of it cannot be decoded — copy it again from its "
            "source, or leave such tiles out with --max-bad-tiles"
        )
