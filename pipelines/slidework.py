"""The work of preprocessing on one slide, in this process or in others side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.colour import write_colour_strip
from pipelines.console import Tracker
from pipelines.overlay import draw_tissue, show_left_out, write_located
from pipelines.own import own_tissue
from pipelines.slides_csv import Surveyed
from pipelines.tilecounts import bad_line, fates
from pipelines.workers import processes
from wsi.bags import create_store
from wsi.encoders import Encoder, encoder_info, load_encoder
from wsi.errors import BadTilesError, BagError, NeedsUpsamplingError, RegionError, SlideError
from wsi.extract import Located, Recipe, Tiling, embed, locate, settle_tiling
from wsi.pixels import PixelPlan, fit_pixels
from wsi.slides import Slide, open_slide
from wsi.specs import Config
from wsi.tissue import OwnTissue

Until = Literal["tissue", "tiles", "bags"]


@dataclass(frozen=True)
class Outcome:
    """How one slide ended: `done`, `empty`, or a quarantine reason with its message.

    Attributes:
        fates: tiles by what became of them, see `pipelines.tilecounts`.
        warning: which tiles of a bag could not be decoded; empty where all could.
        bad_tiles: how many tiles could not be decoded where that is why it failed.
    """

    slide_id: str
    state: str
    message: str = ""
    tiles: int = 0
    fates: Mapping[str, int] = field(default_factory=dict)
    warning: str = ""
    bad_tiles: int = 0
    colour: str = ""


@dataclass(frozen=True)
class Work:
    """What a process needs to take slides to bags."""

    config: Config
    pixels: PixelPlan
    recipe: Recipe | None
    bags: Path
    out: Path
    device: str
    until: Until
    max_bad_tiles: int = 0
    threads: int = 1

    @property
    def tiling(self) -> Tiling:
        """Return the tiling of the recipe, also where no bags are asked for."""
        if self.recipe is not None:
            return self.recipe.tiling
        return settle_tiling(self.config.tiling, encoder_info(self.config.encoder))


class TileCount:
    """Progress by tiles; a slide not looked at yet counts as the mean of those that were."""

    def __init__(self, track: Tracker, slides: int) -> None:
        self._track = track
        self._slides = slides
        self._seen = 0
        self._tiles = 0

    def located(self, tiles: int) -> None:
        """Note how many tiles one more slide has."""
        self._seen += 1
        self._tiles += tiles
        self._track.expect(round(self._tiles / self._seen * self._slides))

    def read(self, tiles: int) -> None:
        """Count tiles that are dealt with."""
        self._track.advance(tiles)


def one_slide(
    work: Work, item: Surveyed, encoder: Encoder | None, tiles: TileCount | None = None
) -> Outcome:
    """Take one slide as far as asked; whatever is wrong with it is its outcome, not an error."""
    config, slide_id = work.config, item.file.slide_id
    try:
        with open_slide(
            item.file.path,
            slide_id,
            mpp=item.file.mpp,
            spec=config.slides,
            half_dct=config.pixels.half_dct,
            threads=work.threads,
        ) as slide:
            own = own_tissue(work.out, item.file, slide.info, config.tissue)
            if work.until == "tissue":
                found = draw_tissue(work.out, slide, config.tissue, own)
                return Outcome(slide_id, "done" if found else "empty", "no tissue was found")
            located = _locate(work, slide, own)
            if tiles is not None:
                tiles.located(len(located.grid))
            steps = fit_pixels(slide, located.tissue, located.grid, work.pixels)
            colour = steps.record.get("colour", "")
            if work.pixels.changes_colour and len(located.grid):
                write_colour_strip(work.out, slide, located.grid, steps)
            if work.recipe is None or encoder is None:
                _refuse_unreadable(slide, located, work.max_bad_tiles)
                state = "done" if len(located.grid) else "empty"
                n = len(located.grid)
                if tiles is not None:
                    tiles.read(n)
                return Outcome(
                    slide_id, state, "no tissue was found", n, {"tiles": n}, colour=colour
                )
            store = create_store(work.bags, config.store)
            count = tiles.read if tiles is not None else lambda n: None
            info = embed(
                slide,
                located,
                encoder,
                work.recipe,
                store,
                steps=steps,
                max_bad_tiles=work.max_bad_tiles,
                on_tiles=count,
            )
            if info.n < len(located.grid):
                embedded = store.read(slide_id).xy0 if info.n else located.grid.xy0[:0]
                show_left_out(work.out, slide, config.tissue, located, work.tiling, embedded)
            return Outcome(
                slide_id,
                info.status,
                info.reason or "",
                info.n,
                fates(info, just_made=True),
                bad_line(info),
                colour=colour,
            )
    except BadTilesError as error:
        return Outcome(slide_id, error.reason, str(error), bad_tiles=error.bad)
    except SlideError as error:
        return Outcome(slide_id, error.reason, str(error))
    except BagError as error:
        return Outcome(slide_id, "non-finite-embedding", str(error))


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


_encoder: Encoder | None = None  # one per worker process


def _start_worker(work: Work) -> None:
    global _encoder
    if work.recipe is not None:
        import torch

        torch.set_num_threads(1)
        _encoder = load_encoder(work.config.encoder, work.device, work.config.compute)


def _in_worker(work: Work, item: Surveyed) -> Outcome:
    return one_slide(work, item, _encoder)


def in_parallel(work: Work, todo: Sequence[Surveyed], jobs: int) -> Iterator[Outcome]:
    """Yield the outcome of each slide as it comes, by `jobs` processes side by side."""
    with processes(min(jobs, len(todo)), _start_worker, (work,)) as pool:
        futures: dict[Future[Outcome], Surveyed] = {
            pool.submit(_in_worker, work, item): item for item in todo
        }
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:
                yield Outcome(
                    futures[future].file.slide_id,
                    "decoder-crash",
                    "a worker process died while slides were read — rerun with --jobs 1 and "
                    "--retry-quarantined to find the slide",
                )
