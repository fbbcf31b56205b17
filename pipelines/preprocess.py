"""`wsi preprocess`: slides to bags, slide by slide; a bad slide never stops the run."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.colour import Colours, write_colour_strip
from pipelines.console import Console, Tracker, counted
from pipelines.contact_sheet import write_sheet
from pipelines.lesions import Regions, read_lesions, report_lesions
from pipelines.overlay import draw_tissue, draw_unusable, show_left_out, write_located
from pipelines.own import check_own, own_tissue, tell_edited_in_place
from pipelines.quarantine import Entry, failed, read_quarantine, write_quarantine
from pipelines.slides_csv import Surveyed
from pipelines.survey import (
    SETTLING,
    listed_slides,
    note_lines,
    survey,
    tell_passed_over,
    unresolved_lines,
)
from pipelines.tilecounts import bad_line, fates, refuse_bad, tiles_line, tiles_result
from pipelines.workers import check_device, processes, reading_threads
from wsi.bags import create_store
from wsi.encoders import Encoder, encoder_info, load_encoder
from wsi.errors import (
    BadTilesError,
    BagError,
    BagMismatchError,
    ConfigError,
    NeedsUpsamplingError,
    RegionError,
    SlideError,
    WsiError,
)
from wsi.extract import Located, Recipe, Tiling, embed, locate, make_recipe, settle_tiling
from wsi.findings import few
from wsi.pixels import PixelPlan, fit_pixels, plan_pixels
from wsi.slides import Slide, open_slide
from wsi.specs import Config
from wsi.tissue import METHODS, OwnTissue

Until = Literal["tissue", "tiles", "bags"]

_SAMPLE = 40  # slides whose tissue is looked for in a dry run; the rest is extrapolated
_TRANSIENT = (
    "no-mpp",
    "implausible-mpp",
    "open-failed",
    "unsupported-format",
    "missing-file",
    "io-error",
    SETTLING,
)


@dataclass(frozen=True)
class Options:
    """What the command line decides beside the settings."""

    slides: tuple[Path, ...]
    out: Path
    jobs: int = 1
    device: str = "cpu"
    until: Until = "bags"
    dry_run: bool = False
    redo: bool = False
    retry_quarantined: bool = False
    allow_quarantined: str = "0"
    settle: float = 0.0
    max_bad_tiles: int = 0
    lesions: Path | None = None
    sheet: str = "report"  # file name of the contact sheet, without its suffix


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


def run(config: Config, options: Options, console: Console) -> int:
    """Return 0 when every slide is done or empty, 3 when some are quarantined."""
    check_device(options.device)
    allowed_quarantined(options.allow_quarantined, 0)
    METHODS.check(config.tissue.method.name, config.tissue.method.params)
    pixels = plan_pixels(config.pixels)
    encoder_info(config.encoder)
    found = _survey(config, options, console)
    unresolved = [item for item in found if item.status != "ok"]
    check_own(options.out, found, config.tissue, console)
    lesions = read_lesions(options.lesions, found, console) if options.lesions else {}
    if options.dry_run:
        return _plan(config, options, found, console)
    if config.slides.no_mpp == "stop" and any(i.status.endswith("mpp") for i in unresolved):
        console.warn("stopped before computing, as slides.no_mpp=stop asks")
        return 3
    encoder = load_encoder(config.encoder, options.device) if options.until == "bags" else None
    recipe = make_recipe(config, encoder) if encoder else None
    folder = recipe_folder(options.out, recipe.name, config.store) if recipe else options.out
    work = Work(
        config,
        pixels,
        recipe,
        folder,
        options.out,
        options.device,
        options.until,
        options.max_bad_tiles,
        reading_threads(options.jobs),
    )
    return _Run(work, options, found, console, encoder, lesions).go()


def _survey(config: Config, options: Options, console: Console) -> list[Surveyed]:
    """Return all slides looked at, after saying what is wrong with which."""
    sources = listed_slides(options.slides)
    if not sources.files:
        raise ConfigError(f"no slides below {options.slides[0]} — check the path")
    found = survey(
        sources,
        config.slides,
        console,
        jobs=options.jobs,
        settle=options.settle,
        slides_csv=options.out / "slides.csv",
        keep=not options.dry_run,
    )
    tiling = settle_tiling(config.tiling, encoder_info(config.encoder))
    for line in (*unresolved_lines(found), *too_coarse_lines(found, tiling)):
        console.warn(line)
    for line in note_lines(found):
        console.say(line)
    tell_passed_over(sources, console)
    return found


def is_too_coarse(item: Surveyed, tiling: Tiling) -> bool:
    """Return whether a slide with a resolution is coarser than the tiling allows."""
    if item.status != "ok" or item.info is None:
        return False
    try:
        item.info.check_upsampling(tiling.mpp, tiling.max_upsampling)
    except NeedsUpsamplingError:
        return True
    return False


def too_coarse_lines(found: Sequence[Surveyed], tiling: Tiling) -> list[str]:
    """Return a line that names the slides coarser than the tiling allows, if there are any."""
    ids = [item.file.slide_id for item in found if is_too_coarse(item, tiling)]
    if not ids:
        return []
    which = f"{ids[0]} is" if len(ids) == 1 else f"{len(ids)} slides ({few(ids)}) are"
    return [
        f"needs-upsampling: {which} coarser than tiling.mpp={tiling.mpp:g} — ask for a "
        "coarser tiling.mpp, or allow it with tiling.max_upsampling"
    ]


def recipe_folder(out: Path, recipe: str, store: str) -> Path:
    """Return the folder of a recipe's bags; a second file format gets a folder of its own."""
    folder = out / "bags" / recipe
    try:
        create_store(folder, store)
    except BagMismatchError:
        folder = folder.with_name(f"{recipe}-{store}")
        create_store(folder, store)
    return folder


class _Run:
    """One preprocessing run: what is left to do, doing it, and the account of it."""

    def __init__(
        self,
        work: Work,
        options: Options,
        found: Sequence[Surveyed],
        console: Console,
        encoder: Encoder | None,
        lesions: Regions,
    ) -> None:
        self.work = work
        self.options = options
        self.found = found
        self.console = console
        self.encoder = encoder
        self.lesions = lesions
        self.store = create_store(work.bags, work.config.store) if work.recipe else None
        self.quarantine_csv = options.out / "quarantine.csv"
        self.before = read_quarantine(self.quarantine_csv)
        self.entries: dict[str, Entry] = {}
        self.states = {"done": 0, "empty": 0}
        self.tiles: Counter[str] = Counter()
        self.colours = Colours()

    def go(self) -> int:
        self._refuse_changed_settings()
        self._refuse_bad_tiles()
        todo = list(self._todo())
        kept = sum(self.states.values())
        if kept:
            self.console.say(f"{counted(kept, 'slide')} done already")
        by_id = {item.file.slide_id: item for item in todo}
        if todo:
            self.console.say(f"{counted(len(todo), 'slide')} to do, recipe {self.work.bags.name}")
        tell_edited_in_place(self.options.out, todo, self.console)
        with self.console.progress("tiles", 0) as track:
            tiles = TileCount(track, len(todo))
            for outcome in self._outcomes(todo, tiles):
                self._account(by_id[outcome.slide_id], outcome)
        self._write_quarantine()
        config, jobs = self.work.config, self.options.jobs
        draw_unusable(self.found, self.options.out, config, jobs, self.console)
        sheet = write_sheet(
            self.options.out, config, self.work.tiling, self.store, self.options.sheet
        )
        return self._summary(sheet)

    def _refuse_changed_settings(self) -> None:
        """Stop when done bags were made with other settings than now asked for."""
        if self.store is None or self.work.recipe is None:
            return
        ids = {item.file.slide_id for item in self.found}
        info = next((item.info for item in self.found if item.info and item.info.mpp), None)
        if info is None:
            return
        key = self.work.recipe.provenance(info).recipe_key
        changed = [b for b in self.store.infos() if b.recipe_key != key and b.slide_id in ids]
        if not changed:
            return
        if not self.options.redo:
            names = _differences(
                changed[0].provenance.recipe, self.work.recipe.provenance(info).recipe
            )
            raise ConfigError(
                f"{len(changed)} bags in {self.work.bags} were made with other settings "
                f"({names}) — add --redo to make them again, or give another --out"
            )
        for bag in changed:
            self.store.remove(bag.slide_id)

    def _refuse_bad_tiles(self) -> None:
        """Stop when done bags lack more tiles than now allowed; --redo makes them again.

        With --redo also go the bags that were made before tiles had scores.
        """
        if self.store is None:
            return
        ids = {item.file.slide_id for item in self.found}
        infos = [info for info in self.store.infos() if info.slide_id in ids]
        if not self.options.redo:
            refuse_bad(infos, self.options.max_bad_tiles)
            return
        for info in infos:
            lacking = info.status == "done" and not info.scores
            if lacking or len(info.bad_tiles) > self.options.max_bad_tiles:
                self.store.remove(info.slide_id)

    def _todo(self) -> Iterator[Surveyed]:
        for item in self.found:
            slide_id, info = item.file.slide_id, item.info
            earlier = self.before.get(slide_id)
            if item.status != "ok" or info is None:
                self._quarantine(item, item.status, item.reason)
            elif self._is_done(item):
                continue
            elif earlier and not self._worth_a_retry(earlier, info.fingerprint):
                self.entries[slide_id] = earlier
            else:
                yield item

    def _is_done(self, item: Surveyed) -> bool:
        if self.store is None or self.work.recipe is None or item.info is None:
            return False
        own = own_tissue(self.work.out, item.file, item.info, self.work.config.tissue)
        key = self.work.recipe.provenance(item.info, own=own).key
        if not self.store.holds(item.file.slide_id, key):
            return False
        info = self.store.info(item.file.slide_id)
        self.states[info.status] += 1
        self.tiles.update(fates(info))
        if info.bad_tiles:
            self.console.warn(bad_line(info))
        self.colours.add(info.provenance.pixels.get("fitted", {}).get("colour", ""))
        return True

    def _worth_a_retry(self, earlier: Entry, fingerprint: str) -> bool:
        changed = earlier.fingerprint != fingerprint
        allowed = 0 < earlier.bad_tiles <= self.options.max_bad_tiles
        asked = self.options.retry_quarantined or allowed
        return asked or changed or earlier.reason in _TRANSIENT

    def _outcomes(self, todo: Sequence[Surveyed], tiles: TileCount) -> Iterator[Outcome]:
        if self.options.jobs <= 1 or len(todo) <= 1:
            yield from (one_slide(self.work, item, self.encoder, tiles) for item in todo)
            return
        for outcome in _in_parallel(self.work, todo, self.options.jobs):
            tiles.located(outcome.tiles)
            tiles.read(outcome.tiles)
            yield outcome

    def _account(self, item: Surveyed, outcome: Outcome) -> None:
        if outcome.state in self.states:
            self.states[outcome.state] += 1
            self.tiles.update(outcome.fates)
            if outcome.warning:
                self.console.warn(outcome.warning)
            self.colours.add(outcome.colour)
            if outcome.colour in ("damaged-profile", "not-an-rgb-profile"):
                self.console.warn(
                    f"{outcome.slide_id}: {outcome.colour}: its tiles are left as scanned — "
                    "copy it again from its source, or have its profile mended"
                )
            self.console.detail(f"{outcome.slide_id}: {outcome.state}, {outcome.tiles} tiles")
            if outcome.state == "empty":
                self.console.warn(f"{outcome.slide_id} is empty: {outcome.message}")
        else:
            self._quarantine(item, outcome.state, outcome.message, outcome.bad_tiles)
            if outcome.state != NeedsUpsamplingError.reason:  # the survey has named these
                self.console.warn(f"{outcome.slide_id}: {outcome.state}: {outcome.message}")
        self._write_quarantine()

    def _quarantine(self, item: Surveyed, reason: str, message: str, bad_tiles: int = 0) -> None:
        slide_id = item.file.slide_id
        fingerprint = item.info.fingerprint if item.info else ""
        earlier = self.before.get(slide_id)
        if earlier and reason in _TRANSIENT and earlier.reason == reason:
            self.entries[slide_id] = earlier  # looked at again, but nothing was tried
            return
        self.entries[slide_id] = failed(
            earlier, slide_id, item.file.path.name, reason, message, fingerprint, bad_tiles
        )

    def _write_quarantine(self) -> None:
        waiting = {i: e for i, e in self.before.items() if i not in self.entries}
        ids = {item.file.slide_id for item in self.found}
        others = {i: e for i, e in waiting.items() if i not in ids}
        entries = others | self.entries
        if entries or self.quarantine_csv.exists():
            write_quarantine(self.quarantine_csv, entries)

    def _summary(self, sheet: Path) -> int:
        done, empty, bad = self.states["done"], self.states["empty"], len(self.entries)
        text = f"{counted(len(self.found), 'slide')}: {done} done, {empty} empty, {bad} quarantined"
        self.console.say(text)
        if self.work.until != "tissue":
            self.console.say(tiles_line(done + empty, self.tiles))
        if self.colours:
            self.console.say(str(self.colours))
        if self.work.until == "bags":
            self.console.say(f"bags: {self.work.bags}")
        self.console.say(f"report: {sheet}")
        if bad:
            self.console.say(f"quarantined: {self.quarantine_csv}")
        result = {
            "total": len(self.found),
            "done": done,
            "empty": empty,
            "quarantined": bad,
            "tiles": tiles_result(self.tiles),
            "bags": str(self.work.bags) if self.work.recipe else None,
            "report": str(sheet),
        }
        if self.colours:
            result["colour"] = self.colours.counts
        if self.lesions:
            result["lesions"] = self._lesions()
        self.console.result(result)
        allowed = allowed_quarantined(self.options.allow_quarantined, len(self.found))
        return 3 if bad > allowed else 0

    def _lesions(self) -> dict[str, Any]:
        out, tiling = self.options.out, self.work.tiling
        found, failed = self.found, self.entries
        return report_lesions(self.lesions, found, out, tiling, self.store, self.console, failed)


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
                show_left_out(work.out, slide, config.tissue, located, embedded)
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
    write_located(work.out, slide, common, located)
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
        _encoder = load_encoder(work.config.encoder, work.device)


def _in_worker(work: Work, item: Surveyed) -> Outcome:
    return one_slide(work, item, _encoder)


def _in_parallel(work: Work, todo: Sequence[Surveyed], jobs: int) -> Iterator[Outcome]:
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


def allowed_quarantined(text: str, total: int) -> int:
    """Return how many quarantined slides `N` or `P%` allow.

    Raises:
        ConfigError: it is neither.
    """
    try:
        if text.endswith("%"):
            return int(float(text[:-1]) / 100 * total)
        return int(text)
    except ValueError:
        raise ConfigError(f"--allow-quarantined {text}: give a number, or a share as 5%") from None


def _plan(config: Config, options: Options, found: Sequence[Surveyed], console: Console) -> int:
    """Say what a run would do; nothing is written."""
    encoder = encoder_info(config.encoder)
    tiling = settle_tiling(config.tiling, encoder)
    usable = [item for item in found if item.status == "ok" and not is_too_coarse(item, tiling)]
    sample = usable[:: max(1, len(usable) // _SAMPLE)]
    counts = []
    with console.progress("looking for tissue", len(sample)) as track:
        for item in sample:
            try:
                path, slide_id, mpp = item.file.path, item.file.slide_id, item.file.mpp
                with open_slide(path, slide_id, mpp=mpp, spec=config.slides) as slide:
                    own = own_tissue(options.out, item.file, slide.info, config.tissue)
                    counts.append(len(locate(slide, config.tissue, tiling, own).grid))
            except WsiError as error:
                console.warn(f"{item.file.slide_id}: {error}")
            track.advance()
    tiles = round(statistics.mean(counts) * len(usable)) if counts else 0
    size = tiles * (encoder.dim * (2 if config.precision == "float16" else 4) + 10)
    about = "" if len(sample) == len(usable) else f" (from {len(sample)} slides looked at)"
    console.say(
        f"would embed {counted(len(usable), 'slide')}, "
        f"{'about ' if about else ''}{counted(tiles, 'tile')}{about}, "
        f"{size / 1e9:.3g} GB, with {encoder.name} at {tiling.mpp:g} um/px, {tiling.tile_px} px"
    )
    console.say(f"unresolved: {len(found) - len(usable)}; nothing was written")
    console.result(
        {
            "slides": len(usable),
            "unresolved": len(found) - len(usable),
            "tiles": tiles,
            "bytes": size,
        }
    )
    return 3 if len(usable) < len(found) else 0


def _differences(old: dict, new: dict) -> str:
    """Return the settings that differ, old -> new."""
    pairs = []
    for part in ("tiling", "tissue", "quality", "pixels"):
        before, after = old.get(part, {}), new.get(part, {})
        pairs += [
            f"{part}.{key} {before.get(key)} -> {after.get(key)}"
            for key in before | after
            if before.get(key) != after.get(key)
        ]
    if old["encoder"] != new["encoder"]:
        pairs.append("another version of the encoder")
    if old["precision"] != new["precision"]:
        pairs.append(f"precision {old['precision']} -> {new['precision']}")
    return ", ".join(pairs) or "unknown"
